"""Weights written in another layout and number format, a piece of a tensor at a time.

A linear layer in fewer bits is stored as it is kept in memory. For a weight ``x.weight`` there are, in place of it,

    x.weight_int8, x.weight_int8_scale               bytes [rows, width], and a bfloat16 scale [rows, 1]
    x.weight_fp8, x.weight_fp8_scale                 the same in e4m3
    x.weight_int4, x.weight_int4_scale, …_int4_low   two codes a byte [rows, groups of 64, 32], bfloat16 [rows, groups, 1];
                                                     the last group is filled up with zeros

The names say the format, so that a program that does not know it misses the weight, and does not take the codes for weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights.quantize import GROUP, PRECISIONS
from hwaga.weights.reader import Reader
from hwaga.weights.shards import NewTensor, ShardWriter, into_shards, shard_names
from hwaga.weights.stored import StoredTensor
from hwaga.weights.verified import CheckedFile, sync_folder, write_durably

PIECE_VALUES = 2**24
"""Numbers that are worked on at a time. Each takes some 30 bytes while it is quantised."""

_CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}


@dataclass(frozen=True)
class Rows:
    """Rows of a stored tensor along its first axis."""

    tensor: StoredTensor
    begin: int
    end: int

    @classmethod
    def all_of(cls, tensor: StoredTensor) -> Rows:
        return cls(tensor, 0, tensor.shape[0] if tensor.shape else 1)


@dataclass(frozen=True)
class Target:
    """A tensor of the new checkpoint.

    Attributes:
        rows: what it is stacked from.
        quantised: whether it is one of the large weights, which may be kept in fewer bits.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    quantised: bool = False

    def stored(self, precision: str | None) -> list[NewTensor]:
        """What is written for it; of several tensors, the codes come first."""
        if not self.in_fewer_bits(precision):
            return [NewTensor(self.name, torch.bfloat16, self.shape)]
        assert precision is not None
        return [
            NewTensor(name, dtype, shape)
            for name, (dtype, shape) in stored_form(self.name, self.shape[0], self.shape[1], precision).items()
        ]

    def in_fewer_bits(self, precision: str | None) -> bool:
        """Rows of an odd number of bytes stay in bfloat16, since numbers behind them would lie askew; no model has any."""
        return precision is not None and self.quantised and (precision == "int4" or self.shape[1] % 2 == 0)


def stored_form(name: str, rows: int, width: int, precision: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Number formats and shapes by the names of the tensors that stand for a weight in fewer bits."""
    codes, groups = _CODES[precision], -(-width // GROUP)
    if precision == "int4":
        scales = (torch.bfloat16, (rows, groups, 1))
        return {
            f"{name}_int4": (codes, (rows, groups, GROUP // 2)),
            f"{name}_int4_scale": scales,
            f"{name}_int4_low": scales,
        }
    return {f"{name}_{precision}": (codes, (rows, width)), f"{name}_{precision}_scale": (torch.bfloat16, (rows, 1))}


@dataclass(frozen=True)
class NetworkTargets:
    """One network of the new checkpoint.

    Attributes:
        stem: path of its files below the folder, without what numbers them.
        limit: bytes of one file; None for one file in all.
    """

    stem: str
    targets: Sequence[Target]
    limit: int | None

    def shards(self, precision: str | None) -> list[list[Sequence[NewTensor]]]:
        groups = [target.stored(precision) for target in self.targets]
        return into_shards(groups, self.limit if self.limit is not None else sum(t.nbytes for g in groups for t in g))


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that is to be written.

    Attributes:
        networks: its weights.
        precision: how the large weights are kept; None for bfloat16, as everything else.
        documents: small files by their paths, as they are to be.
        copies: files to be copied, by their new paths.
    """

    networks: Sequence[NetworkTargets]
    precision: str | None
    documents: Mapping[str, bytes]
    copies: Mapping[str, Path]

    @property
    def to_read(self) -> int:
        """Bytes of stored weights."""
        tensors = {rows.tensor for network in self.networks for target in network.targets for rows in target.rows}
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def to_write(self) -> int:
        """Bytes of files, headers left out."""
        new = (
            tensor
            for network in self.networks
            for target in network.targets
            for tensor in target.stored(self.precision)
        )
        copied = sum(path.stat().st_size for path in self.copies.values())
        return sum(tensor.nbytes for tensor in new) + copied + sum(map(len, self.documents.values()))

    def write(self, folder: Path, checked: dict[str, CheckedFile]) -> Generator[int, None, None]:
        """Writes everything below an empty folder, and yields how many stored bytes have been read.

        Args:
            checked: gets the hash of each file.

        Raises:
            CheckpointError: stored weights cannot be read.
            OSError: a file cannot be written.
        """
        done = 0
        with closing(Reader(torch.device("cpu"))) as stored:
            for network in self.networks:
                shards = network.shards(self.precision)
                targets = {target.stored(self.precision)[0].name: target for target in network.targets}
                places = {}
                for shard, path in zip(shards, shard_names(network.stem, len(shards)), strict=True):
                    new = [tensor for group in shard for tensor in group]
                    places.update({tensor.name: Path(path).name for tensor in new})
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    with ShardWriter(folder / path, new) as writer:
                        for group in shard:
                            for size in _write_target(targets[group[0].name], self.precision, stored, writer):
                                done += size
                                yield done
                    checked[path] = CheckedFile.of(folder / path, writer.sha256)
                if len(shards) > 1:
                    size = sum(tensor.nbytes for shard in shards for group in shard for tensor in group)
                    index = {"metadata": {"total_size": size}, "weight_map": places}
                    self._write_small(folder, f"{network.stem}.safetensors.index.json", _json(index), checked)
        for path, data in self.documents.items():
            self._write_small(folder, path, data, checked)
        for path, source in self.copies.items():
            self._write_small(folder, path, source.read_bytes(), checked)
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sync_folder(place)

    def _write_small(self, folder: Path, path: str, data: bytes, checked: dict[str, CheckedFile]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(folder / path, data)
        checked[path] = CheckedFile.of(folder / path, hashlib.sha256(data).hexdigest())


def _json(values: object) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _write_target(
    target: Target, precision: str | None, stored: Reader, writer: ShardWriter
) -> Generator[int, None, None]:
    """Writes one tensor, or what stands for it, and yields the bytes read for each piece."""
    quantiser = PRECISIONS[precision] if precision is not None and target.in_fewer_bits(precision) else None
    scales: list[tuple[Tensor, ...]] = []
    for rows in target.rows:
        shape = rows.tensor.shape
        at_once = max(1, PIECE_VALUES // max(1, math.prod(shape[1:]))) if len(shape) > 1 else rows.end
        for begin in range(rows.begin, rows.end, at_once):
            end = min(begin + at_once, rows.end)
            values = stored.slice(rows.tensor, begin, end).float()
            if not torch.isfinite(values).all():
                raise CheckpointError(
                    f"{rows.tensor.file}: {rows.tensor.name} holds NaN or infinity. The file is damaged: fetch it again."
                )
            if quantiser is None:
                writer.write(values.bfloat16())
            else:
                codes, *others = quantiser.encode(values.flatten(1))
                writer.write(codes)
                scales.append(tuple(part.bfloat16() for part in others))
            yield rows.tensor.nbytes * (end - begin) // (shape[0] if shape else 1)
    for parts in zip(*scales, strict=True):
        writer.write(torch.cat(parts))
