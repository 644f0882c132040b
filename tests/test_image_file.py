"""Finished pictures: what made them comes back from every format, and a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hwaga import image_file
from hwaga.errors import ImageFileError
from hwaga.image_file import (
    MAX_SETTINGS,
    Format,
    a1111_parameters,
    check_writable,
    encode,
    format_of,
    read_settings,
    write,
)
from hwaga.request import ImageRequest

FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
MADE_WITH = {
    "request": {
        "prompt": '달빛 아래 "고양이"\n<lora:잉크:0.8>, 🎨 café',
        "width": 256,
        "height": 256,
        "seed": 2**32 - 1,
    },
    "model": "mini",
    "device": "cpu",
    "strength": 0.6,
    "nothing": None,
}
PARAMETERS = "달빛 아래 고양이\nSteps: 8, Sampler: Euler, Seed: 5, Version: hwaga 0.1.0"


def picture(size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def encoded(format: Format = "png", **changes: Any) -> bytes:
    return encode(picture(), format, **{"made_with": MADE_WITH, "parameters": PARAMETERS, **changes})


def refusal(call: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(ImageFileError) as caught:
        call(*arguments)
    return str(caught.value)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def png_with(*texts: bytes) -> bytes:
    """A PNG that carries these tEXt payloads."""
    plain = io.BytesIO()
    picture().save(plain, "PNG")
    data = plain.getvalue()
    added = b"".join(
        struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text)) for text in texts
    )
    return data[:33] + added + data[33:]


class TestEncoding:
    @pytest.mark.parametrize("format", FORMATS)
    def test_settings_come_back(self, tmp_path: Path, format: Format) -> None:
        path = tmp_path / "그림"
        path.write_bytes(encoded(format))
        assert read_settings(path) == MADE_WITH

    @pytest.mark.parametrize("format", FORMATS)
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
    @given(
        made_with=st.dictionaries(
            st.text(),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=5,
            ),
        ),
        parameters=st.text(st.characters(exclude_categories=["Cs"])),
    )
    def test_any_settings_come_back(
        self, tmp_path: Path, format: Format, made_with: dict[str, Any], parameters: str
    ) -> None:
        (tmp_path / "a").write_bytes(
            encode(Image.new("RGB", (2, 2)), format, made_with=made_with, parameters=parameters)
        )
        assert read_settings(tmp_path / "a") == made_with

    @pytest.mark.parametrize("format", FORMATS)
    def test_is_the_picture(self, format: Format) -> None:
        with Image.open(io.BytesIO(encoded(format))) as image:
            assert (image.format, image.mode, image.size) == (format.upper(), "RGB", (48, 32))
            pairs = zip(image.tobytes(), picture().tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) <= (0 if format == "png" else 10)

    @pytest.mark.parametrize("format", FORMATS)
    def test_is_deterministic(self, format: Format) -> None:
        assert encoded(format) == encoded(format)

    @pytest.mark.parametrize("format", FORMATS)
    def test_neither_changes_nor_copies_the_pictures_metadata(self, format: Format) -> None:
        image = picture()
        image.info.update(exif=b"Exif\0\0secret", icc_profile=b"secret", comment=b"secret", dpi=(7, 7), xmp=b"secret")
        data = encode(image, format, made_with=MADE_WITH, parameters=PARAMETERS)
        assert data == encoded(format)
        assert b"secret" not in data
        assert image.info["comment"] == b"secret"

    def test_png_texts_lie_before_the_pixels_and_others_read_them(self) -> None:
        kinds = [kind for kind, _ in chunks(encoded())]
        assert kinds == [b"IHDR", b"tEXt", b"iTXt", *[b"IDAT"] * (len(kinds) - 4), b"IEND"]
        with Image.open(io.BytesIO(encoded())) as image:
            assert json.loads(image.info["hwaga"]) == MADE_WITH
            assert image.info["parameters"] == PARAMETERS

    def test_png_text_without_korean_is_plain(self) -> None:
        data = encoded(parameters="a café")
        assert (b"tEXt", b"parameters\0a caf\xe9") in chunks(data)

    @pytest.mark.parametrize("format", ["jpeg", "webp"])
    @pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS + "!"])
    @pytest.mark.parametrize("made_with", [{}, {"a": 1}, {"a": 12}])
    def test_exif_is_read_by_others(self, format: Format, parameters: str, made_with: dict[str, Any]) -> None:
        with Image.open(io.BytesIO(encoded(format, parameters=parameters, made_with=made_with))) as image:
            values = image.getexif().get_ifd(0x8769)
        assert values[0x9286][:8] == b"UNICODE\0"
        assert values[0x9286][8:].decode("utf-16-be") == parameters
        assert json.loads(values[0x927C].removeprefix(b"hwaga\0")) == made_with

    def test_jpeg_keeps_full_colour_resolution(self) -> None:
        with Image.open(io.BytesIO(encoded("jpeg"))) as image:
            assert [sampling[1:3] for sampling in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]

    @pytest.mark.parametrize("format", ["jpeg", "webp"])
    def test_quality_matters(self, format: Format) -> None:
        assert len(encoded(format, quality=20)) < len(encoded(format)) < len(encoded(format, quality=100))
        assert encoded(format, quality=92) == encoded(format)
        for quality in (0, 101, -1):
            assert "quality" in refusal(lambda quality=quality: encoded(format, quality=quality))

    @pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
    def test_other_modes_are_refused(self, mode: str) -> None:
        image = picture().convert(mode)
        assert "RGB" in refusal(lambda: encode(image, "png", made_with={}, parameters=""))

    def test_settings_that_do_not_fit(self, tmp_path: Path) -> None:
        long = {"prompt": "x" * 70_000}
        assert "Save as PNG or WebP" in refusal(lambda: encoded("jpeg", made_with=long))
        for format in ("png", "webp"):
            (tmp_path / "a").write_bytes(encoded(format, made_with=long))
            assert read_settings(tmp_path / "a") == long
        assert "Shorten the prompt" in refusal(lambda: encoded(made_with={"prompt": "x" * MAX_SETTINGS}))

    def test_longest_settings_that_fit_a_jpeg(self, tmp_path: Path) -> None:
        fixed = 6 + 56 + len(b'hwaga\0{"a":""}') + len(b"UNICODE\0")
        longest = {"a": "x" * ((65533 - fixed) // 2 * 2)}
        (tmp_path / "a").write_bytes(encoded("jpeg", made_with=longest, parameters=""))
        assert read_settings(tmp_path / "a") == longest
        refusal(lambda: encoded("jpeg", made_with={"a": longest["a"] + "x"}, parameters=""))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_json_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="JSON"):
            encoded(made_with={"strength": value})


class TestParameters:
    @staticmethod
    def parsed(text: str) -> tuple[str, dict[str, str]]:
        """As AUTOMATIC1111's web UI reads it (modules/infotext_utils.py)."""
        *prompt, last = text.strip().split("\n")
        pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
        return "\n".join(prompt), {name: json.loads(value) if value[:1] == '"' else value for name, value in pairs}

    def test_text_to_image(self) -> None:
        request = ImageRequest("a cat,\non a mat", width=256, height=128, steps=8, seed=5)
        assert a1111_parameters(request, model="mini", version="0.1.0") == (
            "a cat,\non a mat\nSteps: 8, Sampler: Euler, CFG scale: 1, Seed: 5, Size: 256x128, Model: mini, "
            "Version: hwaga 0.1.0"
        )

    def test_guidance_and_what_is_unwanted(self) -> None:
        request = ImageRequest(
            "a cat", negative="fog", guidance=6, sampler="dpmpp_2m_karras", width=256, height=128, steps=8, seed=5
        )
        assert a1111_parameters(request, model="sdxl", version="0.1.0") == (
            "a cat\nNegative prompt: fog\nSteps: 8, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6, Seed: 5, "
            "Size: 256x128, Model: sdxl, Version: hwaga 0.1.0"
        )

    def test_image_to_image_tells_the_strength(self) -> None:
        request = ImageRequest("고양이", width=64, height=64, steps=8, seed=5, image=picture(), strength=0.35)
        prompt, values = self.parsed(a1111_parameters(request, model="mini", version="0.1.0"))
        assert prompt == "고양이"
        assert values["Denoising strength"] == "0.35"

    @pytest.mark.parametrize("model", ["mini", "a, b", 'it: "x"', "화가"])
    def test_names_cannot_add_values(self, model: str) -> None:
        request = ImageRequest("a cat", width=256, height=128, steps=8, seed=5)
        _, values = self.parsed(a1111_parameters(request, model=model, version="0.1.0", cfg_scale=4.5))
        assert values == {
            "Steps": "8",
            "Sampler": "Euler",
            "CFG scale": "4.5",
            "Seed": "5",
            "Size": "256x128",
            "Model": model,
            "Version": "hwaga 0.1.0",
        }


