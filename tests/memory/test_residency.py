"""Which weights lie on the device: what the plan says, whatever happened; and pictures that don't depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_units import FakeUnit
from placed import (
    MIB,
    PLENTY,
    bytes_of,
    give,
    least,
    model_of,
    on_device_now,
    open_small,
    picture,
    planned,
    residency_of,
)
from torch import Tensor

from hwaga import Engine, ImageRequest
from hwaga.memory.demand import Demand, PartSize, Phase, Work
from hwaga.memory.plan import SLOTS, Budget, Plan
from hwaga.memory.planner import plan
from hwaga.memory.residency import Residency

CPU = torch.device("cpu")

# With units that stand for weights


class Weights:
    """A part of blocks and a part that comes as a whole."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[FakeUnit, list[FakeUnit]]] = {
            "net": (FakeUnit(100, 7), [FakeUnit(number, 10) for number in range(6)]),
            "whole": (FakeUnit(200, 40), []),
        }
        self.brought: list[tuple[int, bool]] = []
        """Number, and whether it came from the host."""
        self.fail: set[int] = set()
        self.residency = Residency(self.parts, self.bring, CPU)

    def bring(self, unit: Any, memory: Tensor, progress: Any = None) -> None:
        if unit.number in self.fail:
            raise RuntimeError(f"no {unit.number}")
        if unit.host is None:
            memory.fill_(unit.number)
            if progress is not None:
                progress(unit.nbytes)
        else:
            memory.copy_(unit.host)
        self.brought.append((unit.number, unit.host is not None))

    def plan(self, device_bytes: int, pinned_bytes: int = 0) -> Plan:
        sizes = tuple(
            PartSize(name, rest.nbytes, tuple(block.nbytes for block in blocks), each_step=name == "net")
            for name, (rest, blocks) in self.parts.items()
        )
        phases = (Phase("denoise", "net", (Work(5),)), Phase("decode", "whole", (Work(1),)))
        return plan(Demand(sizes, phases, steps=3), Budget("cuda", device_bytes, pinned_bytes))

    def run(self, passes: int = 1) -> None:
        net, blocks = self.parts["net"]
        for _ in range(passes):
            for block in blocks:
                block.module(0)
                assert block.ready
            assert net.ready

    def there(self) -> set[int]:
        return {unit.number for rest, blocks in self.parts.values() for unit in (rest, *blocks) if unit.attached}

    def staying(self, made: Plan) -> set[int]:
        net, whole = made.part("net"), made.part("whole")
        return {*net.stays, 100, *([] if whole.mode == "turn" else [200])}


def test_everything_stays_where_it_fits() -> None:
    weights = Weights()
    made = weights.plan(1000)
    told: list[int] = []
    weights.residency.apply(made, told.append)
    assert weights.there() == {0, 1, 2, 3, 4, 5, 100, 200}
    assert sum(told) == 7 + 60 + 40
    assert weights.residency.device_bytes == 107
    weights.brought.clear()
    with weights.residency.on_device("net", 3):
        weights.run(3)
    with weights.residency.on_device("whole"):
        assert weights.parts["whole"][0].ready
    assert weights.brought == []


@pytest.mark.parametrize("pinned", [0, 25, 1000])
def test_what_is_away_comes_for_its_phase_and_leaves(pinned: int) -> None:
    weights = Weights()
    made = weights.plan(60, pinned)
    assert made.part("net").mode == "streamed"
    assert made.part("whole").mode == "turn"
    weights.residency.apply(made)
    assert weights.there() == weights.staying(made)
    assert weights.residency.pinned_bytes == made.pinned_bytes <= pinned
    for _ in range(2):
        weights.brought.clear()
        with weights.residency.on_device("net", 3):
            weights.run(3)
        net = made.part("net")
        away = [number for number in range(6) if number not in net.stays]
        passes = 3 if len(away) > SLOTS else 1
        assert weights.brought == [(number, number in net.pinned) for number in away] * passes
        assert weights.there() == weights.staying(made)
        with weights.residency.on_device("whole"):
            assert weights.parts["whole"][0].ready
        assert weights.brought[-1] == (200, made.part("whole").rest_pinned)
        assert weights.there() == weights.staying(made)


