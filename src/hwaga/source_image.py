"""The picture that an image-to-image request starts from: read once, checked, upright and RGB.

It may come from strangers (a browser's upload), so the format is told by content, the size is checked before any pixel is
decoded, and whatever Pillow makes of a damaged file becomes one kind of error.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from PIL import Image, ImageOps, UnidentifiedImageError

from hwaga.errors import SourceImageError

if TYPE_CHECKING:
    from hwaga.request import Fit

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are read, by Pillow's names."""

MAX_PIXELS = 64_000_000
"""Most pixels of a source picture. Phones commonly take up to 50 megapixels; a copy of 64 holds 256 MB of memory."""

MAX_BYTES = 256 * 2**20
"""Most bytes of a picture file: more than 64 megapixels of 8-bit RGB take uncompressed."""

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on a file that is not what it claims."""


@dataclass(frozen=True)
class SourceImage:
    """A picture to start from. Two are equal when name and content are.

    Attributes:
        image: the picture, RGB, upright and decoded, without metadata. Not to be changed in place.
        name: base name of the file, or "image" for bytes and PIL images.
        sha256: of the encoded file; of size and RGB pixels for a PIL image. Lower-case hexadecimal.
    """

    image: Image.Image = field(compare=False)
    name: str
    sha256: str

    @classmethod
    def read(cls, source: Image.Image | bytes | str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> SourceImage:
        """Reads a picture from a path, from encoded bytes or from a PIL image.

        Files are PNG, JPEG or WebP, told by content. EXIF orientation is applied, what is transparent is laid over
        white, 16 bits become 8, and of an animation the first frame is taken. Colour profiles are not applied.

        Args:
            source: a path, the bytes of a file, or a PIL image of any mode but "I" and "F", which have no range.
            max_pixels: most pixels (width × height) to accept.

        Raises:
            SourceImageError: no such file, not a picture of these formats, cut off, damaged or too large.
        """
        if isinstance(source, Image.Image):
            _check_pixels(source.size, "The picture", max_pixels)
            if source.mode in ("I", "F"):
                raise SourceImageError(f"A picture of mode {source.mode} has no range. Convert it to RGB first.")
            try:
                image = _rgb(_upright(source))
            except DAMAGE as error:  # a file that was closed or cut off, or a mode that Pillow converts to nothing
                raise SourceImageError(f"The picture cannot be read ({error}). Convert it to RGB first.") from error
            digest = hashlib.sha256(b"RGB %d %d\n" % image.size)
            digest.update(image.tobytes())
            return cls(image, "image", digest.hexdigest())
        if isinstance(source, bytes):
            name, data = "image", source
        else:
            try:
                name, data = read_file(Path(source))
            except TypeError as error:
                raise SourceImageError(f"The picture must be a path, bytes or a PIL image: {error}.") from error
        with opened_picture(data, name, max_pixels=max_pixels) as picture:
            image = _rgb(_upright(picture))
        return cls(image, name, hashlib.sha256(data).hexdigest())

    def fitted(self, width: int, height: int, fit: Fit) -> Image.Image:
        """The picture at exactly ``width`` × ``height`` pixels, RGB; this picture itself where it has that size.

        Args:
            width: pixels, at least 1.
            height: pixels, at least 1.
            fit: "crop" covers the size and cuts what juts out on both sides, "pad" fits inside it with white around,
                "stretch" changes the proportions.
        """
        size = (width, height)
        if self.image.size == size:
            return self.image
        match fit:
            case "crop":
                return ImageOps.fit(self.image, size, Image.Resampling.LANCZOS)
            case "pad":
                return ImageOps.pad(self.image, size, Image.Resampling.LANCZOS, color="white")
            case "stretch":
                return self.image.resize(size, Image.Resampling.LANCZOS)
            case _:
                assert_never(fit)

    def size_rounded(self, multiple: int) -> tuple[int, int]:
        """(width, height) in pixels, each rounded to the nearest multiple (a tie upwards) and at least one multiple."""
        width, height = (max(1, (side + multiple // 2) // multiple) * multiple for side in self.image.size)
        return width, height

    def to_json(self) -> dict[str, str | int]:
        """What names the picture: name, sha256, width and height. Its pixels are left out."""
        return {"name": self.name, "sha256": self.sha256, "width": self.image.width, "height": self.image.height}


def read_file(path: Path) -> tuple[str, bytes]:
    """Base name and content of a picture's file.

    Raises:
        SourceImageError: missing, not a plain file, not to be read, or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer, and a device may never end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise SourceImageError(f"'{path}' is {kind}. Give the path of a picture.")
        if status.st_size > MAX_BYTES:
            raise SourceImageError(
                f"'{path}' has {status.st_size:,} bytes, and {MAX_BYTES:,} are the most that are read. Save it smaller."
            )
        # A name that is not UTF-8 could be stored nowhere.
        return path.name.encode(errors="replace").decode(), path.read_bytes()
    except FileNotFoundError as error:
        raise SourceImageError(f"There is no file '{path}'. Check the path.") from error
    except SourceImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        cause = error.strerror if isinstance(error, OSError) else error
        raise SourceImageError(f"'{str(path)[:200]}' cannot be read: {cause}. Check the path.") from error


@contextmanager
def opened_picture(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture file's content as Pillow opens it, before its pixels are decoded; it is closed at the end.

    Raises:
        SourceImageError: not a picture of a known format, or too large; also for damage that shows inside the block.
    """
    if not data:
        raise SourceImageError(f"{name} is empty. Give a PNG, JPEG or WebP picture.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_pixels(picture.size, name, max_pixels)
            yield picture
    except UnidentifiedImageError as error:
        raise SourceImageError(f"{name} is not a PNG, JPEG or WebP picture. Convert it first.") from error
    except SourceImageError:
        raise
    except Image.DecompressionBombError as error:
        raise SourceImageError(f"{name} is too large: {max_pixels:,} pixels are the most that are read.") from error
    except DAMAGE as error:
        raise SourceImageError(f"{name} is cut off or damaged ({error}). Save or fetch it again.") from error


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise SourceImageError(
            f"{name} has {width} × {height} pixels, and {max_pixels:,} are the most that are read. Save it smaller."
        )
    if not width or not height:
        raise SourceImageError(f"{name} is empty: {width} × {height} pixels.")


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except DAMAGE:
        # The pixels are whole; a camera's broken notes about them are no reason to refuse the picture.
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        import numpy as np  # only here: the command line's help need not wait for it

        grey = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    plain = picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
    plain.info = {}
    return plain
