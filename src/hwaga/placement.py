"""A model on a device, planned: its weights lie where each request's plan wants them, and a request that runs out of memory
all the same is planned once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from hwaga.errors import DeviceMemoryError, DoesNotFitError
from hwaga.families.family import Model, Picture, Progress
from hwaga.memory.budget import STEP
from hwaga.memory.device import current, device_memory, give_back
from hwaga.memory.plan import Budget, Plan
from hwaga.memory.planner import plan
from hwaga.memory.residency import Residency
from hwaga.memory.trim import trim_host_memory
from hwaga.room import Room, Tenant

Made = TypeVar("Made")


LESS = 512 * 2**20
"""What a second plan does without, where the first ran out of memory that was said to be there; an eighth of small plans."""


@dataclass(frozen=True)
class Work:
    """What a request asks of memory.

    Attributes:
        steps: most of a picture.
        loras: the sets of LoRAs and weights that its pictures use.
    """

    pictures: Sequence[Picture]
    steps: int
    loras: Collection[Sequence[tuple[Path, float]]] = ()


def ran_out(error: RuntimeError) -> bool:
    """Whether an error of torch means that memory ran out. Libraries below torch say so in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory", "DefaultCPUAllocator: ")


class Attempt:
    """Runs the pieces of a request's work with its own plan in force, whichever request ran before.

    Where a piece runs out of memory in spite of the plan, because another program took some since, whatever can leave the
    device does, and the piece is run again. That happens once in a request.

    Attributes:
        plan: where weights lie meanwhile.
    """

    def __init__(self, placement: Placement, work: Work, made: Plan) -> None:
        self.plan = made
        self._placement, self._work = placement, work
        self._recovered = False

    def __call__(self, call: Callable[[], Made], /) -> Made:
        """What a piece of work returns.

        Raises:
            DeviceMemoryError: memory ran out again.
        """
        while True:
            try:
                with current(self._placement.device):
                    self._placement.enforce(self.plan)
                    return call()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
            self.recover()  # outside of the handler, since the error's frames hold on to what was computed

    def recover(self) -> None:
        """Makes room after the device ran out of memory. Raises DeviceMemoryError the second time."""
        self.plan = self._placement.recover(self._work, None if self._recovered else self.plan)
        self._recovered = True

    def tile(self, phase: str) -> int | None:
        """Side of the pieces that a phase works in, in pixels; None for all at once."""
        return self.plan.tile(phase)


class Placement:
    """Where a model's weights are.

    Args:
        name: tells the model from others in the room.
        room: the memory that it shares with them.

    Attributes:
        plan: the one in force.
    """

    def __init__(self, name: str, model: Model, room: Room) -> None:
        self.model = model
        self.room = room
        self.device = room.device
        self.residency = Residency(model.parts, model.bring, room.device)
        model.on_device = self.residency.on_device
        self.plan: Plan | None = None
        self._closed = False
        self._tenant = Tenant(name, model, self.residency)
        room.admit(self._tenant)

    def settle(self, work: Work, progress: Progress | None = None) -> None:
        """As ``fit``, but where other models would have to make room, weights wait for the first request."""
        made = self._made(work, self.budget())
        if any(neighbour.leaves_bytes for neighbour in made.neighbours):
            self.plan = made
        else:
            self.fit(work, progress)

    def fit(self, work: Work, progress: Progress | None = None) -> Attempt:
        """Makes a plan for some pictures, and brings weights to where it wants them. Other models make room.

        Args:
            progress: told of weights that are read from files.

        Returns:
            What the request's work is to be run with.

        Raises:
            DoesNotFitError: there is no such plan.
            DeviceMemoryError: memory ran out in spite of it, twice.
            CheckpointError: a weight cannot be read.
        """
        try:
            made = self._made(work, self.budget())
        except DoesNotFitError:
            self.model.forget()  # LoRAs of other requests, and its own, which are counted anew
            made = self._made(work, self.budget())
        attempt = Attempt(self, work, made)
        try:
            self._apply(made, progress)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        else:
            return attempt
        attempt.recover()
        return attempt

    def enforce(self, made: Plan) -> None:
        """Sends away what a plan has no room for, other models' weights included. What is missing comes when it is used."""
        if self._closed:
            return
        self.room.clear(self._tenant, made)
        if made is not self.plan:
            self.plan = made
            self.residency.shrink(made)

    def would_fit(self, work: Work) -> bool:
        """Whether there is a plan for some pictures."""
        return self._moved(work) is not None

    def at_once(self, work: Work) -> int:
        """How many of the first of some pictures are better made together than one by one; at least 1. A batch for which
        weights have to make room, and come back at each step, costs more time than it saves.
        """
        alone = self._moved(replace(work, pictures=work.pictures[:1]))
        for count in range(len(work.pictures), 1, -1):
            together = self._moved(replace(work, pictures=work.pictures[:count]))
            if alone is not None and together is not None and together <= count * alone:
                return count
        return 1

    def _moved(self, work: Work) -> int | None:
        """Bytes of weights that a plan for some pictures brings to the device; None where there is no plan."""
        try:
            return self._made(work, self.budget()).moved_bytes
        except DoesNotFitError:
            return None

    def recover(self, work: Work, failed: Plan | None) -> Plan:
        """After the device ran out of memory: lets go of what is kept, and plans with less than was thought to be there.

        Args:
            failed: the plan that memory ran out with; None where there was a second one already.

        Raises:
            DeviceMemoryError: there is no such plan, or memory runs out once more.
        """
        self.model.forget()
        if not self._closed:
            self.room.clear(self._tenant)
        give_back(self.device)
        if failed is not None and not self._closed:
            found = self.budget()
            less = failed.device_bytes - min(LESS, failed.device_bytes // 8)
            found = replace(found, device_bytes=min(found.device_bytes, less))
            try:
                made = self._made(work, found)
                self._apply(made, None)
            except DoesNotFitError:
                pass
            except RuntimeError as error:
                if not ran_out(error):
                    raise
            else:
                give_back(self.device)
                return made
        memory = device_memory(self.device)
        free = "" if memory is None else f": {memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB are free now"
        raise DeviceMemoryError(
            f"{self.device} ran out of memory{free}. Close what else uses it, make the picture smaller or fewer at a time, "
            "or use the CPU."
        )

    def budget(self) -> Budget:
        """What may be taken now, what is taken already included, by this model or others in the room."""
        return self.room.budget()

    def close(self) -> None:
        """Lets go of all weights."""
        self._closed = True
        self.residency.close()
        try:
            self.model.close()
        finally:
            self.room.dismiss(self._tenant)
        give_back(self.device)
        trim_host_memory()

    def _made(self, work: Work, found: Budget) -> Plan:
        extra = sum(self.model.new_bytes(loras) for loras in work.loras)
        kept = -(-(self.model.kept_bytes + extra) // STEP) * STEP
        made = plan(self.model.demand(work.pictures, work.steps, kept), found)
        return replace(
            made,
            host_work=made.host_work + self.residency.copies_besides(made),
            neighbours=self.room.foreseen(self._tenant, made),
        )

    def _apply(self, made: Plan, progress: Progress | None) -> None:
        told = None if progress is None else _counted(self.model, made, progress)
        self.plan = made
        self.room.clear(self._tenant, made)
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
