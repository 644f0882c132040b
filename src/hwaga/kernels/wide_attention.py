"""Attention with one wide head, wider than fused kernels take (the autoencoder's has 512 channels).

Two matrix products with a softmax between them, for as many queries at a time as keep the scores small. Scores are float32, as
they are inside of fused kernels. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwaga.kernels.attention import queries_at_once
from hwaga.kernels.launcher import launched

BLOCK = 4096
"""Scores of a row that are looked at together."""


@launched
@triton.jit
def _softmax(scores, out, columns, scale, BLOCK: tl.constexpr):
    """``softmax(scores * scale)`` of one row, which is read twice."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * columns
    out += row * columns
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        score = tl.load(scores + at, mask=at < columns, other=float("-inf")) * scale
        higher = tl.maximum(top, tl.max(score, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(score - higher), axis=0)
        top = higher
    share = 1.0 / total
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        score = tl.load(scores + at, mask=at < columns, other=float("-inf")) * scale
        tl.store(out + at, (tl.exp(score - top) * share).to(out.dtype.element_ty), mask=at < columns)


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``softmax(scores * scale)`` over the last axis of float32 ``[rows, columns]``, in another format."""
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    _softmax[(scores.shape[0],)](scores, out, scores.shape[1], scale, BLOCK=BLOCK, num_warps=8)
    return out


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of ``[batch, tokens, channels]``."""
    scale = q.shape[-1] ** -0.5
    rows = queries_at_once(k.shape[1])
    out = torch.empty_like(q)
    for image, queries in enumerate(q):
        keys, values = k[image].t(), v[image]
        for start in range(0, queries.shape[0], rows):
            shares = softmax(_scores(queries[start : start + rows], keys), scale, q.dtype)
            torch.mm(shares, values, out=out[image, start : start + rows])
    return out


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    if queries.dtype == torch.float32:
        return queries @ keys
    return torch.mm(queries, keys, out_dtype=torch.float32)
