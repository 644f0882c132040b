"""``x @ down.T @ up.T`` as two Triton kernels, for ranks that are small beside the width.

A general matrix product is slow at this: a rank of 16 fills a corner of its tiles, and each piece of a stacked layer is a
launch of its own. The first kernel reads ``x`` once, one program for some tokens and all ranks. The second is bound by
writing the output, and picks the ranks of each output row from a table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
"""float32 is left to torch, whose products are exact where Triton's are rounded to TF32."""

TILE = 128
"""Output rows of one program; all of them belong to the same ranks."""

TOKENS_DOWN = 32
TOKENS_UP = 64
WIDTH_STEP = 128
MOST_RANKS = 128
"""Ranks that one program of the first kernel sums up."""


@triton.jit
def _down_kernel(  # type: ignore[no-untyped-def]
    x, down, inner, tokens, width, ranks, x_stride,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    rank = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    sums = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + row[:, None] * x_stride + k[None, :], (row[:, None] < tokens) & (k[None, :] < width), 0.0)
        b = tl.load(down + rank[None, :] * width + k[:, None], (rank[None, :] < ranks) & (k[:, None] < width), 0.0)
        sums = tl.dot(a, b, sums)
    tl.store(
        inner + row[:, None] * ranks + rank[None, :],
        sums.to(inner.dtype.element_ty),
        (row[:, None] < tokens) & (rank[None, :] < ranks),
    )


@triton.jit
def _up_kernel(  # type: ignore[no-untyped-def]
    inner, up, first_ranks, out, tokens, ranks, rank, rows, out_stride,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    first = tl.load(first_ranks + tl.program_id(1))
    a = tl.load(
        inner + token[:, None] * ranks + first + r[None, :], (token[:, None] < tokens) & (r[None, :] < rank), 0.0
    )
    b = tl.load(up + row[None, :] * rank + r[:, None], (row[None, :] < rows) & (r[:, None] < rank), 0.0)
    tl.store(
        out + token[:, None].to(tl.int64) * out_stride + row[None, :],
        tl.dot(a, b).to(out.dtype.element_ty),
        (token[:, None] < tokens) & (row[None, :] < rows),
    )


def first_ranks(pieces: list[tuple[int, int]], device: torch.device) -> Tensor | None:
    """The table for ``low_rank``, or None where pieces do not end at a tile.

    Args:
        pieces: output rows and first rank of each, in order and without gaps.
    """
    if any(rows % TILE for rows, _ in pieces[:-1]):
        return None
    table = [first for rows, first in pieces for _ in range(-(-rows // TILE))]
    return torch.tensor(table, dtype=torch.int32, device=device)


def low_rank(x: Tensor, down: Tensor, up: Tensor, first_ranks: Tensor, out: Tensor) -> None:
    """Writes the product over ``out``.

    Args:
        x: ``[tokens, width]``.
        down: ``[ranks, width]``.
        up: ``[rows, rank]``: each row takes ``rank`` of the ranks.
        first_ranks: for each ``TILE`` rows of ``up``, the first of their ranks.
        out: ``[tokens, rows]``, rows contiguous.
    """
    (tokens, width), ranks, (rows, rank) = x.shape, down.shape[0], up.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    inner = x.new_empty(tokens, ranks)
    block = min(max(16, triton.next_power_of_2(ranks)), MOST_RANKS)
    _down_kernel[(triton.cdiv(tokens, TOKENS_DOWN), triton.cdiv(ranks, block))](
        x, down, inner, tokens, width, ranks, x.stride(0),
        BLOCK_T=TOKENS_DOWN, BLOCK_R=block, BLOCK_K=WIDTH_STEP if block <= 64 else WIDTH_STEP // 2, num_stages=4,
    )  # fmt: skip
    _up_kernel[(triton.cdiv(tokens, TOKENS_UP), triton.cdiv(rows, TILE))](
        inner, up, first_ranks, out, tokens, ranks, rank, rows, out.stride(0),
        BLOCK_T=TOKENS_UP, BLOCK_N=TILE, BLOCK_R=max(16, triton.next_power_of_2(rank)), num_warps=4,
    )  # fmt: skip
