"""Plain torch versions of the operations between the matrix products. They work on any device and can be differentiated.

Tokens of a batch are packed: ``[tokens, channels]`` with the images one behind the other, no padding between them and no
mask. What differs by image (length, modulation row) is passed beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, accumulated in float32, in the dtype of ``x``."""
    return F.rms_norm(x, weight.shape, weight, eps)


def norm_modulate(x: Tensor, weight: Tensor, eps: float, scale: Tensor) -> Tensor:
    """``rms_norm(x) * scale``.

    Args:
        x: ``[tokens, channels]``.
        scale: ``[channels]`` shared by all tokens, or ``[tokens, channels]``. The 1 of "1 + scale" is already in it.
    """
    if scale.ndim == 1:  # one factor for all tokens costs no pass of its own
        return rms_norm(x, weight * scale, eps)
    return rms_norm(x, weight, eps) * scale


def gated_residual(x: Tensor, update: Tensor, weight: Tensor, eps: float, gate: Tensor) -> Tensor:
    """``x + gate * rms_norm(update)``; shapes as in ``norm_modulate``."""
    return x + norm_modulate(update, weight, eps, gate)


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[tokens, 2 * hidden]`` holding gate and up side by side."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding over neighbouring channels (0, 1), (2, 3), …, in float32.

    Args:
        x: ``[tokens, …, head_dim]``.
        rotation: complex64 ``[tokens, head_dim / 2]``, unit length.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    shape = (rotation.shape[0], *(1,) * (x.ndim - 2), rotation.shape[1])
    return torch.view_as_real(pairs * rotation.view(shape)).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over channels (i, i + head_dim / 2), as the Qwen models have it.

    Args:
        x: ``[tokens, heads, head_dim]``.
        cos, sin: ``[tokens, head_dim]`` in the dtype of ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, causal: bool = False) -> Tensor:
    """Softmax attention inside each run of the pack.

    Args:
        q: ``[tokens, heads, head_dim]``.
        k, v: ``[tokens, kv_heads, head_dim]``; ``heads`` is a multiple of ``kv_heads``.
        lengths: tokens of each run, in order; their sum is ``tokens``.

    Returns:
        ``[tokens, heads * head_dim]``.
    """
    if len(set(lengths)) > 1:
        runs = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), lengths, strict=True)
        return torch.cat([attention(a, b, c, (length,), causal=causal) for a, b, c, length in runs])
    batch = len(lengths)
    q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, causal=causal).transpose(1, 2).flatten(2).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention of ``[batch, heads, tokens, head_dim]``; keys and values may have fewer heads.

    Where the device has no kernel that works without the matrix of scores, queries go through in pieces.
    """
    grouped = q.shape[1] != k.shape[1]
    if not keeps_scores(q.device, q.dtype):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    rows = max(SCORES // (q.shape[0] * q.shape[1] * k.shape[2] * q.element_size()), 1)
    pieces = []
    for start in range(0, q.shape[2], rows):
        piece = q[:, :, start : start + rows]
        seen = None
        if causal:
            places = torch.arange(start, start + piece.shape[2], device=q.device)
            seen = places[:, None] >= torch.arange(k.shape[2], device=q.device)
        pieces.append(F.scaled_dot_product_attention(piece, k, v, seen, enable_gqa=grouped))
    return torch.cat(pieces, dim=2)


SCORES = 128 * 2**20
"""Bytes of a matrix of scores that is worked on at a time; some three of them are alive."""

SCORES_ALIVE = 4 * SCORES


@cache
def keeps_scores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention on a device writes its scores out. Fused kernels work on CPUs, and on NVIDIA GPUs from Ampere on in any
    format, before that not in bfloat16.
    """
    if device.type == "cuda":
        return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0)
    return device.type not in ("cpu", "meta")


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, offset: Tensor | None = None, silu: bool = True
) -> Tensor:
    """``silu(group_norm(x + offset))`` of ``[batch, channels, height, width]``; ``x`` may be written over.

    Args:
        offset: ``[channels]``, or None for nothing to add.
        silu: False for the norm alone.
    """
    normed = F.group_norm(x if offset is None else x + offset[:, None, None], groups, weight, bias, eps)
    # In place where no gradient needs the values: at full resolution a tensor more is a quarter more memory.
    return F.silu(normed, inplace=not torch.is_grad_enabled()) if silu else normed


def add_group_norm_silu(
    update: Tensor, residual: Tensor | None, offset: Tensor | None, groups: int, weight: Tensor, bias: Tensor, eps: float,
    *, silu: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The sum of ``add``, and ``group_norm_silu`` of it. Both tensors may be written over."""
    total = add(update, residual, offset)
    return total, group_norm_silu(total, groups, weight, bias, eps, silu=silu)


def add(update: Tensor, residual: Tensor | None, offset: Tensor | None) -> Tensor:
    """``update + residual + offset`` of ``[batch, channels, height, width]`` and ``[channels]``, written over ``update``."""
    if offset is not None:
        update = update.add_(offset[:, None, None])
    return update if residual is None else update.add_(residual)


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of ``[batch, tokens, channels]`` with one head."""
    return attend(q[:, None], k[:, None], v[:, None])[:, 0]


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour doubling of ``[batch, channels, height, width]``, then a 3 × 3 convolution padded by 1.

    Both together are a transposed convolution of stride 2, whose 4 × 4 kernel is the given one widened by the doubling:
    16 products for each pixel of ``x`` where the plain order takes 36.
    """
    kernel = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    kernel = kernel[..., 1:, :] + kernel[..., :-1, :]
    kernel = kernel[..., 1:] + kernel[..., :-1]
    kernel = kernel.transpose(0, 1)
    if x.device.type == "cpu":
        # The CPU's transposed convolution works in this order, and would copy its result back from it otherwise.
        x, kernel = (each.contiguous(memory_format=torch.channels_last) for each in (x, kernel))
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
