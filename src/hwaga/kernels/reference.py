"""Plain torch versions of the operations between the matrix products. They work on any device and can be differentiated.

Tokens of a batch are packed: ``[tokens, channels]`` with the images one behind the other, no padding between them and no
mask. What differs by image (length, modulation row) is passed beside.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.kernels.coded import LARGEST, SMALLEST_SCALE, Coded, Form, Rows


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, accumulated in float32, in the dtype of ``x``."""
    return F.rms_norm(x, weight.shape, weight, eps)


def gained_norm(x: Tensor, gain: Tensor, eps: float, row: int | Tensor = 0, form: Form = Form.PLAIN) -> Rows:
    """``rms_norm(x) * gain[row]``.

    Args:
        x: ``[tokens, channels]``.
        gain: ``[rows, channels]``: the norm's own weights, times whatever else scales its result.
        row: the row of the gain, one for all tokens or int ``[tokens]``.
        form: what is given back.
    """
    chosen = gain[row]
    if chosen.ndim == 1:  # one factor for all tokens costs no pass of its own
        return _in_form(F.rms_norm(x, chosen.shape, chosen, eps), form)
    return _in_form(F.rms_norm(x, chosen.shape[1:], None, eps) * chosen, form)


def residual_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    gain: Tensor | None,
    eps: float,
    row: int | Tensor = 0,
    form: Form = Form.PLAIN,
) -> tuple[Tensor, Rows]:
    """The end of one branch and the beginning of the next: ``x + rms_norm(update) * gate[row]``, and ``gained_norm`` of that.

    Args:
        x, update: ``[tokens, channels]``.
        gate: ``[rows, channels]``, or None: the update is added as it is.
        gain: ``[rows, channels]``, or None: nothing is normed, and the second result is the first.
        row, form: as in ``gained_norm``.
    """
    x = x + (update if gate is None else cast(Tensor, gained_norm(update, gate, eps, row)))
    return x, x if gain is None else gained_norm(x, gain, eps, row, form)


def swiglu(gate_up: Tensor, form: Form = Form.PLAIN) -> Rows:
    """``silu(gate) * up`` of ``[tokens, 2 * hidden]`` holding gate and up side by side."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _in_form(F.silu(gate) * up, form)


def coded(x: Tensor, form: Form = Form.CODES) -> Rows:
    """Rows of ``[tokens, channels]`` in 8 bits, each with a scale of its own."""
    return _in_form(x, form)


def _in_form(x: Tensor, form: Form) -> Rows:
    if form is Form.PLAIN:
        return x
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).div(LARGEST).clamp_min(SMALLEST_SCALE)
    return Coded((values / scale).to(torch.float8_e4m3fn), scale, x if form.plain else None)


def scaled_product(x: Coded, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``[tokens, out]`` of activations and weights that are both in 8 bits.

    Args:
        codes: of the weights, float8 e4m3 ``[out, in]``.
        scale: of their rows, float32 ``[out, 1]``.
        dtype: of the result.
    """
    return (F.linear(x.codes.float(), codes.float()) * x.scale * scale.t()).to(dtype)


def turned_heads(
    qkv: Tensor,
    heads: tuple[int, int],
    gains: tuple[Tensor, Tensor] | None,
    eps: float,
    rotation: Tensor,
    *,
    halves: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norms queries and keys head by head and turns them by their positions; values stay as they are.

    Args:
        qkv: ``[tokens, (heads + 2 * kv_heads) * head_dim]``: queries, keys, values. It may be written over.
        heads: of the queries, and of keys and values each.
        gains: weights ``[head_dim]`` of the queries' norm and of the keys'; None for no norm.
        rotation: complex64 ``[tokens, head_dim / 2]``, unit length.
        halves: channels i and i + head_dim / 2 are a pair, as the Qwen models have it; else neighbouring ones are.

    Returns:
        Queries ``[tokens, heads, head_dim]``, keys and values ``[tokens, kv_heads, head_dim]``.
    """
    queries, kv = heads
    turned, values = qkv.unflatten(-1, (queries + 2 * kv, -1)).split((queries + kv, kv), dim=1)
    if gains is not None:
        weights = torch.cat([gain.expand(count, -1) for gain, count in zip(gains, heads, strict=True)])
        turned = F.rms_norm(turned, turned.shape[-1:], eps=eps) * weights
    if halves:
        cos, sin = (part.to(turned.dtype).repeat(1, 2) for part in (rotation.real, rotation.imag))
        turned = rotate_halves(turned, cos, sin)
    else:
        turned = rotate_pairs(turned, rotation)
    return turned[:, :queries], turned[:, queries:], values


def rotate_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding over neighbouring channels (0, 1), (2, 3), …, in float32.

    Args:
        x: ``[tokens, …, head_dim]``.
        rotation: complex64 ``[tokens, head_dim / 2]``, unit length.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
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
