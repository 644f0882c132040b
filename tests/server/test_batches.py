"""Jobs that are drawn together: whose turn it is, and what becomes of the others when one is cancelled or kills its worker."""

from __future__ import annotations

import io
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dispatching import REAL, all_events, dispatching, ended, held, run, until
from PIL import Image

from hwaga.engine import Engine
from hwaga.errors import DeviceMemoryError, DoesNotFitError, LoraError, SizeError, StoreError
from hwaga.memory.plan import Budget
from hwaga.placement import Work
from hwaga.request import ImageRequest
from hwaga.result import Step
from hwaga.server import batch as module
from hwaga.server import process, wire, worker
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.jobs import Job, Kind
from hwaga.server.store import SqliteStore

pytestmark = pytest.mark.usefixtures("fake_worker")


async def crowd(dispatcher: Dispatcher, folder: Path, owners: str, *bodies: dict[str, Any]) -> list[Job]:
    """Submits jobs of owners while the only worker is busy, and lets it go on when all of them wait."""
    gate = folder / "gate"
    first = await dispatcher.submit("text2image", {"until": str(gate), "log": str(folder / "begun")}, owner="first")
    await until((folder / "begun").exists)  # once it is held, others may still come into its batch
    log = {"log": str(folder / "log")}
    jobs = []
    for place, owner in enumerate(owners):
        jobs.append(await dispatcher.submit("text2image", (bodies[place] if bodies else {}) | log, owner=owner))
    gate.touch()
    await ended(dispatcher, first)
    return jobs


def sizes(folder: Path) -> list[int]:
    """How many jobs were drawn together, for each job in the order of their starts."""
    return [int(line) for line in (folder / "log").read_text().split()]


@pytest.mark.parametrize(("batch", "together"), [(1, [1] * 7), (3, [3, 3, 3, 3, 3, 3, 1])])
def test_owners_take_turns_whatever_is_drawn_together(tmp_path: Path, batch: int, together: list[int]) -> None:
    async def test() -> None:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        async with dispatching(tmp_path / "server", batch=batch) as dispatcher:
            dispatcher.on_step = count
            jobs = await crowd(dispatcher, tmp_path, "aaaabbc")
            told = [await all_events(dispatcher, job) for job in jobs]
            assert all(found[-1].kind == "succeeded" for found in told)
            starts = [(event.id, event.job.owner) for found in told for event in found if event.kind == "started"]
            assert "".join(owner for _, owner in sorted(starts)) == "abcabaa"
            assert sizes(tmp_path) == together
            assert steps == 2 * 8

    run(test)


def test_what_is_not_drawn_together(tmp_path: Path) -> None:
    def body(steps: int | None = None, number: int = 1) -> dict[str, Any]:
        return {"request": {"prompt": "", "steps": steps}, "number": number}

    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=4) as dispatcher:
            bodies = [body(8), body(8), body(4), body(4, 3), body(4), body(None, 9), body(), body()]
            jobs = await crowd(dispatcher, tmp_path, "a" * len(bodies), *bodies)
            for job in jobs:
                assert (await ended(dispatcher, job)).status == "succeeded"
            assert sizes(tmp_path) == [2, 2, 2, 2, 1, 1, 2, 2]

    run(test)


def test_a_job_that_starts_from_a_picture_is_drawn_alone(tmp_path: Path) -> None:
    log = {"log": str(tmp_path / "log")}

    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=4) as dispatcher:
            gate = tmp_path / "gate"
            await dispatcher.submit("text2image", {"until": str(gate), "log": str(tmp_path / "begun")})
            await until((tmp_path / "begun").exists)
            kinds: list[Kind] = ["text2image", "text2image", "image2image", "image2image", "text2image"]
            jobs = [
                await dispatcher.submit(kind, log, source=b"a cat" if kind == "image2image" else None) for kind in kinds
            ]
            gate.touch()
            for job in jobs:
                assert (await ended(dispatcher, job)).status == "succeeded"
            assert sizes(tmp_path) == [2, 2, 1, 1, 1]

    run(test)


def test_one_of_a_batch_is_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=3) as dispatcher:
            bodies = [{"steps": 6, "delay": 0.01}, {"steps": 10_000, "delay": 0.01}, {"steps": 6, "delay": 0.01}]
            jobs = await crowd(dispatcher, tmp_path, "abc", *bodies)
            async for event in dispatcher.events(jobs[1].id):
                if event.kind == "step" and event.job.progress[0] == 2:
                    await dispatcher.cancel(jobs[1].id)
            assert event.kind == "cancelled"
            assert event.job.progress[0] < 100
            assert [(await ended(dispatcher, job)).status for job in jobs] == ["succeeded", "cancelled", "succeeded"]
            assert sizes(tmp_path) == [3, 3, 3]

    run(test)


