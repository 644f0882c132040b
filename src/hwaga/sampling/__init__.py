"""Noise schedules and the samplers that walk down them."""

from __future__ import annotations

from collections.abc import Callable

from hwaga.sampling.dpmpp_2m import MultistepRule
from hwaga.sampling.euler import euler_step
from hwaga.sampling.walk import Rule

RULES: dict[str, Callable[[], Rule]] = {"euler": lambda: euler_step, "dpmpp_2m_karras": MultistepRule}
"""How a picture steps, by the name of its sampler: ``hwaga.request.SAMPLERS``. A rule serves one picture."""
