"""The autoencoder in pieces, for pictures that it has no room for as a whole.

Neighbouring pieces overlap, and are blended over the overlap. A piece's group norms see that piece alone, so that the result is
near the one of the whole picture and not equal to it; the blend keeps the difference from showing as a line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from hwaga.families.family import Picture
from hwaga.memory.demand import Work

OVERLAP = 4
"""A piece shares this fraction (1/4) of its side with its neighbour."""

TILES = (1024, 768, 512, 256)
"""Sides in pixels of the pieces that pictures may be encoded and decoded in, where they don't fit as a whole. In smaller ones,
too little is seen of what the picture shows."""


def tiled(compute: Callable[[Tensor], Tensor], x: Tensor, tile: int, ratio: Fraction) -> Tensor:
    """``compute(x)``, piece by piece.

    Args:
        compute: takes ``[batch, C, h, w]`` to ``[batch, D, h * ratio, w * ratio]``.
        x: ``[batch, C, H, W]``.
        tile: side of a piece, in pixels of ``x``.
        ratio: pixels of the result for one of ``x``, along a side.

    Returns:
        ``[batch, D, H * ratio, W * ratio]`` in float32.
    """
    multiple = ratio.denominator  # pieces begin where a pixel of the result does
    rows, columns = (starts(length, tile, multiple) for length in x.shape[2:])
    if len(rows) == len(columns) == 1:
        return compute(x).float()
    out, weights = torch.empty(0), torch.empty(0)
    for top in rows:
        for left in columns:
            piece = compute(x[:, :, top : top + tile, left : left + tile]).float()
            if not out.numel():
                size = (int(x.shape[2] * ratio), int(x.shape[3] * ratio))
                out = piece.new_zeros(*piece.shape[:2], *size)
                weights = piece.new_zeros(size)
            height, width = piece.shape[2:]
            y, z = int(top * ratio), int(left * ratio)
            ramp = int(tile // OVERLAP * ratio)
            share = _slope(height, ramp, y > 0, y + height < out.shape[2], piece.device)[:, None] * _slope(
                width, ramp, z > 0, z + width < out.shape[3], piece.device
            )
            out[:, :, y : y + height, z : z + width] += piece * share
            weights[y : y + height, z : z + width] += share
    return out.div_(weights)


def ways(pictures: Sequence[Picture], computing: Callable[[int], int], held: int) -> tuple[Work, ...]:
    """Ways to take pictures through an autoencoder, one after the other: whole, or in ever smaller pieces.

    Args:
        computing: bytes that the autoencoder takes for a piece of so many pixels.
        held: bytes of what lies there meanwhile.
    """
    found = []
    for tile in (None, *TILES):
        if tile is not None and tile >= max(max(p.width, p.height) for p in pictures):
            continue
        # A whole picture in float32 and the pieces that it is blended of.
        pixels = max(p.width * p.height for p in pictures)
        piece = pixels if tile is None else max(min(p.width, tile) * min(p.height, tile) for p in pictures)
        blended = 0 if tile is None else 2 * 16 * pixels
        found.append(Work(computing(piece) + 12 * pixels + blended + held, tile))
    return tuple(found)


def starts(length: int, tile: int, multiple: int = 1) -> list[int]:
    """Where pieces begin along a side: evenly spread, each overlapping the next by about a quarter at least.

    Args:
        multiple: of which all are, as are ``length`` and ``tile``.
    """
    if length <= tile:
        return [0]
    length, tile = length // multiple, tile // multiple
    step = tile - tile // OVERLAP
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) * multiple for i in range(count)]


def _slope(length: int, ramp: int, before: bool, after: bool, device: torch.device) -> Tensor:
    """How much a piece counts along a side: less towards neighbours, never nothing."""
    share = torch.ones(length, dtype=torch.float32, device=device)
    if ramp:
        rise = (torch.arange(ramp, dtype=torch.float32, device=device) + 0.5) / ramp
        if before:
            share[:ramp] = rise
        if after:
            share[length - ramp :] *= rise.flip(0)
    return share
