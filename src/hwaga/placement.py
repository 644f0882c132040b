"""A model on a device, planned: its weights lie where each request's plan wants them, and a request that runs out of memory
all the same is planned once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch

from hwaga.errors import DeviceMemoryError, DoesNotFitError
from hwaga.families.family import Model, Picture, Progress
from hwaga.memory.budget import budget, host_memory, process_memory
from hwaga.memory.device import device_memory, give_back
from hwaga.memory.plan import Budget, Plan, plan
from hwaga.memory.residency import Residency
from hwaga.memory.trim import trim_host_memory

Made = TypeVar("Made")


class Attempt(Protocol):
    """Runs a piece of a request's work, once more if memory runs out."""

    def __call__(self, call: Callable[[], Made], /) -> Made: ...


STEP = 64 * 2**20
"""Budgets are rounded down and what is kept is rounded up to a multiple of this, so that
blocks don't come and go with every change of a few MiB."""

LESS = 512 * 2**20
"""What a second plan does without, where the first one ran out of memory that was said to be there."""


@dataclass(frozen=True)
class Caps:
    """What a process may take of a GPU and of the host, in bytes; None for what there is."""

    vram: int | None = None
    ram: int | None = None


class Placement:
    """Where a model's weights are.

    Attributes:
        plan: the last one that was made.
    """

    def __init__(self, model: Model, device: torch.device, caps: Caps) -> None:
        self.model = model
        self.device = device
        self.caps = caps
        self.residency = Residency(model.parts, model.bring, device)
        model.on_device = self.residency.on_device
        self.plan: Plan | None = None

    def fit(self, pictures: Sequence[Picture], steps: int, extra: int = 0, progress: Progress | None = None) -> Attempt:
        """Makes a plan for some pictures, and brings weights to where it wants them.

        Args:
            steps: most of a picture.
            extra: bytes of the device that will be kept besides what is kept now.
            progress: told of weights that are read from files.

        Returns:
            What the request's work is to be run with: where that runs out of memory, because another program took some since,
            whatever can leave the device does, and it goes on. That happens once in a request; it raises DeviceMemoryError
            when memory runs out again.

        Raises:
            DoesNotFitError: there is no such plan.
            CheckpointError: a weight cannot be read.
        """
        try:
            made = self._made(pictures, steps, extra, self.budget())
        except DoesNotFitError:
            self.model.forget()  # LoRAs of other requests
            made = self._made(pictures, steps, extra, self.budget())
        self._apply(made, progress)
        recovered = False

        def attempt(call: Callable[[], Made]) -> Made:
            nonlocal recovered
            try:
                return call()
            except torch.OutOfMemoryError:
                pass  # outside of the handler, since the error's frames hold on to what was computed
            self._recover(pictures, steps, again=recovered)
            recovered = True
            return attempt(call)

        return attempt

    def would_fit(self, pictures: Sequence[Picture], steps: int) -> bool:
        """Whether there is a plan for some pictures, with no LoRAs but theirs."""
        try:
            plan(self.model.demand(pictures, steps, 0), self.budget())
        except DoesNotFitError:
            return False
        return True

    def tile(self, phase: str) -> int | None:
        """Side of the pieces that a phase works in, in pixels; None for all at once."""
        return None if self.plan is None else self.plan.tile(phase)

    def _recover(self, pictures: Sequence[Picture], steps: int, *, again: bool) -> None:
        """After the device ran out of memory: lets go of what is kept, and plans with less than was thought to be there."""
        self.model.forget()
        give_back(self.device)
        if not again:
            found = self.budget()
            if self.plan is not None:
                found = replace(found, device_bytes=min(found.device_bytes, self.plan.device_bytes - LESS))
            try:
                self._apply(self._made(pictures, steps, 0, found), None)
                give_back(self.device)
                return
            except DoesNotFitError:
                pass
        memory = device_memory(self.device)
        free = "" if memory is None else f": {memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB are free now"
        raise DeviceMemoryError(
            f"{self.device} ran out of memory{free}. Close what else uses it, make the picture smaller or fewer at a time, "
            "or use the CPU."
        )

    def budget(self) -> Budget:
        """What may be taken now, what is taken already included."""
        found = budget(
            self.device.type,
            device_memory(self.device),
            host_memory(),
            process_memory(),
            held=self.residency.device_bytes + self.model.kept_bytes,
            pinned=self.residency.pinned_bytes,
            vram=self.caps.vram,
            ram=self.caps.ram,
        )
        return replace(
            found, device_bytes=found.device_bytes // STEP * STEP, pinned_bytes=found.pinned_bytes // STEP * STEP
        )

    def close(self) -> None:
        """Lets go of all weights."""
        self.residency.close()
        self.model.close()
        give_back(self.device)
        trim_host_memory()

    def _made(self, pictures: Sequence[Picture], steps: int, extra: int, found: Budget) -> Plan:
        kept = -(-(self.model.kept_bytes + extra) // STEP) * STEP
        return plan(self.model.demand(pictures, steps, kept), found)

    def _apply(self, made: Plan, progress: Progress | None) -> None:
        told = None if progress is None else _counted(self.model, made, progress)
        self.plan = made
        self.residency.apply(made, told)


def _counted(model: Model, made: Plan, progress: Progress) -> Callable[[int], None]:
    """Sums up what is read of all that a first plan reads."""
    loaded, total = 0, 0
    for part in made.parts:
        rest, blocks = model.parts[part.name]
        total += sum(blocks[i].stored_bytes for i in {*part.stays, *part.pinned})
        total += rest.stored_bytes if part.mode != "turn" or part.rest_pinned else 0

    def told(nbytes: int) -> None:
        nonlocal loaded
        loaded += nbytes
        progress(loaded, total)

    return told
