"""The operations on a CPU, put together from torch's: products by oneDNN, few passes over tensors else (see ``avx512``, too).

``product`` and ``gated_product`` stand for matrix products; the others have the meaning of their namesakes in ``reference``,
for tensors that want no gradient. Between products a CPU's time goes by how often tensors are passed over and by how many
operations torch starts: so they work in place where the reference makes a tensor more, and in float32 from their first line to
their last, as converting at both ends is cheaper than bfloat16 in between, and rounds less.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import Tensor

SCORES = 2 * 2**20
"""Bytes of attention's scores that are worked on at a time: what stays in a CPU's cache."""

SCORES_ALIVE = SCORES + SCORES // 2
"""With the same in bfloat16 beside them."""


@cache
def has_products(dtype: torch.dtype) -> bool:
    """Whether this is a CPU that oneDNN's products are for, and torch offers them in a number format.

    They are what torch's compiler calls for a linear layer and its activation, and no documented interface; so they are looked
    for, and done without. What they gain over torch's own is measured by ``benchmarks/cpu_products.py``.
    """
    pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if not torch.backends.mkldnn.is_available() or pointwise is None:
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    if not {"default", "binary"} <= set(pointwise.overloads()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``.

    Args:
        x: ``[tokens, in]``.
        weight: ``[out, in]``.
    """
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """``swiglu(F.linear(x, weight))``: the activation and the gate's product are done to sums before they are written."""
    gate, up = weight.chunk(2)
    activated = torch.ops.mkldnn._linear_pointwise(x, gate, None, "swish", [], "")
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, activated, up, None, "mul"))


def gained_norm(x: Tensor, gain: Tensor, eps: float, row: int | Tensor = 0) -> Tensor:
    """See ``reference.gained_norm``."""
    values = x.float()
    return torch.mul(values, _inverse_rms(values, eps)).mul_(gain[row]).to(x.dtype)


def residual_norm(
    x: Tensor, update: Tensor, gate: Tensor | None, gain: Tensor | None, eps: float, row: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """See ``reference.residual_norm``."""
    values = update.float()
    if gate is None:
        values = values + x
    else:
        values = torch.mul(values, _inverse_rms(values, eps))
        values = torch.addcmul(x.float(), values, gate[row].float(), out=values)
    x = values.to(x.dtype)
    if gain is None:
        return x, x
    return x, torch.mul(values, _inverse_rms(values, eps)).mul_(gain[row]).to(x.dtype)


def turned_heads(
    qkv: Tensor, heads: tuple[int, int], gains: tuple[Tensor, Tensor] | None, eps: float, rotation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.turned_heads``, for pairs of neighbouring channels. Queries and keys come in float32, for ``attend``."""
    queries, kv = heads
    turned, values = qkv.unflatten(-1, (queries + 2 * kv, -1)).split((queries + kv, kv), dim=1)
    turned = turned.float()
    if gains is not None:
        turned.mul_(_inverse_rms(turned, eps))
        for part, gain in zip(turned.split((queries, kv), dim=1), gains, strict=True):
            part.mul_(gain)
    torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(rotation[:, None])
    return turned[:, :queries], turned[:, queries:], values


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention whose scores are computed in float32 and whose sums of values are products in bfloat16.

    torch's own kernel for bfloat16 takes longer than the one for float32 does, as its products are too small for oneDNN.

    Args:
        q, k: float32 ``[batch, heads, tokens, head_dim]``.
        v: of the same shape, in bfloat16.
    """
    batch, heads, tokens, width = q.shape
    queries, keys, values = (each.flatten(0, 1) for each in (q * width**-0.5, k.transpose(2, 3), v))
    row_bytes = 4 * keys.shape[2]
    rows = min(max(SCORES // row_bytes, 1), tokens)
    together = max(SCORES // (rows * row_bytes), 1)
    out = v.new_empty(batch * heads, tokens, width)
    for first in range(0, batch * heads, together):
        some = slice(first, first + together)
        for start in range(0, tokens, rows):
            scores = torch.bmm(queries[some, start : start + rows], keys[some])
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores.to(v.dtype), values[some], out=out[some, start : start + rows])
    return cast(Tensor, out.unflatten(0, (batch, heads)))


def _inverse_rms(values: Tensor, eps: float) -> Tensor:
    """One by the root of the mean of squares over the last axis of float32 ``[…, channels]``: ``[…, 1]``."""
    length: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return length.square_().mul_(1 / values.shape[-1]).add_(eps).rsqrt_()
