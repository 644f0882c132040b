"""Where each part of a model lives while a picture is made: a pure function of sizes and a budget.

Weights lie in units: the blocks of a part, and what is outside of its blocks. A part is

    resident   all of it stays on the device
    streamed   some blocks stay; each of the others is brought into one of two slots just before its turn, while the one
               before it computes
    turn       all of it is brought in for its phase, and leaves again

What is away comes back from page-locked memory of the host while that lasts, and from the files beyond it.

A plan fits for certain or there is none. Of those that fit, the one with the whole picture decoded at once is taken before
one with tiles, and then the one that moves the fewest bytes. More memory therefore never makes a worse plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from hwaga.errors import DoesNotFitError

SLOTS = 2
"""Blocks of a streamed part that are on the device for a while: one computes, one arrives."""

MIB = 2**20


@dataclass(frozen=True)
class Budget:
    """Memory that an engine may take.

    Attributes:
        device: "cuda", "mps" or "cpu".
        device_bytes: for weights and work, on the device; on the CPU that is the host.
        pinned_bytes: of the host, for weights that are away from a GPU.
        host_base: what the process takes of the host in any case.
    """

    device: str
    device_bytes: int
    pinned_bytes: int = 0
    host_base: int = 0


@dataclass(frozen=True)
class PartSize:
    """The weights of a part, in bytes on the device.

    Attributes:
        name: of the part.
        rest: outside of the blocks.
        blocks: of each block, in the order that they run in. Empty for a part that only comes as a whole.
        each_step: it is used at every step, and not once for a picture.
        filling: taken beside a unit while that is read from a file in another form than it is kept in.
    """

    name: str
    rest: int
    blocks: tuple[int, ...] = ()
    each_step: bool = False
    filling: int = 0

    @property
    def nbytes(self) -> int:
        return self.rest + sum(self.blocks)


@dataclass(frozen=True)
class Work:
    """What a phase takes beside the weights.

    Attributes:
        nbytes: at most, at one time.
        tile: side of the pieces, in pixels, that the phase works in; None for all at once.
    """

    nbytes: int
    tile: int | None = None


@dataclass(frozen=True)
class Phase:
    """One stage of making pictures.

    Attributes:
        name: "load", "text", "caption", "source", "denoise" or "decode".
        part: whose weights it uses; empty where only those that stay are there.
        work: ways to do it, the best first.
    """

    name: str
    part: str
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Demand:
    """What pictures ask for.

    Attributes:
        parts: in the order that they are first used in.
        phases: in order.
        steps: most passes through the parts that are used at each step.
        kept: device bytes of LoRAs and of what is kept between requests.
        host_work: bytes of the host beside the weights.
    """

    parts: tuple[PartSize, ...]
    phases: tuple[Phase, ...]
    steps: int
    kept: int = 0
    host_work: int = 0


@dataclass(frozen=True)
class PartPlan:
    """Where a part lives.

    Attributes:
        mode: "resident", "streamed" or "turn"; see the module's docstring.
        stays: blocks that never leave.
        pinned: of those that do, the ones that come back from page-locked memory; the others come from the files.
        rest_pinned: the same of what is outside of the blocks, where that leaves.
        stays_bytes: on the device at any time.
        slots, slot_bytes: for streaming, in the part's phases.
        moved_bytes: brought to the device for a request.
        pinned_bytes: of the host.
        reason: of the mode, for people.
    """

    name: str
    mode: str
    stays: tuple[int, ...]
    pinned: tuple[int, ...]
    rest_pinned: bool
    stays_bytes: int
    slots: int
    slot_bytes: int
    moved_bytes: int
    pinned_bytes: int
    reason: str


@dataclass(frozen=True)
class PhasePlan:
    """The most that a phase takes of the device, by what it is for.

    Attributes:
        weights: that stay, of all parts.
        brought: of its own part, for the time of the phase.
        work: everything that is computed.
        kept: LoRAs and embeddings.
    """

    name: str
    part: str
    tile: int | None
    weights: int
    brought: int
    work: int
    kept: int
    reason: str

    @property
    def nbytes(self) -> int:
        return self.weights + self.brought + self.work + self.kept


@dataclass(frozen=True)
class Plan:
    """See the module's docstring."""

    budget: Budget
    parts: tuple[PartPlan, ...]
    phases: tuple[PhasePlan, ...]
    host_work: int

    def part(self, name: str) -> PartPlan:
        return next(part for part in self.parts if part.name == name)

    def tile(self, phase: str) -> int | None:
        """Side of a phase's pieces in pixels; None for all at once, or where there is no such phase."""
        return next((each.tile for each in self.phases if each.name == phase), None)

    @property
    def device_bytes(self) -> int:
        """The most at one time, on the device."""
        return max(phase.nbytes for phase in self.phases)

    @property
    def moved_bytes(self) -> int:
        """Weights brought to the device for a request."""
        return sum(part.moved_bytes for part in self.parts)

    @property
    def pinned_bytes(self) -> int:
        """Weights kept in page-locked memory of the host."""
        return sum(part.pinned_bytes for part in self.parts)

    def vram_bytes(self, phase: PhasePlan) -> int:
        """Of a GPU, in a phase."""
        return 0 if self.budget.device == "cpu" else phase.nbytes

    def ram_bytes(self, phase: PhasePlan) -> int:
        """Of the host, in a phase."""
        own = phase.nbytes if self.budget.device == "cpu" else self.pinned_bytes
        return self.budget.host_base + self.host_work + own

    @property
    def peak_vram_bytes(self) -> int:
        return max(self.vram_bytes(phase) for phase in self.phases)

    @property
    def peak_ram_bytes(self) -> int:
        return max(self.ram_bytes(phase) for phase in self.phases)


