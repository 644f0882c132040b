"""Group norm and SiLU of pictures in channels-last order, in Triton.

torch's own group norm works in the other order and copies a channels-last tensor there first. Here a norm reads its tensor
twice and writes it once, whatever the number of channels, groups and pixels. What would be a pass of its own before it is taken
along: a convolution's bias, and the sum with a block's residual.

All values are worked on in float32. A mean and a sum of squared distances from it are taken of each channel of each run of
pixels, relative to the run's first pixel, so that a large mean costs no digits; then those of a group are joined, in a fixed
order. Nothing depends on the number of processors: the same input gives the same bits.

Importing this needs Triton. ``hwaga.kernels.image_ops`` does so on a GPU that it is for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwaga.kernels.launcher import launched, pieces, power_of_two

ROWS = 32
"""Pixels of a tile."""

COLUMNS = 128
"""Channels of a tile. With them fixed, a kernel is compiled once for all widths of a network."""

PROGRAMS = 2048
"""Runs of pixels and channels that are summed at the same time: some 16 for each processor of an H100."""

JOINED = 2048
"""Values of a tile where sums are joined."""


@triton.jit
def _taken(x, residual, offset, at, inside, RESIDUAL: tl.constexpr, OFFSET: tl.constexpr):
    """Values of ``x + offset + residual`` in float32; ``offset`` holds those of the channels already."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        value += offset
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    return value.to(x.dtype.element_ty).to(tl.float32)  # as it is written, which is what the norm reads


