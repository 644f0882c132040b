"""Tensors in files: what lies where, and what their bytes mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights.block_formats import BLOCK_FORMATS, BlockFormat
from hwaga.weights.quantize import GROUP

if TYPE_CHECKING:
    from hwaga.weights.layouts import Layout


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


def _blocks(entry: BlockFormat) -> StoredFormat:
    return StoredFormat(
        entry.nbytes, entry.weights, lambda raw: entry.decode(raw.view(-1, entry.nbytes)).flatten(), torch.float32
    )


FORMATS = {
    **{name: _blocks(entry) for name, entry in BLOCK_FORMATS.items()},
    **NUMBER_FORMATS,
    SCALED_FORMAT: StoredFormat(1, 1, lambda raw: raw.view(torch.float8_e4m3fn).float(), torch.float32),
    "I8": _plain(torch.int8),
    "U8": _plain(torch.uint8),
}
"""The same, what ComfyUI's and GGUF files may hold besides, and the codes of weights in fewer bits."""

CODES = {"int8": ("I8", ("", "_scale")), "fp8": (SCALED_FORMAT, ("", "_scale")), "int4": ("U8", ("", "_scale", "_low"))}
"""For each precision that Hwaga's own files hold: the number format of its codes, and what is added to the name of a weight,
its precision and an underscore, to name its parts; see ``weights.conversion``."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        offset: of its first byte in the file.
        number_format: a name of ``FORMATS``.
        scale: the tensor of one value that the values are multiplied with; or None.
        transposed: a matrix whose rows and columns the network has the other way round.
        parts: of a weight in fewer bits, its codes and what they are multiplied with and added to. Its number format is a name
            of ``CODES`` then, and it has no offset of its own.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    number_format: str
    scale: StoredTensor | None = None
    parts: tuple[StoredTensor, ...] = ()
    transposed: bool = False

    def split(self, names: Sequence[str]) -> list[StoredTensor]:
        """Its rows as tensors of equally many, one behind the other."""
        count = len(names)
        shape, size = (self.shape[0] // count, *self.shape[1:]), self.nbytes // count
        return [
            replace(self, name=name, shape=shape, nbytes=size, offset=self.offset + place * size)
            for place, name in enumerate(names)
        ]


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


def stored_tensors(files: list[Path], layout: Layout | None = None) -> list[StoredTensor]:
    """Every tensor of a network's files, from the headers alone.

    Args:
        layout: what it calls unused is left out, whatever its format.

    Raises:
        CheckpointError: a file is truncated or no safetensors file, a tensor is in a format that is not read here, or a
            name stands in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        header = read_header(path)
        if layout is not None:
            header = {name: entry for name, entry in header.items() if layout.target(name) is not None}
        for weight in _in_fewer_bits(path, header):
            if weight.name in tensors:
                raise CheckpointError(f"{weight.name} stands in {path.name} and elsewhere. Fetch them again.")
            tensors[weight.name] = weight
        for name, (number_format, shape, offset) in header.items():
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


def _in_fewer_bits(path: Path, header: dict[str, HeaderEntry]) -> list[StoredTensor]:
    """Takes the weights in fewer bits out of a header, with all of their parts.

    Raises:
        CheckpointError: a part is missing, or of another shape or number format than the codes ask for.
    """
    found = []
    for precision, (codes_format, endings) in CODES.items():
        for name in [name for name in header if name.endswith(f".weight_{precision}")]:
            entries = [header.pop(name + ending, None) for ending in endings]
            codes, *factors = entries
            shape = codes.shape if codes is not None else ()
            grouped = precision == "int4"
            wanted = (*shape[:-1], 1) if grouped else (*shape[:1], 1)
            sound = codes is not None and codes.number_format == codes_format and len(shape) == (3 if grouped else 2)
            sound = sound and (not grouped or shape[2] == GROUP // 2)
            if not sound or any(f is None or f.shape != wanted or f.number_format != "BF16" for f in factors):
                raise CheckpointError(f"{path.name} does not hold {name} with what belongs to it. Write it anew.")
            parts = tuple(
                StoredTensor(
                    name + ending,
                    path,
                    entry.shape,
                    math.prod(entry.shape) * FORMATS[entry.number_format].run_bytes,
                    entry.offset,
                    entry.number_format,
                )
                for ending, entry in zip(endings, entries, strict=True)
                if entry is not None
            )
            whole = (shape[0], shape[1] * shape[2] * 2) if grouped else (shape[0], shape[1])
            size = sum(part.nbytes for part in parts)
            found.append(StoredTensor(name.removesuffix(f"_{precision}"), path, whole, size, 0, precision, parts=parts))
    return found
