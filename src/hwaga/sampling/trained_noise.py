"""The noise levels of models that were trained on a list of them, such as SDXL.

At sigma, latents are ``picture + sigma * noise``; the network sees them divided by ``sqrt(sigma² + 1)``, and beside them the
time: the place of sigma in the list. Formulas as in diffusers' ``EulerDiscreteScheduler`` and ``DPMSolverMultistepScheduler``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spacing = Literal["leading", "trailing", "linspace"]
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing", "linspace")

KARRAS_RHO = 7.0
"""Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022: below (5)."""

LEAST_SIGNAL = 2.0**-24
"""What is left of the picture, squared, where a list ends in nothing but noise: its sigma would be infinite otherwise."""


@dataclass(frozen=True)
class TrainedNoise:
    """A list of noise levels, and the times that a schedule visits.

    Attributes:
        sigmas: of each time, rising, float64 ``[times]``.
        spacing: how evenly spaced times lie in the list: "leading" ends near 0, "trailing" begins at the last one, and
            "linspace" does both.
        offset: added to leading times.
    """

    sigmas: NDArray[np.float64]
    spacing: Spacing = "leading"
    offset: int = 0

    @classmethod
    def from_betas(
        cls, betas: Tensor, *, zero_signal: bool = False, spacing: Spacing = "leading", offset: int = 0
    ) -> TrainedNoise:
        """The levels of a training process that adds noise of variance ``betas[t]`` at each time.

        Args:
            betas: float32 ``[times]``, see ``scaled_linear``.
            zero_signal: the list is stretched to end in nothing but noise.
        """
        kept = torch.cumprod(1.0 - betas, dim=0)
        if zero_signal:  # Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1
            roots = kept.sqrt()
            roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
            squares = roots**2
            # Back to betas and forth again in float32, as the reference does: its figures are ours to the bit then.
            kept = torch.cumprod(torch.cat([squares[:1], squares[1:] / squares[:-1]]), dim=0)
            kept[-1] = LEAST_SIGNAL
        return cls((((1 - kept) / kept) ** 0.5).numpy().astype(np.float64), spacing, offset)

    def even(self, steps: int, start: float | None = None) -> Tensor:
        """Sigmas at evenly spaced times.

        Args:
            start: a first sigma below the schedule's own. As many steps are spaced from there.
        """
        count = len(self.sigmas)
        times: NDArray[np.floating]
        if self.spacing == "linspace":
            times = np.linspace(0, count - 1, steps, dtype=np.float32)[::-1].astype(np.float64)
        elif self.spacing == "leading":
            times = np.arange(steps)[::-1] * (count // steps) + float(self.offset)
        else:
            times = (count - np.arange(steps) * (count / steps)).round() - 1
        if start is not None:
            times = times * min(self.time_of(start) / max(times[0], 1e-9), 1.0)
        return _ending(np.interp(times, np.arange(count), self.sigmas))

    def karras(self, steps: int, start: float | None = None) -> Tensor:
        """Sigmas whose roots of order ``KARRAS_RHO`` are evenly spaced, from the list's last to its first.

        Args:
            start: a first sigma below the list's last.
        """
        last = self.sigmas[-1] if start is None else min(start, self.sigmas[-1])
        high, low = (sigma ** (1 / KARRAS_RHO) for sigma in (last, min(self.sigmas[0], last)))
        return _ending((high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_RHO)

    def time_of(self, sigma: float) -> float:
        """The time of a sigma of ``even``: whole for those of the list, in between in a straight line."""
        return float(np.interp(sigma, self.sigmas, np.arange(len(self.sigmas))))

    def nearest_time(self, sigma: float) -> float:
        """The whole time nearest to a sigma of ``karras``, by its logarithm."""
        logs = np.log(self.sigmas)
        return float(np.interp(np.log(max(sigma, 1e-10)), logs, np.arange(len(logs))).round())


def scaled_linear(first: float, last: float, times: int) -> Tensor:
    """Betas whose roots are evenly spaced, float32 ``[times]``: latent diffusion's."""
    return torch.linspace(first**0.5, last**0.5, times, dtype=torch.float32, device="cpu") ** 2


def linear(first: float, last: float, times: int) -> Tensor:
    """Evenly spaced betas, float32 ``[times]``."""
    return torch.linspace(first, last, times, dtype=torch.float32, device="cpu")


def keep_last(sigmas: Tensor, strength: float) -> Tensor:
    """The last steps of a schedule, as the reference's image-to-image pipeline of SDXL keeps them.

    ``strength`` is their share of all steps, rounded down to whole steps. Nothing is left of a strength below one step.
    """
    steps = len(sigmas) - 1
    return sigmas[steps - min(int(steps * strength), steps) :]


def _ending(sigmas: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
