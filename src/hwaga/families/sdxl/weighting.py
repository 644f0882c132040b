"""What a token's weight does to its embedding.

ComfyUI's way: an embedding is moved along the line from what the encoder makes of the empty prompt, at the same place of
the window, to what it makes of the prompt. A weight of 1 is the prompt's own and 0 the empty prompt's. AUTOMATIC1111
multiplies embeddings instead and then scales all of them until their mean is what it was, so that a weight on one word
changes every other, and a mean that happens to lie near zero scales them without bound.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted(embeddings: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """The windows of a prompt as one sequence, each token as strong as its weight says.

    Args:
        embeddings: ``[windows, 77, D]``.
        weights: ``[windows, 77]``, of any number format.
        empty: ``[77, D]``, the empty prompt's window.

    Returns:
        ``[windows * 77, D]``. Where the weight is 1, the embedding is what it was to the bit.
    """
    factors = weights[..., None].to(embeddings)
    moved = torch.lerp(empty.expand_as(embeddings).to(embeddings), embeddings, factors.expand_as(embeddings))
    return torch.where(factors == 1, embeddings, moved).flatten(0, 1)
