"""Files that a stranger may send as a picture: odd ones that are pictures, and others that are none, or would be too much."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

RED, SIDE = (200, 40, 30), 48


@dataclass(frozen=True)
class Sent:
    """A file; where it is a picture, its size upright and the colour of its top left corner, which JPEG and CMYK blur."""

    name: str
    data: bytes
    size: tuple[int, int] | None = None
    corner: tuple[int, int, int] = RED
    within: int = 0


def hostile_pictures() -> Iterator[Sent]:
    """All of them."""
    yield from _pngs()
    yield from _damaged_pngs()
    yield from _jpegs()
    yield from _webps()
    yield from _others()


def _plain(mode: str = "RGB", color: Any = RED, size: tuple[int, int] = (SIDE, SIDE // 2)) -> Image.Image:
    return Image.new(mode, size, color)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def _png(
    width: int, height: int, raw: bytes, *, depth: int = 8, kind: int = 2, interlaced: int = 0, **chunks: bytes
) -> bytes:
    """A PNG by hand: ``raw`` are its rows, each with its filter, and ``chunks`` come before them."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", head),
        *(_chunk(name.encode(), data) for name, data in chunks.items()),
    ]
    return b"".join([*parts, _chunk(b"IDAT", zlib.compress(raw, 9)), _chunk(b"IEND", b"")])


def _rows(width: int, height: int, pixel: bytes = bytes(RED)) -> bytes:
    return (b"\0" + pixel * width) * height


