"""Linear layers whose weights are kept as a GGUF file has them, and written out for each product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwaga.weights.block_formats import BLOCK_FORMATS
from hwaga.weights.fused import FusedLinear
from hwaga.weights.stored import StoredTensor


class PackedLinear(FusedLinear):
    """A linear layer whose weight is stacked from pieces that may each be of another number format.

    Args:
        linear: the layer that it replaces; its bias is taken over. What is kept begins on the meta device.
        pieces: of its weight, in files.

    Attributes:
        kept: the bytes of each piece, uint8 ``[rows, bytes of a row]``.
        dtype: the model's number format.
    """

    def __init__(self, linear: nn.Linear, pieces: Sequence[StoredTensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.outs = linear.outs if isinstance(linear, FusedLinear) else (linear.out_features,)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype
        self.formats = [BLOCK_FORMATS[piece.number_format] for piece in pieces]
        self.kept = nn.ParameterList(
            nn.Parameter(
                torch.empty(piece.shape[0], entry.row_bytes(self.in_features), dtype=torch.uint8, device="meta"),
                requires_grad=False,
            )
            for entry, piece in zip(self.formats, pieces, strict=True)
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[out, in]`` in the model's number format."""
        pieces = [entry.unpack(rows, self.dtype) for entry, rows in zip(self.formats, self.kept, strict=True)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