def test_any_plan_after_any_other() -> None:
    weights = Weights()
    budgets = [(1000, 0), (60, 0), (80, 30), (1000, 0), (60, 1000), (90, 20), (60, 0), (75, 50), (1000, 1000), (60, 45)]
    for device_bytes, pinned in budgets:
        made = weights.plan(device_bytes, pinned)
        weights.residency.apply(made)
        assert weights.there() == weights.staying(made)
        assert weights.residency.pinned_bytes <= max(pinned, made.pinned_bytes) <= pinned
        net, whole = made.part("net"), made.part("whole")
        copies = {u.number for rest, blocks in weights.parts.values() for u in (rest, *blocks) if u.host is not None}
        assert copies >= {*net.pinned, *([200] if whole.rest_pinned else [])}
        with weights.residency.on_device("net"):
            weights.run()
        assert weights.there() == weights.staying(made)


def test_a_block_that_leaves_keeps_its_copy_from_the_device() -> None:
    """Parked from where it is, and not read once more."""
    weights = Weights()
    weights.residency.apply(weights.plan(1000))
    weights.brought.clear()
    weights.residency.apply(weights.plan(60, 1000))
    assert weights.brought == []
    with weights.residency.on_device("net"):
        weights.run()
    assert all(from_host for _, from_host in weights.brought)


def test_uses_nest() -> None:
    weights = Weights()
    made = weights.plan(60)
    weights.residency.apply(made)
    with weights.residency.on_device("net", 1), weights.residency.on_device("whole"):
        with weights.residency.on_device("net", 1), weights.residency.on_device("whole"):
            weights.run()
        assert weights.parts["whole"][0].ready
        weights.run()
    assert weights.there() == weights.staying(made)


def test_two_users_of_a_part_at_once() -> None:
    weights = Weights()
    made = weights.plan(60)
    weights.residency.apply(made)
    first, second = weights.residency.on_device("net", 2), weights.residency.on_device("net", 1)
    first.__enter__()
    weights.run()
    second.__enter__()
    weights.run()
    weights.run()
    first.__exit__(None, None, None)
    weights.run()  # the other one is not done
    second.__exit__(None, None, None)
    assert weights.there() == weights.staying(made)


def test_a_plan_for_another_while_a_part_is_used() -> None:
    """Blocks leave at once and come again for whoever is at work; what comes to stay waits until nobody is."""
    weights = Weights()
    weights.residency.apply(weights.plan(1000))
    tight = weights.plan(60, 1000)
    with weights.residency.on_device("net", 2):
        weights.run()
        weights.residency.apply(tight)
        assert weights.there() == weights.staying(tight)
        weights.run()
        weights.residency.apply(weights.plan(1000))
        weights.run()
        weights.residency.apply(tight)
        weights.run()
    assert weights.there() == weights.staying(tight)
    weights.residency.apply(weights.plan(1000))
    assert weights.there() == {0, 1, 2, 3, 4, 5, 100, 200}


def test_a_plan_without_a_part_that_is_in_use() -> None:
    weights = Weights()
    weights.residency.apply(weights.plan(1000))
    tight = weights.plan(60)
    with weights.residency.on_device("whole"):
        weights.residency.apply(tight)
        assert weights.parts["whole"][0].ready
    assert weights.there() == weights.staying(tight)


def test_shrinking_brings_nothing() -> None:
    weights = Weights()
    tight, wide = weights.plan(60, 1000), weights.plan(1000, 1000)
    weights.residency.apply(wide)
    weights.brought.clear()
    weights.residency.shrink(tight)
    assert weights.there() == weights.staying(tight)
    weights.residency.shrink(wide)
    assert weights.there() == weights.staying(tight)
    assert weights.brought == []
    with weights.residency.on_device("net", 2):
        weights.run(2)


@pytest.mark.parametrize("failing", [0, 1, 2, 3, 4, 5, 100, 200])
def test_an_error_leaves_nothing_behind(failing: int) -> None:
    weights = Weights()
    made = weights.plan(60)
    weights.residency.apply(made)
    before = weights.there()
    weights.fail = {failing}
    fails = failing not in before
    for name in ("net", "whole"):
        try:
            with weights.residency.on_device(name, 2):
                if name == "net":
                    weights.run(2)
        except RuntimeError:
            fails = False
        assert weights.there() == before
    assert not fails, "it was met"
    weights.fail = set()
    weights.parts["net"][1][2].module.forward = lambda x: 1 / x
    with pytest.raises(ZeroDivisionError), weights.residency.on_device("net", 2):
        weights.run()
    del weights.parts["net"][1][2].module.forward
    assert weights.there() == before
    with weights.residency.on_device("net"):
        weights.run()


