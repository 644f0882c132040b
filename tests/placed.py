"""Engines of the bundled model for small pictures, and budgets for them that are as tight as a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from hwaga import Engine, ImageRequest, ModelCard
from hwaga.errors import DoesNotFitError
from hwaga.families.z_image.model import ZImageModel
from hwaga.memory.plan import Budget
from hwaga.memory.residency import Residency
from hwaga.model_lookup import find_card
from hwaga.placement import Placement
from hwaga.settings import Settings

PLENTY = 2**40
MIB = 2**20


def small_card(name: str = "mini") -> ModelCard:
    """The bundled model, under any name, which also draws pictures of a few pixels: nobody looks at them."""
    card = find_card("mini", Settings().models)
    limits = replace(card.limits, min_side=32, max_side=640, max_pixels=2**18, listed_sizes_only=False)
    return replace(card, name=name, limits=limits, aspects={"1:1": (64, 64)})


def open_small(**options: Any) -> Engine:
    """An engine of it."""
    return Engine.open(small_card(), device="cpu", **options)


def placement_of(engine: Engine) -> Placement:
    return cast(Placement, engine._placement)


def residency_of(engine: Engine) -> Residency:
    return placement_of(engine).residency


def model_of(engine: Engine) -> ZImageModel:
    return cast(ZImageModel, placement_of(engine).model)


def give(patch: pytest.MonkeyPatch, device_bytes: int, pinned_bytes: int = 0) -> None:
    """The budget of every engine from here on, as a GPU would have it."""
    patch.setattr(Placement, "budget", lambda self: Budget("cuda", device_bytes, pinned_bytes))


def least(patch: pytest.MonkeyPatch, engine: Engine, requests: Sequence[ImageRequest]) -> int:
    """Bytes of the device that some requests fit in at all, with nothing kept of others."""
    model_of(engine).forget()
    with patch.context() as inner:
        give(inner, 0)
        with pytest.raises(DoesNotFitError) as refused:
            engine.generate_many(requests)
    return refused.value.needed


def picture(width: int, height: int) -> Image.Image:
    """Something to start from."""
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, (across + down) / 2], -1).astype(np.uint8))


def bytes_of(engine: Engine, requests: Sequence[ImageRequest]) -> list[bytes]:
    """The pictures of a batch."""
    return [result.image.tobytes() for result in engine.generate_many(requests)]


def on_device_now(engine: Engine) -> dict[str, set[int]]:
    """For each part, the places of the units whose weights are on the device; -1 is what lies outside of the blocks."""
    found = {}
    for name, (rest, blocks) in model_of(engine).parts.items():
        units = {-1: rest, **dict(enumerate(blocks))}
        found[name] = {
            place
            for place, unit in units.items()
            if unit.nbytes and all(p.module.get_parameter(p.name).device.type != "meta" for p, _ in unit._away)
        }
    return found


def planned(engine: Engine) -> dict[str, set[int]]:
    """The same, as the plan in force has it."""
    assert engine.plan is not None
    parts = model_of(engine).parts
    return {
        part.name: {*part.stays, *([] if part.mode == "turn" or not parts[part.name][0].nbytes else [-1])}
        for part in engine.plan.parts
    }
