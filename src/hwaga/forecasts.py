"""What several models that share a device's memory would do to each other: their plans, without engines or weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwaga.cards import ModelCard
from hwaga.errors import ModelError
from hwaga.forecast import Forecast, forecast
from hwaga.memory.sharing import Holding, give_way, neighbours
from hwaga.request import ImageRequest


def forecasts(
    models: Sequence[str | Path | ModelCard | None], request: ImageRequest | None = None, **options: Any
) -> list[Forecast]:
    """The plans that ``Engines`` would make where the models are used in turn, and each finds of the others what the last turn
    left: ``plan.neighbours`` says what leaves, and what stays beside it.

    Args:
        models, request: at least one model, each of a name of its own; see ``forecast``.
        options: as of ``forecast``. ``vram`` and ``ram`` are of all models together.

    Raises:
        ModelError: two of the models have the same name. Others as of ``forecast``.
    """
    alone = {each.card.name: each for each in (forecast(model, request, **options) for model in models)}
    if len(alone) < len(models):
        raise ModelError("Two of the models have the same name. Give one of them a card of another name.")
    held: dict[str, Holding] = {}  # whoever was used longest ago is first
    for name in alone:
        if _after(alone[name], others := list(held.values()), None) == others:
            held[name] = alone[name].holding
        else:  # it waits for its first turn
            units = tuple(replace(unit, there=False) for unit in alone[name].holding.units)
            held[name] = replace(alone[name].holding, units=units)
    for _ in range(2):  # the first turn still knows who was loaded at the start
        for name, each in alone.items():
            own = held.pop(name)
            before = list(held.values())
            after = _after(each, before, own)
            held = {holding.model: holding for holding in after}
            units = tuple(
                replace(unit, copied=unit.copied or was.copied)
                for unit, was in zip(each.holding.units, own.units, strict=True)
            )
            held[name] = replace(own, units=units)
            alone[name] = replace(each, plan=replace(each.plan, neighbours=neighbours(before, after)))
    return list(alone.values())


def _after(used: Forecast, others: Sequence[Holding], own: Holding | None) -> list[Holding]:
    """What the others hold while a model is used."""
    budget = used.plan.budget
    copies = max(used.plan.pinned_bytes, 0 if own is None else own.copied_bytes)
    return give_way(others, budget.device_bytes - used.plan.device_bytes, budget.pinned_bytes - copies)
