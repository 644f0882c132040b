"""The dispatcher with workers that fail in every way, and with the real one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dispatching import REAL, all_events, dispatching, ended, held, run, until
from PIL import Image

from hwaga.errors import StoreError, StoreFullError, UnknownJobError
from hwaga.image_file import read_settings
from hwaga.server import batch, process
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.jobs import TERMINAL, Job
from hwaga.server.pictures import SqlitePictures
from hwaga.server.store import SqliteStore

pytestmark = pytest.mark.usefixtures("fake_worker")


def pid(dispatcher: Dispatcher) -> int:
    worker = dispatcher._supervisors[0].worker
    assert worker is not None
    return worker._process.pid


def test_a_job_is_drawn_and_told_of(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            job = await dispatcher.submit("image2image", {"steps": 3}, source=b"a cat")
            told = await all_events(dispatcher, job)
            assert [event.kind for event in told if event.kind != "queued"] == ["started", *["step"] * 3, "succeeded"]
            steps = [event for event in told if event.kind == "step"]
            assert [event.job.progress for event in steps] == [(1, 3), (2, 3), (3, 3)]
            assert [event.preview for event in steps] == [b"preview 1", b"preview 2", b"preview 3"]
            assert dispatcher.ready
            done = told[-1].job
            assert done == await dispatcher.call(dispatcher.store.get, job.id)
            assert await dispatcher.call(dispatcher.store.picture, done.images[0]) == (job.id, b"picture of a cat")
            # Whoever comes back gets what was missed, in the same order and under the same ids.
            ids = [event.id for event in told]
            assert ids == sorted(set(ids))
            for place, event in enumerate(told):
                assert await all_events(dispatcher, job, after=event.id) == told[place + 1 :]
            with pytest.raises(UnknownJobError):
                await all_events(dispatcher, Job(**{**vars(job), "id": "nothing"}))
        async with dispatching(tmp_path) as later:  # of which nothing but the end is known after another start
            (end,) = await all_events(later, job, after=ids[-1])
            assert (end.kind, end.job) == ("succeeded", done)

    run(test)


def test_places_in_the_queue(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            jobs = [await dispatcher.submit("text2image", {"delay": 0.05}) for _ in range(3)]
            last = await all_events(dispatcher, jobs[-1])
            places = [event.position for event in last if event.kind == "queued"]
            assert places == sorted(set(places), reverse=True)  # type: ignore[type-var]
            assert places[-1] == 0
            assert last[-1].kind == "succeeded"

    run(test)


def test_a_failed_job_leaves_the_worker_as_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            failed = await ended(dispatcher, await dispatcher.submit("text2image", {"way": "fail"}))
            assert failed.error == ("SizeError", "No such size.")
            first = pid(dispatcher)
            assert (await ended(dispatcher, await dispatcher.submit("text2image", {}))).status == "succeeded"
            assert pid(dispatcher) == first

    run(test)


def test_a_job_whose_worker_died_is_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            body = {"way": "die once", "mark": str(tmp_path / "mark")}
            once = await ended(dispatcher, await dispatcher.submit("text2image", body))
            assert (once.status, once.attempt) == ("succeeded", 2)
            for way in ("die", "babble"):
                always = await ended(dispatcher, await dispatcher.submit("text2image", {"way": way}))
                assert (always.status, always.attempt) == ("failed", 3)
                assert always.error is not None
                assert "tried 3 times" in always.error[1]
            assert (await ended(dispatcher, await dispatcher.submit("text2image", {}))).status == "succeeded"

    run(test)


def test_killing_workers_at_random_ends_each_job_once(tmp_path: Path) -> None:
    async def test() -> None:
        chance = random.Random(1)
        async with dispatching(tmp_path, devices=(None, None)) as dispatcher:
            jobs = [
                await dispatcher.submit(
                    "text2image", {"steps": 5, "delay": 0.02, "number": number}, owner=str(number % 3)
                )
                for number in range(10)
            ]
            told = [asyncio.create_task(all_events(dispatcher, job)) for job in jobs]
            for _ in range(12):
                await asyncio.sleep(chance.random() * 0.2)
                worker = chance.choice(dispatcher._supervisors).worker
                if worker is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker._process.pid, signal.SIGKILL)
            for job, found in zip(jobs, await asyncio.gather(*told), strict=True):
                assert [event.job.status in TERMINAL for event in found].count(True) == 1
                assert found[-1].job == await dispatcher.call(dispatcher.store.get, job.id)
                assert found[-1].job.status in ("succeeded", "failed")
                assert len(found[-1].job.images) == (found[-1].job.status == "succeeded")
            counts = await dispatcher.call(dispatcher.store.counts)
            assert counts["succeeded"] + counts["failed"] == len(jobs)
            assert counts["succeeded"] > 0

    run(test)


def test_cancelling(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            running = await dispatcher.submit("text2image", {"steps": 10_000, "delay": 0.01})
            waiting = await dispatcher.submit("text2image", {})
            told = []
            async for event in dispatcher.events(running.id):
                told.append(event)
                if event.kind == "step" and event.job.progress[0] == 2:
                    assert (await dispatcher.cancel(waiting.id)).status == "cancelled"
                    assert (await dispatcher.cancel(running.id)).cancel_requested
            assert told[-1].kind == "cancelled"
            assert told[-1].job.images == ()
            assert (await ended(dispatcher, waiting)).status == "cancelled"
            assert (await dispatcher.cancel(running.id)).status == "cancelled"

    run(test)


def test_a_cancellation_by_another_process_is_heard(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            job = await dispatcher.submit("text2image", {"steps": 10_000, "delay": 0.01})
            await until(lambda: held(dispatcher))
            with closing(SqliteStore(tmp_path)) as other:
                other.cancel(job.id)
            assert (await ended(dispatcher, job)).status == "cancelled"

    run(test)


@pytest.mark.parametrize(("way", "same_worker"), [("finish", True), ("hang", False)])
def test_a_job_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, same_worker: bool) -> None:
    if way == "hang":
        monkeypatch.setattr(batch, "GRACE", 0.05)

    async def test() -> None:
        async with dispatching(tmp_path, job_timeout=0.2) as dispatcher:
            await until(lambda: dispatcher.ready)
            first = pid(dispatcher)
            job = await ended(
                dispatcher, await dispatcher.submit("text2image", {"way": way, "steps": 500, "delay": 0.01})
            )
            assert job.status == "failed"
            assert job.error is not None
            assert job.error[0] == "JobTimeoutError"
            assert job.attempt == 1
            assert (await ended(dispatcher, await dispatcher.submit("text2image", {}))).status == "succeeded"
            assert (pid(dispatcher) == first) == same_worker

    run(test)


def test_a_worker_that_hangs_while_it_loads_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        plan = {"steps": 1, "delay": 0, "way": "hang", "mark": str(tmp_path / "hung"), "until": str(tmp_path / "go")}
        async with dispatching(tmp_path, models=[json.dumps(plan)]) as dispatcher:
            job = await dispatcher.submit("text2image", {})
            await until((tmp_path / "hung").exists)
            # From the first message on: what a start takes is the machine's affair.
            dispatcher._supervisors[0]._load_timeout = 0.5
            (tmp_path / "go").touch()
            await until(lambda: dispatcher.problems)
            assert "no further with loading the model for 0.5 s" in dispatcher.problems[0]
            dispatcher._supervisors[0]._load_timeout = 60.0
            assert (await ended(dispatcher, job)).status == "succeeded"
            assert dispatcher.problems == []
            assert dispatcher.restarts >= 1

    run(test)
    assert "--load-timeout" in caplog.text


def test_a_worker_that_loads_for_long_is_left_alone(tmp_path: Path) -> None:
    """Between two messages it takes less than the limit, and in all more."""

    async def test() -> None:
        plan = {"steps": 10, "delay": 0.25, "mark": str(tmp_path / "begun"), "until": str(tmp_path / "go")}
        async with dispatching(tmp_path, models=[json.dumps(plan)]) as dispatcher:
            job = await dispatcher.submit("text2image", {})
            await until((tmp_path / "begun").exists)
            dispatcher._supervisors[0]._load_timeout = 2.0
            (tmp_path / "go").touch()
            assert (await ended(dispatcher, job)).status == "succeeded"
            assert dispatcher.restarts == 0

    run(test)


def test_a_long_step_does_not_lose_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LEASE", 0.15)
    monkeypatch.setattr("hwaga.server.store.LEASE", 0.5)

    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            job = await ended(dispatcher, await dispatcher.submit("text2image", {"steps": 1, "delay": 1.5}))
            assert (job.status, job.attempt) == ("succeeded", 1)

    run(test)


def test_stopping_waits_for_what_runs_and_keeps_the_queue(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            running = await dispatcher.submit("text2image", {"steps": 20, "delay": 0.01})
            waiting = await dispatcher.submit("text2image", {})
            told = [asyncio.create_task(all_events(dispatcher, job)) for job in (running, waiting)]
            await until(lambda: held(dispatcher))
            await dispatcher.stop(50)
            assert not dispatcher.ready
            assert [found[-1].kind for found in await asyncio.gather(*told)] == ["succeeded", "queued"]
        async with dispatching(tmp_path) as later:
            assert (await ended(later, waiting)).status == "succeeded"

    run(test)


def test_stopping_at_once_gives_the_job_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            job = await dispatcher.submit("text2image", {"steps": 10_000, "delay": 0.01})
            await until(lambda: held(dispatcher))
            worker = pid(dispatcher)
            await dispatcher.stop(0)
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)
        with closing(SqliteStore(tmp_path)) as store:
            assert store.get(job.id).status == "queued"
            with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as db:
                assert db.execute("SELECT lost FROM jobs").fetchone() == (0,)

    run(test)


def test_the_jobs_of_a_killed_server_are_drawn(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path, boot="before the power went")) as store:
        job = store.submit("text2image", {})
        store.claim("a worker that is gone")

    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            found = await ended(dispatcher, job)
            assert (found.status, found.attempt) == ("succeeded", 2)

    run(test)


def test_a_worker_that_cannot_start_is_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with dispatching(tmp_path, models=[str(tmp_path / "starts")]) as dispatcher:
            job = await dispatcher.submit("text2image", {})
            problems: list[str] = []
            while not dispatcher.ready:
                problems += [problem for problem in dispatcher.problems if problem not in problems]
                await asyncio.sleep(0.001)
            assert problems[0] == "There is no such model."
            assert "ended before it was ready" in problems[1]
            assert dispatcher.problems == []
            assert (await ended(dispatcher, job)).status == "succeeded"

    run(test)


def test_a_worker_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (str(tmp_path / "nothing"),))

    async def test() -> None:
        async with dispatching(tmp_path / "server") as dispatcher:
            job = await dispatcher.submit("text2image", {})
            await until(lambda: dispatcher.problems)
            assert "cannot start" in dispatcher.problems[0]
            assert not dispatcher.ready
            monkeypatch.undo()
            monkeypatch.setattr(process, "WORKER", (sys.executable, str(Path(__file__).with_name("fake_worker.py"))))
            assert (await ended(dispatcher, job)).status == "succeeded"

    run(test)


@pytest.mark.parametrize("error", [StoreFullError("The disk is full."), StoreError("The disk is broken.")])
def test_a_picture_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StoreError) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            with monkeypatch.context() as patch:
                patch.setattr(SqlitePictures, "keep", fail)
                job = await ended(dispatcher, await dispatcher.submit("text2image", {}))
            assert job.error == (type(error).__name__, str(error))
            assert (await ended(dispatcher, await dispatcher.submit("text2image", {}))).status == "succeeded"

    run(test)


def test_a_store_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        raise StoreError("The disk is broken.")

    async def test() -> None:
        async with dispatching(tmp_path) as dispatcher:
            with monkeypatch.context() as patch:
                for name in ("claim", "reap", "expire", "queue"):
                    patch.setattr(SqliteStore, name, fail)
                job = await dispatcher.submit("text2image", {})
                await until(lambda: len(calls) > 5)
            with monkeypatch.context() as patch:
                patch.setattr(SqliteStore, "renew", fail)
                assert (await ended(dispatcher, job)).status == "succeeded"

    run(test)


def test_the_real_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(process, "WORKER", REAL)
    request = {"prompt": "a red apple", "steps": 1, "seed": 7}
    source = io.BytesIO()
    Image.new("RGB", (256, 256), "red").save(source, "PNG")

    async def test() -> None:
        async with dispatching(tmp_path, models=["mini"], devices=("cpu",), dtype="float32") as dispatcher:
            told = await all_events(
                dispatcher, await dispatcher.submit("text2image", {"request": request, "number": 2, "previews": True})
            )
            steps = [event for event in told if event.kind == "step"]
            assert [event.job.progress for event in steps] == [(1, 2), (2, 2)]
            assert [Image.open(io.BytesIO(event.preview)).size for event in steps] == [(32, 32)] * 2
            pictures = []
            for image in told[-1].job.images:
                _, data = await dispatcher.call(dispatcher.store.picture, image)
                (tmp_path / "picture.png").write_bytes(data)
                pictures.append(read_settings(tmp_path / "picture.png")["request"]["seed"])
            assert pictures == [7, 8]
            first = pid(dispatcher)

            body = {"request": {**request, "strength": 0.5}}
            drawn = await ended(dispatcher, await dispatcher.submit("image2image", body, source=source.getvalue()))
            assert drawn.status == "succeeded"
            for bad, name in (
                ({"request": {**request, "prompt": " "}}, "PromptError"),
                ({"request": {**request, "width": 17, "height": 17}}, "SizeError"),
                ({"request": {**request, "colour": "red"}}, "RequestError"),
                ({"request": request, "number": 0}, "RequestError"),
                ({"request": 5}, "InternalError"),
                ({}, "InternalError"),
            ):
                failed = await ended(dispatcher, await dispatcher.submit("text2image", bad))
                assert failed.error is not None
                assert failed.error[0] == name
            damaged = await ended(dispatcher, await dispatcher.submit("image2image", body, source=b"no picture"))
            assert damaged.error is not None
            assert damaged.error[0] == "SourceImageError"

            job = await dispatcher.submit("text2image", {"request": {**request, "steps": 40}})
            async for event in dispatcher.events(job.id):
                if event.kind == "step":
                    await dispatcher.cancel(job.id)
            assert event.kind == "cancelled"
            assert event.job.progress[0] < 40
            assert pid(dispatcher) == first

            job = await dispatcher.submit("text2image", {"request": {**request, "steps": 2}})
            async for event in dispatcher.events(job.id):
                if event.kind == "step" and event.job.attempt == 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(first, signal.SIGKILL)
            assert event.kind == "succeeded"
            assert event.job.attempt == 2

    run(test)
    # What it logs is JSON, as the server's own log.
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["level"] for line in lines if "Traceback" in line.get("exception", "")] == ["error"] * 2


def test_the_real_worker_without_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", REAL)

    async def test() -> None:
        async with dispatching(tmp_path, models=["no-such-model"]) as dispatcher:
            await until(lambda: dispatcher.problems)
            assert "no-such-model" in dispatcher.problems[0]

    run(test)


PARENT = """
import asyncio
from hwaga.server.process import WorkerProcess

