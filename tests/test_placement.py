"""Requests under a plan: memory that runs out all the same, requests that leave early, and several at once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
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
    placement_of,
    planned,
    residency_of,
)
from torch import Tensor

from hwaga import DeviceMemoryError, DoesNotFitError, Engine, ImageRequest, RequestError, Result, Step, placement
from hwaga.families import tiles
from hwaga.memory.residency import Residency

TEXT = ImageRequest("a red apple", width=64, height=64, seed=1, steps=3)
IMAGE = ImageRequest("a cat", width=96, height=64, seed=2, steps=2, image=picture(96, 64), strength=0.9)
WITH_LORA = ImageRequest("a red apple", width=64, height=32, seed=3, steps=1, style="anime")
BATCH = [TEXT, IMAGE, WITH_LORA]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_small() as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[bytes]:
    """The pictures of the batch, with room for everything."""
    return bytes_of(engine, BATCH)


@pytest.fixture(scope="module")
def tightest(engine: Engine) -> int:
    """Bytes that the batch fits in at all."""
    with pytest.MonkeyPatch.context() as patch:
        return least(patch, engine, BATCH)


@pytest.fixture(autouse=True)
def less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a second plan does without, at the size of this model."""
    monkeypatch.setattr(placement, "LESS", 8 * MIB)


def within_plan(engine: Engine) -> bool:
    """Whether no more than what is to stay is on the device; a part that is in use is not filled up meanwhile."""
    stays = planned(engine)
    return all(places <= stays[name] for name, places in on_device_now(engine).items())


