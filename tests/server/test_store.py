"""The store of jobs: what was accepted stays, ends once, and is handed to one worker at a time."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from stored import claimed, files

from hwaga.errors import (
    IdempotencyConflictError,
    QueueFullError,
    StaleAttemptError,
    StoreError,
    StoreFullError,
    UnknownJobError,
)
from hwaga.server.jobs import LEASE, MAX_RETRIES, TERMINAL, Job
from hwaga.server.store import MIN_AGE, SqliteStore

BODY: dict[str, Any] = {"request": {"prompt": "사과 🍎", "steps": 2}}


class Clock:
    """A clock that moves when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wall() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock, wall: Clock) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "server", queue_limit=5, clock=clock, boot="boot", wall=wall)) as opened:
        yield opened


def test_a_job_from_end_to_end(store: SqliteStore, wall: Clock) -> None:
    job = store.submit("image2image", BODY, owner="anna", source=b"a picture")
    assert (job.status, job.body, job.owner, job.created) == ("queued", BODY, "anna", wall.now)
    assert store.queue() == [job.id]
    assert store.source(job.id) == b"a picture"
    wall.now += 5
    running = claimed(store)
    assert (running.id, running.status, running.attempt, running.started) == (job.id, "running", 1, wall.now)
    assert store.claim("another") is None
    assert store.renew(job.id, 1, (3, 8)) is False
    assert store.renew(job.id, 1) is False
    assert store.get(job.id).progress == (3, 8)
    wall.now += 2
    done = store.finish(job.id, 1, [b"one", b"two"])
    assert (done.status, done.finished, len(done.images)) == ("succeeded", wall.now, 2)
    assert [store.picture(image) for image in done.images] == [(job.id, b"one"), (job.id, b"two")]
    assert store.counts() == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0}


def test_everything_is_there_after_opening_again(store: SqliteStore, tmp_path: Path) -> None:
    waiting, job = store.submit("text2image", BODY), store.submit("text2image", BODY, key="k")
    store.finish(claimed(store).id, 1, [b"png"])
    store.fail(claimed(store).id, 1, ("InternalError", "why"))
    before = [store.get(waiting.id), store.get(job.id)]
    store.close()
    with closing(SqliteStore(tmp_path / "server")) as again:
        assert [again.get(waiting.id), again.get(job.id)] == before
        assert again.picture(before[0].images[0]) == (waiting.id, b"png")
        assert before[1].error == ("InternalError", "why")


def test_ids_are_url_safe_sorted_by_time_and_unlike(store: SqliteStore, wall: Clock) -> None:
    ids = []
    for _ in range(5):
        ids.append(store.submit("text2image", BODY).id)
        wall.now += 0.01
    assert ids == sorted(ids)
    assert all(set(job) <= set("0123456789abcdef") for job in ids)
    assert len({job[12:] for job in ids}) == 5
    assert len(ids[0][12:]) == 32  # 128 random bits


def test_the_queue_has_a_limit(store: SqliteStore) -> None:
    for _ in range(5):
        store.submit("text2image", BODY, source=b"x")
    with pytest.raises(QueueFullError, match="Try again later"):
        store.submit("text2image", BODY)
    claimed(store)
    store.submit("text2image", BODY)


def test_an_idempotency_key(store: SqliteStore) -> None:
    job = store.submit("image2image", BODY, owner="anna", source=b"1", key="k")
    again = store.submit("image2image", dict(reversed(BODY.items())), owner="anna", source=b"1", key="k")
    assert again.id == job.id
    for kind, body, source in (
        ("image2image", {"request": {}}, b"1"),
        ("image2image", BODY, b"2"),
        ("image2image", BODY, None),
        ("text2image", BODY, b"1"),
    ):
        with pytest.raises(IdempotencyConflictError, match="new key"):
            store.submit(kind, body, owner="anna", source=source, key="k")  # type: ignore[arg-type]
    assert store.submit("text2image", {}, owner="ben", key="k").id != job.id
    # The same job also when it has ended, and when nothing else would be taken in.
    store.finish(claimed(store).id, 1, [])
    for _ in range(4):
        store.submit("text2image", BODY)
    assert store.submit("image2image", BODY, owner="anna", source=b"1", key="k").status == "succeeded"


