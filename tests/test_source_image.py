"""Source pictures: every kind of honest file comes out as RGB, and no hostile one gets further than an error."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from hwaga import source_image
from hwaga.errors import SourceImageError
from hwaga.request import ImageRequest
from hwaga.source_image import SourceImage

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="PIL")  # of oddities in files: Pillow's own business
        yield


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(
    width: int, height: int, *, depth: int, colour: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of our own making: ``rows`` are the pixels with a filter byte before each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND")


def exif(orientation: int, order: str = ">") -> bytes:
    head = {">": b"MM\0*", "<": b"II*\0"}[order]
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(f"{order}IH", 8, 1) + entry + struct.pack(f"{order}I", 0)


def noise(size: tuple[int, int] = (17, 11)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


def corners(image: Image.Image) -> list[Any]:
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(point) for point in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(SourceImageError) as caught:
        SourceImage.read(source, **options)
    return str(caught.value)


class TestReading:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "txt"])
    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
    def test_tells_the_format_by_content(self, tmp_path: Path, file_format: str, suffix: str) -> None:
        path = tmp_path / f"고양이.{suffix}"
        path.write_bytes(encoded(Image.new("RGB", (20, 10), (200, 100, 50)), file_format, quality=95))
        source = SourceImage.read(path)
        assert (source.name, source.image.mode, source.image.size) == (path.name, "RGB", (20, 10))
        assert all(abs(a - b) <= 3 for a, b in zip(source.image.getpixel((3, 3)), (200, 100, 50), strict=True))

    def test_path_text_path_object_and_bytes_are_the_same_picture(self, tmp_path: Path) -> None:
        data = encoded(noise())
        path = tmp_path / "cat.png"
        path.write_bytes(data)
        by_path, by_text, by_bytes = SourceImage.read(path), SourceImage.read(str(path)), SourceImage.read(data)
        assert by_path == by_text
        assert by_path.sha256 == by_bytes.sha256 == hashlib.sha256(data).hexdigest()
        assert by_bytes.name == "image"
        assert by_bytes.image.tobytes() == by_path.image.tobytes() == noise().tobytes()

    def test_is_a_value(self) -> None:
        data = encoded(noise())
        assert SourceImage.read(data) == SourceImage.read(data)
        assert hash(SourceImage.read(data)) == hash(SourceImage.read(data))
        assert SourceImage.read(data) != SourceImage.read(encoded(Image.new("RGB", (17, 11))))

    def test_request_reads_it_when_made(self, tmp_path: Path) -> None:
        path = tmp_path / "cat.png"
        path.write_bytes(encoded(noise()))
        request = ImageRequest("a cat", image=path)
        path.unlink()
        assert request.source is not None
        assert request.source.image.tobytes() == noise().tobytes()
        assert request == request.replace(strength=0.6)

    def test_json_names_the_picture(self) -> None:
        source = SourceImage.read(encoded(noise()))
        assert source.to_json() == {"name": "image", "sha256": source.sha256, "width": 17, "height": 11}
        json.dumps(source.to_json())

    def test_carries_no_metadata(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for file_format in ("PNG", "JPEG", "WEBP"):
            data = encoded(noise(), file_format, exif=b"Exif\0\0" + exif(1), icc_profile=profile)
            assert SourceImage.read(data).image.info == {}

    def test_leaves_no_file_open(self, tmp_path: Path) -> None:
        (tmp_path / "good.png").write_bytes(encoded(noise()))
        (tmp_path / "bad.png").write_bytes(encoded(noise())[:60])
        os.mkfifo(tmp_path / "pipe")
        before = len(list(Path("/proc/self/fd").iterdir()))
        SourceImage.read(tmp_path / "good.png")
        refusal(tmp_path / "bad.png")
        refusal(tmp_path / "pipe")
        refusal(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


class TestOrientation:
    # How a camera stores the upright picture, from the EXIF standard's table of where row 0 and column 0 lie.
    STORED: ClassVar[dict[int, Callable[[Image.Image], Image.Image]]] = {
        1: lambda upright: upright,
        2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda upright: upright.rotate(180),
        4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda upright: upright.rotate(90, expand=True).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        6: lambda upright: upright.rotate(90, expand=True),
        7: lambda upright: upright.rotate(-90, expand=True).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        8: lambda upright: upright.rotate(-90, expand=True),
    }

    @staticmethod
    def upright() -> Image.Image:
        image = Image.new("RGB", (48, 32), RED)
        image.paste(GREEN, (24, 0, 48, 16))
        image.paste(BLUE, (0, 16, 24, 32))
        image.paste(YELLOW, (24, 16, 48, 32))
        return image

    @pytest.mark.parametrize("order", [">", "<"])
    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_is_applied(self, orientation: int, file_format: str, order: str) -> None:
        stored = self.STORED[orientation](self.upright())
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[file_format]
        data = encoded(stored, file_format, exif=b"Exif\0\0" + exif(orientation, order), **options)
        image = SourceImage.read(data).image
        assert image.size == (48, 32)
        for found, meant in zip(corners(image), (RED, GREEN, BLUE, YELLOW), strict=True):
            assert all(abs(a - b) <= 4 for a, b in zip(found, meant, strict=True))

    def test_of_a_pil_image_is_applied(self) -> None:
        stored = Image.open(io.BytesIO(encoded(self.STORED[6](self.upright()), exif=b"Exif\0\0" + exif(6))))
        assert corners(SourceImage.read(stored).image) == [RED, GREEN, BLUE, YELLOW]

    def test_of_a_png_may_follow_the_pixels(self) -> None:
        data = png(2, 1, depth=8, colour=0, rows=b"\0\x00\xff", after=chunk(b"eXIf", exif(2)))
        assert corners(SourceImage.read(data).image)[:2] == [WHITE, (0, 0, 0)]

    @pytest.mark.parametrize(
        "block",
        [
            b"",
            b"MM",
            b"XX\0*" + bytes(30),
            exif(0),
            exif(9),
            exif(6)[:15],
            b"MM\0*\xff\xff\xff\xff",
            exif(6)[:8] + b"\xff" * 4,
        ],
    )
    def test_of_a_damaged_block_is_ignored(self, block: bytes) -> None:
        data = png(2, 1, depth=8, colour=0, rows=b"\0\x00\xff", before=chunk(b"eXIf", block))
        assert corners(SourceImage.read(data).image)[:2] == [(0, 0, 0), WHITE]


class TestConversion:
    def test_transparency_is_laid_over_white(self) -> None:
        image = Image.new("RGBA", (3, 1))
        image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
        for data in (encoded(image), encoded(image, "WEBP", lossless=True, exact=True)):
            found = SourceImage.read(data).image
            assert [found.getpixel((x, 0)) for x in range(3)] == [RED, WHITE, (127, 127, 127)]

    def test_grey_with_alpha(self) -> None:
        image = Image.new("LA", (2, 1))
        image.putdata([(40, 255), (40, 0)])
        found = SourceImage.read(encoded(image)).image
        assert [found.getpixel((x, 0)) for x in range(2)] == [(40, 40, 40), WHITE]

    @pytest.mark.parametrize("transparency", [1, bytes([255, 0]), bytes([255, 128])])
    def test_palette_with_transparency(self, transparency: int | bytes) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putdata([0, 1])
        found = SourceImage.read(encoded(image, transparency=transparency)).image
        expected = (127, 127, 255) if transparency == bytes([255, 128]) else WHITE
        assert [found.getpixel((x, 0)) for x in range(2)] == [RED, expected]

    def test_palette_without_transparency(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putdata([0, 1])
        found = SourceImage.read(encoded(image)).image
        assert [found.getpixel((x, 0)) for x in range(2)] == [RED, BLUE]

    def test_transparent_colour_of_an_rgb_png(self) -> None:
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), GREEN)
        found = SourceImage.read(encoded(image, transparency=GREEN)).image
        assert [found.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        ramp = struct.pack(">256H", *(257 * value for value in range(256)))
        image = SourceImage.read(png(256, 1, depth=16, colour=0, rows=b"\0" + ramp)).image
        assert [image.getpixel((x, 0)) for x in range(256)] == [(value,) * 3 for value in range(256)]

    def test_sixteen_bit_grey_is_rounded(self) -> None:
        image = SourceImage.read(
            png(2, 1, depth=16, colour=0, rows=b"\0" + struct.pack(">2H", 257 * 9 + 128, 257 * 9 + 129))
        )
        assert [image.image.getpixel((x, 0))[0] for x in range(2)] == [9, 10]

    @pytest.mark.parametrize(("colour", "samples"), [(4, [0x4040]), (6, [0x1010, 0x2020, 0x3030])])
    def test_sixteen_bits_with_alpha(self, colour: int, samples: list[int]) -> None:
        rows = b"\0" + struct.pack(f">{2 * len(samples) + 2}H", *samples, 0xFFFF, *samples, 0)
        image = SourceImage.read(png(2, 1, depth=16, colour=colour, rows=rows)).image
        expected = tuple(value >> 8 for value in (samples if len(samples) == 3 else samples * 3))
        assert [image.getpixel((x, 0)) for x in range(2)] == [expected, WHITE]

    def test_cmyk_jpeg(self) -> None:
        data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
        assert all(abs(a - b) <= 8 for a, b in zip(SourceImage.read(data).image.getpixel((8, 8)), RED, strict=True))

    @pytest.mark.parametrize("progressive", [False, True])
    def test_grey_jpeg(self, progressive: bool) -> None:
        data = encoded(Image.new("L", (16, 16), 90), "JPEG", progressive=progressive)
        assert SourceImage.read(data).image.getpixel((8, 8)) == (90, 90, 90)

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_first_frame_of_an_animation(self, file_format: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
        assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
        assert set(corners(SourceImage.read(data).image)) == {RED}

    def test_interlaced_png(self) -> None:
        # Adam7 of a 2 × 2 picture: passes 1, 6 and 7 hold one, one and two pixels.
        header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1)
        rows = zlib.compress(b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28")
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND")
        assert [grey for grey, _, _ in corners(SourceImage.read(data).image)] == [10, 20, 30, 40]

    def test_jpeg_of_several_pictures_gives_the_first(self) -> None:
        # As phones write them: MPO, and a film behind the picture.
        data = encoded(
            Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)]
        )
        assert Image.open(io.BytesIO(data)).format == "MPO"
        for whole in (data, data + random.Random(2).randbytes(5000) + b"\xff\xda" * 500):
            red, green, blue = SourceImage.read(whole).image.getpixel((8, 8))
            assert red > 240
            assert max(green, blue) < 15


class TestPilImages:
    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"]
    )
    def test_modes(self, mode: str) -> None:
        white = Image.new("RGB", (4, 4), WHITE)
        image = white.convert("RGBA").convert(mode) if mode in ("PA", "RGBa") else white.convert(mode)
        found = SourceImage.read(image).image
        assert found.mode == "RGB"
        assert all(value >= 254 for value in found.getpixel((1, 1)))

    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_sixteen_bits(self, mode: str) -> None:
        image = Image.new(mode, (1, 1))
        image.putpixel((0, 0), 0x8080)
        assert SourceImage.read(image).image.getpixel((0, 0)) == (0x80, 0x80, 0x80)

    @pytest.mark.parametrize("mode", ["I", "F", "La"])
    def test_modes_without_a_meaning_are_refused(self, mode: str) -> None:
        assert "Convert it to RGB first" in refusal(Image.new(mode, (4, 4)))

    def test_is_a_copy(self) -> None:
        image = noise()
        source = SourceImage.read(image)
        image.paste(RED, (0, 0, 17, 11))
        assert source.image.tobytes() == noise().tobytes()
        assert source.name == "image"

    def test_digest_tells_pictures_apart(self) -> None:
        digests = {
            SourceImage.read(Image.new("RGB", size, colour)).sha256
            for size in ((2, 8), (8, 2))
            for colour in (RED, BLUE)
        }
        assert len(digests) == 4
        assert SourceImage.read(noise()).sha256 == SourceImage.read(noise()).sha256

    def test_cut_off_and_closed_files_are_refused(self) -> None:
        refusal(Image.open(io.BytesIO(encoded(noise((40, 40)))[:-60])))
        closed = Image.open(io.BytesIO(encoded(noise())))
        closed.close()
        refusal(closed)


class TestRefusals:
    def test_other_formats_are_named_with_the_remedy(self, tmp_path: Path) -> None:
        for file_format in ("GIF", "BMP", "TIFF", "ICO", "PPM", "AVIF"):
            path = tmp_path / "cat.png"
            path.write_bytes(encoded(noise((32, 32)), file_format))
            assert refusal(path) == "cat.png is not a PNG, JPEG or WebP picture. Convert it first."

    @pytest.mark.parametrize(
        "data",
        [
            b"<!DOCTYPE html><html><body>404</body></html>",
            b"%PDF-1.7",
            b"GIF89a" + b"\x89PNG\r\n\x1a\n",
            b"\x89PNG\r\n\x1a",
            b"\xff\xd8",
            b"RIFF\0\0\0\0WAVE",
            b"\0" * 1000,
        ],
    )
    def test_what_is_no_picture(self, data: bytes) -> None:
        assert refusal(data) == "image is not a PNG, JPEG or WebP picture. Convert it first."

    def test_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "cat.png").touch()
        assert refusal(tmp_path / "cat.png") == "cat.png is empty. Give a PNG, JPEG or WebP picture."
        assert "empty" in refusal(b"")

    @pytest.mark.parametrize(
        "path", ["", "a\0b.png", "x" * 5000, "x/" * 5000, "\ud800.png", "https://example.com/cat.png"]
    )
    def test_impossible_paths(self, path: str) -> None:
        assert len(refusal(path)) < 400

    def test_pipe_device_and_socket_do_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "cat.png")
        assert refusal(tmp_path / "cat.png").endswith("cat.png' is a device or a pipe. Give the path of a picture.")
        for device in ("/dev/zero", "/dev/null"):
            if Path(device).exists():
                assert "device" in refusal(device)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            refusal(tmp_path / "socket")

    @pytest.mark.parametrize("source", [7, None, [], bytearray(b"x"), io.BytesIO()])
    def test_other_types(self, source: object) -> None:
        assert type(source).__name__ in refusal(source)

    def test_pixel_cap_is_exact_and_the_callers(self) -> None:
        data = encoded(noise((10, 10)))
        assert SourceImage.read(data, max_pixels=100).image.size == (10, 10)
        assert "10 × 10 pixels" in refusal(data, max_pixels=99)


class TestHostileFiles:
    @pytest.mark.parametrize("progressive", [False, True])
    def test_jpeg_cut_anywhere(self, progressive: bool) -> None:
        data = encoded(noise(), "JPEG", progressive=progressive)
        for cut in range(len(data)):
            refusal(data[:cut])

    @pytest.mark.parametrize("lossless", [False, True])
    def test_webp_cut_anywhere(self, lossless: bool) -> None:
        data = encoded(noise(), "WEBP", lossless=lossless)
        for cut in range(len(data) - len(data) % 2 - 1):
            refusal(data[:cut])

    def test_png_with_more_pixels_than_it_claims(self) -> None:
        data = png(2, 1, depth=8, colour=0, rows=b"\0\x01\x02" + bytes(20 * 2**20))
        assert SourceImage.read(data).image.size == (2, 1)

    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
    def test_polyglot_is_only_its_picture(self, file_format: str) -> None:
        image = noise()
        clean = encoded(image, file_format)
        joined = clean + b"PK\x03\x04" + b"<script>alert(1)</script>" + encoded(Image.new("RGB", (5, 5)), "GIF")
        assert SourceImage.read(joined).image.tobytes() == SourceImage.read(clean).image.tobytes()

    @given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"MM\0*"]))
    @example(b"", b"")
    def test_random_bytes(self, data: bytes, start: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module="PIL")  # of oddities in files: Pillow's own business
            refusal(start + data)

    @given(st.data())
    def test_mutated_pictures(self, data: st.DataObject) -> None:
        mutated = bytearray(data.draw(st.sampled_from(SPECIMENS)))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(mutated) - 1))
            gone = data.draw(st.integers(0, 4))
            mutated[at : at + gone] = data.draw(st.binary(max_size=4))
            mutated = mutated or bytearray(b"\0")
        with_checksums = with_true_checksums(bytes(mutated))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module="PIL")  # of oddities in files: Pillow's own business
            for each in (bytes(mutated), with_checksums):
                try:
                    image = SourceImage.read(each, max_pixels=1_000_000).image
                except SourceImageError:
                    continue
                assert image.mode == "RGB"
                assert image.width * image.height <= 1_000_000


def with_true_checksums(data: bytes) -> bytes:
    """A PNG whose damage its checksums do not give away."""
    if not data.startswith(b"\x89PNG"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 12 + int.from_bytes(mended[at : at + 4])
        if end > len(mended):
            break
        mended[end - 4 : end] = struct.pack(">I", zlib.crc32(mended[at + 4 : end - 4]))
        at = end
    return bytes(mended)


SPECIMENS = [
    *(encoded(noise().convert(mode), exif=b"Exif\0\0" + exif(6)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    encoded(noise().quantize(8), transparency=bytes([0, 128, 255])),
    encoded(noise(), save_all=True, append_images=[noise().rotate(180)]),
    png(3, 1, depth=16, colour=0, rows=b"\0" + bytes(range(6)), before=chunk(b"tRNS", b"\2\3")),
    *(encoded(noise().convert(mode), "JPEG", exif=b"Exif\0\0" + exif(6)) for mode in ("L", "RGB", "CMYK")),
    encoded(noise(), "JPEG", progressive=True),
    encoded(noise(), "WEBP", exif=exif(6)),
    encoded(noise().convert("RGBA"), "WEBP", lossless=True),
    encoded(noise(), "WEBP", save_all=True, append_images=[noise().rotate(180)]),
]


class TestFitting:
    @staticmethod
    def striped(width: int, height: int) -> SourceImage:
        """Red on the left, green in the middle half, blue on the right."""
        image = Image.new("RGB", (width, height), GREEN)
        image.paste(RED, (0, 0, width // 4, height))
        image.paste(BLUE, (width - width // 4, 0, width, height))
        return SourceImage.read(image)

    @pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
    def test_same_size_is_the_same_picture(self, fit: Any) -> None:
        source = SourceImage.read(noise())
        assert source.fitted(17, 11, fit).tobytes() == noise().tobytes()

    @pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
    @pytest.mark.parametrize("of", [(1, 1), (3, 2), (1, 4000), (4000, 1), (333, 77)])
    @pytest.mark.parametrize("to", [(256, 256), (16, 512), (512, 16), (1, 1), (97, 31)])
    def test_size_is_exact(self, of: tuple[int, int], to: tuple[int, int], fit: Any) -> None:
        fitted = SourceImage.read(Image.new("RGB", of, BLUE)).fitted(*to, fit)
        assert (fitted.size, fitted.mode) == (to, "RGB")

    def test_crop_keeps_the_middle(self) -> None:
        fitted = self.striped(80, 40).fitted(40, 40, "crop")
        assert fitted.getpixel((0, 20)) == fitted.getpixel((39, 20)) == GREEN
        tall = SourceImage.read(self.striped(80, 40).image.rotate(90, expand=True)).fitted(40, 40, "crop")
        assert tall.getpixel((20, 0)) == tall.getpixel((20, 39)) == GREEN

    def test_crop_cuts_no_more_than_it_must(self) -> None:
        fitted = self.striped(80, 40).fitted(30, 20, "crop")  # three quarters of the width
        assert [fitted.getpixel((x, 10)) for x in (0, 29)] == [RED, BLUE]

    def test_pad_keeps_everything_on_white(self) -> None:
        fitted = self.striped(80, 40).fitted(80, 80, "pad")
        assert [fitted.getpixel((40, y)) for y in (0, 19, 20, 59, 60, 79)] == [WHITE, WHITE, GREEN, GREEN, WHITE, WHITE]
        assert [fitted.getpixel((x, 40)) for x in (0, 79)] == [RED, BLUE]

    def test_pad_scales_up(self) -> None:
        fitted = self.striped(8, 4).fitted(80, 60, "pad")
        assert [fitted.getpixel((40, y)) == WHITE for y in (0, 9, 10, 49, 50, 59)] == [
            True,
            True,
            False,
            False,
            True,
            True,
        ]

    def test_stretch_keeps_everything_without_white(self) -> None:
        fitted = self.striped(80, 40).fitted(40, 80, "stretch")
        assert [fitted.getpixel((x, 0)) for x in (0, 20, 39)] == [RED, GREEN, BLUE]
        assert [fitted.getpixel((x, 79)) for x in (0, 20, 39)] == [RED, GREEN, BLUE]

    @pytest.mark.parametrize(
        ("size", "multiple", "rounded"),
        [
            ((1024, 768), 16, (1024, 768)),
            ((1023, 1033), 16, (1024, 1040)),
            ((1032, 1031), 16, (1040, 1024)),
            ((1, 7), 16, (16, 16)),
            ((24, 25), 16, (32, 32)),
            ((10, 11), 7, (7, 14)),
            ((33, 1), 1, (33, 1)),
        ],
    )
    def test_size_rounded(self, size: tuple[int, int], multiple: int, rounded: tuple[int, int]) -> None:
        assert SourceImage.read(Image.new("RGB", size)).size_rounded(multiple) == rounded


class TestTooLarge:
    @pytest.mark.parametrize("side", [8001, 100_000, 2**31 - 1])
    def test_png_is_refused_by_its_header(self, side: int) -> None:
        assert "the most that are read" in refusal(png(side, side, depth=8, colour=2, rows=b"\0"))

    def test_file_of_too_many_bytes(self, tmp_path: Path) -> None:
        with (tmp_path / "cat.png").open("wb") as file:
            file.truncate(source_image.MAX_BYTES + 1)
        assert "268,435,456 are the most" in refusal(tmp_path / "cat.png")

    def test_refused_before_memory_is_taken(self) -> None:
        program = (
            "import resource, sys\n"
            "from hwaga.errors import SourceImageError\n"
            "from hwaga.source_image import SourceImage\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: SourceImage.read(sys.stdin.buffer.read())\n"
            "except SourceImageError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        data = png(100_000, 100_000, depth=8, colour=2, rows=b"\0")
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert int(done.stdout) < 20_000  # KiB
        assert done.stderr == b""


class TestDamage:
    @pytest.mark.parametrize("mode", ["RGB", "P", "L"])
    def test_png_cut_anywhere_is_refused_or_whole(self, mode: str) -> None:
        picture = noise().convert(mode)
        data, whole = encoded(picture), SourceImage.read(encoded(picture)).image.tobytes()
        refused = 0
        for length in range(len(data)):
            try:
                assert SourceImage.read(data[:length]).image.tobytes() == whole
            except SourceImageError:
                refused += 1
        assert refused >= len(data) - 32  # only what follows the pixels may be missing

    def test_text_that_unpacks_to_too_much_is_refused(self) -> None:
        bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * 2**20), 9))
        assert "damaged" in refusal(png(2, 1, depth=8, colour=0, rows=b"\0\x01\x02", before=bomb))

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        assert "There is no file" in refusal(tmp_path / "cat.png")
        assert "is a folder" in refusal(tmp_path)
