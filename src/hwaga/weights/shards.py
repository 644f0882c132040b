"""Safetensors files written as their tensors come, each header first: sizes are known before the first value is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

FORMATS = {torch.bfloat16: "BF16", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8"}
"""What safetensors calls the formats that are written."""

SHARD_BYTES = 2**32


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def into_shards(groups: Iterable[Sequence[NewTensor]], limit: int = SHARD_BYTES) -> list[list[Sequence[NewTensor]]]:
    """Groups of tensors that stay together, cut into files of a size. A group above it gets a file of its own."""
    shards: list[list[Sequence[NewTensor]]] = []
    room = 0
    for group in groups:
        size = sum(tensor.nbytes for tensor in group)
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(group)
        room -= size
    return shards


def shard_names(stem: str, shards: int) -> list[str]:
    """File names as diffusers and transformers look for them."""
    if shards == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{place + 1:05d}-of-{shards:05d}.safetensors" for place in range(shards)]


class ShardWriter:
    """One file, written from front to back and synced at its end.

    Attributes:
        sha256: of the file, once it is closed.
    """

    def __init__(self, path: Path, tensors: Sequence[NewTensor]) -> None:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in tensors:
            entries[tensor.name] = {
                "dtype": FORMATS[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + tensor.nbytes],
            }
            end += tensor.nbytes
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self.sha256 = ""
        self._digest = hashlib.sha256()
        self._left = 8 + len(header) + end
        self._file = path.open("xb")
        self._write(struct.pack("<Q", len(header)) + header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file as file:
            if kind is None:
                assert self._left == 0, "fewer values than the header announces"
                file.flush()
                os.fsync(file.fileno())
                self.sha256 = self._digest.hexdigest()

    def write(self, values: Tensor) -> None:
        """The next values, in the order of the header."""
        self._write(values.contiguous().flatten().view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        self._left -= len(data)
        self._digest.update(data)
        self._file.write(data)