def test_an_idempotency_key_goes_with_its_job(store: SqliteStore, wall: Clock) -> None:
    job = store.submit("text2image", BODY, key="k")
    store.cancel(job.id)
    wall.now += 100
    assert store.expire(max_age=50, max_bytes=10**9) == 1
    assert store.submit("text2image", {}, key="k").id != job.id


def test_owners_take_turns(store: SqliteStore) -> None:
    submitted = [store.submit("text2image", BODY, owner=owner).id for owner in ("anna", "anna", "anna", "ben", "cho")]
    order = store.queue()
    assert [store.get(job).owner for job in order] == ["anna", "ben", "cho", "anna", "anna"]
    assert [job for job in order if job in submitted[:3]] == submitted[:3]
    assert [claimed(store).id for _ in range(5)] == order
    # Anna was served last. Whoever was never served comes first, however late the job.
    store.submit("text2image", BODY, owner="anna")
    store.submit("text2image", BODY, owner="ben")
    store.submit("text2image", BODY, owner="new")
    assert [claimed(store).owner for _ in range(3)] == ["new", "ben", "anna"]


def test_a_stale_attempt_is_refused(store: SqliteStore, clock: Clock, tmp_path: Path) -> None:
    job = store.submit("text2image", BODY)
    claimed(store)
    clock.now += LEASE + 1
    store.reap()
    assert claimed(store).attempt == 2
    for attempt in (0, 1, 3):
        with pytest.raises(StaleAttemptError):
            store.renew(job.id, attempt, (1, 2))
        with pytest.raises(StaleAttemptError):
            store.finish(job.id, attempt, [b"png"])
        with pytest.raises(StaleAttemptError):
            store.fail(job.id, attempt, ("a", "b"))
        with pytest.raises(StaleAttemptError):
            store.confirm_cancel(job.id, attempt)
        with pytest.raises(StaleAttemptError):
            store.release(job.id, attempt, lost="gone")
    assert files(tmp_path / "server") == set()
    store.finish(job.id, 2, [b"png"])
    with pytest.raises(StaleAttemptError):
        store.finish(job.id, 2, [b"png"])
    with pytest.raises(StaleAttemptError):
        store.release("no such job", 1, lost=None)


def test_a_lease_holds_until_its_end(store: SqliteStore, clock: Clock) -> None:
    job = store.submit("text2image", BODY)
    claimed(store)
    for _ in range(5):
        clock.now += LEASE - 1
        assert store.reap() == []
        store.renew(job.id, 1)
    clock.now += LEASE
    assert [reaped.status for reaped in store.reap()] == ["queued"]


def test_a_lease_does_not_outlive_the_machine(store: SqliteStore, tmp_path: Path) -> None:
    store.submit("text2image", BODY)
    claimed(store)
    with closing(SqliteStore(tmp_path / "server", clock=Clock(0.0), boot="the next boot")) as later:
        assert [job.status for job in later.reap()] == ["queued"]


def test_a_job_is_not_tried_for_ever(store: SqliteStore, clock: Clock) -> None:
    job = store.submit("text2image", BODY)
    store.release(job.id, claimed(store).attempt, lost=None)  # given back unharmed, which does not count
    for attempt in range(2, MAX_RETRIES + 2):
        assert claimed(store).attempt == attempt
        clock.now += LEASE
        assert store.reap()[0].status == "queued"
    assert store.release(job.id, claimed(store).attempt, lost=None).status == "queued"
    failed = store.release(job.id, claimed(store).attempt, lost="the worker ended")
    assert failed.status == "failed"
    assert failed.error == ("WorkerError", "The job was tried 3 times, and at last the worker ended.")


def test_cancelling(store: SqliteStore, clock: Clock) -> None:
    waiting, running, lost, late = (store.submit("text2image", BODY).id for _ in range(4))
    store.cancel(late)
    assert store.get(late).status == "cancelled"
    claimed(store)
    assert store.cancel(waiting).status == "running"
    assert store.renew(waiting, 1)
    assert store.confirm_cancel(waiting, 1).status == "cancelled"
    assert store.cancel(waiting).status == "cancelled"
    claimed(store)
    store.cancel(running)
    assert store.finish(running, 1, [b"png"]).status == "succeeded"  # it was done before the worker heard of it
    assert store.cancel(running).status == "succeeded"
    claimed(store)
    store.cancel(lost)
    clock.now += LEASE
    assert [job.status for job in store.reap()] == ["cancelled"]
    with pytest.raises(UnknownJobError):
        store.cancel("nothing")


