"""From safetensors files to a network, one tensor at a time.

A network is built on the meta device, where it has shapes and no memory. Its weights are then filled from the files on the
device that they will live on, block by block or all of them, so that nothing exists twice as a whole. Whatever the file and
the network do not agree on is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import Layout
from hwaga.weights.packed import PackedLinear
from hwaga.weights.quantize import GROUP, PRECISIONS, Precision, QuantizedLinear
from hwaga.weights.reader import Reader
from hwaga.weights.row_table import RowTable
from hwaga.weights.stored import FORMATS, StoredTensor, stored_tensors
from hwaga.weights.unit import Unit

DIGEST_BYTES = 2**20

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

Network = TypeVar("Network", bound=nn.Module)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object beside the weights.

    Raises:
        CheckpointError: missing, or not a JSON object.
    """
    path = folder / name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"The checkpoint has no {path}. Fetch the checkpoint again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Fetch it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object. Fetch it again.")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one network: those that an index names, or the only one there is.

    Files of a variant ("model.fp16.safetensors", "model.safetensors.index.fp16.json") count where there are no others.

    Raises:
        CheckpointError: none, several without an index, a shard that the index names and the folder lacks, or pickles.
    """
    if not folder.is_dir():
        raise CheckpointError(f"The checkpoint has no folder {folder}. Fetch the checkpoint again.")
    indexes, files = _sets_of_weights(folder)
    if len(indexes) == 1:
        shards = read_config(folder, indexes[0].name).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{indexes[0]} has no weight_map. Fetch it again.")
        names = sorted(set(shards.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(
                f"{indexes[0]} names files outside of its folder: {', '.join(outside)}. Don't use it."
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)} of {len(names)} shards. Fetch what is missing.")
        return [folder / name for name in names]
    if len(files) == 1 and not indexes:
        return files
    if files or indexes:
        found = ", ".join(path.name for path in (*indexes, *files))
        raise CheckpointError(
            f"{folder} holds several sets of weights ({found}). Keep one file, or one index and its shards."
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is opened. "
            "Hwaga reads safetensors only: fetch or convert the checkpoint in that format."
        )
    raise CheckpointError(f"{folder} holds no .safetensors file. Fetch the checkpoint again.")


def _sets_of_weights(folder: Path) -> tuple[list[Path], list[Path]]:
    """Indexes and files, in order; those without a variant's name if there are any."""
    indexes, files = (sorted(folder.glob(pattern)) for pattern in ("*.safetensors.index*.json", "*.safetensors"))
    if all(_VARIANT.search(path.name) for path in (*indexes, *files)):
        return indexes, files
    plain = [[path for path in paths if not _VARIANT.search(path.name)] for paths in (indexes, files)]
    return plain[0], plain[1]


_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|non_ema|ema)\b")
"""What diffusers and those who publish write into names before the ending."""


def weights_digest(folders: Sequence[Path]) -> str:
    """Tells one checkpoint from another: the ``file_digest`` of all its weight files."""
    return file_digest([path for folder in folders for path in weight_files(folder)])


