"""Euler's method down a list of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

Derivative = Callable[[Sequence[Tensor], Sequence[float], Sequence[int]], Sequence[Tensor]]
"""(latents, sigmas, indices) of the pictures under way → d latents / d sigma for each. ``indices`` say which pictures of the
batch they are: those with shorter schedules have left."""


@dataclass(frozen=True)
class EulerStep:
    """State after a step.

    Attributes:
        index: steps done, from 1.
        latents: of every picture of the batch, float32 ``[C, h, w]``.
        denoised: for each picture, what the last step took to be at the end of the way, float32 ``[C, h, w]``.
        sigmas: noise level of each picture.
    """

    index: int
    latents: list[Tensor]
    denoised: list[Tensor]
    sigmas: list[float]


def euler(derivative: Derivative, latents: Sequence[Tensor], schedules: Sequence[Tensor]) -> Iterator[EulerStep]:
    """Integrates every picture of a batch from its first sigma to its last, all at the same time.

    Args:
        derivative: the denoiser.
        latents: float32 ``[C, h, w]`` at the first sigma of its schedule, for each picture.
        schedules: sigmas of each picture, falling, float32 on the CPU; they may differ in length.

    Yields:
        The state after each step; the last one holds the finished latents.
    """
    current, denoised = list(latents), list(latents)
    for k in range(max(len(schedule) for schedule in schedules) - 1):
        active = [i for i, schedule in enumerate(schedules) if k < len(schedule) - 1]
        sigmas = [schedules[i][k].item() for i in active]
        slopes = derivative([current[i] for i in active], sigmas, active)
        for i, sigma, slope in zip(active, sigmas, slopes, strict=True):
            denoised[i] = current[i] - sigma * slope
            # The difference is taken in float32, as the reference does.
            current[i] = current[i] + (schedules[i][k + 1] - schedules[i][k]).item() * slope
        reached = [schedule[min(k + 1, len(schedule) - 1)].item() for schedule in schedules]
        yield EulerStep(k + 1, list(current), list(denoised), reached)
