"""Which of several models on one device gives way to another: a pure function of what each of them holds.

Whoever is used takes what its plan says. The others keep what that leaves, and no more leaves than has to: whoever was used
longest ago goes first, its LoRAs and prompts before its weights, and of its weights so many units as it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwaga.memory.demand import PartSize
from hwaga.memory.plan import Neighbour, Plan
from hwaga.memory.planner import leaving_order


@dataclass(frozen=True)
class HeldUnit:
    """Weights that come and go together.

    Attributes:
        nbytes: of the device, or of the host.
        there: they lie on the device.
        copied: there is a copy in page-locked memory of the host.
    """

    nbytes: int
    there: bool
    copied: bool = False


@dataclass(frozen=True)
class Holding:
    """What a model holds.

    Attributes:
        model: its name.
        kept: device bytes of LoRAs and prompts that may come again.
        units: all weights, in the order that they leave in.
    """

    model: str
    kept: int
    units: tuple[HeldUnit, ...]

    @property
    def device_bytes(self) -> int:
        return self.kept + sum(unit.nbytes for unit in self.units if unit.there)

    @property
    def copied_bytes(self) -> int:
        """Of the host."""
        return sum(unit.nbytes for unit in self.units if unit.copied)


def holding_of(model: str, parts: Sequence[PartSize], plan: Plan) -> Holding:
    """What a model holds once its plan is in force, with units in the order of ``Residency.held``."""
    units = []
    for part in parts:
        placed = plan.part(part.name)
        for block in leaving_order(len(part.blocks)) if part.blocks else ():
            units.append(HeldUnit(part.blocks[block], block in placed.stays, block in placed.pinned))
        units.append(HeldUnit(part.rest, placed.mode != "turn", placed.rest_pinned))
    return Holding(model, 0, tuple(unit for unit in units if unit.nbytes))


def give_way(holdings: Sequence[Holding], device_room: int, pinned_room: int) -> list[Holding]:
    """What models hold once they hold no more than there is room for, if they can.

    What leaves the device is kept in page-locked memory of the host while there is room for it there, and comes back from its
    file otherwise. Where copies have to go, those of weights that are on the device go first.

    Args:
        holdings: whoever was used longest ago first.
        device_room, pinned_room: bytes of the device and of page-locked memory, for all of them together.
    """
    over = sum(holding.device_bytes for holding in holdings) - device_room
    staying: list[Holding] = []
    for holding in holdings:
        kept, units = holding.kept, list(holding.units)
        if over > 0 and kept:
            over, kept = over - kept, 0
        for place, unit in enumerate(units):
            if over > 0 and unit.there and unit.nbytes:
                units[place] = replace(unit, there=False)
                over -= unit.nbytes
        staying.append(replace(holding, kept=kept, units=tuple(units)))
    locked = sum(holding.copied_bytes for holding in staying)
    for there in (True, False):
        for index, holding in enumerate(staying):
            units = list(holding.units)
            for place, unit in enumerate(units):
                if locked > pinned_room and unit.copied and unit.there is there:
                    units[place] = replace(unit, copied=False)
                    locked -= unit.nbytes
            staying[index] = replace(holding, units=tuple(units))
    for index, (before, after) in enumerate(zip(holdings, staying, strict=True)):
        units = list(after.units)
        for place, (was, unit) in enumerate(zip(before.units, units, strict=True)):
            leaves = was.there and not unit.there and not was.copied
            if leaves and locked + unit.nbytes <= pinned_room:
                units[place] = replace(unit, copied=True)
                locked += unit.nbytes
        staying[index] = replace(after, units=tuple(units))
    return staying


def neighbours(before: Sequence[Holding], after: Sequence[Holding]) -> tuple[Neighbour, ...]:
    """What becomes of models that give way, for a plan."""
    return tuple(
        Neighbour(now.model, was.device_bytes - now.device_bytes, now.device_bytes, now.copied_bytes)
        for was, now in zip(before, after, strict=True)
    )
