"""Triton versions of what ``reference`` defines, for GPUs: each operation reads and writes its tensors once.

Numbers are float32 inside an operation, and rounded once at its end. Sizes are arguments of the kernels and not part of their
code, so that pictures of another size run what is compiled already; what is compiled is kept on the disk by Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwaga.kernels.coded import LARGEST, SMALLEST_SCALE, Coded, Form, Rows
from hwaga.kernels.launcher import launched, pieces, power_of_two


@triton.jit
def _store_row(
    values, out, codes, scale, token, at, inside, channels,
    PLAIN: tl.constexpr, CODES: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    place = token * channels + at
    if PLAIN:
        tl.store(out + place, values.to(out.dtype.element_ty), mask=inside)
    if CODES:
        factor = tl.maximum(tl.max(tl.abs(values), axis=0) / LARGEST, SMALLEST)
        tl.store(scale + token, factor)
        tl.store(codes + place, (values / factor).to(codes.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["row"])
def _rows_kernel(
    x, update, gate, gain, row_of, total, out, codes, scale, row, channels, eps,
    UPDATE: tl.constexpr, GATE: tl.constexpr, GAIN: tl.constexpr, ROWS: tl.constexpr,
    PLAIN: tl.constexpr, CODES: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    place = token * channels + at
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ROWS:
        row = tl.load(row_of + token).to(tl.int32)
    if UPDATE:
        change = tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            change *= tl.rsqrt(tl.sum(change * change, axis=0) / channels + eps)
            change *= tl.load(gate + row * channels + at, mask=inside, other=0.0).to(tl.float32)
        # What follows works with the sum as it is kept.
        kept = (values + change).to(total.dtype.element_ty)
        tl.store(total + place, kept, mask=inside)
        values = kept.to(tl.float32)
    if GAIN:
        values *= tl.rsqrt(tl.sum(values * values, axis=0) / channels + eps)
        values *= tl.load(gain + row * channels + at, mask=inside, other=0.0).to(tl.float32)
    _store_row(values, out, codes, scale, token, at, inside, channels, PLAIN, CODES, LARGEST, SMALLEST)


@launched
@triton.jit
def _swiglu_kernel(
    gate_up, out, codes, scale, hidden,
    PLAIN: tl.constexpr, CODES: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < hidden
    gate = tl.load(gate_up + token * 2 * hidden + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * hidden + hidden + at, mask=inside, other=0.0).to(tl.float32)
    values = gate * tl.sigmoid(gate) * up
    _store_row(values, out, codes, scale, token, at, inside, hidden, PLAIN, CODES, LARGEST, SMALLEST)


@launched
@triton.jit(do_not_specialize=["queries", "turned"])
def _turn_kernel(
    qkv, q_gain, k_gain, rotation, stride, queries, turned, eps,
    GAINS: tl.constexpr, HALVES: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, DIM)
    place = qkv + token * stride + head[:, None] * DIM + at[None, :]
    inside = (head < turned)[:, None] & (at < DIM)[None, :]
    values = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if GAINS:
        values *= tl.rsqrt(tl.sum(values * values, axis=1) / DIM + eps)[:, None]
        of_queries, of_keys = tl.load(q_gain + at).to(tl.float32), tl.load(k_gain + at).to(tl.float32)
        values *= tl.where((head < queries)[:, None], of_queries[None, :], of_keys[None, :])
    # Whole rows come in, and are split in registers: a load of every other number would move each line twice.
    cos, sin = tl.split(tl.reshape(tl.load(rotation + token * DIM + at), (DIM // 2, 2)))
    if HALVES:
        first, second = tl.split(tl.permute(tl.reshape(values, (HEADS, 2, DIM // 2)), (0, 2, 1)))
    else:
        first, second = tl.split(tl.reshape(values, (HEADS, DIM // 2, 2)))
    turned_pair = tl.join(first * cos[None, :] - second * sin[None, :], second * cos[None, :] + first * sin[None, :])
    if HALVES:
        turned_pair = tl.permute(turned_pair, (0, 2, 1))
    tl.store(place, tl.reshape(turned_pair, (HEADS, DIM)).to(qkv.dtype.element_ty), mask=inside)


HEADS_AT_ONCE = 4
"""Heads of one token that a program turns."""


def gained_norm(x: Tensor, gain: Tensor, eps: float, row: int | Tensor = 0, form: Form = Form.PLAIN) -> Rows:
    """See ``reference.gained_norm``."""
    return _over_rows(x, None, None, gain, eps, row, form)[1]


def residual_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    gain: Tensor | None,
    eps: float,
    row: int | Tensor = 0,
    form: Form = Form.PLAIN,
) -> tuple[Tensor, Rows]:
    """See ``reference.residual_norm``."""
    return _over_rows(x, update, gate, gain, eps, row, form)


def coded(x: Tensor, form: Form = Form.CODES) -> Rows:
    """See ``reference.coded``."""
    return _over_rows(x, None, None, None, 0.0, 0, form)[1]


def _over_rows(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    gain: Tensor | None,
    eps: float,
    row: int | Tensor,
    form: Form,
) -> tuple[Tensor, Rows]:
    tokens, channels = x.shape
    x = x.contiguous()
    total = x if update is None else torch.empty_like(x)
    if update is not None:
        update = update.contiguous()
    plain = torch.empty_like(x) if gain is not None and form.plain else None
    codes, scale = _room_for_codes(x, channels, form)
    if tokens:
        block = power_of_two(channels)
        _rows_kernel[(tokens,)](
            x, update, gate, gain, row if isinstance(row, Tensor) else None, total, plain, codes, scale,
            0 if isinstance(row, Tensor) else row, channels, eps,
            UPDATE=update is not None, GATE=gate is not None, GAIN=gain is not None, ROWS=isinstance(row, Tensor),
            PLAIN=plain is not None, CODES=codes is not None, LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    return total, _in_form(total if plain is None else plain, codes, scale, form)


def swiglu(gate_up: Tensor, form: Form = Form.PLAIN) -> Rows:
    """See ``reference.swiglu``."""
    gate_up = gate_up.contiguous()
    tokens, hidden = gate_up.shape[0], gate_up.shape[1] // 2
    # Where nobody wants it, its memory is not even asked for.
    plain = gate_up.new_empty(tokens if form.plain else 0, hidden)
    codes, scale = _room_for_codes(gate_up, hidden, form)
    if tokens:
        # A scale is of a whole row; without one, smaller pieces keep more loads under way.
        block = power_of_two(hidden) if codes is not None else min(power_of_two(hidden), 1024)
        _swiglu_kernel[(tokens, pieces(hidden, block))](
            gate_up, plain, codes, scale, hidden,
            PLAIN=form.plain, CODES=codes is not None, LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    return _in_form(plain, codes, scale, form)


def turned_heads(
    qkv: Tensor,
    heads: tuple[int, int],
    gains: tuple[Tensor, Tensor] | None,
    eps: float,
    rotation: Tensor,
    *,
    halves: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.turned_heads``. Writes over ``qkv``. The head's width must be a power of two."""
    queries, kv = heads
    tokens, turned = qkv.shape[0], queries + kv
    dim = qkv.shape[1] // (queries + 2 * kv)
    assert qkv.is_contiguous()
    q_gain, k_gain = gains or (None, None)
    if tokens:
        _turn_kernel[(tokens, pieces(turned, HEADS_AT_ONCE))](
            qkv, q_gain, k_gain, torch.view_as_real(rotation), qkv.shape[1], queries, turned, eps,
            GAINS=gains is not None, HALVES=halves, HEADS=HEADS_AT_ONCE, DIM=dim, num_warps=1,
        )  # fmt: skip
    q, k, v = qkv.view(tokens, turned + kv, dim).split_with_sizes((queries, kv, kv), dim=1)
    return q, k, v


def _room_for_codes(x: Tensor, channels: int, form: Form) -> tuple[Tensor | None, Tensor | None]:
    if not form.codes:
        return None, None
    codes = torch.empty(x.shape[0], channels, dtype=torch.float8_e4m3fn, device=x.device)
    return codes, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)


def _in_form(plain: Tensor, codes: Tensor | None, scale: Tensor | None, form: Form) -> Rows:
    if codes is None or scale is None:
        return plain
    return Coded(codes, scale, plain if form.plain else None)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)
