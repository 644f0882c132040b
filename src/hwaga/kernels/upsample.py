"""Nearest-neighbour doubling and a 3 × 3 convolution as four 2 × 2 convolutions of the small picture, in Triton and cuDNN.

A pixel of the result sees 2 × 2 pixels of the small picture, some of them through several of its nine weights. Those are summed
beforehand, one kernel for each of the four places that a pixel of the result has in its quad: 16 products for each pixel of the
small picture where the plain order takes 36, and the large picture is not written before it is convolved.

Importing this needs Triton.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hwaga.kernels.group_norm import COLUMNS, ROWS, channels_last
from hwaga.kernels.launcher import launched, pieces


@launched
@triton.jit(do_not_specialize=["height", "width", "blocks", "down", "right"])
def _place(
    y, bias, out, height, width, channels, blocks, down, right,
    OFFSET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out[2i + down, 2j + right] = y[i + down, j + right] + bias`` for a ``y`` one longer than the picture on each side."""
    index = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    column = index % blocks * COLUMNS + tl.arange(0, COLUMNS)
    pixel = index // blocks * ROWS + tl.arange(0, ROWS)
    used = column < channels
    inside = (pixel < height * width)[:, None] & used[None, :]
    i, j = pixel // width, pixel % width
    source = (image * (height + 1) + i + down) * (width + 1) + j + right
    target = (image * 2 * height + 2 * i + down) * 2 * width + 2 * j + right
    value = tl.load(y + source[:, None] * channels + column[None, :], mask=inside, other=0.0)
    if OFFSET:
        added = tl.load(bias + column, mask=used, other=0.0).to(tl.float32)
        value = value.to(tl.float32) + added[None, :]
    tl.store(out + target[:, None] * channels + column[None, :], value.to(out.dtype.element_ty), mask=inside)


@cache
def _sharing(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[9, 16]``: which of the 3 × 3 weights (rows) are summed to each weight of the four 2 × 2 kernels."""
    first, second = [[1, 0], [0, 1], [0, 1]], [[1, 0], [1, 0], [0, 1]]
    side = torch.tensor([first, second], dtype=torch.float32)  # [place, of three, of two]
    return torch.einsum("drp,esq->rsdepq", side, side).reshape(9, 16).to(device, dtype)


def quad_kernels(weight: Tensor) -> Tensor:
    """From ``[out, in, 3, 3]`` the kernels ``[4, out, in, 2, 2]`` of the places (0, 0), (0, 1), (1, 0) and (1, 1)."""
    out, into = weight.shape[:2]
    summed = weight.reshape(-1, 9) @ _sharing(weight.device, weight.dtype)
    kernels = summed.view(out, into, 4, 2, 2).permute(2, 0, 3, 4, 1).contiguous()
    return kernels.permute(0, 1, 4, 2, 3)


def place(y: Tensor, bias: Tensor | None, out: Tensor, down: int, right: int) -> None:
    """Writes what one of the four kernels gave, ``[batch, C, h + 1, w + 1]``, to its places in ``[batch, C, 2h, 2w]``."""
    batch, channels, height, width = y.shape
    pixels, blocks = (height - 1) * (width - 1), pieces(channels, COLUMNS)
    _place[(pieces(pixels, ROWS) * blocks, batch)](
        channels_last(y), y if bias is None else bias, out, height - 1, width - 1, channels, blocks, down, right,
        OFFSET=bias is not None, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``reference.upsample_conv`` in channels-last order."""
    x = channels_last(x)
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0], 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for number, kernel in enumerate(quad_kernels(weight)):
        place(F.conv2d(x, kernel, padding=1), bias, out, number // 2, number % 2)
    return out
