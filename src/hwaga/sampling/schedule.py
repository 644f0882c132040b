"""Noise levels (sigmas) that a sampler visits, from the start down to 0.

Flow matching: at sigma, latents are ``(1 - sigma) * picture + sigma * noise``; the other models' levels are in
``trained_noise``. All schedules are float32 ``[steps + 1]`` on the CPU, and end in 0; "steps" are forwards of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flow_match(steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Evenly spaced sigmas, then shifted towards noise, as diffusers' ``FlowMatchEulerDiscreteScheduler`` has them.

    Args:
        steps: forwards, at least 1.
        shift: above 1 spends more steps at high noise; 3.0 for Z-Image Turbo.
        start: first sigma, in (0, 1]. Below 1 the same number of steps is spaced from there: the even spacing begins
            at the point that the shift takes to ``start``, so that start 1 is the plain schedule.
    """
    even_start = start / (shift - (shift - 1) * start)
    even = torch.linspace(even_start, even_start / steps, steps, dtype=torch.float32, device="cpu")
    return torch.cat([shift * even / (1 + (shift - 1) * even), torch.zeros(1, dtype=torch.float32, device="cpu")])


def drop_first(sigmas: Tensor, strength: float) -> Tensor:
    """The rest of a schedule once its first part is dropped, as the reference image-to-image pipeline does it.

    ``strength`` is the share of the steps that is kept, rounded up to whole steps. Only a strength that float arithmetic
    cannot tell from 0 keeps none.
    """
    steps = len(sigmas) - 1
    return sigmas[int(max(steps - min(steps * strength, steps), 0)) :]
