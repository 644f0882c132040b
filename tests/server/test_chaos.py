"""A short storm over a real server process whose worker draws nothing; ``make chaos`` is the long one, with a model."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import full_disk
import pytest
from storm import AIMS, Asked, Crowd, Served, after_death, await_moment, examine, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

# The command line as it is, but for the worker, and without the pauses that spare a machine in trouble.
_COMMAND = f"""
import sys
from hwaga.cli import main
from hwaga.server import batch, dispatcher, process, store, supervisor
process.WORKER = (sys.executable, {str(Path(__file__).with_name("fake_worker.py"))!r})
store.LEASE = batch.LEASE = 1.0
dispatcher.POLL = supervisor.POLL = 0.05
supervisor.BACK_OFF = (0.05, 0.05)
main()
"""
_PROMPTS = [f'{{"steps": 2, "delay": 0.03, "note": "{note}"}}' for note in ("an apple", "고양이", "a cup")]


def test_a_full_disk(tmp_path: Path) -> None:
    found = full_disk.run(tmp_path, [sys.executable, "-c", _COMMAND], f'{{"steps": 1, "bytes": {2**16}}}')
    if found is None:
        pytest.skip("no file system can be mounted here")
    assert found["faults"] == []
    assert found["answers"]["before"] == found["answers"]["after"] == {"202": 3}
    assert found["ends"]["succeeded"] >= 6


def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    chance = random.Random(7)
    with Served(tmp_path, command=(sys.executable, "-c", _COMMAND)) as served:
        with Crowd(served, _PROMPTS, clients=4) as crowd:
            for aim in AIMS[1:4]:
                served.until_ready()
                assert await_moment(served, aim, chance, span=0.03)
                until(served.kill_worker, "there is a worker to kill")
            for aim in AIMS[3:]:
                served.until_ready()
                assert await_moment(served, aim, chance, span=0.03)
                served.kill()
                assert not after_death(served.folder)["damaged"]
                served.start()
            crowd.settle()
        assert served.terminate() == 0
    assert crowd.faults == []
    assert examine(served.folder, crowd.asked, losses=None) == []  # on a busy machine a lease of a second may end too
    assert any(asked.ends == {"succeeded"} for asked in crowd.asked.values())

    # And it would have been seen.
    def broken(change: Callable[[Path, sqlite3.Connection], object], asked: dict[str, Asked] = crowd.asked) -> str:
        copy = tmp_path / "copy"
        for path in [*served.folder.glob("jobs.*"), *served.folder.glob("*/*/*")]:
            target = copy / path.relative_to(served.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        with closing(sqlite3.connect(copy / "jobs.sqlite3")) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("DROP TRIGGER an_end_is_final")
            change(copy, db)
            db.commit()
        faults = examine(copy, asked, losses=1000)
        shutil.rmtree(copy)
        return "\n".join(faults)

    def picture(folder: Path) -> Path:
        return next((folder / "results").glob("*/*.png"))

    one = "(SELECT id FROM jobs WHERE status = 'succeeded' LIMIT 1)"
    assert broken(lambda *_: None) == ""
    assert "A row of results has no file" in broken(lambda folder, _: picture(folder).unlink())
    assert "A file in results has no row" in broken(
        lambda folder, _: shutil.copy(picture(folder), picture(folder).with_name("no.png"))
    )
    assert "cannot be read" in broken(
        lambda folder, _: picture(folder).write_bytes(picture(folder).read_bytes()[:-300])
    )
    assert "nothing draws it" in broken(
        lambda _, db: db.execute(f"UPDATE jobs SET status = 'running' WHERE id = {one}")
    )
    assert "clients saw" in broken(lambda _, db: db.execute(f"UPDATE jobs SET status = 'failed' WHERE id = {one}"))
    failed = f"UPDATE jobs SET status = 'failed', error_type = 'WorkerError', error_message = '' WHERE id = {one}"
    assert "(0 attempts were lost before)" in broken(
        lambda _, db: db.execute(failed.replace("status =", "lost = 0, status =", 1))
    )
    assert "1001 attempts were lost" in broken(
        lambda _, db: db.execute("UPDATE jobs SET lost = 1001 * (number = (SELECT min(number) FROM jobs))")
    )
    assert "is gone" in broken(lambda _, db: db.execute(f"DELETE FROM jobs WHERE id = {one}"))
    assert "pictures, not" in broken(lambda _, db: db.execute(f"DELETE FROM pictures WHERE job = {one}"))
    assert "which nobody was told of" in broken(
        lambda _, db: db.execute(f"UPDATE jobs SET idempotency_key = 'no' WHERE id = {one}")
    )
    key, told = next(item for item in crowd.asked.items() if item[1].ends == {"succeeded"})
    wrong = Asked(told.body | {"seed": told.body["seed"] + 1}, told.ids, told.ends)
    assert "was made with" in broken(lambda *_: None, crowd.asked | {key: wrong})
    assert "stands for 2 jobs" in broken(
        lambda *_: None, crowd.asked | {key: Asked(told.body, told.ids | {"no"}, told.ends)}
    )
