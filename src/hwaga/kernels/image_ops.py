"""The autoencoder's operations, each by the quickest way that a device has.

On NVIDIA GPUs that have bfloat16, in a 16-bit format and where no gradient is asked for, pictures are kept in channels-last
order and the operations are those of ``group_norm``, ``upsample`` and ``wide_attention``, which need Triton and are imported
when the first such picture comes. On CPUs with AVX-512 group norms are those of ``avx512``, in
channels-last order too. Everything else is done by ``reference``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.kernels import avx512, reference
from hwaga.kernels.attention import attend
from hwaga.kernels.operations import why_not_fused

CHANNELS_MULTIPLE = 8
"""Tensor cores take channels in multiples of this."""


def fused(x: Tensor) -> bool:
    """Whether operations on a tensor are done in channels-last order by kernels of ours."""
    if not x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
        return False
    return why_not_fused(x.device) is None


def in_order(x: Tensor) -> bool:
    """Whether a CPU keeps pictures in channels-last order, for its operations in C."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and avx512.level() > 0


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, offset: Tensor | None = None, silu: bool = True
) -> Tensor:
    """See ``reference``."""
    if offset is None and avx512.norms(x, None, weight, bias):
        return avx512.group_norm_silu(x, None, groups, weight, bias, eps, silu=silu, out=x)
    if not fused(x):
        return reference.group_norm_silu(x, groups, weight, bias, eps, offset=offset, silu=silu)
    from hwaga.kernels import group_norm

    return group_norm.group_norm_silu(x, groups, weight, bias, eps, offset=offset, silu=silu)


def add_group_norm_silu(
    update: Tensor, residual: Tensor | None, offset: Tensor | None, groups: int, weight: Tensor, bias: Tensor, eps: float,
    *, silu: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``reference``."""
    if offset is None and avx512.norms(update, residual, weight, bias):
        out = torch.empty_like(update)
        return update, avx512.group_norm_silu(update, residual, groups, weight, bias, eps, silu=silu, out=out)
    if not fused(update):
        return reference.add_group_norm_silu(update, residual, offset, groups, weight, bias, eps, silu=silu)
    from hwaga.kernels import group_norm

    return group_norm.add_group_norm_silu(update, residual, offset, groups, weight, bias, eps, silu=silu)


def add(update: Tensor, residual: Tensor | None, offset: Tensor | None) -> Tensor:
    """See ``reference``."""
    if not fused(update):
        return reference.add(update, residual, offset)
    from hwaga.kernels import group_norm

    return group_norm.add(update, residual, offset)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``reference``."""
    if not fused(x):
        return reference.upsample_conv(x, weight, bias)
    from hwaga.kernels import upsample

    return upsample.upsample_conv(x, weight, bias)


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of ``[batch, tokens, channels]`` with one head."""
    if not fused(q):
        return attend(q[:, None], k[:, None], v[:, None])[:, 0]
    from hwaga.kernels import wide_attention

    return wide_attention.attend_wide(q, k, v)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor | None]:
    """A convolution, and what is still to be added to its result for each channel: nothing, or the bias where torch would
    add it in a pass of its own that the next operation can save.
    """
    if not fused(x):
        if in_order(x):
            x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        return F.conv2d(x, weight, bias, stride, padding), None
    x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    lacking, spare = (-count % CHANNELS_MULTIPLE for count in (weight.shape[1], weight.shape[0]))
    if not lacking and not spare:
        return F.conv2d(x, weight, None, stride, padding), bias
    weight = F.pad(weight, (0, 0, 0, 0, 0, lacking, 0, spare))
    if lacking:
        x = F.pad(x, (0, 0, 0, 0, 0, lacking))
    return F.conv2d(x, weight, None, stride, padding)[:, : weight.shape[0] - spare], bias
