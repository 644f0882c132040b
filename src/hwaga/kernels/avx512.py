"""The operations between a CPU's matrix products in C, for x86-64 with AVX-512: each passes over its tensors once.

They have the meaning of their namesakes in ``reference``, for tensors that want no gradient. ``avx512.c`` is compiled when the
package is installed; where that was not possible, or the processor lacks what it takes, ``can_run`` says no, and operations are
torch's as ``cpu`` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

HALF = torch.bfloat16
LANES = 16
"""Float32 numbers of a register."""

NOTHING, ALL_BUT_DOTS, ALL = range(3)
"""Levels: attention in bfloat16 needs instructions of its own."""


@cache
def _compiled() -> tuple[ModuleType | None, int]:
    """The module, and what of it runs here."""
    try:
        from hwaga.kernels import _avx512
    except ImportError:  # not compiled, or torch brings no OpenMP that it could be linked with
        return None, NOTHING
    # Addresses are handed over: what was compiled from another version of the source must not be called.
    if sha256(Path(__file__).with_suffix(".c").read_bytes()).hexdigest() != _avx512.SOURCE:
        return None, NOTHING
    return _avx512, _avx512.level()


def _module() -> ModuleType:
    """For operations whose tensors were found to be ones that it takes."""
    module, _ = _compiled()
    assert module is not None
    return module


def level() -> int:
    """What of it runs here."""
    return _compiled()[1]


def can_run(*tensors: Tensor | None) -> bool:
    """Whether the operations take such tensors: the host's, of one number format, and dense along their last axis."""
    if not level():
        return False
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    return dtype in (torch.float32, HALF) and all(
        tensor is None or (tensor.dtype == dtype and tensor.stride(-1) == 1 and tensor.device.type == "cpu")
        for tensor in tensors
    )


def gained_norm(x: Tensor, gain: Tensor, eps: float, row: int | Tensor = 0) -> Tensor:
    """See ``reference.gained_norm``."""
    return _norm_rows(x, None, None, gain, eps, row)[1]


def residual_norm(
    x: Tensor, update: Tensor, gate: Tensor | None, gain: Tensor | None, eps: float, row: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """See ``reference.residual_norm``."""
    return _norm_rows(x, update, gate, gain, eps, row)


def _norm_rows(
    x: Tensor, update: Tensor | None, gate: Tensor | None, gain: Tensor | None, eps: float, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    assert update is None or update.shape == x.shape
    assert all(factor is None or factor.shape[1] == x.shape[1] for factor in (gate, gain))
    x, update = x.contiguous(), None if update is None else update.contiguous()
    row_of = None
    if isinstance(row, Tensor):
        assert row.shape == x.shape[:1]
        row_of = row.to(torch.int64).contiguous()
    else:
        gate, gain = (None if factor is None else factor[row][None] for factor in (gate, gain))
    total = x if update is None else torch.empty_like(x)
    normed = total if gain is None else torch.empty_like(x)
    _module().norm_rows(
        x.data_ptr(), _address(update), _address(gate), _address(gain), _address(row_of), total.data_ptr(), normed.data_ptr(),
        *x.shape, 0 if gate is None else gate.stride(0), 0 if gain is None else gain.stride(0), x.dtype == HALF, eps,
    )  # fmt: skip
    return total, normed


def swiglu(gate_up: Tensor) -> Tensor:
    """See ``reference.swiglu``."""
    assert gate_up.is_contiguous()
    tokens, hidden = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, hidden)
    _module().swiglu(gate_up.data_ptr(), out.data_ptr(), tokens, hidden, gate_up.dtype == HALF)
    return out


def turns(qkv: Tensor, heads: tuple[int, int], gains: tuple[Tensor, Tensor] | None) -> bool:
    """Whether ``turned_heads`` takes such tensors, and ``attend`` what comes of them."""
    queries, kv = heads
    if queries != kv or qkv.shape[1] // (3 * queries) % LANES or not qkv.is_contiguous():
        return False
    if not can_run(qkv, *(gains or ())):
        return False
    return level() == ALL or qkv.dtype != HALF


def turned_heads(
    qkv: Tensor, heads: tuple[int, int], gains: tuple[Tensor, Tensor] | None, eps: float, rotation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.turned_heads``, for pairs of neighbouring channels. ``qkv`` is written over."""
    assert rotation.dtype == torch.complex64
    assert 2 * rotation.numel() * (heads[0] + 2 * heads[1]) == qkv.numel()
    rotation = rotation.contiguous()
    queries, kv = heads
    tokens, channels = qkv.shape
    width = channels // (queries + 2 * kv)
    q_gain, k_gain = gains or (None, None)
    _module().turn_heads(
        qkv.data_ptr(), _address(q_gain), _address(k_gain), rotation.data_ptr(),
        tokens, channels, queries, queries + kv, width, qkv.dtype == HALF, eps,
    )  # fmt: skip
    q, k, v = qkv.view(tokens, queries + 2 * kv, width).split_with_sizes((queries, kv, kv), dim=1)
    return q, k, v


def attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether ``attend`` takes such tensors: heads of keys as of queries, and whole registers of them."""
    if q.device.type != "cpu" or torch.is_grad_enabled() or not can_run(q, k, v):
        return False
    if q.shape != k.shape or q.shape != v.shape or q.shape[2] % LANES:
        return False
    return level() == ALL or q.dtype != HALF


def attend(q: Tensor, k: Tensor, v: Tensor, runs: int) -> Tensor:
    """Softmax attention inside each of so many runs of one length.

    Scores and sums are float32; in bfloat16 their factors are.

    Args:
        q, k, v: ``[tokens, heads, head_dim]``.

    Returns:
        ``[tokens, heads * head_dim]``.
    """
    tokens, heads, width = q.shape
    assert tokens % runs == 0
    out = q.new_empty(tokens, heads * width)
    if out.numel():
        with _no_memory():
            _module().attend(
                q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(),
                *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads * width,
                runs, tokens // runs, heads, width, q.dtype == HALF, width**-0.5 * math.log2(math.e),
            )  # fmt: skip
    return out


def norms(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> bool:
    """Whether ``group_norm_silu`` takes such tensors: pictures in channels-last order."""
    if not can_run(weight, bias) or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    pictures = (x,) if residual is None else (x, residual)
    return all(
        each.dtype == weight.dtype
        and each.shape == x.shape
        and each.device == x.device
        and each.is_contiguous(memory_format=torch.channels_last)
        for each in pictures
    )


def group_norm_silu(
    x: Tensor,
    residual: Tensor | None,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    out: Tensor,
) -> Tensor:
    """``silu(group_norm(x + residual))`` of pictures ``[batch, channels, height, width]`` in channels-last order. The sum is
    written over ``x``, the result to ``out``, which may be ``x``.
    """
    batch, channels, height, width = x.shape
    with _no_memory():
        _module().norm_pictures(
            x.data_ptr(), _address(residual), weight.data_ptr(), bias.data_ptr(), out.data_ptr(),
            batch, height * width, channels, groups, silu, x.dtype == HALF, eps,
        )  # fmt: skip
    return out


@contextmanager
def _no_memory() -> Iterator[None]:
    """What C says where there is no memory, as torch says it."""
    try:
        yield
    except MemoryError as error:
        raise torch.OutOfMemoryError("The host has no memory for an operation's sums.") from error


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
