"""Which weights lie on the device: kept to a plan, and made sure of whenever they are used.

Parts are used within ``with on_device(part)``. What of a part stays between uses is what the plan says; what doesn't is
brought in for the time of the ``with``, block by block where there are blocks, and leaves again, also after an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hwaga.errors import DeviceMemoryError
from hwaga.memory.plan import SLOTS, PartPlan, Plan
from hwaga.memory.planner import leaving_order
from hwaga.memory.sharing import HeldUnit
from hwaga.memory.stream import BlockStream

Told = Callable[[int], None]


class Unit(Protocol):
    """Weights that come and go together."""

    module: nn.Module
    nbytes: int
    host: Any
    attached: bool

    def parameters(self, memory: Tensor) -> Any:
        """The weights as views of uint8 ``[nbytes]``."""

    def attach(self, parameters: Any) -> None:
        """Makes the network use them."""

    def detach(self) -> None:
        """Makes the network let go of them."""

    def park(self, memory: Tensor) -> None:
        """Copies them to the host."""

    def drop_copy(self) -> None:
        """Lets go of that copy."""


class Source(Protocol):
    """Brings weights to the device."""

    def __call__(self, unit: Any, memory: Tensor, progress: Told | None = None, /) -> None: ...


Bringer = Callable[[Any, Tensor], None]


@dataclass
class _Part:
    """A part's units, and what is going on with them."""

    rest: Unit
    blocks: Sequence[Unit]
    plan: PartPlan | None = None
    memory: dict[int, Tensor] = field(default_factory=dict)
    """Of the blocks that stay, by place; -1 is what lies outside of the blocks."""
    users: int = 0
    stream: BlockStream | None = None
    passes: int = 1

    def unit(self, place: int) -> Unit:
        return self.rest if place < 0 else self.blocks[place]


REST = -1


