"""Finds the plan for pictures under a budget: a pure function of sizes.

A plan fits for certain or there is none. Of those that fit, the one with the whole picture decoded at once is taken before
one with tiles, larger tiles before smaller ones, and then the one that moves the fewest bytes. More memory therefore never
makes a worse plan in this order. All plans are looked at: a few thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from hwaga.errors import DoesNotFitError
from hwaga.memory.demand import Demand, PartSize
from hwaga.memory.plan import SLOTS, Budget, PartPlan, PhasePlan, Plan


@dataclass(frozen=True)
class _Choice:
    """How much of a part stays.

    Attributes:
        steps: of the demand.
        uses: phases that the part is brought in for.
    """

    size: PartSize
    stays: tuple[int, ...]
    rest_stays: bool
    steps: int
    uses: int

    @cached_property
    def away(self) -> list[int]:
        stays = set(self.stays)
        return [i for i in range(len(self.size.blocks)) if i not in stays]

    @cached_property
    def stays_bytes(self) -> int:
        return self.size.rest * self.rest_stays + sum(self.size.blocks[i] for i in self.stays)

    @cached_property
    def slot_bytes(self) -> int:
        return max((self.size.blocks[i] for i in self.away), default=0)

    @cached_property
    def slots(self) -> int:
        return min(SLOTS, len(self.away))

    @cached_property
    def brought(self) -> int:
        """Bytes that its phases take for weights which don't stay."""
        if self.rest_stays and not self.away:
            return 0
        return self.slots * self.slot_bytes + self.size.rest * (not self.rest_stays) + self.size.filling

    @cached_property
    def passes(self) -> int:
        """How often each block that is away comes in a phase. Where each has a slot of its own, it stays there."""
        return self.steps if self.size.each_step and len(self.away) > SLOTS else 1

    @cached_property
    def moved(self) -> int:
        away = sum(self.size.blocks[i] for i in self.away) * self.passes + self.size.rest * (not self.rest_stays)
        return away * self.uses


@lru_cache(maxsize=64)
def plan(demand: Demand, budget: Budget) -> Plan:
    """The best plan for a demand.

    Raises:
        DoesNotFitError: there is none. Its ``needed`` is the smallest budget of the device that there would be one for.
    """
    room = budget.device_bytes
    if budget.device == "cpu":
        room -= demand.host_work  # which is of the same memory
    elif budget.host_base + demand.host_work > budget.host_bytes:
        raise DoesNotFitError(
            f"This takes {(budget.host_base + demand.host_work) / 2**30:.2f} GiB of the machine's own memory, and there are "
            f"{max(budget.host_bytes, 0) / 2**30:.2f}. Give more with --ram.",
            needed=0,
        )
    floors = {phase.part: 0 for phase in demand.phases}
    for phase in demand.phases:
        floors[phase.part] = max(floors[phase.part], min(way.nbytes for way in phase.work))
    unowned = max((floors[part] for part in floors.keys() - {part.name for part in demand.parts}), default=0)
    # Of each choice: what it takes at any time, in its phases at least besides, and its price. Most choices end here.
    options = [
        [(choice.stays_bytes, choice.brought + floors[part.name] if part.name in floors else 0, choice.moved, choice)
         for choice in _choices(part, demand)]
        for part in demand.parts
    ]  # fmt: skip
    best: tuple[int, int] | None = None
    found: tuple[Sequence[_Choice], Sequence[int]] = (), ()
    needed, least = None, []
    for chosen in itertools.product(*options):
        taken, peak, moved = demand.kept, unowned, 0
        for stays, floor, price, _ in chosen:
            taken, moved = taken + stays, moved + price
            peak = max(peak, floor)
        if taken + peak > room:
            if needed is None or taken + peak < needed:
                needed, least = taken + peak, [each[3] for each in chosen]
        elif best is None or (0, moved) < best:
            parts = [each[3] for each in chosen]
            ways = _ways(demand, parts, room - taken)
            if best is None or (sum(ways), moved) < best:
                best, found = (sum(ways), moved), (parts, ways)
            if best == (0, 0):
                break
    if best is None:
        assert needed is not None, "what does not fit would fit in more"
        needed += budget.device_bytes - room
        raise DoesNotFitError(_refusal(demand, budget, needed, least), needed=needed)
    return _written(demand, budget, *found)


def _ways(demand: Demand, parts: Sequence[_Choice], room: int) -> list[int]:
    """The best way to do each phase in what the weights that stay leave, by its place."""
    brought = {part.size.name: part.brought for part in parts}
    return [
        next(way for way, work in enumerate(phase.work) if brought.get(phase.part, 0) + work.nbytes <= room)
        for phase in demand.phases
    ]


