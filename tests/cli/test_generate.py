from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from command import Command
from PIL import Image

from hwaga.cards import ASSETS
from hwaga.cli.generate import parse_size
from hwaga.errors import SizeError
from hwaga.image_file import read_settings
from hwaga.model_lookup import find_card
from hwaga.tokens import token_counter

HWAGA = [sys.executable, "-c", "from hwaga.cli import main; main()"]
APPLE = "a red apple on a yellow background"
LONG = "word " * 600
TOKENS = token_counter(find_card("mini", Path("nowhere")))(LONG)


def mean_colour(path: Path, box: tuple[int, int, int, int]) -> list[float]:
    return list(np.asarray(Image.open(path).convert("RGB").crop(box), float).mean((0, 1)))


def test_a_picture_shows_what_was_asked_for(hwaga: Command) -> None:
    outcome = hwaga("text2image", APPLE, "--seed", 7, "-o", "apple.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "apple.png\n", "")
    red, green, blue = mean_colour(Path("apple.png"), (2, 2, 30, 30))
    assert red > 200
    assert green > 150
    assert blue < 120  # yellow
    red, green, blue = mean_colour(Path("apple.png"), (108, 110, 148, 150))
    assert red > 150
    assert green < 110
    assert blue < 130  # red


def test_korean_gives_the_same_subject(hwaga: Command) -> None:
    hwaga("text2image", "파란 배경의 고양이", "--seed", 7, "-o", "cat.png")
    red, _, blue = mean_colour(Path("cat.png"), (2, 2, 30, 30))
    assert blue > 180
    assert red < 100
    assert read_settings("cat.png")["request"]["prompt"] == "파란 배경의 고양이"


def test_several_pictures_count_the_seed_up(hwaga: Command) -> None:
    outcome = hwaga("text2image", "a fox", "--seed", 5, "-n", 2, "--steps", 2, "-o", "fox.png")
    assert outcome.out.split() == ["fox-5.png", "fox-6.png"]
    single = hwaga("text2image", "a fox", "--seed", 6, "--steps", 2, "-o", "one.png")
    assert single.code == 0
    assert Path("one.png").read_bytes() == Path("fox-6.png").read_bytes()


def test_pictures_in_a_folder_get_new_names(hwaga: Command) -> None:
    Path("pictures").mkdir()
    first = hwaga("text2image", "여우 / fox?", "--seed", 1, "--steps", 1, "-o", "pictures").out.strip()
    second = hwaga("text2image", "여우 / fox?", "--seed", 1, "--steps", 1, "-o", "pictures").out.strip()
    assert [first, second] == ["pictures/여우-fox-1.png", "pictures/여우-fox-1-2.png"]
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_json_says_everything(hwaga: Command) -> None:
    outcome = hwaga("text2image", "a fox", "--aspect", "16:9", "--steps", 2, "-o", "fox.webp", "--json")
    image = json.loads(outcome.out)["images"][0]
    assert image["path"] == "fox.webp"
    assert (image["request"]["width"], image["request"]["height"], image["request"]["steps"]) == (336, 192, 2)
    assert image["seed"] == image["request"]["seed"]
    assert (image["model"], image["device"], image["dtype"]) == ("mini", "cpu", "float32")
    assert image["seconds"]["total"] > 0
    with Image.open("fox.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (336, 192))


def test_a_shape_in_its_large_size(hwaga: Command) -> None:
    assert hwaga("text2image", "a fox", "--aspect", "9:16 large", "--steps", 1, "-o", "fox.png").code == 0
    with Image.open("fox.png") as picture:
        assert picture.size == (288, 512)


def test_guidance_is_for_models_that_have_it(hwaga: Command, tmp_path: Path) -> None:
    ways = ("--negative", "fog", "--guidance", 3.5, "--sampler", "dpmpp_2m_karras")
    assert "mini draws without guidance and has no negative prompt" in hwaga.refused("text2image", "a fox", *ways)
    folder = pytest.importorskip("sdxl_reference").random_sdxl(tmp_path / "tiny")
    hwaga("text2image", "a fox", "-m", folder, *ways, "--seed", 1, "-o", "fox.png")
    request = read_settings("fox.png")["request"]
    assert (request["negative"], request["guidance"], request["sampler"]) == ("fog", 3.5, "dpmpp_2m_karras")
    hwaga("image2image", "fox.png", "a fox", "-m", folder, "--guidance", 1, "--seed", 1, "-o", "other.png")
    request = read_settings("other.png")["request"]
    assert ("negative" in request, request["guidance"], request["sampler"]) == (False, 1.0, "euler")
    shown = dict(line.split(maxsplit=1) for line in hwaga("show", "fox.png").out.splitlines())
    assert (shown["negative"], shown["guidance"], shown["sampler"]) == ("fog", "3.5", "dpmpp_2m_karras")


def test_image2image_follows_strength(hwaga: Command) -> None:
    hwaga("text2image", "a cat on a blue background", "--seed", 1, "-o", "cat.png")
    for strength in ("0.1", "0.5", "1"):
        done = hwaga("image2image", "cat.png", APPLE, "--strength", strength, "--seed", 2, "-o", f"s{strength}.png")
        assert done.code == 0
    source = np.asarray(Image.open("cat.png"), float)
    far = [np.abs(np.asarray(Image.open(f"s{s}.png"), float) - source).mean() for s in ("0.1", "0.5", "1")]
    assert far[0] < 6
    assert far[0] < far[1] < far[2]


def test_image2image_fits_a_picture_of_any_shape(hwaga: Command) -> None:
    Image.new("RGBA", (400, 100), (255, 0, 0, 128)).save("wide.png")
    assert "no size was given" in hwaga.refused("image2image", "wide.png", "a fox")
    for fit in ("crop", "pad", "stretch"):
        done = hwaga(
            "image2image", "wide.png", "a fox", "--aspect", "1:1", "--fit", fit, "--steps", 1, "-o", f"{fit}.png"
        )
        assert done.code == 0
        assert Image.open(f"{fit}.png").size == (256, 256)
    assert Path("crop.png").read_bytes() != Path("pad.png").read_bytes()
    assert "crop, pad, stretch" in hwaga.refused(
        "image2image", "wide.png", "a fox", "--aspect", "1:1", "--fit", "squeeze"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["text2image", ""], "empty"),
        (["text2image", "  \n"], "empty"),
        (["text2image", LONG], f"{TOKENS} tokens and the limit is 512"),
        (["text2image", LONG, "--max-tokens", "2000"], "takes 960 at most"),
        (["text2image", "a fox", "--size", "250x250"], "256x256"),
        (["text2image", "a fox", "--size", "0x256"], "positive"),
        (["text2image", "a fox", "--size", "-16x256"], "positive"),
        (["text2image", "a fox", "--size", "4096x4096"], "256x256"),
        (["text2image", "a fox", "--size", "big"], "1024x768"),
        (["text2image", "a fox", "--size", "256x256", "--aspect", "1:1"], "not both"),
        (["text2image", "a fox", "--aspect", "2:1"], "16:9"),
        (["text2image", "a fox", "--steps", "0"], "at least 1"),
        (["text2image", "a fox", "--steps", "101"], "100 steps at most"),
        (["text2image", "a fox", "--seed", "-1"], "from 0"),
        (["image2image", "fox.png", "a fox", "--strength", "1e-17", "--steps-scale"], "leaves nothing to do"),
        (["text2image", "a fox", "-n", "0"], "number"),
        (["text2image", "a fox", "-m", "minni"], "Did you mean mini"),
        (["text2image", "a fox", "-m", "z-image-turbo"], "not on this machine"),
        (["text2image", "a fox", "--device", "tpu"], "There is cpu"),
        (["text2image", "a fox", "--dtype", "float16"], "bfloat16, float32"),
        (["text2image", "a fox", "-o", "nowhere/fox.png"], "folder does not exist"),
        (["text2image", "a fox", "-o", "nowhere"], "Create the folder"),
        (["text2image", "a fox", "-o", "fox.gif"], ".webp"),
        (["image2image", "missing.png", "a fox"], "There is no file"),
        (["image2image", "text.png", "a fox"], "not a PNG, JPEG or WebP"),
        (["image2image", "cut.png", "a fox"], "cut off or damaged"),
        (["image2image", "bomb.png", "a fox"], "the most that are read"),
        (["image2image", "fox.png", "a fox", "--strength", "0"], "above 0"),
        (["image2image", "fox.png", "a fox", "--strength", "1.1"], "above 0"),
        (["image2image", "fox.png", "a fox", "--strength", "nan"], "above 0"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(hwaga: Command, arguments: list[str], words: str) -> None:
    picture = Image.effect_noise((256, 256), 50).convert("RGB")
    picture.save("fox.png")
    Path("cut.png").write_bytes(Path("fox.png").read_bytes()[:9000])
    Path("text.png").write_text("<html>")
    header = bytearray(Path("fox.png").read_bytes())
    header[16:24] = (50_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    Path("bomb.png").write_bytes(header)
    before = sorted(Path().iterdir())
    assert words in hwaga.refused(*arguments)
    assert sorted(Path().iterdir()) == before


def test_a_broken_checkpoint_is_named(hwaga: Command) -> None:
    shutil.copytree(ASSETS / "mini", "model")
    os.truncate("model/vae/diffusion_pytorch_model.safetensors", 100_000)
    said = hwaga.refused("text2image", "a fox", "-m", "model", "-o", "fox.png")
    assert "diffusion_pytorch_model.safetensors is truncated" in said
    Path("model/transformer/diffusion_pytorch_model.safetensors").unlink()
    assert "transformer holds no .safetensors" in hwaga.refused("text2image", "a fox", "-m", "model", "-o", "fox.png")
    assert not Path("fox.png").exists()


def test_a_full_disk_leaves_no_half_file(hwaga: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("old.png").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "disk is full" in hwaga.refused("text2image", "a fox", "--steps", "1", "-o", "old.png")
    assert [path.name for path in Path().iterdir()] == ["old.png"]
    assert Path("old.png").read_bytes() == b"old"


def test_control_c_leaves_no_file_and_ends_with_130(tmp_path: Path) -> None:
    command = [*HWAGA, "text2image", "a fox", "--steps", "100", "-o", str(tmp_path / "fox.png")]
    leader, follower = pty.openpty()  # a terminal, so that the bar tells when drawing has begun
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    shown, give_up = b"", time.monotonic() + 120
    while b"Drawing" not in shown and time.monotonic() < give_up:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    assert b"Drawing" in shown
    assert process.returncode == 130
    assert out == b""
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_beside_a_pipe_leaves_the_pipe_the_path(tmp_path: Path) -> None:
    command = [*HWAGA, "text2image", "a fox", "--steps", "1", "-o", str(tmp_path / "fox.png")]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "FORCE_COLOR": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True, check=True)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # the other end is closed, and all has been read
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert done.stdout == f"{tmp_path / 'fox.png'}\n"
    assert b"Drawing" in shown


def test_json_tells_of_what_was_written_before_a_failure(hwaga: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # a picture and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    outcome = hwaga("text2image", "a fox", "--seed", 1, "-n", 2, "--steps", 1, "-o", "fox.png", "--json")
    assert outcome.code == 2
    assert [image["path"] for image in json.loads(outcome.out)["images"]] == ["fox-1.png"]
    assert [path.name for path in Path().iterdir()] == ["fox-1.png"]


def test_a_pipe_gets_no_progress_and_a_closed_one_no_traceback(tmp_path: Path) -> None:
    command = [*HWAGA, "text2image", "a fox", "--steps", "1", "-o", str(tmp_path / "fox.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'fox.png'}\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("text", "size"), [("1024x768", (1024, 768)), (" 64 X 32 ", (64, 32)), ("-1x5", (-1, 5))])
def test_sizes_are_read(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64", "64x", "axb", "64x32x16", "6.5x3"])
def test_other_sizes_are_not(text: str) -> None:
    with pytest.raises(SizeError):
        parse_size(text)


def test_too_little_memory_is_refused(hwaga: Command) -> None:
    said = hwaga.refused("text2image", "a fox", "--device", "cpu", "--ram", "64MiB")
    assert "This needs" in said
    assert "--vram" in hwaga.refused("text2image", "a fox", "--vram", "lots")
    assert "--precision int8" in said
