"""Weights that come and go together: a block of a network, or all that lies outside of its blocks.

A unit's weights lie one behind the other in one run of memory, so that bringing them to the device is one copy. The network
sees them as its parameters; while they are away, the parameters are on the meta device and hold nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights.block_formats import BLOCK_FORMATS, VALUES_AT_ONCE
from hwaga.weights.host_buffer import HostBuffer
from hwaga.weights.packed import PackedLinear
from hwaga.weights.quantize import QuantizedLinear, encoding_bytes, write_codes
from hwaga.weights.reader import Reader, Reading, staged_bytes
from hwaga.weights.stored import StoredTensor

ALIGNMENT = 256
"""Bytes that each weight begins at a multiple of; what torch's own allocator keeps to at least is 512."""


@dataclass(frozen=True)
class Place:
    """Where one parameter lies in its unit's memory."""

    module: nn.Module
    name: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int


@dataclass(frozen=True)
class Weight:
    """One weight, as files have it: the pieces that it is stacked from, and the parameters that it becomes.

    Attributes:
        name: in our network.
        codes: the layer that is to keep it in fewer bits, or None.
        straight: what each place is filled with as it is stored, where the files have fewer bits already; else empty.
    """

    name: str
    shape: torch.Size
    pieces: Sequence[StoredTensor]
    places: tuple[Place, ...]
    codes: QuantizedLinear | None
    straight: tuple[tuple[StoredTensor, ...], ...] = ()

    @property
    def transposed(self) -> bool:
        """Files have it with rows and columns exchanged."""
        return any(piece.transposed for piece in self.pieces)


class Unit:
    """See the module's docstring.

    Attributes:
        module: the block, or the whole network for what lies outside of its blocks.
        nbytes: of the run of memory.
        stored_bytes: read from files to fill it.
        filling_bytes: taken on the device while it is filled, beside it.
        quantized: some of its weights are kept in fewer bits.
        writing_bytes: taken while one of its weights is written out for a product, where they are kept in fewer bits.
        host: a copy on the host to come back from, or None: then the files are read.
    """

    def __init__(
        self, module: nn.Module, weights: Sequence[tuple[str, nn.Module, Sequence[StoredTensor]]], dtype: torch.dtype
    ) -> None:
        """
        Args:
            weights: name, the module that owns it and the stored pieces of each.
            dtype: the model's number format.
        """
        self.module = module
        self.dtype = dtype
        self.weights: list[Weight] = []
        self.nbytes = 0
        self.host: HostBuffer | None = None
        self.attached = False
        self._checked = False
        for name, owner, pieces in weights:
            last = name.rpartition(".")[2]
            codes = owner if isinstance(owner, QuantizedLinear) and last == "weight" else None
            places: tuple[Place, ...]
            straight: tuple[tuple[StoredTensor, ...], ...] = ()
            if isinstance(owner, PackedLinear) and last == "weight":
                owner.dtype = dtype
                shape = torch.Size((owner.out_features, owner.in_features))
                places = tuple(
                    self._placed(owner.kept, str(i), kept.shape, kept.dtype) for i, kept in enumerate(owner.kept)
                )
                straight = tuple((replace(piece, number_format="U8", shape=(piece.nbytes,)),) for piece in pieces)
            elif codes is None:
                shape = owner.get_parameter(last).shape
                places = (self._placed(owner, last, shape, dtype),)
            else:
                shape = torch.Size((codes.out_features, codes.in_features))
                codes.dtype = dtype
                places = tuple(
                    self._placed(codes.kept, str(i), torch.Size(sizes), form)
                    for i, (sizes, form) in enumerate(codes.kept_shapes(dtype))
                )
                if codes.stored:
                    straight = tuple(zip(*(piece.parts for piece in pieces), strict=True))
            self.weights.append(Weight(name, shape, pieces, places, codes, straight))
        self._away = [
            (place, nn.Parameter(torch.empty(place.shape, dtype=place.dtype, device="meta"), requires_grad=False))
            for weight in self.weights
            for place in weight.places
        ]
        self.stored_bytes = sum(piece.nbytes for weight in self.weights for piece in weight.pieces)
        self.filling_bytes = max((self._filling(weight) for weight in self.weights), default=0)
        self.quantized = any(weight.codes is not None or weight.straight for weight in self.weights)
        self.writing_bytes = max((self._writing(weight) for weight in self.weights), default=0)

    def _placed(self, module: nn.Module, name: str, shape: torch.Size, dtype: torch.dtype) -> Place:
        place = Place(module, name, shape, dtype, self.nbytes)
        self.nbytes += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return place

    def _filling(self, weight: Weight) -> int:
        if weight.straight:
            # Its bytes on their way, and what looking for numbers that are none takes of a piece.
            parts = [part for parts in weight.straight for part in parts]
            checked = 16 * min(VALUES_AT_ONCE, math.prod(weight.shape)) if weight.codes is None else 0
            return max((staged_bytes(part, self.dtype) for part in parts), default=0) + checked
        staged = max((staged_bytes(piece, self.dtype) for piece in weight.pieces), default=0)
        if weight.codes is None:
            return staged + math.prod(weight.shape) * self.dtype.itemsize * weight.transposed
        # Its last chunk has been converted before it is encoded.
        return math.prod(weight.shape) * self.dtype.itemsize + max(staged, encoding_bytes(weight.shape))

    def _writing(self, weight: Weight) -> int:
        values = math.prod(weight.shape)
        if weight.codes is not None and weight.codes.takes_codes:
            return 0
        if weight.codes is not None:
            return round(values * (self.dtype.itemsize + weight.codes.precision.spreading))
        if weight.straight:  # each piece, then all of them as one; decoding works in float32
            return values * self.dtype.itemsize * min(len(weight.pieces), 2) + 16 * min(VALUES_AT_ONCE, values)
        return 0

    def views(self, memory: Tensor) -> Iterator[tuple[Place, Tensor]]:
        """Each parameter as a view of uint8 ``[nbytes]``."""
        for weight in self.weights:
            for place in weight.places:
                yield place, _view(memory, place)

    def parameters(self, memory: Tensor) -> list[tuple[Place, nn.Parameter]]:
        """The same as parameters, for ``attach``."""
        return [(place, nn.Parameter(view, requires_grad=False)) for place, view in self.views(memory)]

    def attach(self, parameters: list[tuple[Place, nn.Parameter]]) -> None:
        """Makes the network use them."""
        for place, parameter in parameters:
            place.module.register_parameter(place.name, parameter)
        self.attached = True

    def detach(self) -> None:
        """Makes the network let go of its memory."""
        for place, nothing in self._away:
            place.module.register_parameter(place.name, nothing)
        self.attached = False

    def bring(self, memory: Tensor, reader: Reader, progress: Callable[[int], None] | None = None) -> None:
        """Writes the weights over uint8 ``[nbytes]`` on the device: from the copy on the host, or from the files.

        On a GPU, copies may still be under way in the current stream.

        Args:
            progress: told the stored bytes of each weight that was read from a file.

        Raises:
            CheckpointError: a weight cannot be read or is not finite, by name.
        """
        if self.host is not None:
            memory.copy_(self.host.tensor, non_blocking=True)
            return
        sound: list[Tensor] = []

        def readings() -> Iterator[Reading]:
            for weight in self.weights:
                for place, parts in zip(weight.places, weight.straight, strict=False):
                    last = partial(kept, weight) if place is weight.places[-1] else _nothing
                    yield Reading(parts, partial(_view, memory, place), last)
                if not weight.straight:
                    yield Reading(weight.pieces, partial(into, weight), partial(then, weight))

        def into(weight: Weight) -> Tensor:
            if weight.transposed:
                return torch.empty(weight.shape[::-1], dtype=self.dtype, device=memory.device)
            if weight.codes is None:
                return _view(memory, weight.places[0])
            return torch.empty(weight.shape, dtype=self.dtype, device=memory.device)

        def kept(weight: Weight, _: Tensor) -> None:
            if not self._checked:
                sound.append(_all_finite(weight, [_view(memory, place) for place in weight.places]))
            if progress is not None:
                progress(sum(piece.nbytes for piece in weight.pieces))

        def then(weight: Weight, whole: Tensor) -> None:
            if not self._checked:
                sound.append(_is_finite(whole))
            if weight.transposed:
                whole = whole.t()
            if weight.codes is None and weight.transposed:
                _view(memory, weight.places[0]).copy_(whole)
            if weight.codes is not None:
                write_codes(whole, weight.codes.precision, [_view(memory, place) for place in weight.places])
            if progress is not None:
                progress(sum(piece.nbytes for piece in weight.pieces))

        reader.read(readings())
        if not self._checked:
            for weight, finite in zip(self.weights, torch.stack(sound).tolist() if sound else [], strict=True):
                if not finite:
                    raise CheckpointError(_not_finite(weight, reader, self.dtype))
            self._checked = True

    def park(self, memory: Tensor) -> None:
        """Keeps a copy of the weights on the host, for ``bring``."""
        if self.host is None:
            host = HostBuffer(self.nbytes, memory.device)
            host.tensor.copy_(memory)
            self.host = host

    def drop_copy(self) -> None:
        """Lets go of the copy on the host. Copies from it must have ended."""
        if self.host is not None:
            self.host.close()
            self.host = None


