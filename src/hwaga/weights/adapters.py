"""What a LoRA adds to a network's layers while it runs. The layers' own weights are never touched.

A network takes a ``LinearCall`` and sends every product with weights through it. ``plain`` is the products alone; ``adapted``
gives one that adds, to the rows of each picture of a batch, what that picture's LoRAs say. A network that takes none is
borrowed from elsewhere; ``LayerAdapter.add_after`` is for hooks on its layers.

A convolution's weight is taken as the matrix ``[out, in * height * width]``, so that deltas of both kinds of layers are alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.kernels.coded import Coded, Form, Rows
from hwaga.kernels.operations import gated_product, product, swiglu


@dataclass(frozen=True)
class LowRank:
    """``up @ down``: LoRA, and LoHa where its product is of low rank.

    Attributes:
        down: ``[rank, in]``.
        up: ``[out, rank]``, scaled by alpha / rank.
    """

    down: Tensor
    up: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.down, self.up]

    def scaled(self, weight: float) -> LowRank:
        return LowRank(self.down, self.up * weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)

    def convolved(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        return F.conv2d(_convolve(x, self.down, conv), self.up[:, :, None, None])


@dataclass(frozen=True)
class Kronecker:
    """``kron(left, right)``: LoKr, never written out.

    Attributes:
        left: ``[out / o, in / i]``, scaled.
        right: ``[o, i]``.
    """

    left: Tensor
    right: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.left, self.right]

    def scaled(self, weight: float) -> Kronecker:
        return Kronecker(self.left * weight, self.right)

    def __call__(self, x: Tensor) -> Tensor:
        inner = F.linear(x.unflatten(-1, (self.left.shape[1], self.right.shape[1])), self.right)
        return (self.left @ inner).flatten(-2)

    def convolved(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        # The channels are groups of some; each group goes through the same small convolution, and then groups are mixed.
        inner = _convolve(x.unflatten(1, (self.left.shape[1], -1)).flatten(0, 1), self.right, conv)
        return torch.einsum("og,bg...->bo...", self.left, inner.unflatten(0, (len(x), -1))).flatten(1, 2)


@dataclass(frozen=True)
class Full:
    """A matrix without structure: LoHa whose factors would be larger than their product.

    Attributes:
        weight: ``[out, in]``, scaled.
    """

    weight: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.weight]

    def scaled(self, weight: float) -> Full:
        return Full(self.weight * weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def convolved(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        return _convolve(x, self.weight, conv)


def _convolve(x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """As ``conv`` goes over its input, with another weight: a matrix ``[out, in * height * width]``."""
    kernel = weight.view(len(weight), -1, *conv.kernel_size)
    return F.conv2d(x, kernel, None, conv.stride, conv.padding, conv.dilation)


Delta = LowRank | Kronecker | Full
"""What is added to a weight, or to some rows of it. Called with ``[tokens, in]``, each gives ``[tokens, out]``; ``convolved``
takes ``[batch, in, H, W]`` through it as through a convolution's weight."""

MOST_JOINED = 256
"""Ranks of a delta above which zeros for the rows of its neighbours would take more memory than the delta."""


