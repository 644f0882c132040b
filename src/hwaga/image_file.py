"""Finished pictures on disk: encoded together with what made them, written whole or not at all, and read back.

Where the settings lie:

    PNG         text chunk ``hwaga``: the settings as JSON. Text chunk ``parameters``: a text in the form of
                AUTOMATIC1111's web UI, which other tools read. Both lie before the pixels.
    JPEG, WebP  EXIF ``MakerNote``: "hwaga", a null byte, the JSON. EXIF ``UserComment``: the text, where those tools
                look for it.

The JSON is ASCII, with Korean as escapes, so that every container holds it unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from PIL import ExifTags
from PIL.Image import Exif
from PIL.PngImagePlugin import PngInfo

from hwaga.errors import ImageFileError, SourceImageError
from hwaga.source_image import opened_picture, read_file
from hwaga.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from hwaga.request import ImageRequest
    from hwaga.result import Result

Format = Literal["png", "jpeg", "webp"]

SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""File name endings that can be written, and the format that each means."""

MAX_SETTINGS = 2**20
"""Most bytes of settings (as JSON) that are written or read: a hundred times those of a long prompt."""

_A1111_SAMPLERS = {
    "euler": {"Sampler": "Euler"},
    "dpmpp_2m_karras": {"Sampler": "DPM++ 2M", "Schedule type": "Karras"},
}
"""What AUTOMATIC1111's web UI calls our samplers."""

_MAX_JPEG_EXIF = 65533
_KEY = b"hwaga\0"

_CAUSES = {
    errno.ENOSPC: "the disk is full. Free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up. Free some space or choose another folder",
    errno.EFBIG: "the file is larger than this system allows. Raise the limit (ulimit -f) or choose another folder",
    errno.EACCES: "you may not write there. Choose another folder or ask for permission",
    errno.EPERM: "you may not write there. Choose another folder or ask for permission",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.ENOENT: "its folder does not exist. Create it first",
    errno.ENOTDIR: "its folder is a file. Choose another folder",
    errno.EISDIR: "it is a folder. Add a file name",
}


def made_with(result: Result) -> dict[str, Any]:
    """All that it takes to make a picture again, as JSON values. It is the same for the same request."""
    device, dtype = result.device
    return {
        "version": __version__,
        "model": result.model,
        "weights": result.weights,
        "device": device,
        "dtype": dtype,
        **({"precision": result.precision} if result.precision != "full" else {}),
        **({"loras": dict(result.loras)} if result.loras else {}),
        "request": result.request.to_json(),
    }


def encode_result(result: Result, format: Format) -> bytes:
    """A finished picture as the bytes of a file, with what made it inside. See ``encode``."""
    parameters = a1111_parameters(result.request, model=result.model, version=__version__)
    return encode(result.image, format, made_with=made_with(result), parameters=parameters)


def encode(
    image: Image,
    format: Format,
    *,
    made_with: dict[str, Any],
    parameters: str,
    quality: int = 92,
) -> bytes:
    """The picture as the bytes of a file, with its settings inside. The same arguments give the same bytes.

    Args:
        image: RGB.
        format: PNG is lossless, JPEG is written without chroma subsampling (4:4:4), WebP lossy.
        made_with: the settings, of JSON values only; ``read_settings`` gives them back.
        parameters: the same for other tools, see ``a1111_parameters``.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ImageFileError: not RGB, a quality out of range, or settings that are too long for the format.
    """
    if image.mode != "RGB":
        raise ImageFileError(f"A picture of mode {image.mode} is not written. Convert it to RGB first.")
    if not 1 <= quality <= 100:
        raise ImageFileError(f"The quality must be from 1 to 100, not {quality}.")
    settings = json.dumps(made_with, allow_nan=False, separators=(",", ":"))
    if len(settings) > MAX_SETTINGS:
        raise ImageFileError(
            f"The settings take {len(settings)} bytes, more than the {MAX_SETTINGS} that a picture carries. "
            "Shorten the prompt."
        )
    plain = image.copy()
    plain.info = {}  # Pillow would write what it finds there: profiles, comments, another picture's EXIF
    buffer = io.BytesIO()
    match format:
        case "png":
            text = PngInfo()
            text.add_text("hwaga", settings)
            text.add_text("parameters", parameters)
            # Level 4 gives files about as small as the default of 6, in less time.
            plain.save(buffer, "PNG", pnginfo=text, compress_level=4)
        case "jpeg":
            exif = _exif(settings, parameters)
            if len(exif) > _MAX_JPEG_EXIF:
                raise ImageFileError(
                    f"The settings take {len(exif)} bytes, and a JPEG carries {_MAX_JPEG_EXIF}. Save as PNG or WebP."
                )
            plain.save(buffer, "JPEG", quality=quality, subsampling="4:4:4", exif=exif)
        case "webp":
            plain.save(buffer, "WEBP", quality=quality, exif=_exif(settings, parameters))
        case _:
            assert_never(format)
    return buffer.getvalue()


