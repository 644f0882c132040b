"""Several linear layers over the same input as one product."""

from __future__ import annotations

from torch import nn


class FusedLinear(nn.Linear):
    """Several linear layers over the same input as one product.

    Attributes:
        outs: output channels of each, in the order that they are stacked.
    """

    def __init__(self, in_features: int, outs: tuple[int, ...], *, bias: bool) -> None:
        super().__init__(in_features, sum(outs), bias=bias)
        self.outs = outs