@dataclass(frozen=True)
class LayerAdapter:
    """All that is added to one layer.

    Attributes:
        joined: the low-rank deltas as one, of all their ranks together: an ``up`` holds zeros outside of the rows that it
            stands for. Two products of a quick shape are worth more than those zeros, which are few beside the weights.
        others: output rows and delta, of other kinds and of ranks above ``MOST_JOINED``.
    """

    joined: LowRank | None
    others: tuple[tuple[slice, Delta], ...]

    @classmethod
    def of(cls, deltas: Iterable[tuple[slice, Delta]], rows: int) -> LayerAdapter:
        """One adapter of deltas, each with the output rows that it stands for.

        Args:
            rows: of the whole layer.
        """
        low_rank, others = list[LowRank](), []
        for place, delta in deltas:
            if isinstance(delta, LowRank) and len(delta.down) <= MOST_JOINED:
                up = delta.up.new_zeros(rows, delta.up.shape[1])
                up[place] = delta.up
                low_rank.append(LowRank(delta.down, up))
            else:
                others.append((place, delta))
        return cls(_joined(low_rank), tuple(others))

    @classmethod
    def combined(cls, parts: Sequence[tuple[LayerAdapter, float]]) -> LayerAdapter:
        """Several adapters of one layer, each with a weight."""
        low_rank = [part.joined.scaled(weight) for part, weight in parts if part.joined]
        others = tuple((place, delta.scaled(weight)) for part, weight in parts for place, delta in part.others)
        return cls(_joined(low_rank), others)

    def write(self, out: Tensor, x: Tensor) -> None:
        """Writes what is added for ``x`` over ``out``, ``[tokens, out]``."""
        if self.joined is None:
            out.zero_()
        else:
            torch.mm(F.linear(x, self.joined.down), self.joined.up.t(), out=out)
        for place, delta in self.others:
            out[:, place] += delta(x)

    def add(self, out: Tensor, x: Tensor) -> None:
        """Adds it to ``out`` instead."""
        if self.joined is not None:
            out.addmm_(F.linear(x, self.joined.down), self.joined.up.t())
        for place, delta in self.others:
            out[:, place] += delta(x)

    def add_after(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """Adds what belongs to ``x`` to what a layer has made of it, of any shape.

        Args:
            out: ``[batch, ..., out]``, or ``[batch, out, H, W]`` of a convolution.
        """
        if self.joined is not None:
            out += self.joined.convolved(x, layer) if isinstance(layer, nn.Conv2d) else self.joined(x)
        for place, delta in self.others:
            if isinstance(layer, nn.Conv2d):
                out[:, place] += delta.convolved(x, layer)
            else:
                out[..., place] += delta(x)

    def tensors(self) -> list[Tensor]:
        """Every tensor that is held."""
        deltas = [delta for _, delta in self.others] + ([] if self.joined is None else [self.joined])
        return [tensor for delta in deltas for tensor in delta.tensors()]


def _joined(low_rank: Sequence[LowRank]) -> LowRank | None:
    if len(low_rank) < 2:
        return low_rank[0] if low_rank else None
    return LowRank(torch.cat([each.down for each in low_rank]), torch.cat([each.up for each in low_rank], dim=1))


@dataclass(frozen=True, eq=False)
class Adapters:
    """What a set of LoRAs adds to a model, layer by layer."""

    by_layer: Mapping[nn.Module, LayerAdapter]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(tensor.nbytes for adapter in self.by_layer.values() for tensor in adapter.tensors())

    @classmethod
    def combined(cls, parts: Sequence[tuple[Adapters, float]]) -> Adapters:
        """Several sets as one, each with a weight."""
        by_layer: dict[nn.Module, list[tuple[LayerAdapter, float]]] = {}
        for adapters, weight in parts:
            for layer, adapter in adapters.by_layer.items():
                by_layer.setdefault(layer, []).append((adapter, weight))
        return cls({layer: LayerAdapter.combined(found) for layer, found in by_layer.items()})


@dataclass(frozen=True)
class LinearCall:
    """Applies linear layers to a pack of runs.

    Attributes:
        runs: first row, row after the last, and adapters of each run that has any; none for the layers alone.
    """

    runs: tuple[tuple[int, int, Adapters], ...] = ()

    def form(self, linear: nn.Linear) -> Form:
        """What a layer wants its rows in: coded if it multiplies codes, and plain as well for a LoRA beside it."""
        # Of a dense layer it is known, and asking a module for what it has not is slow.
        if _is_dense(linear) or not getattr(linear, "takes_codes", False):
            return Form.PLAIN
        return Form.BOTH if self._is_beside(linear) else Form.CODES

    def __call__(self, linear: nn.Linear, x: Rows) -> Tensor:
        """``[tokens, in]`` to ``[tokens, out]``."""
        if not self.runs:
            return _alone(linear, x)
        found = [(first, last, own.by_layer[linear]) for first, last, own in self.runs if linear in own.by_layer]
        if not found:
            return _alone(linear, x)
        if isinstance(x, Coded):
            assert x.plain is not None, "rows for a layer with LoRAs are asked for by form()"
            out = cast(Tensor, linear(x))
            for first, last, adapter in found:
                adapter.add(out[first:last], x.plain[first:last])
            return out
        # What is added comes first, and the product with the weights is accumulated onto it: the sum then costs the product's
        # own epilogue one read, where adding to its result would read and write all of that.
        out = x.new_empty(x.shape[0], linear.out_features)
        end = 0
        for first, last, adapter in found:
            out[end:first].zero_()
            adapter.write(out[first:last], x[first:last])
            end = last
        out[end:].zero_()
        out.addmm_(x, linear.weight.t())
        return out if linear.bias is None else out.add_(linear.bias)

    def gated(self, linear: nn.Linear, x: Rows, form: Form) -> Rows:
        """``swiglu`` of what a layer without bias gives, in the form that is wanted."""
        if form is Form.PLAIN and isinstance(x, Tensor) and _is_dense(linear) and not self._is_beside(linear):
            hidden = gated_product(x, linear.weight)
            if hidden is not None:
                return hidden
        return swiglu(self(linear, x), form)

    def _is_beside(self, linear: nn.Linear) -> bool:
        """Whether any LoRA adds to a layer."""
        return any(linear in own.by_layer for _, _, own in self.runs)


def _alone(linear: nn.Linear, x: Rows) -> Tensor:
    if _is_dense(linear) and isinstance(x, Tensor):
        return product(x, linear.weight, linear.bias)
    return cast(Tensor, linear(x))


def _is_dense(linear: nn.Linear) -> bool:
    """Whether a layer holds its weight as it is multiplied."""
    return type(linear).forward is nn.Linear.forward


plain = LinearCall()
"""The layers alone."""


def adapted(sets: Sequence[Adapters | None], lengths: Sequence[int]) -> LinearCall:
    """A call for a pack of runs, each with LoRAs of its own or none.

    Args:
        sets: for each run of the pack, its adapters. Neighbours that share the same object are computed together.
        lengths: tokens of each run; what is passed to the call has as many rows as their sum.
    """
    runs: list[tuple[int, int, Adapters]] = []
    start = 0
    for adapters, length in zip(sets, lengths, strict=True):
        if adapters is not None:
            if runs and runs[-1][1:] == (start, adapters):
                runs[-1] = runs[-1][0], start + length, adapters
            else:
                runs.append((start, start + length, adapters))
        start += length
    return LinearCall(tuple(runs)) if runs else plain