def test_an_end_is_final_even_for_a_fault_of_ours(store: SqliteStore, tmp_path: Path) -> None:
    store.cancel(store.submit("text2image", BODY).id)
    with closing(sqlite3.connect(tmp_path / "server/jobs.sqlite3")) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE jobs SET status = 'queued'")


def test_paging_goes_through_all_jobs_once(store: SqliteStore, wall: Clock) -> None:
    submitted = []
    for number in range(12):
        submitted.append(store.submit("text2image", BODY, owner="anna" if number % 3 else "ben").id)
        claimed(store)
        wall.now += number % 2  # pairs of the same time
    pages, before = [], None
    while page := store.jobs(before=before, limit=5):
        pages += page
        before = (page[-1].created, page[-1].id)
    assert Counter(job.id for job in pages) == Counter(submitted)
    assert [job.created for job in pages] == sorted((job.created for job in pages), reverse=True)
    assert {job.owner for job in store.jobs(owner="ben")} == {"ben"}
    assert len(store.jobs(owner="ben")) == 4


def test_the_expected_wait(store: SqliteStore, wall: Clock) -> None:
    assert store.expected_wait(1) is None
    for seconds in (2.0, 4.0, 90.0):
        store.submit("text2image", BODY)
        job = claimed(store)
        wall.now += seconds
        store.finish(job.id, 1, [])
    assert store.expected_wait(1) == 0
    for _ in range(3):
        store.submit("text2image", BODY)
    assert store.expected_wait(1) == 12
    assert store.expected_wait(2) == 6


def test_expiring_by_age_and_by_size(store: SqliteStore, wall: Clock, tmp_path: Path) -> None:
    ended = []
    for _ in range(4):
        store.submit("image2image", BODY, source=bytes(50))
        ended.append(store.finish(claimed(store).id, 1, [bytes(50)]))
        wall.now += 10
    store.submit("image2image", BODY, source=bytes(1000))
    running = claimed(store)
    waiting = store.submit("image2image", BODY, source=bytes(1000))
    assert store.expire(max_age=35, max_bytes=10**6) == 1
    assert store.expire(max_age=35, max_bytes=0) == 0  # nobody's picture goes before they could fetch it
    wall.now += MIN_AGE - 15
    assert store.expire(max_age=1e9, max_bytes=200) == 1  # what waits takes no room from what is finished
    assert store.counts() == {"queued": 1, "running": 1, "succeeded": 2, "failed": 0, "cancelled": 0}
    for job in ended[:2]:
        with pytest.raises(UnknownJobError):
            store.get(job.id)
        with pytest.raises(UnknownJobError):
            store.picture(job.images[0])
    assert len(files(tmp_path / "server")) == 6
    wall.now += 100
    assert store.expire(max_age=1e9, max_bytes=0) == 2  # what runs and what waits is never removed
    assert store.source(running.id) == store.source(waiting.id) == bytes(1000)
    assert len(files(tmp_path / "server")) == 2


def test_a_full_disk_under_the_database(store: SqliteStore, tmp_path: Path) -> None:
    job = store.submit("text2image", BODY, key="k")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFullError, match="Free some space"):
        store.submit("image2image", {"request": {"prompt": "x" * 100_000}}, source=b"source")
    assert files(tmp_path / "server") == set()
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.queue() == [job.id]
    store.submit("text2image", BODY)


@pytest.mark.parametrize("closed", [True, False])
def test_a_store_of_the_first_schema_is_taken_over(store: SqliteStore, tmp_path: Path, closed: bool) -> None:
    job = store.submit("text2image", BODY)
    if closed:
        store.keys.add("studio")
    store.close()
    with closing(sqlite3.connect(tmp_path / "server/jobs.sqlite3")) as db:
        db.execute("DROP TABLE closed")
        db.execute("ALTER TABLE jobs DROP COLUMN request_id")
        db.execute("PRAGMA user_version = 1")
    with closing(SqliteStore(tmp_path / "server")) as again:
        assert again.keys.required() == closed
        assert again.get(job.id) == job
        assert again.submit("text2image", BODY, request_id="req_1").request_id == "req_1"


