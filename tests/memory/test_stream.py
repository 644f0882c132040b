"""Blocks that come just before their turn: which ones, when, how often, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_units import FakeUnit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwaga.memory.plan import SLOTS
from hwaga.memory.stream import BlockStream

CPU = torch.device("cpu")


class Blocks:
    """Blocks of different sizes, of which some are there for good, and a log of what is fetched and entered."""

    def __init__(self, count: int, resident: Sequence[int] = ()) -> None:
        self.units = [FakeUnit(number, 5 + number % 3) for number in range(count)]
        self.fetched: list[int] = []
        self.log: list[tuple[str, int]] = []
        self.most = 0
        self.fail: set[int] = set()
        for number in resident:
            self.make_resident(number)

    def make_resident(self, number: int) -> None:
        unit = self.units[number]
        unit.attach(torch.full((unit.nbytes,), number, dtype=torch.uint8))

    def bring(self, unit: Any, memory: Tensor) -> None:
        if unit.number in self.fail:
            raise RuntimeError(f"no {unit.number}")
        assert memory.nbytes == unit.nbytes
        memory.fill_(unit.number)
        self.fetched.append(unit.number)
        self.log.append(("fetch", unit.number))

    def stream(self, slots: int = SLOTS, passes: int = 1) -> BlockStream:
        return BlockStream(self.units, self.bring, CPU, slots=slots, passes=passes)

    def enter(self, stream: BlockStream, number: int) -> None:
        stream.enter(number)
        self.log.append(("enter", number))
        assert self.units[number].ready, f"block {number} runs without its weights"
        assert len(stream._slots) <= SLOTS
        slots = {slot.memory.data_ptr() for slot in stream._slots}
        brought = [unit for unit in self.units if unit.memory is not None and unit.memory.data_ptr() in slots]
        self.most = max(self.most, len(brought))

    def attached(self) -> list[int]:
        return [unit.number for unit in self.units if unit.attached]


@given(
    st.integers(2, 9).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))),
    st.integers(1, 4),
)
def test_passes_in_order(blocks: tuple[int, set[int]], passes: int) -> None:
    count, resident = blocks
    away = [number for number in range(count) if number not in resident]
    made = Blocks(count, sorted(resident))
    stream = made.stream(passes=passes)
    assert made.fetched == away[:SLOTS], "the first ones come before anything runs"
    for _ in range(passes):
        for number in range(count):
            made.enter(stream, number)
    if len(away) > SLOTS:
        assert made.fetched == away * passes, "each once a pass, in order, and none after the last"
    else:
        assert made.fetched == away, "they stay in their slots"
    assert made.most <= SLOTS
    stream.close()
    assert made.attached() == sorted(resident)


def test_a_block_arrives_while_the_one_before_runs() -> None:
    made = Blocks(6, resident=[0, 3])
    stream = made.stream(passes=2)
    made.log.clear()
    for number in range(6):
        made.enter(stream, number)
    assert made.log == [
        ("enter", 0), ("enter", 1), ("fetch", 4), ("enter", 2), ("fetch", 5), ("enter", 3), ("enter", 4),
        ("fetch", 1), ("enter", 5),
    ]  # fmt: skip


@given(st.sets(st.integers(0, 6)), st.lists(st.integers(0, 6), max_size=40), st.integers(1, 3), st.integers(1, 2))
def test_any_order(resident: set[int], order: list[int], passes: int, slots: int) -> None:
    """Out of turn, over again, more often than was said: whatever runs has its weights."""
    made = Blocks(7, sorted(resident))
    stream = made.stream(slots, passes)
    for number in order:
        made.enter(stream, number)
    assert made.most <= SLOTS
    stream.close()
    assert made.attached() == sorted(resident)


def test_a_block_that_is_entered_again_is_not_fetched_again() -> None:
    made = Blocks(5)
    stream = made.stream(passes=1)
    for number in range(5):
        for _ in range(3):  # one prompt of a batch after the other
            made.enter(stream, number)
    assert made.fetched == [0, 1, 2, 3, 4]
    stream.close()


@given(st.data())
def test_blocks_that_leave_meanwhile_still_come(data: st.DataObject) -> None:
    resident = data.draw(st.sets(st.integers(0, 5), min_size=1))
    made = Blocks(6, sorted(resident))
    stream = made.stream(passes=4)
    for _ in range(4):
        for number in range(6):
            if resident and data.draw(st.booleans()):
                leaving = data.draw(st.sampled_from(sorted(resident)))
                made.units[leaving].detach()
                resident.remove(leaving)
            made.enter(stream, number)
    assert made.most <= SLOTS
    stream.close()
    assert made.attached() == sorted(resident)


def test_the_current_block_may_leave() -> None:
    """It ran out of memory in the middle of the first block, and a second plan sent that one away too."""
    made = Blocks(5, resident=[0, 2])
    stream = made.stream(passes=2)
    made.enter(stream, 0)
    made.units[0].detach()
    for number in range(5):
        made.enter(stream, number)
    stream.close()
    assert made.attached() == [2]


def test_an_error_at_the_beginning_leaves_nothing_behind() -> None:
    made = Blocks(5, resident=[3])
    made.fail = {1}
    with pytest.raises(RuntimeError, match="no 1"):
        made.stream()
    assert made.fetched == [0]
    assert made.attached() == [3]


@pytest.mark.parametrize("failing", range(5))
def test_an_error_in_the_middle_can_be_tried_again(failing: int) -> None:
    made = Blocks(5)
    stream = made.stream(passes=3)
    for number in range(5):
        made.enter(stream, number)
    made.fail = {failing}
    failed_at = None
    for number in range(5):
        try:
            made.enter(stream, number)
        except RuntimeError:
            failed_at = number
            break
    if failing > 1:  # the first two of the pass had arrived already
        assert failed_at == failing - 1
    made.fail = set()
    for again in (failed_at, *range(5)):
        if again is not None:
            made.enter(stream, again)
    stream.close()
    assert made.attached() == []


def test_two_users_are_both_fetched_ahead_for() -> None:
    made = Blocks(5)
    stream = made.stream(passes=1)
    stream.more(2)
    for _ in range(3):
        for number in range(5):
            made.enter(stream, number)
    assert made.fetched == [0, 1, 2, 3, 4] * 3
    ahead = made.log.index(("fetch", 4)), made.log.index(("enter", 4))
    assert ahead[0] < ahead[1] - 1
    stream.close()


def test_slots_are_as_large_as_the_largest_block_that_is_away() -> None:
    made = Blocks(6, resident=[2, 5])
    stream = made.stream()
    assert [slot.memory.nbytes for slot in stream._slots] == [6] * SLOTS
    stream.close()
    assert stream._slots == []
    stream.close()


def test_nothing_to_stream() -> None:
    made = Blocks(3, resident=[0, 1, 2])
    stream = made.stream()
    for number in range(3):
        made.enter(stream, number)
    assert made.fetched == []
    assert stream._slots == []
    stream.close()
    assert made.attached() == [0, 1, 2]
