"""The noise that a checkpoint was trained with, as its scheduler's configuration tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.sampling.trained_noise import SPACINGS, TrainedNoise, linear, scaled_linear
from hwaga.weights.checkpoint import read_config
from hwaga.weights.config import ConfigValues

FILE = "scheduler_config.json"

PUBLISHED = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip
"""From the scheduler of stabilityai/stable-diffusion-xl-base-1.0, for files without one."""

PREDICTIONS = ("epsilon", "v_prediction")

FLOW = ("FlowMatch", "EDM", "LCM", "TCD")
"""Beginnings of the names of schedulers whose models are sampled in other ways."""


@dataclass(frozen=True)
class Prediction:
    """What the U-Net was trained on.

    Attributes:
        noise: its levels.
        velocity: it predicts ``alpha * noise - beta * picture``, and not the noise.
    """

    noise: TrainedNoise
    velocity: bool

    @classmethod
    def read(cls, folder: Path) -> Prediction:
        """Of a checkpoint in diffusers' layout. Raises CheckpointError."""
        return cls.of(read_config(folder / "scheduler", FILE), f"{folder / 'scheduler' / FILE}")

    @classmethod
    def of(cls, values: dict[str, object], where: str) -> Prediction:
        """Of what a scheduler's configuration holds. Which solver that names is of no account: a request chooses.

        Raises:
            CheckpointError: it asks for a way of sampling that is not built here.
        """
        read = ConfigValues(values, where)
        name = read.text("_class_name", "")
        if name.startswith(FLOW):
            raise CheckpointError(
                f"{where} asks for {name}, which is not built here: SDXL is sampled by its noise levels."
            )
        kind = read.text("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise CheckpointError(
                f"{where}: the prediction_type {kind} is not built here, but {' and '.join(PREDICTIONS)}."
            )
        if values.get("trained_betas"):
            raise CheckpointError(f"{where} sets trained_betas, which is not built here.")
        curves = {"scaled_linear": scaled_linear, "linear": linear}
        curve = read.text("beta_schedule", "linear")
        spacing = read.text("timestep_spacing", "leading")
        if curve not in curves or spacing not in SPACINGS:
            raise CheckpointError(f"{where}: betas of kind {curve} and times spaced {spacing} are not built here.")
        betas = curves[curve](
            read.positive("beta_start", 0.0001),
            read.positive("beta_end", 0.02),
            read.count("num_train_timesteps", 1000),
        )
        if betas.min() <= 0 or betas.max() >= 1:
            raise CheckpointError(f"{where}: betas must lie between 0 and 1. Fetch it again.")
        offset = read.number("steps_offset", 0)
        zero = read.flag("rescale_betas_zero_snr", False)
        noise = TrainedNoise.from_betas(betas, zero_signal=zero, spacing=spacing, offset=int(offset))
        return cls(noise, kind == "v_prediction")

    def time_of(self, sigma: float, sampler: str) -> float:
        """The time that the U-Net is told of at a sigma of a sampler's schedule."""
        return self.noise.nearest_time(sigma) if sampler == KARRAS else self.noise.time_of(sigma)

    def first_length(self, sigma: float, sampler: str) -> float:
        """Of latents that are noise alone at the first sigma of a sampler's schedule: what the noise is multiplied with."""
        exact = sampler == KARRAS or self.noise.spacing == "leading"
        return math.hypot(sigma, 1) if exact else sigma

    def slope(self, output: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """d latents / d sigma, of what the U-Net made of ``latents / sqrt(sigma² + 1)``; float32."""
        if not self.velocity:
            return output
        length = math.hypot(sigma, 1)
        return (output + latents * (sigma / length)) / length


KARRAS = "dpmpp_2m_karras"
"""The sampler whose levels are not those of evenly spaced times."""


def level(strength: float) -> float:
    """The sigma of a picture that is taken to a strength below 1: latents are then ``(1 - strength) * picture + strength *
    noise`` but for their scale, which is what the strength of a flow-matching model means too.
    """
    return strength / (1 - strength)