@pytest.mark.parametrize("failing", [0, 3, 5, 100, 200])
def test_an_error_while_a_plan_is_applied(failing: int) -> None:
    weights = Weights()
    weights.fail = {failing}
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"no {failing}"):
            weights.residency.apply(weights.plan(1000))
    weights.fail = set()
    weights.residency.apply(weights.plan(1000))
    assert weights.there() == {0, 1, 2, 3, 4, 5, 100, 200}


def test_closing_lets_go_of_everything() -> None:
    weights = Weights()
    weights.residency.apply(weights.plan(70, 30))
    with weights.residency.on_device("net", 2):
        weights.run()
        weights.residency.close()
        assert weights.residency.pinned_bytes == 0
        weights.run()  # to its end
    assert weights.there() == set()
    assert weights.residency.device_bytes == 0


# With the bundled model

REQUESTS = {
    # As large as makes decoding, and not loading in whatever precision, what decides the least that they fit in.
    "text2image": [ImageRequest("a red apple", width=128, height=128, seed=1, steps=3)],
    "image2image": [
        ImageRequest("a cat", width=96, height=64, seed=2, steps=3, image=picture(96, 64), strength=0.7, steps_scale=True)
    ],
    "two with a LoRA": [
        ImageRequest("a red apple", width=64, height=64, seed=3, steps=2, style="anime"),
        ImageRequest("파란 배경의 고양이", width=64, height=128, seed=4, steps=3),
    ],
}  # fmt: skip

PLACES = {
    "resident": (PLENTY, PLENTY),
    "from the host": (0, PLENTY),
    "from the files": (0, 0),
    "some of each": (12 * MIB, 14 * MIB),
    "some from the files": (7 * MIB, 0),
}
"""Device bytes beyond the least, and bytes of copies on the host."""


@pytest.fixture(
    scope="module",
    params=[("float32", "full"), ("bfloat16", "full"), ("float32", "int8"), ("bfloat16", "int4")],
    ids=" ".join,
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    dtype, precision = request.param
    with open_small(dtype=dtype, precision=precision) as opened:
        yield opened


def test_pictures_do_not_depend_on_where_weights_lie(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {kind: bytes_of(engine, requests) for kind, requests in REQUESTS.items()}
    modes = set()
    for device_bytes, pinned in (*PLACES.values(), PLACES["resident"], PLACES["from the host"]):
        for kind, requests in REQUESTS.items():
            tightest = least(monkeypatch, engine, requests)
            with monkeypatch.context() as patch:
                give(patch, tightest + device_bytes, pinned)
                assert bytes_of(engine, requests) == expected[kind], (kind, device_bytes, pinned)
                assert engine.plan is not None
                modes |= {part.mode for part in engine.plan.parts}
                assert on_device_now(engine) == planned(engine)
                assert engine.plan.pinned_bytes <= residency_of(engine).pinned_bytes <= pinned
                assert residency_of(engine).device_bytes == sum(part.stays_bytes for part in engine.plan.parts)
    assert modes == {"resident", "streamed", "turn"}


def test_mixed_places_are_mixed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above met what its names say."""
    requests = REQUESTS["text2image"]
    tightest = least(monkeypatch, engine, requests)
    found = {}
    for name, (device_bytes, pinned) in PLACES.items():
        give(monkeypatch, tightest + device_bytes, pinned)
        bytes_of(engine, requests)
        assert engine.plan is not None
        denoiser = engine.plan.part("denoiser")
        away = len(model_of(engine).parts["denoiser"][1]) - len(denoiser.stays)
        found[name] = away, len(denoiser.pinned)
    assert found["resident"] == (0, 0)
    away, copies = found["from the host"]
    assert away == copies > SLOTS
    assert found["from the files"] == (away, 0)
    assert 0 <= found["some of each"][0] < away
    assert found["some from the files"][0] < away


def test_a_damaged_block_is_named_when_it_is_streamed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = REQUESTS["text2image"]
    expected = bytes_of(engine, requests)
    give(monkeypatch, least(monkeypatch, engine, requests), 0)
    bring = type(model_of(engine)).bring
    failing = model_of(engine).parts["denoiser"][1][4]

    def fail(self: Any, unit: Any, *others: Any) -> None:
        if unit is failing:
            raise OSError("the disk is gone")
        bring(self, unit, *others)

    residency = residency_of(engine)
    with monkeypatch.context() as patch:
        patch.setattr(residency, "_bring", fail.__get__(model_of(engine)))
        with pytest.raises(OSError, match="the disk is gone"):
            engine.generate_many(requests)
        assert on_device_now(engine) == planned(engine)
    assert bytes_of(engine, requests) == expected
