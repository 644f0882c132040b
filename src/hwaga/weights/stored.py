"""Tensors in files: what lies where, and what their bytes mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwaga.errors import CheckpointError


@dataclass(frozen=True)
class StoredFormat:
    """How numbers are written.

    Attributes:
        run_bytes, run_values: the smallest run of bytes that can be read alone, and the values in it.
        decode: uint8 ``[runs * run_bytes]`` on any device to ``[runs * run_values]``. May be a view.
        dtype: what ``decode`` gives.
    """

    run_bytes: int
    run_values: int
    decode: Callable[[Tensor], Tensor]
    dtype: torch.dtype


def _plain(dtype: torch.dtype) -> StoredFormat:
    return StoredFormat(dtype.itemsize, 1, lambda raw: raw.view(dtype), dtype)


NUMBER_FORMATS = {"F32": _plain(torch.float32), "F16": _plain(torch.float16), "BF16": _plain(torch.bfloat16)}
"""Formats that weights may be stored in, as safetensors headers spell them."""

SCALED_FORMAT = "F8_E4M3"

FORMATS = {
    **NUMBER_FORMATS,
    SCALED_FORMAT: StoredFormat(1, 1, lambda raw: raw.view(torch.float8_e4m3fn).float(), torch.float32),
}
"""The same, and what ComfyUI's files may hold besides."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        offset: of its first byte in the file.
        number_format: a name of ``FORMATS``.
        scale: the tensor of one value that the values are multiplied with; or None.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    number_format: str
    scale: StoredTensor | None = None


class HeaderEntry(NamedTuple):
    """One tensor in a safetensors file."""

    number_format: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """What a safetensors file holds, by name.

    Raises:
        CheckpointError: the file is truncated or no safetensors file.
    """
    try:
        # The library checks the header against the file. As numpy would read it: for torch, the whole file is mapped as
        # memory that may be written to, which must be there.
        with safe_open(path, framework="numpy", device="cpu"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}). Fetch it again.") from error
    return {
        name: HeaderEntry(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def stored_tensors(files: list[Path]) -> list[StoredTensor]:
    """Every tensor of a network's files, from the headers alone.

    Raises:
        CheckpointError: a file is truncated or no safetensors file, a tensor is in a format that is not read here, or a
            name stands in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, (number_format, shape, offset) in read_header(path).items():
            if number_format not in NUMBER_FORMATS:
                raise CheckpointError(
                    f"{path.name} stores {name} as {number_format}; only {', '.join(NUMBER_FORMATS)} are read here."
                )
            if name in tensors:
                raise CheckpointError(
                    f"{name} stands in {tensors[name].file.name} and in {path.name}. Fetch them again."
                )
            size = math.prod(shape) * NUMBER_FORMATS[number_format].run_bytes
            tensors[name] = StoredTensor(name, path, shape, size, offset, number_format)
    return list(tensors.values())
