"""Noise schedules against diffusers' scheduler and image-to-image pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwaga.sampling.schedule import drop_first, flow_match

STEPS = st.integers(1, 60)
SHIFTS = st.sampled_from([1.0, 1.15, 3.0, 5.0, 12.0])
STARTS = st.floats(1e-4, 1.0, exclude_max=True)


def _scheduler(steps: int, shift: float) -> FlowMatchEulerDiscreteScheduler:
    """The reference's scheduler as its pipelines set it up."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), device="cpu", mu=0.7)
    return scheduler


def _rest(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, strength: float) -> Tensor:
    """The sigmas that the reference's image-to-image pipeline runs through at a strength."""
    timesteps, left = ZImageImg2ImgPipeline.get_timesteps(
        cast(ZImageImg2ImgPipeline, SimpleNamespace(scheduler=scheduler)), steps, strength, "cpu"
    )
    assert len(timesteps) == left
    return cast(Tensor, scheduler.sigmas[scheduler.begin_index :])


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_same_bits_as_the_reference(shift: float) -> None:
    for steps in range(1, 51):
        ours, theirs = flow_match(steps, shift), _scheduler(steps, shift).sigmas
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs), steps


def test_eight_steps_of_z_image_turbo() -> None:
    expected = [1, 21 / 22, 9 / 10, 5 / 6, 3 / 4, 9 / 14, 1 / 2, 3 / 10, 0]
    torch.testing.assert_close(flow_match(8, 3.0), torch.tensor(expected))


@given(STEPS, SHIFTS)
def test_start_of_one_is_the_plain_schedule(steps: int, shift: float) -> None:
    assert torch.equal(flow_match(steps, shift, 1.0), flow_match(steps, shift))


@given(STEPS, SHIFTS, STARTS)
def test_start_names_the_first_sigma(steps: int, shift: float, start: float) -> None:
    sigmas = flow_match(steps, shift, start)
    assert len(sigmas) == steps + 1, "any start takes the same number of steps"
    assert sigmas[0].item() == pytest.approx(start, rel=1e-6)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@given(STEPS, SHIFTS, STARTS, STARTS)
def test_continuous_and_monotone_in_the_start(steps: int, shift: float, first: float, second: float) -> None:
    low, high = sorted((first, second))
    difference = flow_match(steps, shift, high) - flow_match(steps, shift, low)
    # Both the way to the even spacing and the way back have a slope of at most shift.
    assert (difference >= -1e-6).all()
    assert (difference <= shift**2 * (high - low) + 1e-6).all()


@given(STEPS, SHIFTS, STARTS)
def test_even_before_the_shift(steps: int, shift: float, start: float) -> None:
    sigmas = flow_match(steps, shift, start).double()
    even = sigmas / (shift - (shift - 1) * sigmas)
    gaps = even.diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(steps), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dropped_steps_are_those_of_the_reference(shift: float) -> None:
    strengths = [0.01, 0.1, 0.125, 0.3, 1 / 3, 0.35, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.99, 0.999, 1.0]
    lengths = set()
    for steps in (*range(1, 21), 25, 28, 50):
        for strength in strengths:
            theirs = _rest(_scheduler(steps, shift), steps, strength)
            ours = drop_first(flow_match(steps, shift), strength)
            assert torch.equal(ours, theirs), (steps, strength)
            lengths.add(len(ours))
    assert min(lengths) == 2
    assert max(lengths) == 51