@launched
@triton.jit(do_not_specialize=["pixels", "run", "runs", "blocks"])
def _sum(
    x, residual, offset, out, partial, pixels, channels, run, runs, blocks,
    RESIDUAL: tl.constexpr, OFFSET: tl.constexpr, STORED: tl.constexpr, NORMED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Takes ``x (+ offset) (+ residual)`` of a run of pixels, writes it to ``out`` if it is stored, and its mean and squared
    distances by channel to ``partial`` ``[batch, 2, runs, channels]`` if it is normed.
    """
    index = tl.program_id(0)
    number, block = index // blocks, index % blocks
    image = tl.program_id(1).to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    used = column < channels
    begin = number * run
    end = tl.minimum(begin + run, pixels)
    base = (image * pixels + begin) * channels
    x, residual, out = x + base, residual + base, out + base  # from here on, 32 bits are enough
    bias = tl.zeros((COLUMNS,), tl.float32)
    if OFFSET:
        bias = tl.load(offset + column, mask=used, other=0.0).to(tl.float32)
    first = _taken(x, residual, bias, column, used, RESIDUAL, OFFSET)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, end - begin, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < end - begin)[:, None] & used[None, :]
        at = row[:, None] * channels + column[None, :]
        value = _taken(x, residual, bias[None, :], at, inside, RESIDUAL, OFFSET)
        if STORED:
            tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
        if NORMED:
            distance = tl.where(inside, value - first[None, :], 0.0)
            total += distance
            squares += distance * distance
    if NORMED:
        count = (end - begin).to(tl.float32)
        sums = tl.sum(total, axis=0)
        mean = sums / count
        place = partial + (image * 2 * runs + number) * channels + column
        tl.store(place, first + mean, mask=used)
        spread = tl.maximum(tl.sum(squares, axis=0) - sums * mean, 0.0)
        tl.store(place + runs.to(tl.int64) * channels, spread, mask=used)


@launched
@triton.jit(do_not_specialize=["pixels", "run", "runs"])
def _join(
    partial, offset, weight, bias, factors, pixels, channels, width, run, runs, eps,
    OFFSET: tl.constexpr, RUNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """From the partial sums of a group of ``width`` channels, what takes its values to normalised ones: ``factors``
    ``[batch, 2, channels]``, a factor and a summand.
    """
    image = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    used = lane < width
    column = tl.program_id(0) * width + lane
    added = tl.zeros((WIDTH,), tl.float32)
    if OFFSET:
        added = tl.load(offset + column, mask=used, other=0.0).to(tl.float32)
    partial += image * 2 * runs * channels
    values = pixels.to(tl.float32) * width
    total = tl.zeros((RUNS, WIDTH), tl.float32)
    for start in range(0, runs, RUNS):
        number = start + tl.arange(0, RUNS)
        inside = (number < runs)[:, None] & used[None, :]
        count = tl.minimum(pixels - number * run, run).to(tl.float32)[:, None]
        at = number.to(tl.int64)[:, None] * channels + column[None, :]
        total += tl.where(inside, (tl.load(partial + at, mask=inside, other=0.0) + added[None, :]) * count, 0.0)
    mean = tl.sum(total) / values
    total = tl.zeros((RUNS, WIDTH), tl.float32)
    for start in range(0, runs, RUNS):
        number = start + tl.arange(0, RUNS)
        inside = (number < runs)[:, None] & used[None, :]
        count = tl.minimum(pixels - number * run, run).to(tl.float32)[:, None]
        at = number.to(tl.int64)[:, None] * channels + column[None, :]
        distance = tl.load(partial + at, mask=inside, other=0.0) + added[None, :] - mean
        squares = tl.load(partial + runs.to(tl.int64) * channels + at, mask=inside, other=0.0)
        total += tl.where(inside, squares + distance * distance * count, 0.0)
    scale = tl.load(weight + column, mask=used, other=0.0).to(tl.float32) / tl.sqrt(tl.sum(total) / values + eps)
    factors += image * 2 * channels
    shift = tl.load(bias + column, mask=used, other=0.0).to(tl.float32) + (added - mean) * scale
    tl.store(factors + column, scale, mask=used)
    tl.store(factors + channels + column, shift, mask=used)


@launched
@triton.jit(do_not_specialize=["pixels", "blocks"])
def _apply(
    x, factors, out, pixels, channels, blocks, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out = silu(x * factor + summand)``, or without the SiLU."""
    index = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    column = index % blocks * COLUMNS + tl.arange(0, COLUMNS)
    begin = index // blocks * ROWS
    row = tl.arange(0, ROWS)
    used = column < channels
    inside = (begin + row < pixels)[:, None] & used[None, :]
    at = row[:, None] * channels + column[None, :]
    base = (image * pixels + begin) * channels
    x, out = x + base, out + base
    factors += image * 2 * channels
    scale = tl.load(factors + column, mask=used, other=0.0)
    shift = tl.load(factors + channels + column, mask=used, other=0.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, offset: Tensor | None = None, silu: bool = True
) -> Tensor:
    """``reference.group_norm_silu``, written over ``x``."""
    x = channels_last(x)
    partial, run = _sums(x, None, None, None)
    return _normalised(x, partial, run, groups, weight, bias, eps, offset, silu, x)


def add_group_norm_silu(
    update: Tensor, residual: Tensor | None, offset: Tensor | None, groups: int, weight: Tensor, bias: Tensor, eps: float,
    *, silu: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``reference.add_group_norm_silu``: the sum is written over ``update``, and its norm over ``residual``."""
    update = channels_last(update)
    residual = None if residual is None else channels_last(residual)
    stored = None if residual is None and offset is None else update
    partial, run = _sums(update, residual, offset, stored)
    out = torch.empty_like(update) if residual is None else residual
    return update, _normalised(update, partial, run, groups, weight, bias, eps, None, silu, out)


def add(update: Tensor, residual: Tensor | None, offset: Tensor | None) -> Tensor:
    """``reference.add``, written over ``update``."""
    if residual is None and offset is None:
        return update
    update = channels_last(update)
    residual = None if residual is None else channels_last(residual)
    _sums(update, residual, offset, update, normed=False)
    return update


def channels_last(x: Tensor) -> Tensor:
    """``[batch, C, H, W]`` with the channels of a pixel side by side in memory: the same tensor if they are."""
    return x.contiguous(memory_format=torch.channels_last)


def _sums(
    x: Tensor, residual: Tensor | None, offset: Tensor | None, out: Tensor | None, *, normed: bool = True
) -> tuple[Tensor, int]:
    """Partial sums ``[batch, 2, runs, channels]``, and the pixels of a run."""
    batch, channels, height, width = x.shape
    pixels, blocks = height * width, pieces(channels, COLUMNS)
    at_once = max(PROGRAMS // (blocks * batch), 1)
    run = pieces(pieces(pixels, at_once), ROWS) * ROWS
    runs = pieces(pixels, run)
    partial = torch.empty((batch, 2, runs if normed else 0, channels), dtype=torch.float32, device=x.device)
    _sum[(runs * blocks, batch)](
        x, x if residual is None else residual, x if offset is None else offset, x if out is None else out, partial,
        pixels, channels, run, runs, blocks,
        RESIDUAL=residual is not None, OFFSET=offset is not None, STORED=out is not None, NORMED=normed,
        ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return partial, run


def _normalised(
    x: Tensor, partial: Tensor, run: int, groups: int, weight: Tensor, bias: Tensor, eps: float, offset: Tensor | None,
    silu: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    batch, channels, height, width = x.shape
    pixels, lanes = height * width, max(power_of_two(channels // groups), 16)
    factors = torch.empty((batch, 2, channels), dtype=torch.float32, device=x.device)
    _join[(groups, batch)](
        partial, weight if offset is None else offset, weight, bias, factors,
        pixels, channels, channels // groups, run, partial.shape[2], eps,
        OFFSET=offset is not None, RUNS=max(JOINED // lanes, 1), WIDTH=lanes,
    )  # fmt: skip
    blocks = pieces(channels, COLUMNS)
    _apply[(pieces(pixels, ROWS) * blocks, batch)](
        x, factors, out, pixels, channels, blocks, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS
    )
    return out