def file_digest(files: Sequence[Path]) -> str:
    """16 hexadecimal digits of a sha256 over the two ends of each file.

    Of safetensors, the beginning holds names and shapes and some values, the end more values. It costs no reading of
    gigabytes, and is no proof that a file is whole.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(file.read(DIGEST_BYTES))
            file.seek(max(file.tell(), path.stat().st_size - DIGEST_BYTES))
            digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()[:16]


def _one_unit(_: str) -> str:
    return ""


@dataclass(frozen=True)
class Blueprint(Generic[Network]):
    """A network without its weights, and where each of them is to come from. Files and network are known to agree.

    Attributes:
        network: on the meta device.
        sources: for each weight of the network, the stored tensors that it is stacked from.
    """

    network: Network
    sources: Mapping[str, list[StoredTensor]]

    @classmethod
    def outline(cls, build: Callable[[], Network]) -> Blueprint[Network]:
        """A network that has no files: its units have sizes and cannot be filled."""
        with torch.device("meta"):
            network = build()
        return cls(network, {name: [] for name, _ in network.named_parameters()})

    @property
    def files(self) -> set[Path]:
        """That the weights are read from."""
        return {piece.file for pieces in self.sources.values() for piece in pieces}

    @property
    def stored_bytes(self) -> int:
        """Bytes that ``load`` reads."""
        return sum(piece.nbytes for pieces in self.sources.values() for piece in pieces)

    @classmethod
    def read(cls, build: Callable[[], Network], folder: Path, layout: Layout) -> Blueprint[Network]:
        """Matches a network with a folder of safetensors files, by their headers alone.

        Args:
            build: makes the network; it is called with the meta device as default.
            folder: where the weights lie.
            layout: how the files spell the names.

        Raises:
            CheckpointError: weights missing, left over or of a wrong shape, each by name.
        """
        return cls.match(build, stored_tensors(weight_files(folder), layout), layout, folder, "config.json")

    @classmethod
    def match(
        cls,
        build: Callable[[], Network],
        stored: Sequence[StoredTensor],
        layout: Layout,
        place: Path,
        described_by: str,
    ) -> Blueprint[Network]:
        """Matches a network with tensors that were found already.

        Args:
            build: makes the network; it is called with the meta device as default.
            place: the file or folder that holds the tensors, for messages.
            described_by: what the network's sizes were read from, for messages.

        Raises:
            CheckpointError: as ``read``.
        """
        with torch.device("meta"):
            network = build()
        wanted = dict(network.named_parameters())
        return cls(network, _sources(wanted, _piece_rows(network), stored, layout, place, described_by))

    def quantize(self, names: str, precision: Precision) -> None:
        """Keeps the linear layers whose names match a pattern, as a whole, in fewer bits. Before ``units``."""
        for name, module in self._linear_layers(names):
            if not isinstance(module, QuantizedLinear):
                self.network.set_submodule(name, QuantizedLinear(module, precision))

    def multiply_codes(self, names: str) -> None:
        """Lets those of the matching linear layers that are kept in fp8 multiply codes. Before ``units``."""
        for _, module in self._linear_layers(names):
            if isinstance(module, QuantizedLinear):
                module.multiply_codes()

    def keep_stored(self, names: str, precision: Precision | None) -> None:
        """Keeps the linear layers whose names match as the files have them, where those have fewer bits. Before ``quantize``.

        Args:
            precision: what is asked for. Blocks of GGUF are decoded for it, and what Hwaga wrote with as few bits stays.

        Raises:
            CheckpointError: what Hwaga wrote has more bits than are asked for.
        """
        for name, module in self._linear_layers(names):
            pieces = self.sources[f"{name}.weight"]
            written = {piece.number_format for piece in pieces if piece.parts}
            if len(written) == 1 and all(piece.parts for piece in pieces):
                stored = PRECISIONS[written.pop()]
                if precision is not None and precision.bits < stored.bits:
                    raise CheckpointError(
                        f"{pieces[0].file} is in {stored.name}, and {precision.name} would be rounded twice. Convert the "
                        f"original to {precision.name}, or leave --precision out."
                    )
                self.network.set_submodule(name, QuantizedLinear(module, stored, stored=True))
            elif precision is None and any(
                FORMATS[piece.number_format].run_values > 1 for piece in pieces if not piece.parts
            ):
                self.network.set_submodule(name, PackedLinear(module, pieces))

    def _linear_layers(self, names: str) -> list[tuple[str, nn.Linear]]:
        pattern = re.compile(names)
        return [
            (name, module)
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        ]

    def connect(self, table: str, reader: Reader) -> None:
        """Reads the rows of a ``RowTable`` from the files when they are asked for, instead of keeping the table."""
        module = self.network.get_submodule(table)
        assert isinstance(module, RowTable)
        module.connect(self.sources[f"{table}.weight"][0], reader)

    def units(self, dtype: torch.dtype, unit_of: Callable[[str], str] = _one_unit) -> dict[str, Unit]:
        """The weights of the network in units, by name.

        Args:
            dtype: the number format that they are converted to.
            unit_of: gives the unit for a weight's name: the name of the module that it comes and goes with, or "" for what
                belongs to the network at large. Tables that are read by rows are in none.
        """
        found: dict[str, list[tuple[str, nn.Module, Sequence[StoredTensor]]]] = {}
        for name, pieces in self.sources.items():
            owner = self.network.get_submodule(name.rpartition(".")[0])
            if any(piece.parts for piece in pieces) and not (isinstance(owner, QuantizedLinear) and owner.stored):
                raise CheckpointError(
                    f"{pieces[0].file} holds {name} in fewer bits, which is not kept like that. Convert it anew."
                )
            if not isinstance(owner, RowTable):
                found.setdefault(unit_of(name), []).append((name, owner, pieces))
        return {name: Unit(self.network.get_submodule(name), weights, dtype) for name, weights in found.items()}

    def load(
        self, *, device: torch.device, dtype: torch.dtype, progress: Callable[[int], None] | None = None
    ) -> Network:
        """Fills the network, all of it, and hands it over; a blueprint loads once.

        Args:
            device: where the weights go.
            dtype: the format that they are converted to on the way.
            progress: told the stored bytes of each weight once it is there.

        Raises:
            CheckpointError: a weight cannot be read or is not finite, by name.
        """
        (unit,) = self.units(dtype).values()
        memory = torch.empty(unit.nbytes, dtype=torch.uint8, device=device)
        with closing(Reader(device)) as reader:
            unit.bring(memory, reader, progress)
        unit.attach(unit.parameters(memory))
        return self.network.eval()


def _sources(
    wanted: Mapping[str, Tensor],
    piece_rows: Mapping[str, tuple[int, ...]],
    stored: Sequence[StoredTensor],
    layout: Layout,
    place: Path,
    described_by: str,
) -> dict[str, list[StoredTensor]]:
    """For each weight of the network, the tensors that it is stacked from."""
    places: dict[tuple[str, int], StoredTensor] = {}
    left_over = []
    for tensor in _pieces(stored, layout, place):
        target = layout.target(tensor.name)
        if target is None:
            continue
        if target[0] not in wanted or target in places or target[1] >= len(piece_rows.get(target[0], (0,))):
            left_over.append(tensor.name)
        else:
            places[target] = tensor
    sources: dict[str, list[StoredTensor]] = {}
    missing, misshapen = [], []
    for name, weight in wanted.items():
        spellings = layout.sources(name)
        rows = piece_rows.get(name) if len(spellings) > 1 else None  # a file may hold the pieces stacked already
        sources[name] = []
        for index in range(len(rows) if rows else 1):
            shape = (rows[index], *weight.shape[1:]) if rows else tuple(weight.shape)
            if layout.is_pointwise(name):
                shape = (*shape, 1, 1)
            found = places.get((name, index))
            if found is None:
                missing.append(spellings[index])
                continue
            if layout.is_transposed(found.name):
                found, shape = replace(found, transposed=True), shape[::-1]
            if found.shape != shape and not (found.number_format == "int4" and _grouped(found.shape, shape)):
                misshapen.append(f"{found.name} is {list(found.shape)} and should be {list(shape)}")
            else:
                sources[name].append(found)
    otherwise = f"The files are not those that {described_by} describes."
    if missing:
        raise CheckpointError(f"{place} lacks {listed(missing)}. {otherwise}")
    if misshapen:
        raise CheckpointError(f"{place}: {listed(misshapen)}. {otherwise}")
    if left_over:
        raise CheckpointError(
            f"{place} holds {listed(left_over)}, which the network of {described_by} has no place for."
        )
    return sources


def _pieces(stored: Sequence[StoredTensor], layout: Layout, place: Path) -> Iterator[StoredTensor]:
    """The tensors, those cut up that hold several of ours."""
    for tensor in stored:
        names = layout.pieces(tensor.name)
        if len(names) > 1 and (not tensor.shape or tensor.shape[0] % len(names)):
            raise CheckpointError(
                f"{place}: {tensor.name} is {list(tensor.shape)} and should hold {len(names)} weights. Fetch it again."
            )
        yield from tensor.split(names) if len(names) > 1 else (tensor,)


def _grouped(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a weight in int4, whose rows are filled up to whole groups, is of a shape."""
    return len(wanted) == 2 and found == (wanted[0], -(-wanted[1] // GROUP) * GROUP)


def _piece_rows(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of each piece for the weights that are stacked."""
    rows = {}
    for name, module in network.named_modules():
        if isinstance(module, FusedLinear):
            rows.update({f"{name}.{kind}": module.outs for kind, _ in module.named_parameters()})
    return rows


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first of some names, and how many more there are; for messages."""
    shown = separator.join(items[:4])
    return shown if len(items) <= 4 else f"{shown} and {len(items) - 4} more"