def test_a_store_of_the_second_schema_is_taken_over(store: SqliteStore, tmp_path: Path) -> None:
    job = store.submit("text2image", BODY, request_id="req_1")
    store.keys.add("studio")
    store.close()
    with closing(sqlite3.connect(tmp_path / "server/jobs.sqlite3")) as db:
        db.execute("ALTER TABLE jobs DROP COLUMN request_id")
        db.execute("PRAGMA user_version = 2")
    with closing(SqliteStore(tmp_path / "server")) as again:
        assert again.keys.required()
        assert again.get(job.id) == replace(job, request_id=None)
    with closing(SqliteStore(tmp_path / "server")) as once_more:  # what has been taken over is as if made so
        assert once_more.get(job.id).request_id is None


def test_one_key_cannot_fill_the_queue(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "server", queue_limit=4)) as store:
        for place in range(3):
            store.check_room("greedy")
            store.submit("text2image", BODY, owner="greedy", key=str(place))
        with pytest.raises(QueueFullError, match="of your jobs wait already, and 3 may"):
            store.check_room("greedy")
        with pytest.raises(QueueFullError):
            store.submit("text2image", BODY, owner="greedy")
        store.check_room("greedy", key="2")  # it is there already
        store.submit("text2image", BODY, owner="other")
        with pytest.raises(QueueFullError, match="4 jobs wait already"):
            store.check_room("third")
    with closing(SqliteStore(tmp_path / "open", queue_limit=4)) as store:
        for _ in range(4):  # where nobody has a key, there is nobody to share with
            store.submit("text2image", BODY)


def test_pictures_that_wait_take_so_much_room(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "server", max_sources=100)) as store:
        store.submit("image2image", BODY, source=bytes(60))
        with pytest.raises(StoreFullError, match="take 60 bytes"):
            store.submit("image2image", BODY, source=bytes(41))
        with pytest.raises(StoreFullError):
            store.check_room("", 41)
        store.submit("image2image", BODY, source=bytes(40))
        store.submit("text2image", BODY)
        first = claimed(store)
        with pytest.raises(StoreFullError):  # what is being drawn may wait again
            store.check_room("", 1)
        store.finish(first.id, 1, [bytes(10)])
        store.check_room("", 60)


def test_a_newer_schema_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(tmp_path / "server/jobs.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer Hwaga \(schema 99.*Upgrade hwaga"):
        SqliteStore(tmp_path / "server")


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="Choose another folder"):
        SqliteStore(tmp_path / "jobs.sqlite3" / "below")


def test_threads_over_three_connections_share_the_queue(tmp_path: Path) -> None:
    """Submitting, claiming, finishing and losing at once, over three connections: each job ends once."""
    folder, ends, accepted = tmp_path / "server", list[str](), list[str]()
    stores = [SqliteStore(folder, boot="boot") for _ in range(3)]
    over = threading.Event()

    def submit(store: SqliteStore, seed: int) -> None:
        for number in range(20):
            accepted.append(store.submit("text2image", {"n": number}, owner=str(seed)).id)

    def work(store: SqliteStore, seed: int) -> None:
        chance = random.Random(seed)
        while not over.is_set():
            if (job := store.claim(str(seed))) is None:
                continue
            end = chance.choice([store.finish, store.fail, store.release, store.cancel])
            if end == store.finish:
                ends.append(store.finish(job.id, job.attempt, [b"png"]).id)
            elif end == store.fail:
                ends.append(store.fail(job.id, job.attempt, ("a", "b")).id)
            elif end == store.release:
                if store.release(job.id, job.attempt, lost="gone").status == "failed":
                    ends.append(job.id)
            else:
                store.cancel(job.id)
                ends.append(store.confirm_cancel(job.id, job.attempt).id)

    workers = [threading.Thread(target=work, args=(store, seed)) for seed, store in enumerate(stores)]
    submitters = [threading.Thread(target=submit, args=(store, seed)) for seed, store in enumerate(stores)]
    for thread in (*workers, *submitters):
        thread.start()
    for thread in submitters:
        thread.join()
    while stores[0].counts()["queued"] or stores[0].counts()["running"]:
        pass
    over.set()
    for thread in workers:
        thread.join()
    assert Counter(ends) == Counter(accepted)
    assert len(accepted) == 60
    for store in stores:
        store.close()


