"""Weights of linear layers in fewer bits. Products are computed in the model's number format: a weight is written out for each
product and dropped after it. Where the device multiplies numbers of 8 bits, fp8 weights may meet activations in fp8 instead.

    int8   one byte and a scale for each row
    fp8    one byte (e4m3) and a scale for each row
    int4   half a byte, and a scale and an offset for each 64 weights of a row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.kernels.coded import Coded, Rows
from hwaga.kernels.operations import scaled_product
from hwaga.weights.fused import FusedLinear

GROUP = 64
"""Weights of a row that share a scale, in int4."""

VALUES_AT_ONCE = 2**20
"""Weights that are quantised at a time, or one row of them."""

ENCODING = 18
"""Bytes that quantising takes for each weight of those at a time: at most four copies in float32, and codes."""

RUN = 16
"""Codes that a GPU takes at a time: both sides of a weight that is multiplied as it is kept are multiples of this."""

_SMALLEST = 1e-30
_FP8_MOST = 448.0


@dataclass(frozen=True)
class Precision:
    """A way to keep weights.

    Attributes:
        name: what it is called.
        bits: for a weight, scales included, of a row that is long beside ``GROUP``.
        spreading: bytes that ``decode`` takes for each value, beside its result.
        kept: shapes of what is kept of ``[rows, width]``, and their dtypes; None stands for the model's own.
        encode: float32 ``[rows, width]`` to what is kept, whatever is of the model's dtype still in float32.
        decode: what is kept, and the width, to ``[rows, width]`` in the dtype of the scales.
    """

    name: str
    bits: float
    spreading: float
    kept: Callable[[int, int], tuple[tuple[tuple[int, ...], torch.dtype | None], ...]]
    encode: Callable[[Tensor], tuple[Tensor, ...]]
    decode: Callable[[tuple[Tensor, ...], int], Tensor]


def _rounded(scale: Tensor) -> Tensor:
    """A scale as bfloat16 holds it, still in float32: codes are chosen for the scale that they are multiplied with."""
    return scale.bfloat16().float().clamp_min(_SMALLEST)


def _kept_rows(codes: torch.dtype, rows: int, width: int) -> tuple[tuple[tuple[int, ...], torch.dtype | None], ...]:
    return ((rows, width), codes), ((rows, 1), None)


def _encode_int8(weight: Tensor) -> tuple[Tensor, ...]:
    scale = _rounded(weight.abs().amax(1, keepdim=True) / 127)
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def _encode_fp8(weight: Tensor) -> tuple[Tensor, ...]:
    scale = _rounded(weight.abs().amax(1, keepdim=True) / _FP8_MOST)
    return (weight / scale).clamp(-_FP8_MOST, _FP8_MOST).to(torch.float8_e4m3fn), scale


def _decode_rows(kept: tuple[Tensor, ...], width: int) -> Tensor:
    codes, scale = kept
    assert codes.shape[1] == width
    return codes.to(scale.dtype).mul_(scale)


def _kept_int4(rows: int, width: int) -> tuple[tuple[tuple[int, ...], torch.dtype | None], ...]:
    groups = -(-width // GROUP)
    return ((rows, groups, GROUP // 2), torch.uint8), ((rows, groups, 1), None), ((rows, groups, 1), None)


def _encode_int4(weight: Tensor) -> tuple[Tensor, ...]:
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    low = groups.amin(-1, keepdim=True).bfloat16().float()
    scale = _rounded((groups.amax(-1, keepdim=True) - low) / 15)
    codes = ((groups - low) / scale).round().clamp(0, 15).to(torch.uint8)
    even, odd = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return even | odd << 4, scale, low


def _decode_int4(kept: tuple[Tensor, ...], width: int) -> Tensor:
    packed, scale, low = kept
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return codes.to(scale.dtype).mul_(scale).add_(low).flatten(1)[:, :width]


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("int8", 8.0, 0.0, partial(_kept_rows, torch.int8), _encode_int8, _decode_rows),
        Precision("fp8", 8.0, 0.0, partial(_kept_rows, torch.float8_e4m3fn), _encode_fp8, _decode_rows),
        Precision("int4", 4.0 + 32 / GROUP, 2.0, _kept_int4, _encode_int4, _decode_int4),
    )
}
"""By name, the best first. At one byte, whole numbers lie closer to the weights than e4m3 does."""

SOUND = ("int8", "fp8")
"""Those whose pictures stay near the ones of whole weights: 35 dB at least, of the bundled model's, by
``benchmarks/precision.py`` (int8 42, fp8 35.5, int4 25). Only they are chosen without being asked for."""


class QuantizedLinear(FusedLinear):
    """A linear layer whose weight is kept in fewer bits, and written out whenever it is asked for.

    Args:
        linear: the layer that it replaces; its bias is taken over. What is kept begins on the meta device.
        stored: the files have the weight in this precision, and nothing is to be rounded.

    Attributes:
        dtype: the model's number format.
        takes_codes: it wants its rows in 8 bits, for a product of codes; see ``multiply_codes``.
    """

    takes_codes = False

    def __init__(self, linear: nn.Linear, precision: Precision, *, stored: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.outs = linear.outs if isinstance(linear, FusedLinear) else (linear.out_features,)
        self.precision = precision
        self.stored = stored
        self.bias = linear.bias
        self.dtype = linear.weight.dtype
        self.kept = nn.ParameterList()
        self._make_room()

    def _make_room(self) -> None:
        shapes = self.kept_shapes(self.dtype)
        self.kept = nn.ParameterList(
            nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False) for shape, dtype in shapes
        )

    def kept_shapes(self, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that is kept, in a model of ``dtype``."""
        own = torch.float32 if self.takes_codes else dtype  # a product of codes wants its scales so
        return [(shape, form or own) for shape, form in self.precision.kept(self.out_features, self.in_features)]

    def multiply_codes(self) -> None:
        """From now on takes rows in 8 bits, if its own codes can be multiplied with them: e4m3, in runs of 16."""
        if self.precision.name == "fp8" and self.in_features % RUN == 0 and self.out_features % RUN == 0:
            self.takes_codes = True
            self._make_room()

    def forward(self, x: Rows) -> Tensor:
        """``[tokens, in]`` to ``[tokens, out]``."""
        if not isinstance(x, Coded):
            return F.linear(x, self.weight, self.bias)
        product = scaled_product(x, self.kept[0], self.kept[1], self.dtype)
        return product if self.bias is None else product + self.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[out, in]`` in the model's number format."""
        return self.precision.decode(tuple(self.kept), self.in_features).to(self.dtype)


def write_codes(weight: Tensor, precision: Precision, kept: Sequence[Tensor]) -> None:
    """Writes what is kept of a weight ``[rows, width]`` over tensors of the shapes of ``precision.kept``."""
    at_once = _rows_at_once(weight.shape[1])
    for start in range(0, len(weight), at_once):
        rows = slice(start, start + at_once)
        for place, part in zip(kept, precision.encode(weight[rows].float()), strict=True):
            place[rows] = part


def encoding_bytes(shape: Sequence[int]) -> int:
    """What ``write_codes`` takes beside a weight ``[rows, width]`` and what is kept of it."""
    rows, width = shape
    return min(rows, _rows_at_once(width)) * -(-width // GROUP) * GROUP * ENCODING


def _rows_at_once(width: int) -> int:
    return max(VALUES_AT_ONCE // max(width, 1), 1)
