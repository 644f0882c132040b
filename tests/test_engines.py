"""Several models under one budget: who leaves when another one needs the room, and comes back, and that nothing grows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from placed import MIB, PLENTY, bytes_of, give, model_of, placement_of, residency_of, small_card
from torch import Tensor

from hwaga import (
    DoesNotFitError,
    Engine,
    Engines,
    ImageRequest,
    ModelError,
    Result,
    Step,
    UnknownModelError,
    forecast,
    placement,
    room,
)
from hwaga.families.z_image import memory_use
from hwaga.forecasts import forecasts
from hwaga.memory.budget import HostMemory, ProcessMemory
from hwaga.memory.device import DeviceMemory
from hwaga.memory.plan import Budget
from hwaga.placement import Placement
from hwaga.room import Caps, Room, Tenant
from hwaga.settings import Settings

APPLE = ImageRequest("a red apple", width=64, height=32, seed=1, steps=2)
CAT = ImageRequest("a cat", width=32, height=32, seed=2, steps=1)
WITH_LORA = ImageRequest("a red apple", width=64, height=32, seed=3, steps=1, style="anime")


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        # Beside weights as small as these, the workspaces of a GPU would be most of what is planned for, and a prompt that is
        # kept, which counts as a whole step of memory, as much as a model.
        patch.setattr(memory_use, "SLACK", 16 * MIB)
        for module in (placement, room):
            patch.setattr(module, "STEP", MIB)
        with Engines.open([small_card("one"), small_card("two"), small_card("three")], device="cpu") as opened:
            yield opened


@pytest.fixture(scope="module")
def whole(engines: Engines) -> int:
    """Bytes of a model's weights, with all that a small picture takes."""
    engines["one"].generate(APPLE)
    plan = engines["one"].plan
    assert plan is not None
    return plan.device_bytes