SUBMIT_AND_FINISH = """
import sys
from pathlib import Path
from hwaga.server.store import SqliteStore

store = SqliteStore(Path(sys.argv[1]), boot="boot")
while True:
    job = store.submit("image2image", {}, source=b"source" * 1000)
    print("accepted", job.id, flush=True)
    if job.id[-1] in "01234567":
        job = store.claim("w")
        job = store.finish(job.id, job.attempt, [b"picture" * 1000])
        print("finished", job.id, flush=True)
"""


def test_nothing_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    chance, folder = random.Random(0), tmp_path / "server"
    accepted, finished = set[str](), set[str]()
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", SUBMIT_AND_FINISH, folder], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = list(itertools.islice(process.stdout, chance.randrange(1, 12)))
            process.kill()
            said += [line for line in process.stdout if line.endswith("\n")]
        for line in said:
            (accepted if line.startswith("accepted") else finished).add(line.split()[1])
    assert process.returncode == -signal.SIGKILL
    with closing(SqliteStore(folder, boot="boot")) as store:
        assert store._db.execute("PRAGMA integrity_check").fetchall()[0][0] == "ok"
        jobs = {job.id: job for job in store.jobs(limit=10**6)}
        assert accepted <= set(jobs)
        assert {jobs[job].status for job in finished} == {"succeeded"}
        for job in jobs.values():
            assert store.source(job.id) == b"source" * 1000
            assert [store.picture(image)[1] for image in job.images] == [b"picture" * 1000] * len(job.images)
            assert len(job.images) == (job.status == "succeeded")
        assert len(files(folder)) == len(jobs) + sum(len(job.images) for job in jobs.values())


class Jobs(RuleBasedStateMachine):
    """Random calls over two connections, held against a model of a few dictionaries."""

    submitted = Bundle("submitted")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.stores = [
            SqliteStore(Path(self.folder.name), clock=self.clock, boot="boot", queue_limit=6) for _ in range(2)
        ]
        self.status: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.leases: dict[str, float] = {}

    def teardown(self) -> None:
        assert len(files(Path(self.folder.name))) == len(self.status) + list(self.status.values()).count("succeeded")
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    def see(self, job: Job) -> None:
        assert self.status[job.id] not in TERMINAL or job.status == self.status[job.id]
        self.status[job.id] = job.status
        if job.status != "running":
            self.leases.pop(job.id, None)

    @rule(target=submitted, which=st.integers(0, 1), owner=st.sampled_from(["", "anna", "ben"]))
    def submit(self, which: int, owner: str) -> str:
        queued = [job for job, status in self.status.items() if status == "queued"]
        # Jobs that were given back may wait above the limits; of one key's there are three quarters.
        full = len(queued) >= 6 or (owner != "" and sum(self.owners[job] == owner for job in queued) >= 4)
        try:
            job = self.stores[which].submit("text2image", BODY, owner=owner, source=b"source")
        except QueueFullError:
            assert full
            return next(iter(self.status))
        assert not full
        self.status[job.id], self.owners[job.id] = job.status, owner
        return job.id

    @rule(target=claims, which=st.integers(0, 1))
    @precondition(lambda self: "queued" in self.status.values())
    def claim(self, which: int) -> tuple[str, int]:
        expected = self.stores[1 - which].queue()[0]
        job = claimed(self.stores[which])
        assert (job.id, job.attempt) == (expected, self.attempts.get(expected, 0) + 1)
        assert self.status[job.id] == "queued"
        self.status[job.id], self.attempts[job.id] = "running", job.attempt
        self.leases[job.id] = self.clock.now + LEASE
        return job.id, job.attempt

    @rule(
        which=st.integers(0, 1),
        claim=claims,
        way=st.sampled_from(["renew", "finish", "fail", "confirm", "release", "lose"]),
    )
    def report(self, which: int, claim: tuple[str, int], way: str) -> None:
        store, (job, attempt) = self.stores[which], claim
        current = self.status[job] == "running" and self.attempts[job] == attempt
        try:
            if way == "renew":
                store.renew(job, attempt, (1, 2))
                self.leases[job] = self.clock.now + LEASE
            elif way == "finish":
                self.see(store.finish(job, attempt, [b"png"]))
            elif way == "fail":
                self.see(store.fail(job, attempt, ("a", "b")))
            elif way == "confirm":
                self.see(store.confirm_cancel(job, attempt))
            else:
                self.see(store.release(job, attempt, lost="gone" if way == "lose" else None))
        except StaleAttemptError:
            assert not current
        else:
            assert current

    @rule(which=st.integers(0, 1), job=submitted)
    def cancel(self, which: int, job: str) -> None:
        self.see(self.stores[which].cancel(job))

    @rule(which=st.integers(0, 1), seconds=st.sampled_from([1.0, LEASE / 2, LEASE]))
    def wait(self, which: int, seconds: float) -> None:
        self.clock.now += seconds
        over = {job for job, until in self.leases.items() if until <= self.clock.now}
        reaped = self.stores[which].reap()
        assert {job.id for job in reaped} == over
        for job in reaped:
            self.see(job)

    @rule(which=st.integers(0, 1))
    def start_again(self, which: int) -> None:
        self.stores[which].close()
        self.stores[which] = SqliteStore(Path(self.folder.name), clock=self.clock, boot="boot", queue_limit=6)

    @invariant()
    def both_see_the_same(self) -> None:
        for store in self.stores:
            jobs = {job.id: job for job in store.jobs(limit=1000)}
            assert {job: found.status for job, found in jobs.items()} == self.status
            assert sorted(store.queue()) == sorted(job for job, status in self.status.items() if status == "queued")
            for job in jobs.values():
                assert len(job.images) == (job.status == "succeeded")


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=8, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow])


