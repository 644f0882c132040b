"""Attention with one head of 512 channels in one kernel that never writes scores: a candidate beside products in pieces."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _flash(
    q, k, v, out, tokens, scale, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    column = tl.arange(0, CHANNELS)
    image = tl.program_id(1).to(tl.int64) * tokens * CHANNELS
    at = image + row[:, None] * CHANNELS + column[None, :]
    query = tl.load(q + at, mask=row[:, None] < tokens, other=0.0)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        place = image + key[:, None] * CHANNELS + column[None, :]
        keys = tl.load(k + place, mask=key[:, None] < tokens, other=0.0)
        score = tl.dot(query, keys.T) * scale
        score = tl.where(key[None, :] < tokens, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        share = tl.exp2(score - higher[:, None])
        less = tl.exp2(top - higher)
        total = total * less + tl.sum(share, axis=1)
        values = tl.load(v + place, mask=key[:, None] < tokens, other=0.0)
        mixed = tl.dot(share.to(values.dtype), values, mixed * less[:, None])
        top = higher
    tl.store(out + at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=row[:, None] < tokens)


def attend_flash(
    q: Tensor, k: Tensor, v: Tensor, queries: int = 64, keys: int = 32, warps: int = 8, stages: int = 2
) -> Tensor:
    """Of ``[batch, tokens, 512]``; the channels must be a power of two."""
    batch, tokens, channels = q.shape
    out = torch.empty_like(q)
    _flash[(triton.cdiv(tokens, queries), batch)](
        q, k, v, out, tokens, channels**-0.5 * 1.4426950408889634,
        QUERIES=queries, KEYS=keys, CHANNELS=channels, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