class Failing:
    """Calls of one kind, of which some run out of memory."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, fails: set[int]) -> None:
        self.calls = 0
        """Those that began, from 1."""
        original = getattr(owner, name)

        def call(*arguments: Any, **others: Any) -> Any:
            self.calls += 1
            if self.calls in fails:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(*arguments, **others)

        patch.setattr(owner, name, call)


PIECES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "in the text encoder": (lambda model: model.text_encoder.layers[1], 1),
    "in the refiner": (lambda model: model.transformer.context_refiner[0], 1),
    "reading a picture": (lambda model: model.autoencoder.encoder.mid_block, 1),
    "in the modulation": (lambda model: model.transformer.t_embedder, 1),
    "in the first block of the first step": (lambda model: model.transformer.noise_refiner[0], 1),
    "in the first block of the third step": (lambda model: model.transformer.noise_refiner[0], 3),
    "in the middle of the third step": (lambda model: model.transformer.layers[3], 3),
    "at the end of the last step": (lambda model: model.transformer.final_layer, 3),
    "in the second picture's decoding": (lambda model: model.autoencoder.decoder.up_blocks[2], 2),
}


def test_networks_run_with_their_device_as_the_current_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever gets the steps meanwhile finds the one that was current before."""
    inside = list[torch.device]()

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr(placement, "current", current)
    model, ran = model_of(engine), list[str]()

    def seen(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            assert inside == [engine.device], name
            ran.append(name)

        return hook

    networks = {"text": model.text_encoder.layers[0], "refiner": model.transformer.context_refiner[0],
                "denoiser": model.transformer.layers[0], "encoder": model.autoencoder.encoder,
                "decoder": model.autoencoder.decoder}  # fmt: skip
    hooks = [network.register_forward_pre_hook(seen(name)) for name, network in networks.items()]
    try:
        model.forget()
        for _ in engine.stream(IMAGE):
            assert not inside
    finally:
        for hook in hooks:
            hook.remove()
    assert set(ran) == set(networks)


@pytest.mark.parametrize("tight", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("where", PIECES)
def test_out_of_memory_goes_on_from_there(
    where: str, tight: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch, tightest: int, expected: list[bytes]
) -> None:
    find, at = PIECES[where]
    give(monkeypatch, tightest + (20 * MIB if tight else 300 * MIB), PLENTY)
    bytes_of(engine, BATCH)
    before = engine.plan
    assert before is not None
    assert (before.part("denoiser").mode == "streamed") is tight
    model = model_of(engine)
    model.forget()
    with monkeypatch.context() as patch:
        steps = Failing(patch, model.transformer, "forward", set())
        failing = Failing(patch, find(model), "forward", {at})
        encodes = Failing(patch, model.autoencoder, "encode", set())
        decodes = Failing(patch, model.autoencoder, "decode", set())
        assert bytes_of(engine, BATCH) == expected
    assert failing.calls >= at
    assert steps.calls == 3 + ("step" in where), "only the step that failed is made again"
    assert encodes.calls == 1 + ("reading" in where)
    assert decodes.calls == 3 + ("decoding" in where)
    after = engine.plan
    assert after is not None
    assert after.device_bytes <= before.device_bytes - placement.LESS, "with less than there seemed to be"
    assert within_plan(engine)
    assert bytes_of(engine, BATCH) == expected
    assert engine.plan is not None
    assert engine.plan.budget == before.budget, "what is free now counts for the next request"


@pytest.mark.parametrize("where", PIECES)
def test_twice_is_an_error_and_the_engine_goes_on(
    where: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, tightest: int, expected: list[bytes]
) -> None:
    find, at = PIECES[where]
    give(monkeypatch, tightest + 300 * MIB, PLENTY)
    model_of(engine).forget()
    with monkeypatch.context() as patch:
        # A block runs once for each picture before the batch is packed: all calls from there on.
        failing = Failing(patch, find(model_of(engine)), "forward", set(range(at, 100)))
        with pytest.raises(DeviceMemoryError, match="ran out of memory") as refused:
            engine.generate_many(BATCH)
    assert failing.calls == at + 1, "tried once more, and no more"
    assert refused.value.__context__ is None, "torch's error would hold on to what was computed"
    assert within_plan(engine)
    assert not torch.is_inference_mode_enabled()
    assert bytes_of(engine, BATCH) == expected


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_while_weights_are_brought_in(
    times: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory was there when the plan was made, and is not when the weights arrive."""
    expected = bytes_of(engine, [TEXT])
    give(monkeypatch, least(monkeypatch, engine, [TEXT]) + 9 * MIB)
    bytes_of(engine, [TEXT])
    give(monkeypatch, PLENTY)
    with monkeypatch.context() as patch:
        failing = Failing(patch, residency_of(engine), "_bring", {1, 2} if times == 2 else {1})
        if times == 1:
            assert bytes_of(engine, [TEXT]) == expected
        else:
            with pytest.raises(DeviceMemoryError):
                engine.generate(TEXT)
        assert failing.calls >= times
    assert bytes_of(engine, [TEXT]) == expected
    assert within_plan(engine)


def test_no_room_for_a_second_plan(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bytes_of(engine, [TEXT])
    give(monkeypatch, least(monkeypatch, engine, [TEXT]))
    model_of(engine).forget()
    with monkeypatch.context() as patch:
        failing = Failing(patch, model_of(engine).transformer, "forward", {2})
        with pytest.raises(DeviceMemoryError, match="Close what else uses it, make the picture smaller"):
            engine.generate(TEXT)
    assert failing.calls == 2
    assert bytes_of(engine, [TEXT]) == expected


# Leaving early


def live_bytes() -> int:
    gc.collect()
    seen = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


@pytest.mark.parametrize("tight", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("taken", [1, 2, 3])
def test_a_request_that_is_cancelled_gives_all_back(
    taken: int, tight: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch, tightest: int
) -> None:
    give(monkeypatch, tightest + (20 * MIB if tight else PLENTY), PLENTY)
    engine.generate_many(BATCH)
    engine.generate_many(BATCH)  # with what is kept of the first
    before, places = live_bytes(), on_device_now(engine)
    events = engine.stream_many(BATCH)
    for _ in range(taken):
        assert isinstance(next(events), Step)
    assert live_bytes() > before
    events.close()
    assert on_device_now(engine) == places == planned(engine)
    del events
    assert live_bytes() == before


@pytest.mark.parametrize("tight", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("where", PIECES)
def test_a_request_that_fails_gives_all_back(
    where: str, tight: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch, tightest: int, expected: list[bytes]
) -> None:
    give(monkeypatch, tightest + (20 * MIB if tight else PLENTY), PLENTY)
    model_of(engine).forget()
    for _ in range(2):
        engine.generate_many(BATCH)
    before = live_bytes()
    model_of(engine).forget()
    find, at = PIECES[where]
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    hook = find(model_of(engine)).register_forward_pre_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate_many(BATCH)
    finally:
        hook.remove()
    assert calls == at
    assert on_device_now(engine) == planned(engine)
    assert bytes_of(engine, BATCH) == expected
    engine.generate_many(BATCH)  # with the prompts known again, as before
    assert live_bytes() == before


# Several at once


def results_of(streams: list[Iterator[Step | Result]]) -> list[bytes]:
    """All of them, an event of each in turn."""
    found: dict[int, bytes] = {}
    while len(found) < len(streams):
        for i, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Result):
                found[i] = event.image.tobytes()
    return [found[i] for i in range(len(streams))]


@pytest.mark.parametrize(("beyond", "pinned"), [(0, 0), (10 * MIB, 30 * MIB), (40 * MIB, PLENTY)])
def test_interleaved_streams_under_a_tight_plan(
    beyond: int, pinned: int, engine: Engine, monkeypatch: pytest.MonkeyPatch, tightest: int
) -> None:
    expected = [engine.generate(request).image.tobytes() for request in BATCH]
    give(monkeypatch, tightest + beyond, pinned)
    assert results_of([engine.stream(request) for request in BATCH]) == expected
    assert within_plan(engine)


def test_a_stream_keeps_its_own_tiles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is planned for those that run beside it."""
    wide = ImageRequest("a wide cat", width=640, height=64, seed=5, steps=2)
    monkeypatch.setattr(tiles, "TILES", (256,))
    tightest = least(monkeypatch, engine, [wide])
    give(monkeypatch, tightest)
    tiled = engine.generate(wide).image.tobytes()
    assert engine.plan is not None
    assert engine.plan.tile("decode") == 256
    expected = [tiled, engine.generate(TEXT).image.tobytes()]
    assert engine.plan.tile("decode") is None
    assert results_of([engine.stream(wide), engine.stream(TEXT)]) == expected
    assert results_of([engine.stream(TEXT), engine.stream(wide)]) == expected[::-1]
    give(monkeypatch, PLENTY)
    assert engine.generate(wide).image.tobytes() != tiled, "tiles are not exact, so it can be told"


def test_a_request_s_own_plan_holds_when_it_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made in between, with more room, leaves more on the device than its plan allows."""
    large = ImageRequest("a cat", width=640, height=384, seed=5, steps=2)
    give(monkeypatch, least(monkeypatch, engine, [large]) + 2 * MIB)
    expected = engine.generate(large).image.tobytes()
    events = engine.stream(large)
    next(events)
    own = engine.plan
    assert own is not None
    weights = residency_of(engine).device_bytes
    give(monkeypatch, PLENTY)
    engine.generate(TEXT)
    assert residency_of(engine).device_bytes > weights
    *_, result = events
    assert engine.plan is own
    assert residency_of(engine).device_bytes == weights
    assert isinstance(result, Result)
    assert result.image.tobytes() == expected


def test_a_stream_that_outlives_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_small() as engine:
        expected = engine.generate(TEXT).image.tobytes()
        give(monkeypatch, least(monkeypatch, engine, [TEXT]) + 20 * MIB)
        events = engine.stream(TEXT)
        next(events)
        residency, model = residency_of(engine), model_of(engine)
    *_, result = events
    assert isinstance(result, Result)
    assert result.image.tobytes() == expected
    assert residency.device_bytes == residency.pinned_bytes == 0
    assert all(parameter.device.type == "meta" for parameter in model.transformer.parameters())


# What does not fit


def test_refused_before_any_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any) -> None:
        pytest.fail("work was begun")

    large = TEXT.replace(width=512, height=512)
    batch = [large.replace(seed=i) for i in range(3)]
    one, two = (least(monkeypatch, engine, batch[:count]) for count in (1, 2))
    assert two > one
    for name in ("encode_prompts", "encode_pixels", "denoising", "decode_latents", "adapters"):
        monkeypatch.setattr(model_of(engine), name, work)
    monkeypatch.setattr(Residency, "apply", work)
    give(monkeypatch, two)
    with pytest.raises(DoesNotFitError, match=r"2 of these pictures at a time would fit\."):
        engine.generate_many(batch)
    give(monkeypatch, one - 1)
    with pytest.raises(DoesNotFitError, match=r"One picture of 384x384 would fit\.") as refused:
        engine.generate(large)
    assert refused.value.needed == one
    assert isinstance(refused.value, RequestError)
    give(monkeypatch, 1)
    with pytest.raises(DoesNotFitError, match="keep weights in fewer bits with --precision int8"):
        engine.generate(TEXT)


def test_the_least_is_enough(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for requests in ([TEXT], BATCH):
        give(monkeypatch, PLENTY)
        expected = bytes_of(engine, requests)
        needed = least(monkeypatch, engine, requests)
        give(monkeypatch, needed)
        assert bytes_of(engine, requests) == expected
        model_of(engine).forget()
        give(monkeypatch, needed - 1)
        with pytest.raises(DoesNotFitError):
            engine.generate_many(requests)


def test_loras_of_other_requests_leave_for_one_that_needs_their_room(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(engine, [TEXT])
    needed = least(monkeypatch, engine, [TEXT])
    engine.generate(WITH_LORA)
    assert model_of(engine).loras.kept.nbytes > 0
    give(monkeypatch, needed)
    assert bytes_of(engine, [TEXT]) == expected
    assert model_of(engine).loras.kept.nbytes == 0
    assert placement_of(engine).plan is engine.plan
