"""Blocks of a network that come to the device just before their turn.

Two slots of memory take turns: while the block in one computes, the next block that is away is copied into the other, on a
stream of its own. On the CPU the same happens one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hwaga.memory.plan import SLOTS

if TYPE_CHECKING:
    from hwaga.memory.residency import Bringer, Unit


class _Slot:
    """Memory for one block at a time."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.block: int | None = None
        self.arrived: torch.cuda.Event | None = None
        self.parameters: dict[int, Any] = {}
        """Each block's parameters in this memory: made once, since a block comes again at every step."""


class BlockStream:
    """The blocks of a part that are away, for the time of a phase.

    Args:
        blocks: of the part, in the order that they run in.
        slots: how many blocks there is room for.
        passes: how often all blocks are run; after the last pass nothing is fetched ahead.
        copies: what copies run on beside the computing, on a GPU.
    """

    def __init__(
        self,
        blocks: Sequence[Unit],
        bring: Bringer,
        device: torch.device,
        *,
        slots: int,
        passes: int,
        copies: torch.cuda.Stream | None = None,
    ) -> None:
        self.blocks = blocks
        self.device = device
        self._bring = bring
        self._away = [i for i, block in enumerate(blocks) if not block.attached]
        self._next = 0
        """Place in ``_away`` of the block that is fetched next."""
        self._left = len(self._away) * passes
        """Blocks still to be fetched."""
        self._current: int | None = None
        self._copies = copies
        self._slots: list[_Slot] = []
        self._make_slots(min(slots, len(self._away)))
        try:
            for slot in self._slots:
                self._fetch_following(slot)
        except BaseException:
            self.close()  # nobody has the stream yet who could
            raise

    def enter(self, index: int) -> None:
        """Makes a block ready to run. Blocks that run before may still compute."""
        if index == self._current and self.blocks[index].attached:
            return
        left = None if index == self._current else self._slot_of(self._current)
        self._current = None  # until it is ready: after an error it may be entered again
        if left is not None:
            self._fetch_following(left)
        slot = self._slot_of(index)
        if slot is None and not self.blocks[index].attached:
            slot = self._fetch_now(index)
        if slot is not None and slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        self._current = index

    def more(self, passes: int) -> None:
        """Somebody else runs all blocks so often besides."""
        self._left += len(self._away) * passes

    def close(self) -> None:
        """Gives the slots back, also while copies are under way."""
        for slot in self._slots:
            if slot.block is not None:
                self.blocks[slot.block].detach()
        if self._copies is not None:  # whoever gets the memory next works behind the copies
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        self._slots = []

    def _make_slots(self, count: int) -> None:
        if self._copies is not None:  # what computed in this memory before must have ended
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        nbytes = max((self.blocks[i].nbytes for i in self._away), default=0)
        self._slots = [_Slot(nbytes, self.device) for _ in range(count)]

    def _slot_of(self, block: int | None) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == block), None) if block is not None else None

    def _fetch_following(self, slot: _Slot) -> None:
        """Fetches the block whose turn is next into a slot that has done its work."""
        if self._left > 0:
            following = self._away[self._next]
            if self._slot_of(following) is None:
                self._fetch(following, slot)

    def _fetch_now(self, block: int) -> _Slot:
        """Fetches a block that nobody foresaw: it ran out of turn, or has left the device since the slots were made."""
        if block not in self._away:
            self.close()
            self._away = sorted([*self._away, block])
            self._make_slots(min(SLOTS, len(self._away)))
        self._next = self._away.index(block)
        slot = next((slot for slot in self._slots if slot.block is None), self._slots[0])
        self._fetch(block, slot)
        return slot

    def _fetch(self, block: int, slot: _Slot) -> None:
        unit = self.blocks[block]
        if slot.block is not None:
            self.blocks[slot.block].detach()
            slot.block = None
        memory = slot.memory[: unit.nbytes]
        if self._copies is None:
            self._bring(unit, memory)
        else:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))  # the slot's last block has computed
            with torch.cuda.stream(self._copies):
                self._bring(unit, memory)
                slot.arrived = torch.cuda.Event()
                slot.arrived.record(self._copies)
        if block not in slot.parameters:
            slot.parameters[block] = unit.parameters(memory)
        unit.attach(slot.parameters[block])
        slot.block = block
        self._next = (self._away.index(block) + 1) % len(self._away)
        self._left -= 1