@dataclass(frozen=True)
class _Choice:
    """How much of a part stays."""

    size: PartSize
    stays: tuple[int, ...]
    rest_stays: bool
    steps: int

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
    def moved(self) -> int:
        passes = self.steps if self.size.each_step else 1
        return sum(self.size.blocks[i] for i in self.away) * passes + self.size.rest * (not self.rest_stays)


@lru_cache(maxsize=64)
def plan(demand: Demand, budget: Budget) -> Plan:
    """The best plan for a demand.

    Raises:
        DoesNotFitError: there is none. Its ``needed`` is the smallest budget of the device that there would be one for.
    """
    least = [_choices(part, demand.steps)[-1] for part in demand.parts]
    work = _work(demand, budget, least)
    fits = None
    cost = None
    for choice in _combinations(demand):
        if cost is not None and sum(part.moved for part in choice) >= cost:
            continue
        if _fits(choice, work, demand, budget):
            fits, cost = choice, sum(part.moved for part in choice)
            if cost == 0:
                break
    assert fits is not None, "the least of all choices fits, or _work would have refused"
    return _written(demand, budget, fits, work)


def _combinations(demand: Demand) -> Iterator[tuple[_Choice, ...]]:
    """All choices, from everything that stays to nothing that does. A part that comes as a whole is the last to move."""
    return itertools.product(*(_choices(part, demand.steps) for part in demand.parts))


def _choices(part: PartSize, steps: int) -> list[_Choice]:
    """What may stay of a part, from all to nothing."""
    if not part.blocks:
        return [_Choice(part, (), stays, steps) for stays in (True, False)]
    order = leaving_order(len(part.blocks))
    return [
        _Choice(part, tuple(sorted(order[count:])), True, steps)
        for count in range(len(order) + 1)
        if count != 1  # one block in one slot takes as much memory as if it stayed
    ]


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


def _work(demand: Demand, budget: Budget, least: Sequence[_Choice]) -> list[Work]:
    """The best way to do each phase that fits with as few weights as can be."""
    stays = sum(part.stays_bytes for part in least) + demand.kept
    chosen, needed, worst = [], 0, ""
    for phase in demand.phases:
        brought = next((part.brought for part in least if part.size.name == phase.part), 0)
        fitting = [way for way in phase.work if stays + brought + way.nbytes <= budget.device_bytes]
        smallest = stays + brought + min(way.nbytes for way in phase.work)
        if smallest > needed:
            needed, worst = smallest, phase.name
        chosen.append((fitting or phase.work)[0])
    if needed > budget.device_bytes:
        raise DoesNotFitError(
            f"This needs {needed / 2**30:.2f} GiB at least (to {VERBS.get(worst, worst)}), and there are "
            f"{max(budget.device_bytes, 0) / 2**30:.2f}.",
            needed=needed,
        )
    return chosen


VERBS = {
    "text": "read the prompt",
    "caption": "read the prompt",
    "source": "read the picture",
    "load": "read the weights",
}


def _fits(parts: Sequence[_Choice], work: Sequence[Work], demand: Demand, budget: Budget) -> bool:
    room = budget.device_bytes - demand.kept - sum(part.stays_bytes for part in parts)
    brought = {"": 0, **{part.size.name: part.brought for part in parts}}
    return all(way.nbytes + brought[phase.part] <= room for phase, way in zip(demand.phases, work, strict=True))


def _written(demand: Demand, budget: Budget, chosen: Sequence[_Choice], work: Sequence[Work]) -> Plan:
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
    for phase, way in zip(demand.phases, work, strict=True):
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
    passes = f"{part.steps} times" if size.each_step and part.steps > 1 else "once"
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
        reason = f"{len(away)} of {total} blocks don't fit and come {passes}: {', '.join(sources)}"
        if budget.device == "cuda" and len(pinned) < len(away):
            reason += f", as the host has {budget.pinned_bytes / 2**30:.1f} GiB to lock"
    return PartPlan(
        size.name, mode, part.stays, tuple(pinned), rest_pinned, part.stays_bytes, part.slots, part.slot_bytes,
        part.moved, pinned_bytes, reason,
    )  # fmt: skip