class TestFormatOf:
    @pytest.mark.parametrize(
        ("name", "format"),
        [("a.png", "png"), ("a.JPG", "jpeg"), ("a.b.jpeg", "jpeg"), ("그림.WebP", "webp"), (Path("x/y.png"), "png")],
    )
    def test_by_ending(self, name: str | Path, format: Format) -> None:
        assert format_of(name) == format


class TestWriting:
    def test_writes(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", b"one")
        assert (tmp_path / "a.png").read_bytes() == b"one"
        write(str(tmp_path / "a.png"), b"two")
        assert (tmp_path / "a.png").read_bytes() == b"two"
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_mode_is_that_of_a_new_file(self, tmp_path: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            write(tmp_path / "a.png", b"one")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == mode

    def test_name_may_be_as_long_as_names_can_be(self, tmp_path: Path) -> None:
        longest = "x" * 251 + ".png"
        write(tmp_path / longest, b"one")
        assert (tmp_path / longest).read_bytes() == b"one"
        assert "too long" in refusal(write, tmp_path / ("x" + longest), b"one")
        assert [path.name for path in tmp_path.iterdir()] == [longest]

    def test_disk_has_the_bytes_before_the_name_and_then_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[object] = []
        sync, replace = os.fsync, os.replace

        def seen_sync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            steps.append("folder" if target == tmp_path else (os.fstat(descriptor).st_size, "bytes"))
            sync(descriptor)

        def seen_replace(old: Any, new: Any, **options: Any) -> None:
            steps.append("name")
            assert Path(old).parent == tmp_path
            assert Path(old).name.startswith(".")
            replace(old, new)

        monkeypatch.setattr(os, "fsync", seen_sync)
        monkeypatch.setattr(os, "replace", seen_replace)
        write(tmp_path / "a.png", b"x" * 10_000)
        assert steps == [(10_000, "bytes"), "name", "folder"]

    def test_folder_that_cannot_be_synced_is_no_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sync = os.fsync

        def of_a_network_mount(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", of_a_network_mount)
        write(tmp_path / "a.png", b"one")
        assert (tmp_path / "a.png").read_bytes() == b"one"

    def test_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.png").write_bytes(b"old")
        (tmp_path / "a.png").symlink_to(tmp_path / "real" / "a.png")
        write(tmp_path / "a.png", b"new")
        assert (tmp_path / "a.png").is_symlink()
        assert (tmp_path / "real" / "a.png").read_bytes() == b"new"

    def test_what_is_no_file_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "folder.png").mkdir()
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "link.png").symlink_to("pipe.png")
        for name in ("folder.png", "pipe.png", "link.png"):
            assert "not a file" in refusal(write, tmp_path / name, b"one")
        for name in ("pipe.png", "link.png"):
            assert "not a file" in refusal(check_writable, tmp_path / name)
        assert (tmp_path / "pipe.png").is_fifo()
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("missing/a.png", "its folder does not exist. Create it first"),
            ("file/a.png", "its folder is a file"),
            ("a\0.png", "null"),
            ("\ud800.png", "surrogates"),
            ("loop/a.png", "oop"),
        ],
    )
    def test_impossible_places(self, tmp_path: Path, name: str, words: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert words in refusal(write, tmp_path / name, b"one")
        assert words in refusal(check_writable, tmp_path / name)
        assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (errno.ENOSPC, "the disk is full. Free some space"),
            (errno.EDQUOT, "quota"),
            (errno.EROFS, "read-only"),
            (errno.EACCES, "permission"),
            (errno.EIO, "Input/output error. Choose another folder"),
        ],
    )
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_failure_keeps_the_old_file_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
    ) -> None:
        (tmp_path / "a.png").write_bytes(b"old")

        def failing(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, failing)
        message = refusal(write, tmp_path / "a.png", b"new")
        assert message.startswith(f"'{tmp_path}/a.png' cannot be written: ")
        assert words in message
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
    def test_interruption_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, interruption: type[BaseException]
    ) -> None:
        (tmp_path / "a.png").write_bytes(b"old")

        def interrupted(*_: object, **__: object) -> None:
            raise interruption

        monkeypatch.setattr(os, call, interrupted)
        with pytest.raises(interruption):
            write(tmp_path / "a.png", b"new")
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]

    def test_interruption_at_any_line_leaves_old_or_new(self, tmp_path: Path) -> None:
        """A signal may come between any two lines of ours: raise KeyboardInterrupt at each in turn."""
        path = tmp_path / "a.png"
        code, line_count, outcomes = write.__code__, 0, []

        def interrupt_at(line: int) -> Callable[..., Any]:
            seen = 0

            def trace(frame: Any, event: str, _: object) -> Any:
                nonlocal seen
                if frame.f_code is not code:
                    return None
                if event == "line":
                    seen += 1
                    if seen == line:
                        raise KeyboardInterrupt
                return trace

            return trace

        for line_count in range(1, 40):
            path.write_bytes(b"old")
            previous = sys.gettrace()
            sys.settrace(interrupt_at(line_count))
            try:
                write(path, b"new")
            except KeyboardInterrupt:
                outcomes.append(path.read_bytes())
            else:
                break
            finally:
                sys.settrace(previous)
            assert [each.name for each in tmp_path.iterdir()] == ["a.png"], f"at line {line_count}"
        assert path.read_bytes() == b"new"
        assert set(outcomes) == {b"old", b"new"}

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_file_size_limit_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"old")
        done = self.run(
            """
            import resource, sys
            from hwaga.errors import ImageFileError
            from hwaga.image_file import check_writable, write
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            check_writable(sys.argv[1])
            try:
                write(sys.argv[1], bytes(1_000_000))
            except ImageFileError as error:
                print(error)
            """,
            tmp_path / "a.png",
        )
        assert "larger than this system allows" in done.stdout, done.stderr
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]

    def test_full_disk(self, tmp_path: Path) -> None:
        """On a file system of 64 KiB, where the machine lets us mount one."""
        done = self.run(
            """
            import os, sys
            from textwrap import dedent
            os.makedirs(sys.argv[1])
            script = '''
            mount -t tmpfs -o size=64k none "$1" || exit 77
            exec "$2" -c "$3" "$1"
            '''
            program = '''
            import sys
            from pathlib import Path
            from hwaga.errors import ImageFileError
            from hwaga.image_file import check_writable, write
            folder = Path(sys.argv[1])
            check_writable(folder)
            write(folder / "a.png", bytes(20_000))
            try:
                write(folder / "a.png", bytes(60_000))
            except ImageFileError as error:
                print(error)
            print([(path.name, path.stat().st_size) for path in folder.iterdir()])
            (folder / "filler").write_bytes(bytes(40_000))
            try:
                with (folder / "rest").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(512))
            except OSError:
                pass
            try:
                check_writable(folder)
            except ImageFileError as error:
                print("checked:", error)
            '''
            arguments = ["sh", "-c", dedent(script), "sh", sys.argv[1], sys.executable, dedent(program)]
            os.execvp("unshare", ["unshare", "-rm", *arguments])
            """,
            tmp_path / "full",
        )
        if done.returncode and not done.stdout:
            pytest.skip(f"no mount: {done.stderr.strip()[-100:]}")
        first, listing, checked = done.stdout.splitlines()
        assert "the disk is full" in first
        assert listing == "[('a.png', 20000)]"
        assert checked.startswith("checked: ")
        assert "the disk is full" in checked

    def test_killed_process_leaves_old_or_new(self, tmp_path: Path) -> None:
        """Only the hidden file may stay behind when nothing can run any more."""
        path = tmp_path / "a.png"
        done = self.run(
            """
            import os, sys
            from hwaga.image_file import write
            write(sys.argv[1], b"old")
            os.fsync = lambda _: os.kill(os.getpid(), 9)
            write(sys.argv[1], b"new")
            """,
            path,
        )
        assert done.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"old"
        assert all(each.name.startswith(".hwaga-") for each in tmp_path.iterdir() if each != path)


