"""Activations in 8 bits, on their way into a product of 8-bit numbers."""

from __future__ import annotations

import enum
from typing import NamedTuple

from torch import Tensor

LARGEST = 448.0
"""Of the numbers that e4m3 holds."""

SMALLEST_SCALE = 1e-12
"""A row of zeros is divided by something, too."""


class Form(enum.Enum):
    """How an operation hands its result on: plain, coded, or both."""

    PLAIN = (True, False)
    CODES = (False, True)
    BOTH = (True, True)

    def __init__(self, plain: bool, codes: bool) -> None:
        self.plain = plain
        self.codes = codes


class Coded(NamedTuple):
    """Rows of activations, close to ``codes * scale``.

    Attributes:
        codes: float8 e4m3 ``[tokens, channels]``.
        scale: float32 ``[tokens, 1]``; the largest number of a row becomes the largest code.
        plain: the same before it was rounded, where somebody wants both (``Form.BOTH``).
    """

    codes: Tensor
    scale: Tensor
    plain: Tensor | None = None


Rows = Tensor | Coded
"""What a linear layer takes: ``[tokens, channels]`` in the model's number format, or coded."""
