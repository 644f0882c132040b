"""Noise levels of trained lists, and DPM-Solver++, against diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from torch import Tensor

from hwaga.sampling.dpmpp_2m import dpmpp_2m
from hwaga.sampling.euler import euler
from hwaga.sampling.trained_noise import SPACINGS, Spacing, TrainedNoise, keep_last, scaled_linear

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = [1, 2, 3, 7, 25, 40, 50, 100]


def noise(**others: Any) -> TrainedNoise:
    return TrainedNoise.from_betas(scaled_linear(0.00085, 0.012, 1000), **others)


@pytest.mark.parametrize("zero", [False, True], ids=["plain", "zero signal"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_even_levels_are_the_references(spacing: Spacing, zero: bool) -> None:
    ours = noise(spacing=spacing, offset=1, zero_signal=zero)
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1, rescale_betas_zero_snr=zero)
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        sigmas = ours.even(steps)
        torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=2e-5 if zero else 0, atol=0)
        times = torch.tensor([ours.time_of(sigma) for sigma in sigmas[:-1].tolist()])
        torch.testing.assert_close(times, scheduler.timesteps, rtol=0, atol=2e-3)


def test_karras_levels_are_the_references() -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    for steps in STEPS[1:]:
        scheduler.set_timesteps(steps)
        sigmas = noise().karras(steps)
        torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=0)
        assert [noise().nearest_time(sigma) for sigma in sigmas[:-1].tolist()] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_start_below_the_first_level(spacing: Spacing) -> None:
    """As many steps, spaced from the level that is named; at the first level or above, the whole schedule."""
    ours = noise(spacing=spacing, offset=1)
    for levels in (ours.even, ours.karras):
        whole = levels(8)
        for start in (0.05, 0.6, 3.0, 11.0):
            sigmas = levels(8, start)
            assert len(sigmas) == 9
            assert sigmas[0].item() == pytest.approx(min(start, whole[0].item()), rel=1e-4)
            assert (sigmas.diff() < 0).all()
        assert torch.equal(levels(8, 1e6), whole)


def test_the_steps_that_the_reference_keeps() -> None:
    scheduler = EulerDiscreteScheduler(**BETAS)
    for steps in (1, 8, 40):
        scheduler.set_timesteps(steps)
        stand_in = cast(StableDiffusionXLImg2ImgPipeline, SimpleNamespace(scheduler=scheduler))
        for strength in (0.01, 0.3, 0.5, 0.6, 0.999, 1.0):
            times, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(stand_in, steps, strength, "cpu")
            assert len(keep_last(scheduler.sigmas, strength)) - 1 == len(times)


def predicted(latents: Tensor, sigma: float) -> Tensor:
    """A denoiser of no sense whose outputs depend on everything."""
    return torch.sin(3 * latents / (sigma**2 + 1) ** 0.5) + 0.1 * sigma**0.5


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 40])
def test_multistep_pictures_are_the_references(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    first = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(steps))
    theirs = first
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        # The reference's latents are ours over sqrt(sigma² + 1), and its network is given them as they are.
        output = torch.sin(3 * theirs) + 0.1 * sigma**0.5
        theirs = scheduler.step(output, time, theirs).prev_sample
    sigmas = noise().karras(steps)
    start = first * (sigmas[0] ** 2 + 1) ** 0.5
    *_, last = dpmpp_2m(lambda x, s, _: [predicted(x[0], s[0])], [start], [sigmas])
    torch.testing.assert_close(last.latents[0], theirs, rtol=1e-4, atol=1e-4)
    *_, other = euler(lambda x, s, _: [predicted(x[0], s[0])], [start], [sigmas])
    assert steps < 3 or (other.latents[0] - theirs).abs().max() > 1e-2, "Euler comes to the same"


def test_levels_below_the_least() -> None:
    """A list that stays at one level is walked without harm, though a request for it is refused."""
    sigmas = noise().karras(4, 0.02)
    assert (sigmas.diff() == 0).sum() == 3
    first = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    *_, last = dpmpp_2m(lambda x, s, _: [predicted(x[0], s[0])], [first], [sigmas])
    torch.testing.assert_close(last.latents[0], first - 0.02 * predicted(first, 0.02))


def test_a_batch_is_its_pictures() -> None:
    schedules = [noise().karras(6), noise().karras(3), noise().karras(4, 0.8)]
    starts = [torch.randn(4, 5, 5 + i, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    asked: list[list[int]] = []

    def denoiser(latents: Sequence[Tensor], sigmas: Sequence[float], indices: Sequence[int]) -> list[Tensor]:
        asked.append(list(indices))
        return [predicted(x, sigma) for x, sigma in zip(latents, sigmas, strict=True)]

    *_, last = dpmpp_2m(denoiser, starts, schedules)
    assert asked == [[0, 1, 2]] * 3 + [[0, 2]] + [[0]] * 2
    for i in range(3):
        *_, alone = dpmpp_2m(denoiser, [starts[i]], [schedules[i]])
        assert torch.equal(alone.latents[0], last.latents[i])