class TestCheckWritable:
    def test_folder_and_file_in_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "old.jpg").write_bytes(b"old")
        for place in (tmp_path, str(tmp_path), tmp_path / "new.png", tmp_path / "old.jpg"):
            check_writable(place)
        monkeypatch.chdir(tmp_path)
        for place in (".", "new.webp"):
            check_writable(place)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.jpg", b"old")]

    def test_missing_folder_and_unknown_ending(self, tmp_path: Path) -> None:
        for name in ("missing", "a.gif", "missing/"):
            message = refusal(check_writable, f"{tmp_path}/{name}")
            assert "neither a folder that exists nor a file name that ends in .png" in message
        assert "its folder does not exist" in refusal(check_writable, tmp_path / "missing" / "a.png")
        (tmp_path / "file").touch()
        assert "neither" in refusal(check_writable, tmp_path / "file")
        assert "its folder is a file" in refusal(check_writable, tmp_path / "file" / "a.png")

    def test_tries_rather_than_asks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Even root cannot make files here, whatever the permissions say.
        for place in ("/proc", "/proc/a.png"):
            assert "cannot be written" in refusal(check_writable, place)

        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "write_bytes", read_only)
        assert "read-only" in refusal(check_writable, tmp_path)

    def test_folder_without_permission(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("permissions do not stop root")
        tmp_path.chmod(0o555)
        try:
            assert "you may not write there" in refusal(check_writable, tmp_path)
            assert "you may not write there" in refusal(write, tmp_path / "a.png", b"one")
        finally:
            tmp_path.chmod(0o755)


class TestReadingSettings:
    @pytest.mark.parametrize("format", FORMATS)
    def test_picture_without_settings(self, tmp_path: Path, format: Format) -> None:
        path = tmp_path / "cat"
        picture().save(path, format.upper())
        assert "cat carries no Hwaga settings" in refusal(read_settings, path)

    @pytest.mark.parametrize("note", [b"Nikon\0\2\0\0\0", b"hwaga", 7])
    def test_makers_note_of_a_camera(self, tmp_path: Path, note: bytes | int) -> None:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x927C] = note
        picture().save(tmp_path / "cat.jpg", exif=exif)
        assert "carries no Hwaga settings" in refusal(read_settings, tmp_path / "cat.jpg")

    def test_of_another_tool(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png_with(b"parameters\0a cat\nSteps: 8", b"hwagaX\0{}", b"hwaga"))
        assert "carries no Hwaga settings" in refusal(read_settings, tmp_path / "a.png")

    def test_what_is_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "empty.png").touch()
        (tmp_path / "page.png").write_bytes(b"<html>")
        os.mkfifo(tmp_path / "pipe.png")
        assert "There is no file" in refusal(read_settings, tmp_path / "missing.png")
        assert "empty" in refusal(read_settings, tmp_path / "empty.png")
        assert "not a PNG, JPEG or WebP" in refusal(read_settings, tmp_path / "page.png")
        assert "pipe" in refusal(read_settings, tmp_path / "pipe.png")
        assert "folder" in refusal(read_settings, tmp_path)

    @pytest.mark.parametrize("format", FORMATS)
    def test_cut_or_changed_anywhere(self, tmp_path: Path, format: Format) -> None:
        """Never anything but the settings, other settings that a changed byte makes, or a refusal."""
        data = encode(Image.new("RGB", (8, 8)), format, made_with={"seed": 5}, parameters="a")
        path = tmp_path / "a"
        for at in range(len(data)):
            path.write_bytes(data[:at])
            with contextlib.suppress(ImageFileError):
                assert read_settings(path) == {"seed": 5}
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x81]) + data[at + 1 :])
            with contextlib.suppress(ImageFileError):
                assert isinstance(read_settings(path), dict)

    def test_request_can_be_made_again(self, tmp_path: Path) -> None:
        request = ImageRequest("달빛 아래 고양이", width=256, height=256, steps=8, seed=5)
        data = encode(picture(), "webp", made_with={"request": request.to_json()}, parameters="")
        write(tmp_path / "a.webp", data)
        assert ImageRequest.from_json(read_settings(tmp_path / "a.webp")["request"]) == request


def test_every_suffix_is_written_in_its_format(tmp_path: Path) -> None:
    for suffix, format in image_file.SUFFIXES.items():
        path = tmp_path / f"a{suffix}"
        write(path, encoded(format_of(path)))
        with Image.open(path) as image:
            assert image.format == format.upper()


@pytest.mark.parametrize("text", [b'{"a": ', b"[" * 200_000, b'["a"]', b"null", b'"' + b"x" * MAX_SETTINGS + b'"'])
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png_with(b"hwaga\0" + text))
    assert "damaged" in refusal(read_settings, tmp_path / "a.png")
