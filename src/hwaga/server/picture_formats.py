"""Finished pictures, which are kept as PNG, in the format that a client asks for."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

from hwaga.image_file import Format, encode
from hwaga.source_image import opened_picture

THUMBNAIL = 256

_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")


def converted(png: bytes, format: Format, quality: int) -> bytes:
    """The picture in a format, with the settings that made it inside.

    Raises:
        ImageFileError: the settings are too long for the format.
    """
    if format == "png":
        return png
    with opened_picture(png, "the picture") as picture:
        picture.load()
        info = picture.info
        return encode(
            picture.convert("RGB"),
            format,
            made_with=json.loads(info["hwaga"]),
            parameters=info["parameters"],
            quality=quality,
        )


def bare(png: bytes, format: Format, quality: int) -> bytes:
    """The picture in a format, without the settings that made it."""
    if format == "png":  # all but its texts, as it lies there
        kept, at = [png[:8]], 8
        while at < len(png):
            length, kind = struct.unpack_from(">I4s", png, at)
            end = at + 12 + length
            if kind not in _TEXTS:
                kept.append(png[at:end])
            at = end
        return b"".join(kept)
    with opened_picture(png, "the picture") as picture:
        plain = picture.convert("RGB")
    plain.info = {}
    buffer = io.BytesIO()
    more = {"subsampling": "4:4:4"} if format == "jpeg" else {}
    plain.save(buffer, format, quality=quality, **more)
    return buffer.getvalue()


def made_by(png: bytes) -> tuple[str | None, dict[str, Any]]:
    """The model that a picture of the server's says it was made by, and the resolved request, as ``ImageRequest.to_json`` wrote
    it.
    """
    with opened_picture(png, "the picture") as picture:
        settings = json.loads(picture.info["hwaga"])
    return settings.get("model"), settings["request"]


def thumbnail(png: bytes, format: Format) -> bytes:
    """A small copy, without settings."""
    with opened_picture(png, "the picture") as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format)
    return buffer.getvalue()


def size_of(data: bytes) -> str:
    """Width and height of an encoded picture, as in "1024x768"."""
    with opened_picture(data, "the picture") as picture:
        return f"{picture.width}x{picture.height}"