@pytest.fixture(autouse=True)
def fresh(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has anything on the device, and nobody is newer than in the order of their names."""
    for name in ("one", "two", "three"):
        engine = engines[name]
        placement_of(engine).room.clear(placement_of(engine)._tenant)
        model_of(engine).forget()
    for engine in engines:
        placement_of(engine).residency.hold([_away(unit) for unit in residency_of(engine).held()])
    assert held(engines) == [0, 0, 0]


def _away(unit: Any) -> Any:
    return type(unit)(unit.nbytes, False)


def held(engines: Engines) -> list[int]:
    return [engine.held_bytes for engine in engines]


def plan_of(engine: Engine) -> Any:
    assert engine.plan is not None
    return engine.plan


def live_bytes() -> int:
    gc.collect()
    seen = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def test_where_both_fit_neither_leaves(engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = engines["one"], engines["two"]
    give(monkeypatch, 2 * whole + 256 * MIB)  # each keeps its prompts too
    for engine in (one, two, one, two):
        engine.generate(APPLE)
        assert [each.leaves_bytes for each in plan_of(engine).neighbours] == [0, 0]
    assert (one.away_bytes, two.away_bytes) == (0, 0)
    assert one.held_bytes == two.held_bytes > whole / 2
    assert plan_of(two).others_bytes >= one.held_bytes
    assert plan_of(two).peak_vram_bytes == plan_of(two).device_bytes + plan_of(two).others_bytes


@pytest.mark.parametrize(("pinned", "turns"), [(0, 7), (40 * MIB, 20), (PLENTY, 7)])
def test_alternating_in_room_for_one_and_a_half(
    engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch, pinned: int, turns: int
) -> None:
    """The pictures are the same, each has all that it would have alone, and nothing grows."""
    pair = [(engines["one"], APPLE), (engines["two"], CAT)]
    give(monkeypatch, PLENTY)
    expected = [bytes_of(engine, [request]) for engine, request in pair]
    roomy = whole * 3 // 2
    give(monkeypatch, roomy, pinned)
    sizes = set()
    for turn in range(turns):
        engine, request = pair[turn % 2]
        other, _ = pair[1 - turn % 2]
        before = other.held_bytes + model_of(other).kept_bytes
        assert bytes_of(engine, [request]) == expected[turn % 2]
        plan = plan_of(engine)
        assert plan.moved_bytes == 0, "all of it stays, as if it were alone"
        assert engine.away_bytes == 0
        (said,) = [each for each in plan.neighbours if each.model == other.card.name]
        assert said.stays_bytes == other.held_bytes + model_of(other).kept_bytes
        assert said.pinned_bytes == residency_of(other).pinned_bytes
        assert plan.device_bytes + plan.others_bytes <= roomy
        if turn:
            assert said.leaves_bytes > 0
            assert other.away_bytes > 0
            assert before - said.stays_bytes <= said.leaves_bytes
            assert other.held_bytes > whole // 8, "no more leaves than has to"
        if turn > 4:
            copies = sum(residency_of(each).pinned_bytes for each in engines)
            assert copies <= pinned
            assert (copies > 0) is (pinned > 0)
            sizes.add((turn % 2, live_bytes(), *held(engines), copies))
    assert len(sizes) == 2, "the same after each turn"


def test_who_was_used_longest_ago_leaves_first(engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, whole * 5 // 2)
    one, two, three = engines
    for engine in (one, two, one, three):
        engine.generate(CAT)
    assert (one.away_bytes, three.away_bytes) == (0, 0)
    assert two.away_bytes > 0
    left = {each.model: each.leaves_bytes for each in plan_of(three).neighbours}
    assert left["one"] == 0 < left["two"]
    two.generate(CAT)
    assert one.away_bytes > 0
    assert (two.away_bytes, three.away_bytes) == (0, 0)


def test_loras_and_prompts_of_another_model_leave_before_its_weights(
    engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = engines
    give(monkeypatch, PLENTY)
    one.generate(WITH_LORA)
    weights, kept = one.held_bytes, model_of(one).kept_bytes
    assert kept > 0
    give(monkeypatch, whole + weights)
    two.generate(CAT)
    assert (one.held_bytes, model_of(one).kept_bytes) == (weights, 0)


def test_streams_of_two_models_under_a_budget_for_one(
    engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [engines["one"], engines["two"]]
    give(monkeypatch, PLENTY)
    expected = [engine.generate(APPLE).image.tobytes() for engine in pair]
    give(monkeypatch, whole)
    streams = [engine.stream(APPLE) for engine in pair]
    made: list[bytes] = []
    while len(made) < 2:
        for stream in streams:
            event: Step | Result | None = next(stream, None)
            assert sum(held(engines)) <= whole
            if isinstance(event, Result):
                made.append(event.image.tobytes())
    assert made == expected


def test_memory_that_runs_out_sends_the_other_away(
    engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = engines
    give(monkeypatch, PLENTY)
    one.generate(APPLE)
    expected = bytes_of(two, [APPLE])
    model = model_of(two)
    forward, calls = model.transformer.forward, 0

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*arguments)

    monkeypatch.setattr(model.transformer, "forward", fails)
    give(monkeypatch, 2 * whole)
    assert bytes_of(two, [APPLE]) == expected
    assert calls == 3
    assert one.held_bytes == 0
    one.generate(CAT)
    assert one.away_bytes == 0


def test_what_does_not_fit_alone_leaves_all_in_place(
    engines: Engines, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = engines
    give(monkeypatch, PLENTY)
    one.generate(APPLE)
    before = one.held_bytes
    give(monkeypatch, MIB)
    with pytest.raises(DoesNotFitError):
        two.generate(APPLE)
    assert one.held_bytes == before


def test_two_families_take_turns(whole: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sdxl = pytest.importorskip("sdxl_reference")
    requests = {"one": APPLE, "tiny-xl": ImageRequest("a bird", negative="fog", width=48, height=64, seed=2, steps=2)}
    with Engines.open([small_card("one"), sdxl.random_sdxl(tmp_path / "tiny")], device="cpu") as pair:
        give(monkeypatch, PLENTY)
        expected = {engine.card.name: bytes_of(engine, [requests[engine.card.name]]) for engine in pair}
        give(monkeypatch, plan_of(pair["one"]).device_bytes)
        for name in list(requests) * 2:
            placement_of(pair[name]).model.forget()  # the budget has no room for prompts that are kept
            assert bytes_of(pair[name], [requests[name]]) == expected[name]
            assert pair[name].away_bytes == 0
            if name == "one":
                assert pair["tiny-xl"].held_bytes == 0, "there is room for one alone"


# Opening and closing


def test_opening_loads_as_many_as_fit_beside_each_other(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [small_card("one"), small_card("two"), small_card("three")]
    give(monkeypatch, whole * 9 // 4)
    with Engines.open(cards, device="cpu") as opened:
        one, two, three = opened
        assert (opened.default, opened.names, len(opened)) == (one, ["one", "two", "three"], 3)
        assert (one.away_bytes, two.away_bytes) == (0, 0)
        assert three.held_bytes == 0
        assert three.away_bytes == one.held_bytes
        assert sum(each.leaves_bytes for each in plan_of(three).neighbours) > 0
        three.generate(CAT)
        assert three.away_bytes == 0
        shared = placement_of(one).room
        assert all(placement_of(each).room is shared for each in opened)
    assert not shared._tenants
    assert opened.default.held_bytes == 0


def test_what_cannot_be_opened_together(tmp_path: Path) -> None:
    loaded: list[int] = []
    with pytest.raises(ModelError, match=r"Two of the models are called 'mini'\. Give one of them a card"):
        Engines.open(["mini", small_card()], device="cpu", progress=lambda done, _: loaded.append(done))
    assert loaded == [], "nothing is read in vain"
    with pytest.raises(ModelError, match="no model to open"):
        Engines.open([], device="cpu")
    with pytest.raises(UnknownModelError):
        Engines.open(["mini", "no-such-model"], device="cpu", settings=Settings(data_dir=str(tmp_path)))
    told: list[tuple[Any, str]] = []
    absent = replace(small_card("absent"), folder=tmp_path)

    def left_out(model: Any, error: ModelError) -> None:
        told.append((model, str(error)))

    models = ["no-such-model", small_card("one"), absent]
    settings = Settings(data_dir=str(tmp_path))
    with Engines.open(models, device="cpu", settings=settings, left_out=left_out) as rest:
        assert rest.names == ["one"]
        assert [model for model, _ in told] == ["no-such-model", absent]
    with pytest.raises(UnknownModelError, match="no-such-model"):
        Engines.open([models[0], absent], device="cpu", settings=settings, left_out=left_out)
    assert len(told) == 2, "of these there is nothing to open"
    with Engines.open([None], device="cpu") as one:
        with pytest.raises(UnknownModelError, match=r"There is no model 'sdxl' here\. There is mini\."):
            one["sdxl"]
        assert one["mini"] is one.default


# The budget


class Held:
    """Bytes that a model is said to hold."""

    def __init__(self, device_bytes: int = 0, pinned_bytes: int = 0, kept_bytes: int = 0) -> None:
        self.device_bytes, self.pinned_bytes, self.kept_bytes = device_bytes, pinned_bytes, kept_bytes


GIB = 2**30


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("caps", [Caps(), Caps(vram=12 * GIB, ram=8 * GIB)])
def test_the_budget_is_of_all_together(device: str, caps: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same whoever holds what of it: what the others hold can be had."""
    monkeypatch.setattr(room, "limit_allocator", lambda *_: None)
    found = []
    for first, second in (
        (Held(), Held()),
        (Held(5 * GIB, GIB, MIB), Held()),
        (Held(2 * GIB), Held(3 * GIB, GIB, MIB)),
    ):
        both = Room(torch.device(device), caps)
        for name, each in (("first", first), ("second", second)):
            both.admit(Tenant(name, cast(Any, each), cast(Any, each)))
        taken = sum(each.device_bytes + each.kept_bytes for each in (first, second))
        locked = first.pinned_bytes + second.pinned_bytes + (taken if device == "cpu" else 0)
        memory = DeviceMemory(16 * GIB, 15 * GIB - taken, taken, taken) if device == "cuda" else None
        monkeypatch.setattr(room, "device_memory", lambda _, memory=memory: memory)
        host = HostMemory(16 * GIB, 12 * GIB - locked, 0, 0)
        monkeypatch.setattr(room, "host_memory", lambda host=host: host)
        process = ProcessMemory(GIB + locked, 0)
        monkeypatch.setattr(room, "process_memory", lambda process=process: process)
        found.append(both.budget())
    assert found[0] == found[1] == found[2]
    assert found[0].device_bytes > 5 * GIB


# What is foretold


@pytest.mark.parametrize("pinned", [0, 40 * MIB, PLENTY])
def test_forecasts_say_what_engines_do(
    pinned: int, whole: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = Budget("cuda", whole * 2, pinned)
    monkeypatch.setattr(forecast, "_there", lambda *_: there)
    monkeypatch.setattr(Placement, "budget", lambda _: there)
    cards = [small_card("one"), small_card("two"), small_card("three")]
    with Engines.open(cards, device="cpu", dtype="float32") as opened:
        tokens = model_of(opened.default).count_tokens(APPLE.prompt)
        for _ in range(2):
            plans = []
            for engine in opened:
                engine.generate(APPLE)
                plans.append(plan_of(engine))
                model_of(engine).forget()  # forecasts know of no prompts that are kept
    cards = [replace(card, limits=replace(card.limits, tokens=tokens)) for card in cards]
    said = forecasts(cards, APPLE, device="cpu", dtype="float32", settings=Settings(data_dir=str(tmp_path)))
    assert [each.plan.phases for each in said] == [plan.phases for plan in plans]
    assert [each.plan.neighbours for each in said] == [plan.neighbours for plan in plans]
    assert all(sum(other.leaves_bytes for other in plan.neighbours) > 0 for plan in plans)


def test_no_forecasts_of_one_name() -> None:
    with pytest.raises(ModelError, match="Two of the models have the same name"):
        forecasts(["mini", small_card()], device="cpu")