async def main():
    worker = await WorkerProcess.start()
    print(worker._process.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_the_real_worker_dies_with_its_parent_and_not_by_a_terminal() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        ignored = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)
        while _mask(worker, "SigIgn") & ignored != ignored:
            time.sleep(0.01)
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
        assert _state(worker) not in ("Z", "")
        parent.kill()
    while _state(worker) not in ("Z", ""):
        time.sleep(0.01)


def test_the_real_worker_ends_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", REAL)

    async def test() -> None:
        worker = await process.WorkerProcess.start()
        worker._writer.close()
        assert await worker._process.wait() == 0
        await worker.end()

    run(test)


def _status(process: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _mask(process: int, name: str) -> int:
    return int(_status(process).get(name, "0"), 16)


def _state(process: int) -> str:
    return _status(process).get("State", "")[:1]


def test_a_worker_prepares_its_process_before_it_begins() -> None:
    """In a process of its own: what main sets holds for the whole of it."""
    code = """
import socket, sys
from hwaga.server import worker
done = []
worker.prepare_process = lambda: done.append("prepared")
worker.Worker.run = lambda self: done.append("run")
ours, theirs = socket.socketpair()
sys.argv = ["worker", str(theirs.detach())]
worker.main()
print(*done)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["prepared", "run"]
