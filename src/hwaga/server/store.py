"""Jobs that outlive the process: ``JobStore`` as an embedded SQLite database, ``jobs.sqlite3``, with the pictures beside it."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from hwaga.errors import (
    IdempotencyConflictError,
    QueueFullError,
    StaleAttemptError,
    StoreFullError,
    UnknownJobError,
)
from hwaga.server.database import Database, translated
from hwaga.server.jobs import LEASE, MAX_RETRIES, TERMINAL, Job, Kind, Status
from hwaga.server.keys import KeyStore, SqliteKeys
from hwaga.server.pictures import SqlitePictures, make_folders
from hwaga.server.schema import SCHEMA, UPGRADES, VERSION

MIN_AGE = 600.0
"""Seconds that a picture is there for whoever asked for it, however little room there is."""

_RECENT = 20  # finished jobs that the expected wait is measured on

_MODEL = "json_extract(body, '$.model')"
_SERVED = f"(:served IS NULL OR {_MODEL} IS NULL OR {_MODEL} IN (SELECT value FROM json_each(:served)))"
"""Which jobs a server with these models may draw; the parameter is a JSON array of names, or NULL."""

# First everyone's first job, then everyone's second: owners who were served longest ago (by a count of claims) before others.
_QUEUE = f"""
SELECT id FROM (
    SELECT id, served, row_number() OVER (PARTITION BY owner ORDER BY number) AS turn,
        min(number) OVER (PARTITION BY owner) AS first
    FROM jobs LEFT JOIN owners USING (owner) WHERE status = 'queued' AND {_SERVED}
) AS waiting WHERE :model IS NULL OR (SELECT {_MODEL} FROM jobs WHERE jobs.id = waiting.id) = :model
ORDER BY turn, coalesce(served, 0), first
"""


class SqliteStore:
    """Jobs in a folder of this machine; several threads and processes may use it at once.

    Args:
        folder: is made if it is not there.
        queue_limit: most jobs that may wait; of one API key, three quarters of that.
        max_sources: most bytes of pictures to start from, of jobs that have not ended.
        clock, boot: the monotonic clock of leases, and what tells one start of the machine from the next.
        wall: the clock of ``created``, ``started`` and ``finished``.

    Raises:
        StoreError: the folder cannot be used, or its database is damaged, not ours or of a newer Hwaga.
    """

    def __init__(
        self,
        folder: Path,
        *,
        queue_limit: int = 1000,
        max_sources: int = 10 * 2**30,
        clock: Callable[[], float] = time.monotonic,
        boot: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._queue_limit, self._max_sources = queue_limit, max_sources
        self._clock, self._boot, self._wall = clock, boot or _boot_id(), wall
        self.served: Sequence[str] | None = None
        with translated():
            make_folders(folder)
        self._database = Database(folder / "jobs.sqlite3", version=VERSION, schema=SCHEMA, upgrades=UPGRADES)
        self._db = self._database.connection
        self._pictures = SqlitePictures(folder, self._database)
        self.keys: KeyStore = SqliteKeys(self._database, wall)
        try:
            self._pictures.sweep()
        except BaseException:
            self._database.close()
            raise

    def submit(
        self,
        kind: Kind,
        body: dict[str, Any],
        *,
        owner: str = "",
        source: bytes | None = None,
        key: str | None = None,
        request_id: str | None = None,
    ) -> Job:
        text = _text(body)
        picture = hashlib.sha256(source).hexdigest() if source is not None else ""
        # The default model goes without its name, as it did before there were several: keys of before a change stay good.
        default = self.served is not None and body.get("model") == self.served[0]
        named = _text({name: value for name, value in body.items() if name != "model"}) if default else text
        fingerprint = hashlib.sha256(f"{kind}\n{picture}\n{named}".encode()).hexdigest()
        with self._pictures.transaction() as db:
            again = db.execute(
                "SELECT id, fingerprint FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, key)
            ).fetchone()
            if again is not None:
                if again["fingerprint"] != fingerprint:
                    raise IdempotencyConflictError("This idempotency key stands for another request. Use a new key.")
                return self._job(again["id"])
            self._check_room(owner, len(source or b""))
            now = self._wall()
            job = f"{int(now * 1000):012x}{secrets.token_hex(16)}"
            db.execute(
                "INSERT INTO jobs (id, kind, owner, body, idempotency_key, fingerprint, created, request_id) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (job, kind, owner, text, key, fingerprint, now, request_id),
            )
            if source is not None:
                self._pictures.keep(job, "sources", [source])
            return self._job(job)

    def check_room(self, owner: str, size: int = 0, *, key: str | None = None) -> None:
        with self._database.reading() as db:
            known = "SELECT 1 FROM jobs WHERE owner = ? AND idempotency_key = ?"
            if db.execute(known, (owner, key)).fetchone() is None:
                self._check_room(owner, size)

    def _check_room(self, owner: str, size: int) -> None:
        limit = self._queue_limit
        waiting, own = self._db.execute(
            f"SELECT count(*), count(*) FILTER (WHERE owner = :owner) FROM jobs WHERE status = 'queued' AND {_SERVED}",
            {"owner": owner, "served": self._names()},
        ).fetchone()
        if waiting >= limit:
            raise QueueFullError(f"{waiting} jobs wait already, as many as may. Try again later.")
        if owner and own >= (share := max(1, limit * 3 // 4)):  # who comes without a key shares with nobody
            raise QueueFullError(f"{own} of your jobs wait already, and {share} may of one key. Try again later.")
        if size:
            held = self._db.execute(
                "SELECT coalesce(sum(bytes), 0) FROM pictures JOIN jobs ON jobs.id = job "
                f"WHERE role = 'sources' AND status NOT IN {TERMINAL}"
            ).fetchone()[0]
            if held + size > self._max_sources:
                raise StoreFullError(
                    f"Pictures to start from take {held:,} bytes, of jobs that wait, and {self._max_sources:,} are the most. "
                    "Try again when some are done."
                )

    def get(self, job: str) -> Job:
        with self._database.reading():
            return self._job(job)

    def jobs(self, *, owner: str | None = None, before: tuple[float, str] | None = None, limit: int = 50) -> list[Job]:
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT id FROM jobs WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR (created, id) < (?2, ?3)) "
                "ORDER BY created DESC, id DESC LIMIT ?4",
                (owner, *(before or (None, None)), limit),
            ).fetchall()
            return [self._job(row["id"]) for row in rows]

    def queue(self) -> list[str]:
        with self._database.reading() as db:
            return [row["id"] for row in db.execute(_QUEUE, {"model": None, "served": self._names()})]

    def counts(self) -> dict[Status, int]:
        with self._database.reading() as db:
            found = dict(db.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in get_args(Status)}

    def expected_wait(self, workers: int) -> float | None:
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT max(finished - started, 0) FROM jobs WHERE status = 'succeeded' ORDER BY finished DESC LIMIT ?",
                (_RECENT,),
            ).fetchall()
            count = f"SELECT count(*) FROM jobs WHERE status = 'queued' AND {_SERVED}"
            waiting = db.execute(count, {"served": self._names()}).fetchone()[0]
        return statistics.median(row[0] for row in rows) * waiting / workers if rows else None

    def cancel(self, job: str) -> Job:
        with self._database.transaction() as db:
            db.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND status = 'running'", (job,))
            db.execute(
                "UPDATE jobs SET status = 'cancelled', finished = ? WHERE id = ? AND status = 'queued'",
                (self._wall(), job),
            )
            return self._job(job)

    def models_waiting(self) -> set[str | None]:
        with self._database.reading() as db:
            models = f"SELECT DISTINCT {_MODEL} FROM jobs WHERE status = 'queued' AND {_SERVED}"
            return {row[0] for row in db.execute(models, {"served": self._names()})}

    def waiting_for_models(self) -> dict[str, int]:
        with self._database.reading() as db:
            counts = (
                f"SELECT {_MODEL}, count(*) FROM jobs WHERE status = 'queued' AND NOT {_SERVED} GROUP BY 1 ORDER BY 1"
            )
            return dict(db.execute(counts, {"served": self._names()}).fetchall())

    def _names(self) -> str | None:
        """The served models as the parameter of ``_SERVED``."""
        return None if self.served is None else json.dumps(sorted(self.served))

    def claim(
        self, worker: str, *, suits: Callable[[Job], bool] = lambda _: True, model: str | None = None
    ) -> Job | None:
        with self._database.transaction() as db:
            row = db.execute(f"{_QUEUE} LIMIT 1", {"model": model, "served": self._names()}).fetchone()
            if row is None or not suits(job := self._job(row["id"])):
                return None
            db.execute(
                "UPDATE jobs SET status = 'running', attempt = attempt + 1, started = ?, worker = ?, lease_boot = ?, "
                "lease_until = ? WHERE id = ?",
                (self._wall(), worker, self._boot, self._clock() + LEASE, job.id),
            )
            db.execute("INSERT OR REPLACE INTO owners SELECT ?, coalesce(max(served), 0) + 1 FROM owners", (job.owner,))
            return self._job(job.id)

    def renew(self, job: str, attempt: int, progress: tuple[int, int] | None = None) -> bool:
        step, total = progress or (None, None)
        changes = "lease_boot = ?, lease_until = ?, step = coalesce(?, step), total = coalesce(?, total)"
        with self._database.transaction():
            return self._update(job, attempt, changes, self._boot, self._clock() + LEASE, step, total).cancel_requested

    def finish(self, job: str, attempt: int, pictures: Sequence[bytes]) -> Job:
        with self._pictures.transaction():
            self._end(job, attempt, "succeeded")
            self._pictures.keep(job, "results", pictures)
            return self._job(job)

    def fail(self, job: str, attempt: int, error: tuple[str, str]) -> Job:
        with self._database.transaction():
            return self._end(job, attempt, "failed", error)

    def confirm_cancel(self, job: str, attempt: int) -> Job:
        with self._database.transaction():
            return self._end(job, attempt, "cancelled")

    def release(self, job: str, attempt: int, *, lost: str | None) -> Job:
        with self._database.transaction():
            return self._release(job, attempt, lost)

    def reap(self) -> list[Job]:
        over = "SELECT id, attempt FROM jobs WHERE status = 'running' AND (lease_boot != ? OR lease_until <= ?)"
        with self._database.reading() as db:  # nearly always there is nothing, and nothing needs to be written
            if db.execute(over, (self._boot, self._clock())).fetchone() is None:
                return []
        with self._database.transaction() as db:
            rows = db.execute(over, (self._boot, self._clock())).fetchall()
            return [self._release(row["id"], row["attempt"], "its server stopped") for row in rows]

    def source(self, job: str) -> bytes | None:
        return self._pictures.source(job)

    def picture(self, image: str) -> tuple[str, bytes]:
        return self._pictures.finished(image)

    def remove_picture(self, image: str) -> None:
        with self._pictures.transaction():
            job = self._pictures.remove(image)
            if not self._job(job).images:
                self._remove(job)

    def expire(self, max_age: float, max_bytes: int) -> int:
        with self._pictures.transaction() as db:
            now = self._wall()
            # Only what may be removed counts: what waits would have others' pictures removed, and itself stay.
            total = db.execute(
                f"SELECT coalesce(sum(bytes), 0) FROM pictures JOIN jobs ON jobs.id = job WHERE status IN {TERMINAL}"
            ).fetchone()[0]
            ended = db.execute(
                "SELECT jobs.id, finished, coalesce(sum(bytes), 0) AS bytes FROM jobs LEFT JOIN pictures ON job = jobs.id "
                f"WHERE status IN {TERMINAL} GROUP BY jobs.number ORDER BY finished, jobs.number"
            ).fetchall()
            removed = 0
            for row in ended:
                age = now - row["finished"]
                if age > max_age or (age > MIN_AGE and total > max_bytes and row["bytes"]):
                    self._remove(row["id"])
                    total, removed = total - row["bytes"], removed + 1
        return removed

    def close(self) -> None:
        self._database.close()

    def _job(self, job: str) -> Job:
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise UnknownJobError("There is no job of that id. It may have been removed by its age.")
        images = self._db.execute(
            "SELECT id FROM pictures WHERE job = ? AND role = 'results' ORDER BY position", (job,)
        )
        return Job(
            id=row["id"],
            kind=row["kind"],
            owner=row["owner"],
            body=json.loads(row["body"]),
            created=row["created"],
            started=row["started"],
            finished=row["finished"],
            status=row["status"],
            attempt=row["attempt"],
            progress=(row["step"], row["total"]),
            cancel_requested=bool(row["cancel_requested"]),
            error=None if row["error_type"] is None else (row["error_type"], row["error_message"]),
            images=tuple(image["id"] for image in images),
            request_id=row["request_id"],
        )

    def _update(self, job: str, attempt: int, changes: str, *values: object) -> Job:
        """Changes a running job, if it is still this attempt's."""
        changed = self._db.execute(
            f"UPDATE jobs SET {changes} WHERE id = ? AND attempt = ? AND status = 'running'", (*values, job, attempt)
        )
        if not changed.rowcount:
            raise StaleAttemptError(f"Attempt {attempt} of job {job} is over. Stop working on it.")
        return self._job(job)

    def _end(self, job: str, attempt: int, status: Status, error: tuple[str, str] | None = None) -> Job:
        changes = "status = ?, finished = ?, error_type = ?, error_message = ?"
        return self._update(job, attempt, changes, status, self._wall(), *(error or (None, None)))

    def _release(self, job: str, attempt: int, lost: str | None) -> Job:
        row = self._db.execute("SELECT cancel_requested, lost FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is not None and row["cancel_requested"]:
            return self._end(job, attempt, "cancelled")
        if row is not None and lost is not None and row["lost"] >= MAX_RETRIES:
            message = f"The job was tried {row['lost'] + 1} times, and at last {lost}."
            return self._end(job, attempt, "failed", ("WorkerError", message))
        changes = "status = 'queued', started = NULL, step = 0, total = 0, lost = lost + ?"
        return self._update(job, attempt, changes, lost is not None)

    def _remove(self, job: str) -> None:
        """Removes a job and its pictures."""
        self._pictures.remove_all(job)
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, allow_nan=False)


def _boot_id() -> str:
    # The monotonic clock begins anew with each start of the machine. Where the system does not tell its starts apart, each
    # process is its own: the leases of another one then count as over, and the numbers of attempts keep the two apart.
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)
