"""DPM-Solver++(2M): a multistep method of second order, one pass of the denoiser for each step.

Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022, algorithm 2, in the form
where latents are ``picture + sigma * noise``. With ``lambda = -log(sigma)``, what the denoiser takes to be the picture is
continued in a straight line from the step before, and the equation that is left is solved exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from hwaga.sampling.walk import Derivative, SamplerStep, walk


def dpmpp_2m(derivative: Derivative, latents: Sequence[Tensor], schedules: Sequence[Tensor]) -> Iterator[SamplerStep]:
    """Takes every picture of a batch from its first sigma to its last; see ``walk``."""
    return walk(derivative, latents, schedules, [MultistepRule() for _ in latents])


class MultistepRule:
    """A ``Rule`` for one picture. Its first step, and one down to sigma 0, are of first order."""

    def __init__(self) -> None:
        self._denoised: Tensor | None = None
        self._length = 0.0
        """Of the step before, in lambda."""

    def __call__(self, latents: Tensor, _: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        before, self._denoised = self._denoised, denoised
        if following == 0:
            return denoised
        ratio = following.item() / sigma.item()
        length, last = -math.log(ratio), self._length
        self._length = length
        # Between two equal levels lies no line to continue: the lists of tiny strengths may hold some.
        aim = denoised if before is None or not last else denoised + (denoised - before) * (length / (2 * last))
        return ratio * latents + (1 - ratio) * aim