class Residency:
    """The weights of a model on one device.

    Args:
        parts: for each, what lies outside of its blocks, and the blocks in the order that they run in.
        bring: writes a unit's weights to memory of the device.
    """

    def __init__(self, parts: Mapping[str, tuple[Unit, Sequence[Unit]]], bring: Source, device: torch.device) -> None:
        self.device = device
        self._bring = bring
        # One for all parts: a stream has memory of its own that others cannot use.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._parts = {name: _Part(rest, blocks) for name, (rest, blocks) in parts.items()}
        # Weakly, since the networks live as long as the model: a residency that nobody holds takes its weights with it.
        enter = weakref.WeakMethod(self._enter)
        for name, part in self._parts.items():
            for index, block in enumerate(part.blocks):
                block.module.register_forward_pre_hook(partial(_before, enter, name, index))

    @property
    def device_bytes(self) -> int:
        """Of the weights that stay."""
        return sum(memory.nbytes for part in self._parts.values() for memory in part.memory.values())

    @property
    def pinned_bytes(self) -> int:
        """Of copies on the host."""
        units = (unit for part in self._parts.values() for unit in (part.rest, *part.blocks))
        return sum(unit.nbytes for unit in units if unit.host is not None)

    def held(self) -> tuple[HeldUnit, ...]:
        """What of the weights lies where, in the order that they leave in; see ``memory.sharing``."""
        return tuple(
            HeldUnit(unit.nbytes, place in part.memory, unit.host is not None)
            for part, place, unit in self._leaving()
            if unit.nbytes
        )

    def hold(self, units: Sequence[HeldUnit]) -> None:
        """Sends away what is not held any more, where another model needs the room. ``units`` are like those of ``held``."""
        wanted = [entry for entry in self._leaving() if entry[2].nbytes]
        # Copies go first, while those of what leaves now are not made yet; both are of one budget.
        for (_, _, unit), held in zip(wanted, units, strict=True):
            if unit.host is not None and not held.copied:
                self._wait()  # copies from it have ended
                unit.drop_copy()
        for (part, place, unit), held in zip(wanted, units, strict=True):
            if place in part.memory and not held.there:
                if held.copied:
                    self._park(unit, part.memory[place])
                self._release(part, place)

    def _leaving(self) -> list[tuple[_Part, int, Unit]]:
        """All units, as they leave: what is used once for a picture before what is used at each step and at its end. What lies
        outside of the blocks of a part that is in use does not leave, and is not among them.
        """
        return [
            (part, place, part.unit(place))
            for part in self._parts.values()
            for place in (*(leaving_order(len(part.blocks)) if part.blocks else []), *([] if part.users else [REST]))
        ]

    def missing_bytes(self, plan: Plan) -> int:
        """Of what stays by a plan, the weights that are not on the device."""
        return sum(
            self._parts[each.name].unit(place).nbytes
            for each in plan.parts
            for place in _staying(each) - set(self._parts[each.name].memory)
        )

    def apply(self, plan: Plan, progress: Told | None = None) -> None:
        """Brings weights in and sends others away until what stays is what the plan says. Parts in use only send away.

        Args:
            progress: told the stored bytes of weights that were read from files.

        Raises:
            CheckpointError: a weight cannot be read.
        """
        self.shrink(plan)
        for each in plan.parts:
            part = self._parts[each.name]
            if part.users:
                continue
            for place in sorted(_pinned(each)):  # first, while there is most room to read them
                unit = part.unit(place)
                if unit.host is None:
                    memory = torch.empty(unit.nbytes, dtype=torch.uint8, device=self.device)
                    self._bring(unit, memory, progress)
                    self._park(unit, memory)
            for place in sorted(_staying(each) - set(part.memory)):
                self._bring_in(part, place, progress)

    def copies_besides(self, plan: Plan) -> int:
        """Bytes of the host for copies of earlier plans that will stay, though this one has no use for them."""
        wanted = {id(self._parts[each.name].unit(place)) for each in plan.parts for place in _pinned(each)}
        units = [unit for part in self._parts.values() for unit in (part.rest, *part.blocks) if unit.host is not None]
        others = sum(unit.nbytes for unit in units if id(unit) not in wanted)
        return min(others, max(plan.budget.pinned_bytes - plan.pinned_bytes, 0))

    def shrink(self, plan: Plan) -> None:
        """Sends away what a plan has no room for, and brings nothing in."""
        for each in plan.parts:
            self._parts[each.name].plan = each
        self._drop_copies(plan)
        for each in plan.parts:
            part = self._parts[each.name]
            for place in sorted(set(part.memory) - _staying(each)):
                if place in _pinned(each):
                    self._park(part.unit(place), part.memory[place])
                self._release(part, place)

    @contextmanager
    def on_device(self, name: str, passes: int = 1) -> Iterator[None]:
        """The part can be run inside. Nests, and other generations may come and go meanwhile.

        Args:
            passes: how often all of its blocks will run.
        """
        part = self._parts[name]
        part.users += 1
        try:
            if part.users == 1:
                part.passes = passes
                if REST not in part.memory and part.rest.nbytes:
                    self._bring_in(part, REST, None)
                if not all(block.attached for block in part.blocks):
                    part.stream = self._stream(part)
            elif part.stream is not None:
                part.stream.more(passes)
            yield
        finally:
            part.users -= 1
            if not part.users:
                if part.stream is not None:
                    part.stream.close()
                    part.stream = None
                stays = _staying(part.plan) if part.plan is not None else set[int]()
                for place in sorted(set(part.memory) - stays):
                    self._release(part, place)

    def close(self) -> None:
        """Lets go of all weights and copies. Generations that are under way fetch what they need to their end."""
        for part in self._parts.values():
            for place in sorted(part.memory):
                self._release(part, place)
            part.plan = None
        self._wait()  # for copies from the host that a stream has asked for
        for part in self._parts.values():
            for unit in (part.rest, *part.blocks):
                unit.drop_copy()

    def _enter(self, name: str, index: int) -> None:
        part = self._parts[name]
        if part.stream is None:
            if part.blocks[index].attached:
                return
            part.stream = self._stream(part)  # it has left the device since the part was entered
        part.stream.enter(index)

    def _stream(self, part: _Part) -> BlockStream:
        return BlockStream(part.blocks, self._bring, self.device, slots=SLOTS, passes=part.passes, copies=self._copies)

    def _bring_in(self, part: _Part, place: int, progress: Told | None) -> None:
        unit = part.unit(place)
        memory = torch.empty(unit.nbytes, dtype=torch.uint8, device=self.device)
        self._bring(unit, memory, progress)
        unit.attach(unit.parameters(memory))
        part.memory[place] = memory

    def _park(self, unit: Unit, memory: Tensor) -> None:
        """Copies weights to the host. Where that refuses the memory, they come from their file when they are needed."""
        with suppress(DeviceMemoryError):
            unit.park(memory)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _release(self, part: _Part, place: int) -> None:
        if place != REST or not part.users:
            part.unit(place).detach()
            del part.memory[place]

    def _drop_copies(self, plan: Plan) -> None:
        """Lets go of copies that the plan has no use for, as far as they and those to come are more than it allows."""
        wanted = {(each.name, place) for each in plan.parts for place in _pinned(each)}
        units = {(name, place): part.unit(place) for name, part in self._parts.items()
                 for place in (REST, *range(len(part.blocks)))}  # fmt: skip
        total = sum(unit.nbytes for key, unit in units.items() if key in wanted or unit.host is not None)
        for key, unit in units.items():
            if total > plan.budget.pinned_bytes and key not in wanted and unit.host is not None:
                self._wait()  # copies from it have ended
                unit.drop_copy()
                total -= unit.nbytes


def _before(enter: Callable[[], Callable[[str, int], None] | None], name: str, index: int, *_: object) -> None:
    """Hook before a block runs."""
    method = enter()
    if method is not None:
        method(name, index)


def _staying(plan: PartPlan) -> set[int]:
    return {*plan.stays, *([] if plan.mode == "turn" else [REST])}


def _pinned(plan: PartPlan) -> set[int]:
    return {*plan.pinned, *([REST] if plan.rest_pinned else [])}
