"""What the server and its worker process say to each other, over a pair of sockets.

A frame is two lengths (unsigned, 32 bits, big-endian), a message as JSON, and bytes: a picture, or none. The JSON names the message
and holds its other fields; nothing on the wire is code.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from hwaga.errors import WireError
from hwaga.source_image import MAX_BYTES

MAX_JSON = 2**20
"""Most bytes of a message: far above the longest prompt that a model takes."""

_LENGTHS = struct.Struct(">II")


@dataclass(frozen=True)
class Open:
    """To the worker, once: load a model."""

    model: str | None
    device: str | None
    dtype: str | None


@dataclass(frozen=True)
class Ready:
    """From the worker: the model is loaded."""

    model: str
    device: str


@dataclass(frozen=True)
class Refused:
    """From the worker, which then ends: the model cannot be loaded."""

    error: str
    message: str


@dataclass(frozen=True)
class Draw:
    """To the worker: make the pictures of a job, whose body is as the job's. ``data`` is the picture to start from."""

    job: str
    attempt: int
    body: dict[str, Any]
    data: bytes = b""


@dataclass(frozen=True)
class Cancel:
    """To the worker: stop, if this is what you work on."""

    job: str
    attempt: int


@dataclass(frozen=True)
class Progress:
    """From the worker: so many steps are done. ``data`` is a small JPEG of what emerges, where the job asks for previews."""

    step: int
    total: int
    data: bytes = b""


@dataclass(frozen=True)
class Picture:
    """From the worker: a finished picture, PNG."""

    data: bytes


@dataclass(frozen=True)
class Finished:
    """From the worker: all pictures of the job have been sent."""


@dataclass(frozen=True)
class Failed:
    """From the worker: the job came to nothing, and these are the error's class and message."""

    error: str
    message: str


@dataclass(frozen=True)
class Stopped:
    """From the worker: the job was cancelled."""


Message = Open | Ready | Refused | Draw | Cancel | Progress | Picture | Finished | Failed | Stopped

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__args__}
_TYPES = {"str": str, "int": int, "str | None": str | None, "dict[str, Any]": dict}


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        WireError: it is too large.
    """