def _view(memory: Tensor, place: Place) -> Tensor:
    nbytes = math.prod(place.shape) * place.dtype.itemsize
    return memory[place.offset : place.offset + nbytes].view(place.dtype).view(place.shape)


def _nothing(_: Tensor) -> None:
    pass


def _all_finite(weight: Weight, kept: Sequence[Tensor]) -> Tensor:
    """Whether what is kept stands for numbers, as a tensor of one truth. Codes always do; their factors may not."""
    if weight.codes is not None:
        return torch.stack([torch.isfinite(factor).all() for factor in kept[1:]]).all()
    entries = [BLOCK_FORMATS[piece.number_format] for piece in weight.pieces]
    return torch.stack([entry.all_finite(rows) for entry, rows in zip(entries, kept, strict=True)]).all()


def _is_finite(values: Tensor) -> Tensor:
    """Without the copies that ``isfinite`` makes of all values: infinity is the least or the greatest, and NaN is both."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.isfinite(torch.stack(torch.aminmax(values))).all()


def _not_finite(weight: Weight, reader: Reader, dtype: torch.dtype) -> str:
    largest = []
    for piece in weight.pieces:
        if piece.parts:
            return f"{piece.file}: {piece.name} has a scale that is NaN or infinite. The file is damaged: convert it again."
        values = reader.values(piece)
        if not torch.isfinite(values).all():
            return f"{piece.file}: {piece.name} holds NaN or infinity. The file is damaged: fetch it again."
        largest.append((values.abs().max().item(), piece.name, piece.file))
    _, name, file = max(largest)
    return f"{file}: {name} has values too large for {str(dtype).removeprefix('torch.')}."