def test_jobs_of_models_that_are_not_served_wait_in_nobodys_way(store: SqliteStore) -> None:
    kept = [store.submit("text2image", {"model": "gone"}, owner="anna") for _ in range(3)]
    store.served = ("mini", "other")
    nameless = store.submit("text2image", {}, owner="anna")
    mine = [store.submit("text2image", {"model": "mini"}, owner=owner) for owner in ("anna", "bert")]
    assert store.queue() == [nameless.id, mine[1].id, mine[0].id], "nor do they count for the turns"
    assert store.models_waiting() == {None, "mini"}
    assert store.waiting_for_models() == {"gone": 3}
    assert [claimed(store).id for _ in range(3)] == [nameless.id, mine[1].id, mine[0].id]
    assert store.claim("worker") is None
    assert store.claim("worker", model="gone") is None
    for job in (nameless, *mine):
        store.finish(job.id, 1, [])
    assert store.expected_wait(1) == 0
    for _ in range(3):
        store.submit("text2image", {"model": "mini"}, owner="anna")
    with pytest.raises(QueueFullError):
        store.check_room("anna")
    store.served = ("gone",)
    assert store.waiting_for_models() == {"mini": 3}
    assert claimed(store).id == kept[0].id


def test_the_default_model_is_no_part_of_what_an_idempotency_key_stands_for(store: SqliteStore) -> None:
    old = store.submit("text2image", {"request": {"prompt": "a cat"}}, key="k")  # as a server of one model wrote it
    store.served = ("mini", "second")
    body = {"model": "mini", "request": {"prompt": "a cat"}}
    assert store.submit("text2image", body, key="k").id == old.id
    for other in (body | {"model": "second"}, body | {"request": {"prompt": "a dog"}}):
        with pytest.raises(IdempotencyConflictError):
            store.submit("text2image", other, key="k")
    second = store.submit("text2image", body | {"model": "second"}, key="k2")
    assert second.body["model"] == "second"
    assert store.submit("text2image", body | {"model": "second"}, key="k2").id == second.id
    with pytest.raises(IdempotencyConflictError):
        store.submit("text2image", body, key="k2")