def _interlaced() -> bytes:
    """The seven passes of Adam7 over 8 × 8 pixels of one colour."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    return _png(8, 8, b"".join(_rows(width, height) for width, height in passes), interlaced=1)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _halves() -> Image.Image:
    """Red above, blue below: a picture whose way up shows."""
    image = _plain(size=(SIDE, SIDE // 2))
    image.paste((20, 30, 200), (0, SIDE // 4, SIDE, SIDE // 2))
    return image


def _pngs() -> Iterator[Sent]:
    wide = (SIDE, SIDE // 2)
    yield Sent("png", _saved(_plain(), "PNG"), wide)
    yield Sent("png, grey", _saved(_plain("L", 90), "PNG"), wide, (90,) * 3)
    yield Sent("png, 16 bits of grey", _saved(_plain("I;16", 128 * 257), "PNG"), wide, (128,) * 3)
    yield Sent(
        "png, 16 bits of colour", _png(4, 4, _rows(4, 4, b"".join(bytes([c, c]) for c in RED)), depth=16), (4, 4)
    )
    yield Sent("png, 1 bit", _saved(_plain("1", 1), "PNG"), wide, (255,) * 3)
    yield Sent("png, grey and half clear", _saved(_plain("LA", (0, 128)), "PNG"), wide, (127,) * 3, 1)
    yield Sent("png, clear", _saved(_plain("RGBA", (10, 10, 10, 0)), "PNG"), wide, (255,) * 3)
    yield Sent("png, palette", _saved(_plain().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), wide)
    palette = _plain().convert("P", palette=Image.Palette.ADAPTIVE)
    yield Sent(
        "png, palette with a clear colour",
        _saved(palette, "PNG", transparency=palette.getpixel((0, 0))),
        wide,
        (255,) * 3,
    )
    yield Sent(
        "png, palette with half clear colours",
        _saved(palette, "PNG", transparency=b"\x80" * 256),
        wide,
        (228, 148, 143),
        2,
    )
    yield Sent("png, a clear colour", _saved(_plain(), "PNG", transparency=RED), wide, (255,) * 3)
    yield Sent("png, interlaced", _interlaced(), (8, 8))
    yield Sent("png, a profile", _saved(_plain(), "PNG", icc_profile=_profile()), wide)
    yield Sent("png, a broken profile", _saved(_plain(), "PNG", icc_profile=b"no profile" * 99), wide)
    yield Sent("png, turned", _saved(_halves(), "PNG", exif=_exif(6)), (SIDE // 2, SIDE), (20, 30, 200))
    frames = [_plain(color=(shade, 0, 0)) for shade in (1, 2, 3)]
    yield Sent("png, animated", _saved(_plain(), "PNG", save_all=True, append_images=frames), wide)
    many = _png(4, 4, _rows(4, 4), acTL=struct.pack(">II", 2**31 - 1, 0))
    yield Sent("png, of two billion frames", many, (4, 4))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("run.sh", "#!/bin/sh\n")
    yield Sent("png that is a zip too", _saved(_plain(), "PNG") + archive.getvalue(), wide)
    page = b"Comment\0<script>alert(1)</script>"
    yield Sent("png that is a web page too", _png(4, 4, _rows(4, 4), tEXt=page), (4, 4))
    yield Sent(
        "png, the largest there may be", _png(8000, 8000, _rows(8000, 8000, b"\x07"), kind=0), (8000, 8000), (7,) * 3
    )
    yield Sent("png, one pixel high and very wide", _png(100_000, 1, _rows(100_000, 1)), (100_000, 1))
    head = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    sums = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(_rows(4, 4)), 7) + _chunk(b"IEND", b"")
    yield Sent("png, a wrong sum of pixels, which have their own", b"\x89PNG\r\n\x1a\n" + sums, (4, 4))
    yield Sent("png, no end", _saved(_plain(), "PNG")[:-12], wide)


def _damaged_pngs() -> Iterator[Sent]:
    good = _saved(_plain(size=(200, 200)), "PNG")
    noise = _saved(Image.effect_noise((200, 200), 90).convert("RGB"), "PNG")
    yield Sent("png, cut off", noise[: len(noise) // 2])
    yield Sent("png, a head alone", good[:33])
    yield Sent("png, eight bytes", good[:8])
    yield Sent("png of no width", _png(0, 4, b""))
    yield Sent("png of no height", _png(4, 0, b""))
    yield Sent("png that says it is giant", _png(2**31 - 1, 2**31 - 1, b"\0" * 99))
    yield Sent("png that is a bomb", _png(60_000, 60_000, bytes(10**7), kind=0))
    yield Sent("png, one row too large", _png(8000, 8001, bytes(8001 * 8001), kind=0))
    yield Sent("png, rows missing", _png(4000, 4000, bytes(1000)))
    yield Sent(
        "png, rows that are none", b"".join([good[:33], _chunk(b"IDAT", b"nothing of zlib" * 9), _chunk(b"IEND", b"")])
    )
    yield Sent("png, a wrong sum of the head", good[:29] + bytes(4) + good[33:])
    yield Sent("png, a wrong filter", _png(4, 4, (b"\x09" + bytes(RED) * 4) * 4))
    yield Sent("png, 3 bits", _png(4, 4, _rows(4, 4), depth=3))
    yield Sent("png, a chunk longer than the file", good[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(99))
    yield Sent("png, text that is a bomb", _png(4, 4, _rows(4, 4), zTXt=b"Comment\0\0" + zlib.compress(bytes(10**8))))
    long = b"Comment\0\1\0\0\0" + zlib.compress(bytes(10**8))
    yield Sent("png, international text that is a bomb", _png(4, 4, _rows(4, 4), iTXt=long))
    texts = b"".join(_chunk(b"zTXt", b"a%d\0\0" % n + zlib.compress(bytes(10**6))) for n in range(80))
    yield Sent("png, many texts", good[:33] + texts + good[33:])
    yield Sent("png, a profile that is a bomb", _png(4, 4, _rows(4, 4), iCCP=b"icc\0\0" + zlib.compress(bytes(10**8))))


def _jpegs() -> Iterator[Sent]:
    wide = (SIDE, SIDE // 2)
    good = _saved(_plain(), "JPEG", quality=95)
    frame = good.index(b"\xff\xc0")
    yield Sent("jpeg", good, wide, within=4)
    yield Sent("jpeg, grey", _saved(_plain("L", 90), "JPEG"), wide, (90,) * 3, 4)
    yield Sent("jpeg, cmyk", _saved(_plain().convert("CMYK"), "JPEG", quality=95), wide, within=6)
    yield Sent("jpeg, progressive", _saved(_plain(), "JPEG", progressive=True, quality=95), wide, within=4)
    yield Sent("jpeg, a profile", _saved(_plain(), "JPEG", icc_profile=_profile(), quality=95), wide, within=4)
    yield Sent("jpeg, upside down", _saved(_halves(), "JPEG", exif=_exif(3), quality=95), wide, (20, 30, 200), 6)
    yield Sent("jpeg, on its side", _saved(_halves(), "JPEG", exif=_exif(8), quality=95), (SIDE // 2, SIDE), within=6)
    yield Sent(
        "jpeg, turned in a way that there is not", _saved(_plain(), "JPEG", exif=_exif(77), quality=95), wide, within=4
    )
    notes = Image.Exif()
    notes[0x9286] = "x" * 60_000
    yield Sent("jpeg, huge notes", _saved(_plain(), "JPEG", exif=notes, quality=95), wide, within=4)
    segment = b"\xff\xe5" + struct.pack(">H", 65_000) + bytes(64_998)
    yield Sent("jpeg, ten megabytes of notes", good[:2] + segment * 160 + good[2:], wide, within=4)
    wrong = b"\xff\xe1" + struct.pack(">H", 60) + b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + bytes(44)
    yield Sent("jpeg, broken notes", good[:2] + wrong + good[2:], wide, within=4)
    # A directory of notes whose next one is itself.
    ring = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    ring = b"\xff\xe1" + struct.pack(">H", len(ring) + 8) + b"Exif\0\0" + ring
    yield Sent("jpeg, notes that go in circles", good[:2] + ring + good[2:], wide, within=4)
    yield Sent("jpeg that is a zip too", good + b"PK\x05\x06" + bytes(18), wide, within=4)
    yield Sent(
        "jpeg, two in one", _saved(_plain(), "MPO", save_all=True, append_images=[_plain()], quality=95), wide, within=4
    )
    noise = _saved(Image.effect_noise((200, 200), 90), "JPEG")
    yield Sent("jpeg, cut off", noise[: len(noise) // 2])
    yield Sent("jpeg, a head alone", good[: frame + 4])
    yield Sent("jpeg that says it is giant", good[: frame + 5] + b"\xff\xff\xff\xff" + good[frame + 9 :])
    yield Sent("jpeg of no size", good[: frame + 5] + bytes(4) + good[frame + 9 :])
    yield Sent("jpeg, 12 bits", good[: frame + 4] + b"\x0c" + good[frame + 5 :])
    yield Sent("jpeg that is a script", b"\xff\xd8\xff\xe0<?php system($_GET['c']); ?>")


def _webps() -> Iterator[Sent]:
    wide = (SIDE, SIDE // 2)
    good = _saved(_plain(), "WEBP", lossless=True)
    yield Sent("webp", _saved(_plain(), "WEBP", quality=95), wide, within=6)
    yield Sent("webp, lossless", good, wide)
    yield Sent("webp, clear", _saved(_plain("RGBA", (9, 9, 9, 0)), "WEBP", lossless=True), wide, (255,) * 3)
    frames = [_plain(color=(shade, 0, 0)) for shade in (1, 2, 3)]
    yield Sent("webp, animated", _saved(_plain(), "WEBP", lossless=True, save_all=True, append_images=frames), wide)
    yield Sent(
        "webp, turned", _saved(_halves(), "WEBP", lossless=True, exif=_exif(6)), (SIDE // 2, SIDE), (20, 30, 200)
    )
    noise = _saved(Image.effect_noise((200, 200), 90).convert("RGB"), "WEBP")
    yield Sent("webp, cut off", noise[: len(noise) // 2])
    yield Sent("webp, a head alone", good[:12])
    giant = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    yield Sent("webp that says it is giant", b"RIFF" + struct.pack("<I", len(giant) + 4) + b"WEBP" + giant)
    yield Sent("webp, nonsense inside", b"RIFF" + struct.pack("<I", 200) + b"WEBPVP8 " + b"\x5a" * 200)


def _others() -> Iterator[Sent]:
    for format in ("GIF", "BMP", "TIFF", "ICO", "PPM", "PDF", "EPS"):
        yield Sent(format.lower(), _saved(_plain(), format))
    yield Sent("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    yield Sent("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    yield Sent("text", b"a picture of a cat")
    yield Sent("gzip", gzip.compress(_saved(_plain(), "PNG")))
    yield Sent("gif that begins as a png", b"\x89PNG\r\n\x1a\n" + _saved(_plain(), "GIF"))
    yield Sent("pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR.")
