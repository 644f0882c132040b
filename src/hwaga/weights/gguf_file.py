"""What a GGUF file holds, read from its header alone.

The header is metadata (for a language model also its vocabulary, which is skipped), then a name, a shape, a number format and
an offset for each tensor. The format is described in ggml's ``docs/gguf.md``. Nothing in it is trusted: counts and lengths are
held against what a header can be and against the file's size before anything is read or kept.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hwaga.errors import CheckpointError
from hwaga.weights.block_formats import BLOCK_FORMATS, OTHER_FORMATS
from hwaga.weights.stored import HeaderEntry

MAGIC = b"GGUF"

HEADER_BYTES = 2**26
"""What a header may take; that of a model with 150,000 words takes about 6 MiB."""

TENSORS, AXES = 2**16, 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Metadata's types of fixed size, as ``struct`` spells them."""

_STRING, _ARRAY = 8, 9

_KEPT = ("general.architecture", "general.alignment", "split.count")

_FORMATS = {entry.code: entry for entry in BLOCK_FORMATS.values()}


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        architecture: the kind of model that its writer names, or "" where it names none.
        tensors: by name, in the order of the file.
    """

    architecture: str
    tensors: dict[str, HeaderEntry]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufHeader:
    """Reads the header.

    Raises:
        CheckpointError: the file is damaged, of another version, one of several pieces, or holds a tensor in a number
            format that is not read here.
    """
    try:
        with path.open("rb", buffering=2**20) as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def read(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{self.path} is no GGUF file.")
        version = self._number("I")
        if version not in (2, 3):
            kind = "of big-endian machines" if version & 0xFFFF == 0 else f"of version {version}"
            raise CheckpointError(
                f"{self.path} is a GGUF file {kind}; versions 2 and 3 are read here. Fetch a newer one."
            )
        tensors, entries = self._number("Q"), self._number("Q")
        if tensors > TENSORS or entries > HEADER_BYTES:
            raise self._damaged(f"it announces {tensors} tensors and {entries} entries")
        kept = {}
        for _ in range(entries):
            key, value = self._text(), self._value(self._number("I"))
            if key in _KEPT:
                kept[key] = value
        if kept.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{self.path.name} is one of {kept['split.count']} pieces of a GGUF file. Join them with llama.cpp's "
                "`llama-gguf-split --merge`, or fetch a file that is whole."
            )
        alignment = kept.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & alignment - 1:
            raise self._damaged(f"its alignment is {alignment!r}")
        found = [self._tensor() for _ in range(tensors)]
        start = -(-self.position // alignment) * alignment
        named: dict[str, HeaderEntry] = {}
        for name, (number_format, shape, offset) in found:
            stored = BLOCK_FORMATS[number_format]
            size = math.prod(shape) // stored.weights * stored.nbytes
            if name in named:
                raise self._damaged(f"it holds {name} twice")
            if offset % alignment or start + offset + size > self.size:
                raise self._damaged(f"{name} does not lie inside the file")
            named[name] = HeaderEntry(number_format, shape, start + offset)
        architecture = kept.get("general.architecture", "")
        return GgufHeader(architecture if isinstance(architecture, str) else "", named)

    def _tensor(self) -> tuple[str, HeaderEntry]:
        """The next tensor's name, and where it lies, counted from the end of the header."""
        name, axes = self._text(), self._number("I")
        if axes > AXES:
            raise self._damaged(f"{name} has {axes} axes")
        shape = tuple(reversed([self._number("Q") for _ in range(axes)]))
        code, offset = self._number("I"), self._number("Q")
        packing = _FORMATS.get(code)
        if packing is None:
            other = OTHER_FORMATS.get(code, f"number format {code}")
            raise CheckpointError(
                f"{self.path.name} stores {name} as {other}; {', '.join(BLOCK_FORMATS)} are read here. Fetch one of those."
            )
        if math.prod(shape) > self.size * 8 or (shape[-1] if shape else 1) % packing.weights:
            raise self._damaged(f"{name} is {list(shape)} of {packing.name}")
        return name, HeaderEntry(packing.name, shape, offset)

    def _value(self, kind: int) -> Any:
        """A value of the metadata; arrays are skipped."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise self._damaged(f"its metadata has a value of type {kind}")
        items, count = self._number("I"), self._number("Q")
        if items in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[items]}"))
        elif items == _STRING:
            if count > HEADER_BYTES // 8:
                raise self._damaged(f"its metadata has a list of {count} texts")
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            raise self._damaged(f"its metadata has a list of values of type {items}")
        return None

    def _text(self) -> str:
        length = self._number("Q")
        if length > HEADER_BYTES:
            raise self._damaged(f"it has a text of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._damaged("it has a text that is no UTF-8") from None

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _take(self, length: int) -> bytes:
        self._advance(length)
        data = self.file.read(length)
        if len(data) < length:
            raise self._damaged("it ends within its header")
        return data

    def _skip(self, length: int) -> None:
        self._advance(length)
        self.file.seek(length, os.SEEK_CUR)

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > min(self.size, HEADER_BYTES):
            raise self._damaged("it ends within its header" if self.position > self.size else "its header has no end")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}. Fetch it again.")
