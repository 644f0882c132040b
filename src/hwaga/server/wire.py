"""What the server and its worker process say to each other, over a pair of sockets.

A frame is two lengths (unsigned, 32 bits, big-endian), a message as JSON, and bytes: a picture, or none. The JSON names the
message and holds its other fields; nothing on the wire is code.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
from dataclasses import dataclass
from types import UnionType
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from hwaga.errors import WireError
from hwaga.source_image import MAX_BYTES

MAX_JSON = 2**20
"""Most bytes of a message: far above the longest prompt that a model takes."""

_LENGTHS = struct.Struct(">II")


@dataclass(frozen=True)
class Open:
    """To the worker, once: load a model. What is None is as in the worker's own settings. ``batch`` is how many pictures may be
    drawn at once, if they fit.
    """

    model: str | None
    device: str | None
    dtype: str | None
    precision: str | None = None
    vram: str | None = None
    ram: str | None = None
    batch: int = 1
    warm_up: bool = False


@dataclass(frozen=True)
class Loading:
    """From the worker, now and then until it is ready: it gets on."""


@dataclass(frozen=True)
class Ready:
    """From the worker: the model is loaded."""

    model: str
    device: str


@dataclass(frozen=True)
class Draw:
    """To the worker: make the pictures of a job, whose body is as the job's. ``data`` is the picture to start from; where there
    is ``more``, the next job comes at once, and is drawn along with this one.
    """

    job: str
    attempt: int
    body: dict[str, Any]
    more: bool = False
    data: bytes = b""


@dataclass(frozen=True)
class Cancel:
    """To the worker: stop, if this is among what you work on."""

    job: str
    attempt: int


@dataclass(frozen=True)
class Progress:
    """From the worker: so many steps of a job are done, the last one of them as ``own_step`` of that picture, counted from 0.
    ``data`` is a small JPEG of what emerges there, where the job asks for previews.
    """

    job: str
    step: int
    total: int
    picture: int
    own_step: int
    data: bytes = b""


@dataclass(frozen=True)
class Picture:
    """From the worker: the job's next finished picture, PNG."""

    job: str
    data: bytes


@dataclass(frozen=True)
class Finished:
    """From the worker: all pictures of the job have been sent."""

    job: str


@dataclass(frozen=True)
class Failed:
    """From the worker: the job failed with an error of that class and message; or the model did, where there is no job yet."""

    error: str
    message: str
    job: str = ""


@dataclass(frozen=True)
class Stopped:
    """From the worker: the job was cancelled."""

    job: str


@dataclass(frozen=True)
class Plan:
    """From the worker, when the model is loaded and after a job that changed it: where weights lie, and what phases take."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class DeviceMemory:
    """From the worker, after each batch and while it has nothing to do: bytes of its device. ``used`` holds tensors now,
    ``reserved`` is what the process keeps of the device for these and later ones, and ``peak`` the most that ``used`` was.
    """

    used: int
    reserved: int
    peak: int


Report = Progress | Picture | Finished | Failed | Stopped
"""What a worker says about a job."""

Message = Open | Loading | Ready | Draw | Cancel | Plan | DeviceMemory | Report

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        WireError: it is too large.
    """
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    data = values.pop("data", b"")
    text = json.dumps({"kind": type(message).__name__, **values}, allow_nan=False).encode()
    _check(len(text), len(data))
    return b"".join((_LENGTHS.pack(len(text), len(data)), text, data))


def receive(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream; None at its end, also where it ends inside a frame, or with messages unread.

    Raises:
        WireError: the frame is malformed or too large. What follows it cannot be told apart any more.
    """
    try:
        head = stream.read(_LENGTHS.size)
        if len(head) < _LENGTHS.size:
            return None
        lengths = _check(*_LENGTHS.unpack(head))
        text, data = (stream.read(length) for length in lengths)
    except ConnectionError:
        return None
    return _decoded(text, data) if (len(text), len(data)) == lengths else None


async def receive_async(stream: asyncio.StreamReader) -> Message | None:
    """As ``receive``. Where it is cancelled in mid-frame, the stream cannot be read on."""
    try:
        text, data = _check(*_LENGTHS.unpack(await stream.readexactly(_LENGTHS.size)))
        return _decoded(await stream.readexactly(text), await stream.readexactly(data))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _check(text: int, data: int) -> tuple[int, int]:
    if text > MAX_JSON or data > MAX_BYTES:
        raise WireError(
            f"A message of {text:,} and {data:,} bytes is too large: {MAX_JSON:,} and {MAX_BYTES:,} are the most."
        )
    return text, data


def _decoded(text: bytes, data: bytes) -> Message:
    try:
        values = json.loads(text)
        kind = _KINDS[values.pop("kind")]
        fields = get_type_hints(kind)
        if data:
            values["data"] = data
        wrong = [name for name, value in values.items() if type(value) not in _accepted(fields[name])]
        if wrong:
            raise TypeError(f"{', '.join(wrong)} of another type")
        return kind(**values)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"A message is malformed ({type(error).__name__}: {error}). End the other process.") from error


def _accepted(hint: Any) -> tuple[type, ...]:
    """The types that a field of that annotation may have; exactly these, since True is an int to isinstance."""
    return tuple(get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))