def a1111_parameters(request: ImageRequest, *, model: str, version: str, cfg_scale: float | None = None) -> str:
    """What made a picture, as text in AUTOMATIC1111's form: the prompt, a negative one if there is one, then one line of
    names and values.

    Args:
        request: with its defaults filled in (steps, seed, width and height).
        model: name of the model's card.
        version: of Hwaga.
        cfg_scale: guidance; the request's when left out. 1 is what those tools call none.
    """
    values: dict[str, object] = {
        "Steps": request.steps,
        **_A1111_SAMPLERS[request.sampler or "euler"],
        "CFG scale": f"{cfg_scale or request.guidance or 1.0:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
    }
    if request.source is not None:
        values["Denoising strength"] = f"{request.strength:g}"
    values["Version"] = f"hwaga {version}"
    tags = "".join(f" <lora:{lora.name}:{lora.weight:g}>" for lora in request.model_loras)
    negative = f"Negative prompt: {request.model_negative}\n" if request.model_negative else ""
    return f"{request.model_prompt}{tags}\n{negative}" + ", ".join(
        f"{name}: {_quoted(str(value))}" for name, value in values.items()
    )


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that a file name's ending means.

    Raises:
        ImageFileError: another ending or none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageFileError(f"The file name '{path}' does not say a format. End it in {_listed()}.")
    return SUFFIXES[suffix]


def check_writable(folder_or_file: str | os.PathLike[str]) -> None:
    """Refuse a place that cannot be written to, before a picture is made for it.

    A file is written there and removed, because permissions alone do not tell: root has them on a read-only mount too.

    Raises:
        ImageFileError: no such folder, not a folder, no permission, no space, or a file name of unknown ending.
    """
    path = Path(folder_or_file)
    try:
        if path.is_dir():
            folder = path
        elif path.suffix.lower() in SUFFIXES:
            folder = _target(path).parent
        else:
            raise ImageFileError(
                f"'{path}' is neither a folder that exists nor a file name that ends in {_listed()}. "
                "Create the folder, or change the name."
            )
        probe = folder / _temporary_name()
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it is there whole and for good, or not at all, even if the machine stops.

    The bytes go to a hidden file beside it, which takes the name once the disk has them. A file of that name is
    replaced, a link is followed, and the mode is that of any new file (by the umask).

    Raises:
        ImageFileError: it could not be written. What was there before still is, unless it was the disk that failed when
            the new name was already in place.
    """
    path = Path(path)
    try:
        target = _target(path)
        temporary = target.with_name(_temporary_name())
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a picture was made with, as ``encode`` was given them. Pixels are not decoded.

    Raises:
        ImageFileError: missing, not a PNG, JPEG or WebP, damaged, or without settings of ours.
    """
    try:
        name, data = read_file(Path(path))
        with opened_picture(data, name) as picture:
            if picture.format == "PNG":
                found = str(picture.info.get("hwaga", "")).encode()
            else:
                note = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote)
                found = note.removeprefix(_KEY) if isinstance(note, bytes) and note.startswith(_KEY) else b""
    except SourceImageError as error:
        raise ImageFileError(str(error)) from error
    if not found:
        raise ImageFileError(
            f"{name} carries no Hwaga settings. Give a picture as Hwaga wrote it: chats and web sites remove them."
        )
    try:
        if len(found) > MAX_SETTINGS:
            raise ValueError(f"{len(found)} bytes, and {MAX_SETTINGS} are the most that are read")
        settings = json.loads(found)
        if not isinstance(settings, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ImageFileError(
            f"The settings in {name} are damaged ({error}). Give the picture as it was made."
        ) from error
    return settings


def _exif(settings: str, parameters: str) -> bytes:
    exif = Exif()
    # Big-endian, which is then the byte order of the comment's UTF-16 too, and what the other tools expect.
    exif.endian = ">"
    values = exif.get_ifd(ExifTags.IFD.Exif)
    values[ExifTags.Base.MakerNote] = _KEY + settings.encode("ascii")
    values[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif.tobytes()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _listed() -> str:
    *others, last = SUFFIXES
    return f"{', '.join(others)} or {last}"


def _temporary_name() -> str:
    # Not made from the file's own name, which may already be as long as a name can be.
    return f".hwaga-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def _target(path: Path) -> Path:
    # Renaming onto a link would replace the link, and onto /dev/null, as root, the device.
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ImageFileError(f"'{path}' exists and is not a file. Choose another name.")
    return target


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync a folder, such as some network mounts
            raise
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError | ValueError) -> ImageFileError:
    if isinstance(error, OSError):
        cause = _CAUSES.get(error.errno or 0) or f"{error.strerror}. Choose another folder"
    else:
        cause = f"{error}. Choose another name"
    return ImageFileError(f"'{path}' cannot be written: {cause}.")