def _refusal(demand: Demand, budget: Budget, needed: int, parts: Sequence[_Choice]) -> str:
    brought = {part.size.name: part.brought for part in parts}
    worst = max(
        demand.phases, key=lambda phase: brought.get(phase.part, 0) + min(work.nbytes for work in phase.work)
    ).name
    return (
        f"This needs {needed / 2**30:.2f} GiB at least (to {VERBS.get(worst, worst)}), and there are "
        f"{max(budget.device_bytes, 0) / 2**30:.2f}."
    )


VERBS = {
    "text": "read the prompt",
    "caption": "read the prompt",
    "source": "read the picture",
    "load": "read the weights",
}


def _choices(part: PartSize, demand: Demand) -> list[_Choice]:
    """What may stay of a part, from all to nothing. What lies outside of the blocks leaves where there are none."""
    uses = sum(phase.part == part.name for phase in demand.phases)
    if not part.blocks:
        return [_Choice(part, (), stays, demand.steps, uses) for stays in (True, False)]
    order = leaving_order(len(part.blocks))
    return [_Choice(part, tuple(sorted(order[count:])), True, demand.steps, uses) for count in range(len(order) + 1)]


def leaving_order(count: int) -> list[int]:
    """The order in which blocks leave: evenly spread at any length, so that blocks which stay hide the others' arrival, and
    such that a block which has left for a larger picture is among those that have left for a still larger one.
    """
    order: list[int] = []
    for i in range(1, 2 * count + 2):
        digits, place, fraction = i, 0.5, 0.0
        while digits:  # the van der Corput sequence of base 2
            digits, digit = divmod(digits, 2)
            fraction, place = fraction + digit * place, place / 2
        block = int(fraction * count)
        if block not in order:
            order.append(block)
    return order + [block for block in range(count) if block not in order]


def _written(demand: Demand, budget: Budget, chosen: Sequence[_Choice], ways: Sequence[int]) -> Plan:
    left = budget.pinned_bytes if budget.device == "cuda" else 0
    pinned: dict[str, tuple[list[int], bool]] = {}
    # Page-locked memory goes to what is brought most often.
    for part in sorted(chosen, key=lambda part: not part.size.each_step):
        blocks = []
        for block in part.away:
            if part.size.blocks[block] <= left:
                left -= part.size.blocks[block]
                blocks.append(block)
        rest = not part.rest_stays and part.size.rest <= left
        left -= part.size.rest * rest
        pinned[part.size.name] = blocks, rest
    parts = tuple(_part_plan(part, *pinned[part.size.name], budget) for part in chosen)
    stays = sum(part.stays_bytes for part in parts)
    phases = []
    for phase, place in zip(demand.phases, ways, strict=True):
        way = phase.work[place]
        brought = next((part.brought for part in chosen if part.size.name == phase.part), 0)
        if len(phase.work) < 2:
            reason = ""
        elif way.tile is None:
            reason = "all at once, which is exact"
        else:
            reason = f"in tiles of {way.tile} pixels: all at once takes {phase.work[0].nbytes / 2**30:.2f} GiB"
        phases.append(PhasePlan(phase.name, phase.part, way.tile, stays, brought, way.nbytes, demand.kept, reason))
    return Plan(budget, parts, tuple(phases), demand.host_work)


def _part_plan(part: _Choice, pinned: list[int], rest_pinned: bool, budget: Budget) -> PartPlan:
    size, away = part.size, part.away
    pinned_bytes = sum(size.blocks[i] for i in pinned) + size.rest * rest_pinned
    away_bytes = sum(size.blocks[i] for i in away) + size.rest * (not part.rest_stays)
    times = "once" if part.passes == 1 else f"{part.passes} times"
    total = len(size.blocks)
    if part.rest_stays and not away:
        mode, reason = "resident", "all of it fits beside the work"
    elif not size.blocks:
        mode, source = "turn", "page-locked memory" if rest_pinned else "its file"
        reason = f"comes for its phase, from {source}: the room is worth more to others"
    else:
        mode = "streamed"
        sources = [
            f"{count} from {place}"
            for count, place in ((len(pinned), "page-locked memory"), (len(away) - len(pinned), "the files"))
            if count
        ]
        reason = f"{len(away)} of {total} blocks don't fit and come {times}: {', '.join(sources)}"
        if budget.device == "cuda" and len(pinned) < len(away):
            reason += f", as the host has {budget.pinned_bytes / 2**30:.1f} GiB to lock"
    return PartPlan(
        size.name, mode, total, size.quantized, part.stays, tuple(pinned), rest_pinned, part.stays_bytes, part.slots,
        part.slot_bytes, part.moved, pinned_bytes, away_bytes - pinned_bytes, reason,
    )  # fmt: skip