def test_one_of_a_batch_kills_the_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=3) as dispatcher:
            jobs = await crowd(dispatcher, tmp_path, "abc", {"steps": 4}, {"way": "die"}, {"steps": 4})
            done = [await ended(dispatcher, job) for job in jobs]
            assert [(job.status, job.attempt) for job in done] == [("succeeded", 2), ("failed", 3), ("succeeded", 2)]
            assert sizes(tmp_path) == [3, 3, 3, 1, 1, 1, 1]

    run(test)


def test_who_says_nothing_for_long_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", 0.15)
    monkeypatch.setattr("hwaga.server.store.LEASE", 0.5)

    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=2) as dispatcher:
            bodies = [{"steps": 150, "delay": 0.01}, {"steps": 1, "turns": 145}]
            jobs = await crowd(dispatcher, tmp_path, "ab", *bodies)
            done = [await ended(dispatcher, job) for job in jobs]
            assert [(job.status, job.attempt) for job in done] == [("succeeded", 1)] * 2

    run(test)


@pytest.mark.parametrize("way", ["die", "finish"])
def test_a_store_that_fails_when_a_batch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What could not be given back waits for the end of its lease, and is tried again; what could not be kept has failed."""
    monkeypatch.setattr(module, "LEASE", 0.3)
    monkeypatch.setattr("hwaga.server.store.LEASE", 0.5)
    failing, failed = SqliteStore.release if way == "die" else SqliteStore.finish, list[str]()

    def fail(store: SqliteStore, job: str, *arguments: Any, **more: Any) -> Job:
        if job not in failed:
            failed.append(job)
            raise StoreError("The disk is broken.")
        return failing(store, job, *arguments, **more)

    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=2) as dispatcher:
            once = {"way": "die once", "mark": str(tmp_path / "mark"), "steps": 3}
            with monkeypatch.context() as patch:
                patch.setattr(SqliteStore, failing.__name__, fail)
                (job,) = await crowd(dispatcher, tmp_path, "a", once if way == "die" else {})
                done = await ended(dispatcher, job)
            if way == "die":
                assert (done.status, done.attempt, failed) == ("succeeded", 2, [job.id])
            else:
                assert done.error == ("StoreError", "The disk is broken.")

    run(test)


def test_stopping_gives_a_batch_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path / "server", batch=2) as dispatcher:
            slow = {"steps": 10_000, "delay": 0.01}
            jobs = await crowd(dispatcher, tmp_path, "ab", slow, slow)
            await until(lambda: len(held(dispatcher)) == 2)
            await dispatcher.drain(0)
            found = [await dispatcher.call(dispatcher.store.get, job.id) for job in jobs]
            assert [(job.status, job.attempt) for job in found] == [("queued", 1)] * 2

    run(test)


class Refusing:
    """An engine that fails as often as it is asked for more than one picture, after a step."""

    class Device:
        type = "cpu"

    device = Device()

    def __init__(self, error: Exception, poison: str | None = None) -> None:
        self.error, self.poison, self.calls = error, poison, list[list[str]]()

    def resolve(self, request: ImageRequest) -> ImageRequest:
        return request

    def at_once(self, requests: list[ImageRequest]) -> int:
        return len(requests)

    def stream_many(self, requests: list[ImageRequest]) -> Iterator[Any]:
        self.calls.append([request.prompt for request in requests])
        yield Step(1, 2, 0.5, (2,) * len(requests), lambda _: None)
        if len(requests) > 1 or requests[0].prompt == self.poison:
            raise self.error
        yield Step(2, 2, 0.0, (2,), lambda _: None)
        yield [Drawn()]


class Drawn:
    image = Image.new("RGB", (16, 16))


@pytest.mark.parametrize("error", [DeviceMemoryError("cpu ran out of memory."), RuntimeError("a fault of ours")])
@pytest.mark.parametrize("poison", [None, "b"])
def test_a_batch_that_fails_is_drawn_one_by_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, poison: str | None
) -> None:
    monkeypatch.setattr(worker, "encode_result", lambda result, format: b"a picture")
    ours, theirs = socket.socketpair()
    engine = Refusing(error, poison)
    batch = [
        wire.Draw(name, 1, {"request": {"prompt": name}, "number": number})
        for name, number in (("a", 1), ("b", 1), ("c", 1))
    ]
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        with ours.makefile("rb") as stream:
            while (message := wire.receive(stream)) is not None:
                said.put(message)
        said.put(None)

    thread = threading.Thread(target=listen)
    thread.start()
    with theirs:
        worker.Worker(theirs)._draw(cast(Any, engine), batch, 2)
    thread.join()
    ours.close()
    assert engine.calls == [["a", "b"], ["a"], ["b"], ["c"]]
    messages: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    for message in iter(said.get, None):
        messages[message.job].append(message)
    whole = ["Progress", "Progress", "Picture", "Finished"]
    for name, found in messages.items():
        kinds = [type(message).__name__ for message in found]
        assert kinds == (["Progress", "Failed"] if name == poison else whole)
        assert [(told.step, told.total) for told in found if isinstance(told, wire.Progress)] == [(1, 2), (2, 2)][
            : kinds.count("Progress")
        ]


def test_the_real_worker_draws_jobs_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", REAL)
    wishes = [
        {"prompt": "a red apple on a yellow background", "steps": 4, "seed": 7, "width": 256, "height": 256},
        {"prompt": "파란 배경의 고양이", "steps": 4, "seed": 8, "width": 256, "height": 256},
    ]

    async def test() -> None:
        async with dispatching(tmp_path, models=["mini"], devices=("cpu",), dtype="float32", batch=3) as dispatcher:
            bodies = [{"request": wishes[0], "number": 2, "previews": True}, {"request": wishes[1], "previews": True}]
            jobs = [await dispatcher.submit("text2image", body, owner=str(body)) for body in bodies]
            told = [await all_events(dispatcher, job) for job in jobs]
            assert [found[-1].kind for found in told] == ["succeeded"] * 2
            starts = sorted(event.id for found in told for event in found if event.kind == "started")
            assert starts[-1] < min(event.id for found in told for event in found if event.kind == "step")
            finals, previews = [], []
            for found in told:
                steps = [event for event in found if event.kind == "step"]
                assert [event.job.progress[0] for event in steps] == list(range(1, len(steps) + 1))
                images = found[-1].job.images
                for place, image in enumerate(images):
                    own = [event for event in steps if event.picture == place]
                    assert [event.own_step for event in own] == [1, 2, 3, 4]
                    _, data = await dispatcher.call(dispatcher.store.picture, image)
                    finals.append(small(data))
                    previews.append(small(own[-1].preview))
            # Each preview is of its own picture.
            for place, preview in enumerate(previews):
                distances = [float(np.abs(preview - final).mean()) for final in finals]
                assert distances.index(min(distances)) == place, distances

    run(test)


def small(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32)


def test_the_limit_of_a_batch() -> None:
    engine: Any = Refusing(RuntimeError())
    requests = [ImageRequest("a fox")] * 5
    assert [worker.pictures_at_once(engine, requests, most) for most in (1, 4, 9)] == [1, 4, 5]
    assert worker.pictures_at_once(engine, requests[:1], 4) == 1

    def refuse(_: object) -> int:
        raise LoraError("There is no LoRA 'a'.")

    engine.at_once = refuse
    assert worker.pictures_at_once(engine, requests, 4) == 1


def test_memory_decides_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [ImageRequest("a fox", steps=8)] * 4
    with Engine.open("mini", device="cpu") as engine:
        placement = engine._opened()
        pictures = [engine._resolver.resolve(request).picture for request in requests]
        asked = Work(pictures, 8)
        with pytest.raises(DoesNotFitError) as refused:
            placement._made(replace(asked, pictures=pictures[:1]), Budget("cuda", 0, 2**30))
        roomy = placement._made(asked, Budget("cuda", 2**40, 2**30)).device_bytes
        found = []
        for device_bytes in (*range(refused.value.needed - 1, roomy, 2**18), roomy):
            budget = Budget("cuda", device_bytes, 2**30)
            monkeypatch.setattr(placement, "budget", lambda budget=budget: budget)
            moved = [placement._moved(replace(asked, pictures=pictures[:count])) for count in (1, 2, 3, 4)]
            found.append((engine.at_once(requests), moved))
        with pytest.raises(SizeError):
            engine.at_once([*requests, ImageRequest("a fox", width=17, height=17)])
    assert found[0] == (1, [None] * 4)
    assert found[-1] == (4, [0] * 4)
    # All weights stay for one picture and would have to move for two: one at a time.
    assert {count for count, moved in found if moved[0] == 0 and moved[1]} == {1}
    # Where they move for one as well, they move for as many as there is room for.
    assert {count for count, moved in found if moved[0] and None in moved} <= {1, 2, 3}
    assert {count for count, moved in found if moved[0] and moved[0] == moved[3]} == {4}
