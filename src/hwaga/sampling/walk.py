"""The walk down the noise levels, which all samplers share: a pass of the denoiser, then each picture takes its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

Derivative = Callable[[Sequence[Tensor], Sequence[float], Sequence[int]], Sequence[Tensor]]
"""(latents, sigmas, indices) of the pictures under way → d latents / d sigma for each. ``indices`` say which pictures of the
batch they are: those with shorter schedules have left."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A sampler's step of one picture: (latents, d latents / d sigma, what that takes to be at the end of the way, sigma, the
next sigma) → latents at the next sigma. It may remember earlier steps, so that each picture has one of its own."""


@dataclass(frozen=True)
class SamplerStep:
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


def walk(
    derivative: Derivative, latents: Sequence[Tensor], schedules: Sequence[Tensor], rules: Sequence[Rule]
) -> Iterator[SamplerStep]:
    """Takes every picture of a batch from its first sigma to its last, all at the same time.

    Args:
        derivative: the denoiser.
        latents: float32 ``[C, h, w]`` at the first sigma of its schedule, for each picture.
        schedules: sigmas of each picture, falling, float32 on the CPU; they may differ in length.
        rules: how each picture steps.

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
            current[i] = rules[i](current[i], slope, denoised[i], schedules[i][k], schedules[i][k + 1])
        reached = [schedule[min(k + 1, len(schedule) - 1)].item() for schedule in schedules]
        yield SamplerStep(k + 1, list(current), list(denoised), reached)
