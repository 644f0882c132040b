"""Euler's method down a list of noise levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from hwaga.sampling.walk import Derivative, SamplerStep, walk


def euler(derivative: Derivative, latents: Sequence[Tensor], schedules: Sequence[Tensor]) -> Iterator[SamplerStep]:
    """Integrates every picture of a batch from its first sigma to its last; see ``walk``."""
    return walk(derivative, latents, schedules, [euler_step] * len(latents))


def euler_step(latents: Tensor, slope: Tensor, _: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """A ``Rule``: along the slope. The difference is taken in float32, as the reference does."""
    return latents + (following - sigma).item() * slope
