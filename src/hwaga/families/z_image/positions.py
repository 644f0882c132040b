"""Where tokens stand: rotary positions on three axes, the first of which goes through a caption and then on to its image."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

TOKEN_MULTIPLE = 32
"""Image tokens and caption tokens are each padded to a multiple of this with a learned token, which is attended."""


@lru_cache(maxsize=4)
def rotation_tables(dims: tuple[int, ...], lens: tuple[int, ...], theta: float) -> tuple[Tensor, ...]:
    """For each axis, complex64 ``[positions, dim / 2]``; angles in float64 first, as the reference has them."""
    with torch.device("cpu"), torch.inference_mode(False):
        tables = []
        for dim, length in zip(dims, lens, strict=True):
            rates = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
            angles = torch.outer(torch.arange(length, dtype=torch.float64), rates).float()
            tables.append(torch.polar(torch.ones_like(angles), angles))
        return tuple(tables)


def caption_positions(length: int) -> Tensor:
    """``[length, 3]``: 1, 2, … on the first axis; padding counts on."""
    positions = torch.zeros(length, 3, dtype=torch.long, device="cpu")
    positions[:, 0] = torch.arange(1, length + 1, device="cpu")
    return positions


def image_positions(rows: int, columns: int, start: int) -> Tensor:
    """``[padded tokens, 3]``: (start, row, column); padding stands at the origin."""
    positions = torch.zeros(rows * columns + -(rows * columns) % TOKEN_MULTIPLE, 3, dtype=torch.long, device="cpu")
    image = positions[: rows * columns].view(rows, columns, 3)
    image[..., 0] = start
    image[..., 1] = torch.arange(rows, device="cpu")[:, None]
    image[..., 2] = torch.arange(columns, device="cpu")
    return positions
