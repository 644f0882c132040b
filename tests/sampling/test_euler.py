"""Euler's method on equations with known answers, and against diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwaga.sampling.euler import euler
from hwaga.sampling.schedule import flow_match
from hwaga.sampling.walk import SamplerStep


def _latents(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(3, *size, generator=generator) for size in sizes]


class Outputs:
    """A denoiser of random outputs that writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[float], list[int]]] = []

    def __call__(self, latents: Sequence[Tensor], sigmas: Sequence[float], indices: Sequence[int]) -> list[Tensor]:
        self.asked.append((list(sigmas), list(indices)))
        return [self.of(latent, sigma, i) for latent, sigma, i in zip(latents, sigmas, indices, strict=True)]

    @staticmethod
    def of(latent: Tensor, sigma: float, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(sigma * 1e6) + index)
        return torch.randn(latent.shape, generator=generator) * latent.abs()


@given(st.integers(1, 20), st.floats(0.05, 1.0), st.sampled_from([1.0, 3.0]))
def test_straight_flow_is_exact(steps: int, start: float, shift: float) -> None:
    """Where the velocity points from the picture straight to the noise, any number of steps ends at the picture."""
    picture, noise = _latents((4, 6), (4, 6))
    schedule = flow_match(steps, shift, start)
    first = schedule[0] * noise + (1 - schedule[0]) * picture
    states = list(euler(lambda latents, sigmas, indices: [noise - picture], [first], [schedule]))
    assert [state.index for state in states] == list(range(1, steps + 1))
    for state, sigma in zip(states, schedule[1:], strict=True):
        assert state.sigmas == [sigma.item()]
        torch.testing.assert_close(state.denoised[0], picture, rtol=0, atol=1e-4)
        torch.testing.assert_close(state.latents[0], sigma * noise + (1 - sigma) * picture, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [1.0, -0.7])
def test_linear_equation(rate: float) -> None:
    """dx/ds = rate * x: every step multiplies by 1 + rate * ds."""
    schedule = flow_match(7, 3.0)
    (first,) = _latents((4, 4))
    *_, last = euler(lambda latents, sigmas, indices: [rate * x for x in latents], [first], [schedule])
    factor = prod(1 + rate * (b - a).item() for a, b in pairwise(schedule))
    torch.testing.assert_close(last.latents[0], first * factor)


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_same_bits_as_the_reference(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
    (first,) = _latents((8, 8))
    theirs = first[None]
    ours = euler(Outputs(), [first], [flow_match(steps, shift)])
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        output = Outputs.of(theirs[0], sigma.item(), 0)[None]
        theirs = scheduler.step(output, timestep, theirs, return_dict=False)[0]
        assert torch.equal(next(ours).latents[0], theirs[0])
    assert list(ours) == []


def test_each_picture_leaves_when_its_schedule_ends() -> None:
    latents = _latents((4, 4), (2, 8), (6, 6), (4, 2))
    schedules = [flow_match(3, 3.0), flow_match(5, 3.0, 0.6), flow_match(1, 1.0), flow_match(5, 3.0)]
    denoiser = Outputs()
    states = list(euler(denoiser, latents, schedules))
    assert [indices for _, indices in denoiser.asked] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3], [1, 3], [1, 3]]
    for k, (sigmas, indices) in enumerate(denoiser.asked):
        assert sigmas == [schedules[i][k].item() for i in indices]
    assert [state.index for state in states] == [1, 2, 3, 4, 5]
    assert states[0].sigmas == [schedules[0][1].item(), schedules[1][1].item(), 0.0, schedules[3][1].item()]
    assert states[-1].sigmas == [0.0] * 4
    for i, (latent, schedule) in enumerate(zip(latents, schedules, strict=True)):
        alone = list(euler(lambda x, s, _, i=i: [Outputs.of(x[0], s[0], i)], [latent], [schedule]))  # type: ignore[misc]
        for k, state in enumerate(states):
            expected = alone[min(k, len(alone) - 1)]
            assert torch.equal(state.latents[i], expected.latents[0]), (
                "another picture of the batch reached into this one"
            )
            assert torch.equal(state.denoised[i], expected.denoised[0])


def test_states_are_not_written_to_again() -> None:
    latents = _latents((4, 4), (4, 4))
    before = [latent.clone() for latent in latents]
    states: list[SamplerStep] = []
    copies: list[list[Tensor]] = []
    for state in euler(Outputs(), latents, [flow_match(3, 3.0), flow_match(2, 3.0)]):
        states.append(state)
        copies.append([latent.clone() for latent in (*state.latents, *state.denoised)])
    for latent, copy in zip(latents, before, strict=True):
        assert torch.equal(latent, copy)
    for state, kept in zip(states, copies, strict=True):
        for latent, copy in zip((*state.latents, *state.denoised), kept, strict=True):
            assert torch.equal(latent, copy)
