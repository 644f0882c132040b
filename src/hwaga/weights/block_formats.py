"""The number formats of GGUF files, and what their bytes stand for.

A row of weights is cut into blocks of 32 or 256, and each block is some bytes: codes of a few bits, and scales. Whatever is
decoded here is computed in float32 in the order in which llama.cpp does it, so that the numbers are the same to the bit. The
layouts of the blocks are those of ggml's ``ggml-common.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VALUES_AT_ONCE = 2**23
"""Weights that are decoded at a time: the work takes a few times their memory in float32."""


@dataclass(frozen=True)
class BlockFormat:
    """How weights are packed.

    Attributes:
        name: as ggml spells it.
        code: its number in GGUF files.
        weights, nbytes: of one block.
        decode: uint8 ``[blocks, nbytes]`` to float32 ``[blocks, weights]``.
    """

    name: str
    code: int
    weights: int
    nbytes: int
    decode: Callable[[Tensor], Tensor]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of so many weights, which must be whole blocks."""
        return width // self.weights * self.nbytes

    def unpack(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 ``[rows, bytes of a row]`` to ``[rows, width]`` in a dtype, on the same device."""
        width = rows.shape[1] // self.nbytes * self.weights
        values = torch.empty(rows.shape[0], width, dtype=dtype, device=rows.device)
        at_once = max(1, VALUES_AT_ONCE // width)
        for begin in range(0, rows.shape[0], at_once):
            some = rows[begin : begin + at_once]
            values[begin : begin + at_once] = self.decode(some.reshape(-1, self.nbytes)).view(-1, width)
        return values

    def all_finite(self, rows: Tensor) -> Tensor:
        """Whether all weights of uint8 ``[rows, bytes of a row]`` are numbers, as a tensor of one truth."""
        width = rows.shape[1] // self.nbytes * self.weights
        found = [
            torch.isfinite(self.decode(some.reshape(-1, self.nbytes))).all()
            for some in rows.split(max(1, VALUES_AT_ONCE // width))
        ]
        return torch.stack(found).all()


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, ``[blocks, 1]`` in float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _signed(codes: Tensor) -> Tensor:
    return codes.contiguous().view(torch.int8)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """``[..., n]`` bytes to ``[..., 8 // bits, n]`` fields of so many bits, the lowest first."""
    return torch.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], dim=-2)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes of eight scales and eight minima, six bits each: ``[blocks, 8, 1]`` both, in float32.

    The first four bytes hold the first four scales, and in their upper two bits those of the last four; the next four hold
    the minima in the same way; the rest of the last ones shares the last four bytes, scales below and minima above.
    """
    scales, minima, rest = packed.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat((scales & 63, rest & 15 | scales >> 2 & 48), dim=1)
    minima = torch.cat((minima & 63, rest >> 4 | minima >> 2 & 48), dim=1)
    return scales.float()[..., None], minima.float()[..., None]


def _decode_f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _decode_f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _decode_bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _decode_q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 4).flatten(1).float() - 8)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 4).flatten(1).float() + _half(blocks, 2)


def _five_bits(low: Tensor, high: Tensor) -> Tensor:
    """32 codes of which the fifth bits lie in four bytes of their own."""
    return _fields(low, 4).flatten(1) | _fields(high[..., None], 1).flatten(1) << 4


def _decode_q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_five_bits(blocks[:, 6:], blocks[:, 2:6]).float() - 16)


def _decode_q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _five_bits(blocks[:, 8:], blocks[:, 4:8]).float() + _half(blocks, 2)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return _signed(blocks[:, 2:]).float() * _half(blocks, 0)


def _decode_q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    scale = (_half(blocks, 80) * (scales & 15).float())[..., None]
    minimum = (_half(blocks, 82) * (scales >> 4).float())[..., None]
    codes = _fields(blocks[:, 16:80].unflatten(1, (2, 32)), 2).flatten(1).unflatten(1, (16, 16))
    return torch.flatten(scale * codes.float() - minimum, 1)


def _decode_q3_k(blocks: Tensor) -> Tensor:
    low, high = _fields(blocks[:, 96:104], 4).flatten(1), _fields(blocks[:, 104:108], 2).flatten(1)
    scales = (low | high << 4).float() - 32
    codes = _fields(blocks[:, 32:96].unflatten(1, (2, 32)), 2).flatten(1)
    # A code is one of 0 to 3, less four where the mask has no bit.
    lifted = _fields(blocks[:, :32], 1).flatten(1)
    values = codes.float() + (lifted.float() - 1) * 4
    return torch.flatten((_half(blocks, 108) * scales)[..., None] * values.unflatten(1, (16, 16)), 1)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    codes = _fields(blocks[:, 16:].unflatten(1, (4, 32)), 4).flatten(1, 2)
    scale, minimum = _half(blocks, 0)[..., None] * scales, _half(blocks, 2)[..., None] * minima
    return torch.flatten(scale * codes.float() - minimum, 1)


def _decode_q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    codes = _fields(blocks[:, 48:].unflatten(1, (4, 32)), 4).flatten(1, 2) | _fields(blocks[:, 16:48], 1) << 4
    scale, minimum = _half(blocks, 0)[..., None] * scales, _half(blocks, 2)[..., None] * minima
    return torch.flatten(scale * codes.float() - minimum, 1)


def _decode_q6_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, :128].unflatten(1, (2, 64)), 4).flatten(1)
    high = _fields(blocks[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1)
    scale = _half(blocks, 208) * _signed(blocks[:, 192:208]).float()
    values = (low | high << 4).float() - 32
    return torch.flatten(scale[..., None] * values.unflatten(1, (16, 16)), 1)


BLOCK_FORMATS = {
    entry.name: entry
    for entry in (
        BlockFormat("F32", 0, 1, 4, _decode_f32),
        BlockFormat("F16", 1, 1, 2, _decode_f16),
        BlockFormat("BF16", 30, 1, 2, _decode_bf16),
        BlockFormat("Q8_0", 8, 32, 34, _decode_q8_0),
        BlockFormat("Q6_K", 14, 256, 210, _decode_q6_k),
        BlockFormat("Q5_K", 13, 256, 176, _decode_q5_k),
        BlockFormat("Q5_1", 7, 32, 24, _decode_q5_1),
        BlockFormat("Q5_0", 6, 32, 22, _decode_q5_0),
        BlockFormat("Q4_K", 12, 256, 144, _decode_q4_k),
        BlockFormat("Q4_1", 3, 32, 20, _decode_q4_1),
        BlockFormat("Q4_0", 2, 32, 18, _decode_q4_0),
        BlockFormat("Q3_K", 11, 256, 110, _decode_q3_k),
        BlockFormat("Q2_K", 10, 256, 84, _decode_q2_k),
    )
}
"""By name. What llama.cpp's mixtures are made of: it falls back on Q8_0, Q5_x and Q4_x where rows are no multiple of 256."""

OTHER_FORMATS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Formats that are not read here, by their numbers; for messages."""
