"""From safetensors files to a network, one tensor at a time.

A network is built on the meta device, where it has shapes and no memory. Each of its weights is then made on the device that
it will live on and filled from the file, so that nothing exists twice as a whole. Whatever the file and the network do not
agree on is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights.layouts import Layout

NUMBER_FORMATS = {"F32": 4, "F16": 2, "BF16": 2}
"""Formats that weights may be stored in, as safetensors headers spell them, and their bytes."""

DIGEST_BYTES = 2**20

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

Network = TypeVar("Network", bound=nn.Module)


class FusedLinear(nn.Linear):
    """Several linear layers over the same input as one product.

    Attributes:
        outs: output channels of each, in the order that they are stacked.
    """

    def __init__(self, in_features: int, outs: tuple[int, ...], *, bias: bool) -> None:
        super().__init__(in_features, sum(outs), bias=bias)
        self.outs = outs


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        scale: the tensor of one value, in the same file, that the values are multiplied with; or None.
        packing: how its values are packed, where that is no format of safetensors: the name of a GGUF block format.
        offset: where its bytes begin, in a GGUF file.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    nbytes: int
    scale: str | None = None
    packing: str | None = None
    offset: int = 0


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

    Raises:
        CheckpointError: none, several without an index, a shard that the index names and the folder lacks, or pickles.
    """
    if not folder.is_dir():
        raise CheckpointError(f"The checkpoint has no folder {folder}. Fetch the checkpoint again.")
    indexes = sorted(folder.glob("*.safetensors.index.json"))
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
    files = sorted(folder.glob("*.safetensors"))
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


def stored_tensors(files: list[Path]) -> list[StoredTensor]:
    """Name, place and shape of every tensor, from the headers alone.

    Raises:
        CheckpointError: a file is truncated or no safetensors file, a tensor is in a format that is not read here, or a
            name stands in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, (number_format, shape) in read_header(path).items():
            if number_format not in NUMBER_FORMATS:
                raise CheckpointError(
                    f"{path.name} stores {name} as {number_format}; only {', '.join(NUMBER_FORMATS)} are read here."
                )
            if name in tensors:
                raise CheckpointError(
                    f"{name} stands in {tensors[name].file.name} and in {path.name}. Fetch them again."
                )
            size = math.prod(shape) * NUMBER_FORMATS[number_format]
            tensors[name] = StoredTensor(name, path, shape, size)
    return list(tensors.values())


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number format and shape of each tensor in a file, by its name.

    Raises:
        CheckpointError: the file is truncated or no safetensors file.
    """
    # As numpy would read it: for torch, the whole file is mapped as memory that may be written to, which must be there.
    with _opened(path, "numpy") as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
        return {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}


@dataclass(frozen=True)
class Blueprint(Generic[Network]):
    """A network without its weights, and where each of them is to come from. Files and network are known to agree.

    Attributes:
        network: on the meta device.
        sources: for each weight of the network, the stored tensors that it is stacked from.
    """

    network: Network
    sources: Mapping[str, list[StoredTensor]]

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
        return cls.match(build, stored_tensors(weight_files(folder)), layout, folder, "config.json")

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

    def load(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        replace: Callable[[str, nn.Linear, Tensor], nn.Linear | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Network:
        """Fills the network and hands it over; a blueprint loads once.

        Args:
            device: where the weights go.
            dtype: the format that they are converted to on the way.
            replace: given the name of a linear layer, the layer and its weight, another layer to stand in its place with a
                weight of its own, or None to leave it.
            progress: told the stored bytes of each weight once it is there.

        Raises:
            CheckpointError: a weight cannot be read or is not finite, by name.
        """
        with ExitStack() as stack:
            # The handles are memory maps: opening them all costs address space, not memory.
            paths = {piece.file for pieces in self.sources.values() for piece in pieces}
            files = {path: stack.enter_context(_opened(path)) for path in paths}
            for name, pieces in self.sources.items():
                owner, _, last = name.rpartition(".")
                module = self.network.get_submodule(owner)
                weight = torch.empty(getattr(module, last).shape, dtype=dtype, device=device)
                if len(pieces) == 1:
                    weight.copy_(_read(files[pieces[0].file], pieces[0], device).view(weight.shape))
                else:
                    for part, piece in zip(weight.split([p.shape[0] for p in pieces]), pieces, strict=True):
                        part.copy_(_read(files[piece.file], piece, device).view(part.shape))
                if not torch.isfinite(weight).all():
                    raise CheckpointError(_not_finite(pieces, files, dtype))
                other = None
                if replace is not None and isinstance(module, nn.Linear) and last == "weight":
                    other = replace(owner, module, weight)
                if other is None:
                    setattr(module, last, nn.Parameter(weight, requires_grad=False))
                else:
                    self.network.set_submodule(owner, other)
                if progress is not None:
                    progress(sum(piece.nbytes for piece in pieces))
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
    for tensor in stored:
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
            elif found.shape != shape:
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


def _piece_rows(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of each piece for the weights that are stacked."""
    rows = {}
    for name, module in network.named_modules():
        if isinstance(module, FusedLinear):
            rows.update({f"{name}.{kind}": module.outs for kind, _ in module.named_parameters()})
    return rows


@contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    try:
        handle = safe_open(path, framework=framework, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}). Fetch it again.") from error
    with handle as file:
        yield file


def _read(file: Any, piece: StoredTensor, device: torch.device | str = "cpu") -> Tensor:
    """The tensor as it is stored; 8-bit values as float32, multiplied with their scale on the device."""
    try:
        tensor: Tensor = file.get_tensor(piece.name)
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = tensor.to(device).float()
        if piece.scale is not None:
            tensor *= file.get_tensor(piece.scale).item()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{piece.name} cannot be read from {piece.file}: {error}. Fetch it again.") from error
    return tensor


def _not_finite(pieces: list[StoredTensor], files: Mapping[Path, Any], dtype: torch.dtype) -> str:
    for piece in pieces:
        if not torch.isfinite(_read(files[piece.file], piece)).all():
            return f"{piece.file}: {piece.name} holds NaN or infinity. The file is damaged: fetch it again."
    worst = max(pieces, key=lambda piece: _read(files[piece.file], piece).abs().max().item())
    return f"{worst.file}: {worst.name} has values too large for {str(dtype).removeprefix('torch.')}."


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first of some names, and how many more there are; for messages."""
    shown = separator.join(items[:4])
    return shown if len(items) <= 4 else f"{shown} and {len(items) - 4} more"
