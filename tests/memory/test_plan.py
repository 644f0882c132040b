"""Plans for thousands of machines and models that nobody has, and for Z-Image on cards that people do have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hwaga.errors import DoesNotFitError
from hwaga.families import find_family
from hwaga.families.family import Model, Picture
from hwaga.memory.budget import budget
from hwaga.memory.demand import Demand, PartSize, Phase, Work
from hwaga.memory.plan import SLOTS, Budget, Plan
from hwaga.memory.planner import leaving_order, plan

GIB = 2**30

sizes = st.integers(0, 60)


@st.composite
def part_sizes(draw: st.DrawFn, name: str) -> PartSize:
    even = st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda drawn: (drawn[0],) * drawn[1])
    blocks = draw(st.one_of(even, st.lists(st.integers(1, 40), max_size=5).map(tuple)))
    filling = draw(st.one_of(st.just(0), st.integers(1, 10)))
    return PartSize(name, draw(sizes), blocks, each_step=draw(st.booleans()), filling=filling)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    parts = tuple(
        draw(part_sizes(name)) for name in ("reads", "refines", "denoises", "decodes")[: draw(st.integers(1, 4))]
    )
    names = ["", *(part.name for part in parts)]
    phases = []
    for place in range(draw(st.integers(1, 5))):
        ways = sorted(draw(st.lists(st.integers(0, 120), min_size=1, max_size=3, unique=True)), reverse=True)
        tiles = (None, 1024, 512)
        work = tuple(Work(nbytes, tiles[way]) for way, nbytes in enumerate(ways))
        phases.append(Phase(f"phase {place}", draw(st.sampled_from(names)), work))
    return Demand(parts, tuple(phases), draw(st.integers(1, 9)), draw(st.integers(0, 20)), draw(sizes))


budgets = st.builds(
    Budget,
    st.sampled_from(["cuda", "cuda", "mps", "cpu"]),
    device_bytes=st.integers(0, 700),
    pinned_bytes=st.integers(0, 300),
    host_base=sizes,
)

machines = settings(max_examples=400)


def fitting(demand: Demand, given: Budget) -> Plan | None:
    try:
        return plan(demand, given)
    except DoesNotFitError:
        return None


def pieces(demand: Demand, made: Plan) -> int:
    """How far down its ways of working a plan goes, over all phases."""
    ways = zip(demand.phases, made.phases, strict=True)
    return sum([work.tile for work in phase.work].index(planned.tile) for phase, planned in ways)


@machines
@given(demands(), budgets)
def test_no_phase_takes_more_than_there_is(demand: Demand, given: Budget) -> None:
    made = fitting(demand, given)
    assume(made is not None)
    assert made is not None
    for asked, phase in zip(demand.phases, made.phases, strict=True):
        # Counted anew, from where the weights are said to be.
        stays = sum(
            size.rest * (part.mode != "turn") + sum(size.blocks[i] for i in part.stays)
            for size, part in zip(demand.parts, made.parts, strict=True)
        )
        assert phase.weights == stays
        assert phase.work in [work.nbytes for work in asked.work]
        assert phase.kept == demand.kept
        if phase.part:
            size = next(size for size in demand.parts if size.name == phase.part)
            part = made.part(phase.part)
            away = [block for i, block in enumerate(size.blocks) if i not in part.stays]
            slots = min(SLOTS, len(away)) * max(away, default=0)
            assert slots == part.slots * part.slot_bytes
            leaves = part.mode != "resident"
            assert phase.brought == slots + size.rest * (part.mode == "turn") + size.filling * leaves
        assert phase.nbytes <= given.device_bytes
    assert made.device_bytes == max(phase.nbytes for phase in made.phases) <= given.device_bytes
    if given.device == "cpu":
        assert made.peak_vram_bytes == 0
        assert made.peak_ram_bytes == given.host_base + demand.host_work + made.device_bytes
    else:
        assert made.peak_vram_bytes == made.device_bytes
        assert made.peak_ram_bytes == given.host_base + demand.host_work + made.pinned_bytes


@machines
@given(demands(), budgets)
def test_every_part_is_somewhere_and_says_why(demand: Demand, given: Budget) -> None:
    made = fitting(demand, given)
    assume(made is not None)
    assert made is not None
    assert [part.name for part in made.parts] == [part.name for part in demand.parts]
    for size, part in zip(demand.parts, made.parts, strict=True):
        assert part.reason
        assert part.mode in ("resident", "streamed", "turn")
        assert part.blocks == len(size.blocks)
        assert not set(part.stays) & set(part.pinned)
        assert {*part.stays, *part.pinned} <= set(range(part.blocks))
        assert (part.mode == "resident") == (part.stays_bytes == size.nbytes and not part.source)
        if part.mode == "resident":
            assert part.moved_bytes == part.pinned_bytes == part.slots == 0
        locked = sum(size.blocks[i] for i in part.pinned) + size.rest * part.rest_pinned
        assert part.pinned_bytes == locked
        everything = {*part.stays, *part.pinned} == set(range(part.blocks)) and (
            part.mode != "turn" or part.rest_pinned
        )
        assert ("files" in part.source) == (not everything)
    for asked, phase in zip(demand.phases, made.phases, strict=True):
        assert bool(phase.reason) == (len(asked.work) > 1)


@machines
@given(demands(), budgets)
def test_locked_memory_keeps_to_its_budget(demand: Demand, given: Budget) -> None:
    made = fitting(demand, given)
    assume(made is not None)
    assert made is not None
    assert made.pinned_bytes <= (given.pinned_bytes if given.device == "cuda" else 0)
    plenty = fitting(demand, replace(given, device="cuda", pinned_bytes=10**6))
    assert plenty is not None
    assert all("files" not in part.source for part in plenty.parts)


@machines
@given(demands(), budgets, st.integers(1, 200))
def test_more_memory_never_makes_a_worse_plan(demand: Demand, given: Budget, more: int) -> None:
    less = fitting(demand, given)
    assume(less is not None)
    assert less is not None
    larger = fitting(demand, replace(given, device_bytes=given.device_bytes + more))
    assert larger is not None  # what fits still does
    before, after = ((pieces(demand, each), each.moved_bytes) for each in (less, larger))
    assert after <= before  # fewer pieces; or as many, and no more moved
    locked = fitting(demand, replace(given, pinned_bytes=given.pinned_bytes + more))
    assert locked is not None
    assert (pieces(demand, locked), locked.moved_bytes) == before
    assert locked.pinned_bytes >= less.pinned_bytes or given.device != "cuda"


def least_bytes(demand: Demand) -> int:
    """What a demand needs, found another way: each number of blocks of each part, one by one."""

    def takes(size: PartSize, count: int) -> tuple[int, int]:
        """Of a part with so many blocks away (one for the whole of a part without blocks): at any time, and in its phases."""
        if not size.blocks:
            return (size.rest, 0) if not count else (0, size.rest + size.filling)
        away = [size.blocks[i] for i in leaving_order(len(size.blocks))[:count]]
        return size.nbytes - sum(away), sum([max(away)] * min(2, count)) + size.filling if away else 0

    least = None
    for counts in itertools.product(*(range(max(len(part.blocks), 1) + 1) for part in demand.parts)):
        taken = {size.name: takes(size, count) for size, count in zip(demand.parts, counts, strict=True)}
        stays = demand.kept + sum(each[0] for each in taken.values())
        phases = [taken.get(phase.part, (0, 0))[1] + phase.work[-1].nbytes for phase in demand.phases]
        least = stays + max(phases) if least is None else min(least, stays + max(phases))
    assert least is not None
    return least


# Where blocks differ, streaming a part can take more than keeping it.
UNEVEN = Demand((PartSize("a", 0, (100, 1)),), (Phase("p", "a", (Work(10),)),), 1)


@machines
@given(demands())
@example(UNEVEN)
def test_what_is_needed_is_exact(demand: Demand) -> None:
    needed = least_bytes(demand)
    assert plan(demand, Budget("cuda", needed)).device_bytes <= needed
    if needed:
        with pytest.raises(DoesNotFitError) as error:
            plan(demand, Budget("cuda", needed - 1))
        assert error.value.needed == needed
    with pytest.raises(DoesNotFitError) as error:
        plan(demand, Budget("cuda", -1))
    assert error.value.needed == needed


@given(demands(), budgets)
def test_the_same_question_has_the_same_answer(demand: Demand, given: Budget) -> None:
    first = fitting(demand, given)
    plan.cache_clear()
    assert fitting(demand, given) == first


@given(st.integers(1, 80))
def test_blocks_leave_evenly_and_none_comes_back(count: int) -> None:
    order = leaving_order(count)
    assert sorted(order) == list(range(count))
    for gone in range(1, count + 1):
        places = sorted(order[:gone])
        # What lies between two that left is at most a few times as long as if they were spread perfectly.
        gaps = [after - before for before, after in zip([-1, *places], [*places, count], strict=True)]
        assert max(gaps) <= 2 * -(-count // gone) + 1


def test_blocks_that_each_have_a_slot_come_once_and_not_at_every_step() -> None:
    part = PartSize("a", 0, (10,) * 6, each_step=True)
    demand = Demand((part,), (Phase("p", "a", (Work(0),)), Phase("q", "", (Work(30),))), steps=8)
    assert plan(demand, Budget("cuda", 60 + 10)).part("a").moved_bytes == 20
    assert plan(demand, Budget("cuda", 60)).part("a").moved_bytes == 8 * 30


def test_a_part_that_comes_for_two_phases_comes_twice() -> None:
    phases = (Phase("p", "a", (Work(0),)), Phase("q", "", (Work(9),)), Phase("r", "a", (Work(0),)))
    demand = Demand((PartSize("a", 5),), phases, steps=1)
    assert plan(demand, Budget("cuda", 9)).moved_bytes == 10


@pytest.fixture(scope="module")
def z_image() -> Model:
    return find_family("z_image").outline(device=torch.device("meta"), dtype=torch.bfloat16)


def card(cap: float, host: float = 16) -> Budget:
    return budget("cuda", None, None, None, vram=int(cap * GIB), ram=int(host * GIB))


BATCHES = {
    "1024": [Picture(1024, 1024, 512)],
    "1536": [Picture(1536, 1536, 512)],
    "1344x4": [Picture(1344, 768, 512)] * 4,
}


def from_pictures(batch: Sequence[Picture]) -> list[Picture]:
    return [replace(picture, source=True) for picture in batch]


@pytest.mark.parametrize("cap", [22.5, 16, 12, 10, 8, 6])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("source", [False, True])
def test_z_image_fits_every_card_from_six_gibibytes(z_image: Model, cap: float, name: str, source: bool) -> None:
    batch = from_pictures(BATCHES[name]) if source else BATCHES[name]
    given = card(cap)
    made = plan(z_image.demand(batch, 8, 0), given)
    assert made.peak_vram_bytes <= given.device_bytes < cap * GIB
    assert made.peak_ram_bytes <= 16 * GIB
    # Whole, and so exact, on each of them.
    assert made.tile("decode") is None
    if cap == 22.5 and name == "1024":
        assert all(part.mode == "resident" for part in made.parts)
    if cap <= 12:
        assert made.part("denoiser").mode == "streamed"


def test_a_smaller_card_keeps_a_part_of_what_a_larger_one_keeps(z_image: Model) -> None:
    demand = z_image.demand(BATCHES["1024"], 8, 0)
    kept = [set(plan(demand, card(cap)).part("denoiser").stays) for cap in (22.5, 16, 12, 10, 8, 6)]
    assert all(smaller <= larger for larger, smaller in itertools.pairwise(kept))
    assert len(kept[-1]) < len(kept[0]) == 32


def test_a_very_small_card_decodes_in_tiles(z_image: Model) -> None:
    made = plan(z_image.demand([Picture(2048, 2048, 512)], 8, 0), card(4.5))
    phase = next(phase for phase in made.phases if phase.name == "decode")
    assert phase.tile == 1024
    assert "tiles of 1024 pixels" in phase.reason
