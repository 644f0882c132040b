"""Rows of stored tensors, read by position. Nothing is mapped: a pass over 33 GB keeps no more of them than it asks for."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights.block_formats import BLOCK_FORMATS
from hwaga.weights.checkpoint import StoredTensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}


class StoredRows:
    """Open files of weights whose headers were read before, and are known to be whole."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._descriptors: dict[Path, int] = {}
        self._places: dict[Path, dict[str, tuple[torch.dtype, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, tensor: StoredTensor, begin: int, end: int) -> Tensor:
        """Rows ``[end - begin, …]`` along the first axis, in float32; a tensor without axes as it is.

        Raises:
            CheckpointError: the file cannot be read, or holds something else than numbers.
        """
        try:
            values = self._values(tensor, begin, end)
            if tensor.scale is not None:
                values *= self._scale(tensor.file, tensor.scale)
        except OSError as error:
            raise CheckpointError(
                f"{tensor.name} cannot be read from {tensor.file}: {error}. Fetch it again."
            ) from error
        if not torch.isfinite(values).all():
            raise CheckpointError(
                f"{tensor.file}: {tensor.name} holds NaN or infinity. The file is damaged: fetch it again."
            )
        return values

    def _values(self, tensor: StoredTensor, begin: int, end: int) -> Tensor:
        if len(tensor.shape) < 2:  # may be a part of one block
            values = self._numbers(tensor, 0, tensor.nbytes).view(tensor.shape)
            return values[begin:end] if tensor.shape else values
        row_bytes = tensor.nbytes // max(tensor.shape[0], 1)
        numbers = self._numbers(tensor, begin * row_bytes, (end - begin) * row_bytes)
        return numbers.view(end - begin, *tensor.shape[1:])

    def _numbers(self, tensor: StoredTensor, start: int, length: int) -> Tensor:
        """What some whole rows of a tensor's bytes stand for."""
        if tensor.packing is None:
            dtype, offset = self._place(tensor.file, tensor.name)
            return self._bytes(tensor.file, offset + start, length).view(dtype).float()
        packing = BLOCK_FORMATS[tensor.packing]
        data = self._bytes(tensor.file, tensor.offset + start, length)
        return packing.unpack(data.view(-1, packing.nbytes), torch.float32)

    def _scale(self, path: Path, name: str) -> float:
        dtype, offset = self._place(path, name)
        return float(self._bytes(path, offset, dtype.itemsize).view(dtype).item())

    def _place(self, path: Path, name: str) -> tuple[torch.dtype, int]:
        """Number format of a tensor in a safetensors file, and where its bytes begin."""
        if path not in self._places:
            descriptor = self._descriptor(path)
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            header = json.loads(os.pread(descriptor, length, 8))
            self._places[path] = {
                key: (DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0])
                for key, entry in header.items()
                if key != "__metadata__" and entry["dtype"] in DTYPES
            }
        return self._places[path][name]

    def _bytes(self, path: Path, offset: int, length: int) -> Tensor:
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            read = os.preadv(self._descriptor(path), [view[done:]], offset + done)
            if not read:
                raise CheckpointError(f"{path} has become shorter while it was read. Fetch it again.")
            done += read
        return torch.frombuffer(data, dtype=torch.uint8) if length else torch.empty(0, dtype=torch.uint8)

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            descriptor = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, descriptor)
            self._descriptors[path] = descriptor
        return self._descriptors[path]
