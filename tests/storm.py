"""A real ``hwaga serve`` that is killed again and again, clients that insist on an answer, and what must be true afterwards.

``tests/server/test_chaos.py`` runs a short storm, ``benchmarks/chaos.py`` a long one. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from hwaga.errors import ImageFileError
from hwaga.image_file import read_settings
from hwaga.server.jobs import MAX_RETRIES, TERMINAL

PATIENCE = float(os.environ.get("HWAGA_TEST_PATIENCE", "180"))
"""Seconds after which what should have happened counts as never going to. More of them suit a machine that is busy besides."""

AIMS = ("any moment", "encoding", "a step", "decoding", "writing")
"""When a process is killed: at a random time, or at a random moment after a job came to there."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Waits for what must happen."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"It did not happen in {patience:g} s: {what}.")
        time.sleep(0.01)


class Served:
    """``hwaga serve`` as a process, on the same data folder and port through all its starts."""

    def __init__(self, data: Path, *options: str, command: Sequence[str] = (sys.executable, "-m", "hwaga")) -> None:
        self.data, self.folder, self.log = data, data / "server", data / "log"
        self.starts = 0
        self._command, self._port = [*command, "serve", *options], "0"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HWAGA_")}
        self._environment["HWAGA_DATA_DIR"] = str(data)
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        with self.log.open("ab") as errors:
            begin = errors.tell()
            self.process = subprocess.Popen(
                [*self._command, "--port", self._port], stdin=subprocess.DEVNULL, stderr=errors, env=self._environment
            )
        self.starts += 1

        def listening() -> re.Match[str] | None:
            said = self.log.read_bytes()[begin:].decode(errors="replace")
            if self.process.poll() is not None:
                raise RuntimeError(f"The server ended at its start:\n{said}")
            return re.search(r"http://\S+:(\d+)", said)

        until(listening, "the server says where it listens")
        said = listening()
        assert said is not None
        self.url, self._port = said[0], said[1]
        with httpx2.Client(base_url=self.url, timeout=60) as client:

            def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return client.get("/health/live").status_code == 200
                return False

            until(answers, "the server answers")

    def until_ready(self) -> None:
        """Waits until a worker has loaded the model."""
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            until(lambda: client.get("/health/ready").status_code == 200, "a worker is ready")

    def second(self) -> subprocess.CompletedProcess[str]:
        """Starts another one for the same folder and port, and waits for its end."""
        return subprocess.run(
            [*self._command, "--port", self._port],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=PATIENCE,
            check=False,
        )

    def kin(self) -> list[int]:
        """Ids of all processes of this data folder: the server, its workers, and whatever earlier starts left behind."""
        mark, found = b"HWAGA_DATA_DIR=" + os.fsencode(self.data) + b"\0", []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                if mark in (folder / "environ").read_bytes() + b"\0":
                    found.append(int(folder.name))
        return found

    def workers(self) -> list[int]:
        """Ids of the worker processes."""
        return [pid for pid in self.kin() if pid != self.process.pid]

    def kill_worker(self) -> bool:
        """Kills a worker with SIGKILL. False if there was none."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def kill(self) -> None:
        """Kills the server with SIGKILL, and waits for its worker to notice.

        Raises:
            TimeoutError: a worker goes on without its server.
        """
        self.process.kill()
        self.process.wait()
        until(lambda: not self.kin(), "the worker of a server that was killed ends too", 30)

    def terminate(self) -> int:
        """Sends SIGTERM. Returns the exit code.

        Raises:
            TimeoutError: a worker goes on without its server.
        """
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        until(lambda: not self.kin(), "the worker of a server that was stopped ends too", 30)
        return code

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class Asked:
    """What a client asked for under one idempotency key, and what it was told."""

    body: dict[str, Any]
    ids: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)
    cancelled: bool = False


class Crowd:
    """Clients in pairs. Both of a pair send the same requests under the same keys, each until it is answered, as a client does
    that cannot know whether its request arrived.

    Args:
        served: may be killed and started again meanwhile.
        prompts: what is asked for, at random.
        source: a picture that some requests start from.
        clients: how many there are.
        ahead: jobs that a client has waiting at most.
        seed: of all that is random.
    """

    def __init__(
        self,
        served: Served,
        prompts: Sequence[str],
        *,
        source: str | None = None,
        clients: int = 6,
        ahead: int = 3,
        seed: int = 0,
    ) -> None:
        self.asked: dict[str, Asked] = {}
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._served, self._prompts, self._source, self._ahead, self._seed = served, prompts, source, ahead, seed
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._abandoned = False
        self._threads = [threading.Thread(target=self._try, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._abandoned = any(error)
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def settle(self) -> None:
        """Sends no more, waits for all answers and until each job has ended, and fetches the pictures. The server runs."""
        self.__exit__()
        with httpx2.Client(base_url=self._served.url, timeout=60) as client:
            waiting = [(key, asked) for key, asked in self.asked.items() if asked.ids]
            end = time.monotonic() + PATIENCE
            while waiting and time.monotonic() < end:
                waiting = [(key, asked) for key, asked in waiting if not self._look(client, asked)]
                time.sleep(0.1)
            self.faults += [f"The job of key {key} did not end in {PATIENCE:g} s." for key, _ in waiting]
            for key, asked in self.asked.items():
                for job in asked.ids:
                    for picture in client.get(f"/v1/jobs/{job}").json().get("images", []):
                        answer = client.get(picture["url"])
                        path = self._served.folder / "results" / picture["id"][:2] / f"{picture['id']}.png"
                        if answer.status_code != 200 or not path.exists() or answer.content != path.read_bytes():
                            self.faults.append(f"A picture of key {key} is not served as it lies on the disk.")

    def _try(self, number: int) -> None:
        try:
            self._run(number)
        except Exception as error:  # noqa: BLE001 - a client that breaks must not look like one that has nothing to complain of
            self.faults.append(f"Client {number} failed: {error!r}")

    def _run(self, number: int) -> None:
        with httpx2.Client(base_url=self._served.url, timeout=60) as client:
            sent: list[Asked] = []
            place = 0
            while not self._stopping.is_set():
                chance = random.Random(f"{self._seed} {number // 2} {place}")
                with self._lock:
                    asked = self.asked.setdefault(f"pair {number // 2}, request {place}", Asked(self._body(chance)))
                if not self.insist(client, f"pair {number // 2}, request {place}", asked):
                    return
                sent.append(asked)
                place += 1
                if chance.random() < 0.1:
                    asked.cancelled = True
                    with contextlib.suppress(httpx2.TransportError):
                        self._expect(client.delete(f"/v1/jobs/{next(iter(asked.ids))}"))
                while not self._stopping.is_set() and len(sent) >= self._ahead:
                    sent = [waiting for waiting in sent if not self._look(client, waiting)]
                    self._stopping.wait(0.1)

    def _body(self, chance: random.Random) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": chance.choice(self._prompts),
            "seed": chance.randrange(2**31),
            "steps": chance.choice([1, 2]),
            "number": chance.choice([1, 1, 2]),
            "previews": chance.random() < 0.3,
        }
        if self._source is not None and chance.random() < 0.2:
            body |= {"image": self._source, "strength": 1.0}
        return body

    def insist(self, client: httpx2.Client, key: str, asked: Asked) -> bool:
        """Sends a request until it is taken, whatever happens to the server. False if it never was."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self._abandoned:
            try:
                answer = client.post("/v1/jobs", json=asked.body, headers={"Idempotency-Key": key})
            except httpx2.TransportError as error:
                self._count(type(error).__name__)
                time.sleep(0.05)
                continue
            self._count(str(answer.status_code))
            if answer.status_code == 202:
                with self._lock:
                    asked.ids.add(answer.json()["id"])
                return True
            if answer.status_code not in (429, 503):
                self.faults.append(f"Key {key} was answered {answer.status_code}: {answer.text}")
                return False
            time.sleep(0.2)
        self.faults.append(f"Key {key} was not answered in {PATIENCE:g} s.")
        return False

    def _look(self, client: httpx2.Client, asked: Asked) -> bool:
        """Whether a job that was accepted has ended. What it says then is noted."""
        ended = True
        for job in sorted(asked.ids):
            try:
                answer = client.get(f"/v1/jobs/{job}")
            except httpx2.TransportError:
                return False
            if answer.status_code == 404:
                self.faults.append(f"Job {job} was accepted, and is not there any more.")
            elif not self._expect(answer):
                ended = False
            elif (status := answer.json()["status"]) in TERMINAL:
                asked.ends.add(status)
            else:
                ended = False
        return ended

    def _expect(self, answer: httpx2.Response) -> bool:
        """Whether an answer about a job that was accepted is one. A server that starts or stops may say 503, and no more."""
        if answer.status_code not in (200, 503):
            self.faults.append(
                f"{answer.request.method} {answer.request.url} was answered {answer.status_code}: {answer.text}"
            )
        return answer.status_code == 200

    def _count(self, answer: str) -> None:
        with self._lock:
            self.answers[answer] += 1


def await_moment(served: Served, aim: str, chance: random.Random, *, span: float) -> bool:
    """Waits for a moment to kill at: one of AIMS, and up to ``span`` seconds more. False if none came.

    A job's events tell where it is; that its pictures are being written shows in the folders of results, and is brief.
    """
    if aim == "any moment":
        time.sleep(chance.uniform(0, 4 * span))
        return True
    end = time.monotonic() + PATIENCE / 6
    if aim == "writing":
        folders = [os.fspath(path) for path in (served.folder / "results").iterdir()]
        before = [os.stat(path).st_mtime_ns for path in folders]  # noqa: PTH116 - it has to be quick
        while time.monotonic() < end:
            if [os.stat(path).st_mtime_ns for path in folders] != before:  # noqa: PTH116
                time.sleep(chance.choice([0, chance.uniform(0, 0.01)]))
                return True
        return False
    with httpx2.Client(base_url=served.url, timeout=PATIENCE / 36) as client:
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.TransportError):
                jobs = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
                going = [job for job in jobs if job["status"] == "running"]
                going += sorted(
                    (job for job in jobs if job["status"] == "queued"), key=lambda job: job["position"] or 0
                )
                # Not one that runs already: its first event may be long past.
                for job in going[1:2] or going[:1]:
                    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
                        if _reached(aim, stream):
                            time.sleep(chance.uniform(0, span))
                            return True
            time.sleep(0.02)
    return False


def _reached(aim: str, stream: httpx2.Response) -> bool:
    kind = ""
    for line in stream.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            if kind == "started" and aim == "encoding":
                return True
            if kind == "step":
                progress = json.loads(line.removeprefix("data: "))["progress"]
                if aim == ("decoding" if progress["step"] == progress["total"] else "a step"):
                    return True
    return False


def after_death(folder: Path) -> dict[str, int]:
    """What a server left, read from a copy, so that it is the next start that recovers the database: jobs that ran, by how far
    they were; jobs that wait, and those of them that were begun and given back; attempts that were lost so far; picture files
    that no row names; whether the database is damaged.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.glob("jobs.sqlite3*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, temporary)
        with closing(sqlite3.connect(Path(temporary) / "jobs.sqlite3")) as db:
            damaged = db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
            running = db.execute("SELECT step, total FROM jobs WHERE status = 'running'").fetchall()
            waiting, given_back, lost = db.execute(
                "SELECT sum(status = 'queued'), sum(status = 'queued' AND attempt > lost), sum(lost) FROM jobs"
            ).fetchone()
            known = {name for (name,) in db.execute("SELECT id FROM pictures")}
    files = [path for role in ("results", "sources") for path in (folder / role).glob("*/*")]
    return {
        "damaged": damaged,
        "before the first step": sum(step == 0 for step, _ in running),
        "between steps": sum(0 < step < total for step, total in running),
        "after the last step": sum(0 < step == total for step, total in running),
        "nothing running": not running,
        "waiting": waiting or 0,
        "given back": given_back or 0,
        "lost": lost or 0,
        "files without a row": sum(path.name.removesuffix(".png") not in known for path in files),
    }


def examine(folder: Path, asked: dict[str, Asked], *, losses: int | None = 0) -> list[str]:
    """What is wrong in a data folder whose server was stopped, given what clients asked for and were told. Jobs without an
    idempotency key, which clients may have left, must have ended too.

    Args:
        folder: the server's.
        asked: by idempotency key.
        losses: most attempts that may have been lost: as many as jobs may have run when something was killed. None: any.
    """
    faults = []
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as db:
        db.row_factory = sqlite3.Row
        if (check := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            faults.append(f"The database is damaged: {check}")
        jobs = {row["id"]: row for row in db.execute("SELECT * FROM jobs")}
        pictures = db.execute("SELECT * FROM pictures ORDER BY job, position").fetchall()
    for role in ("results", "sources"):
        files = {path.name.removesuffix(".png") for path in (folder / role).glob("*/*")}
        rows = {picture["id"] for picture in pictures if picture["role"] == role}
        faults += [f"A file in {role} has no row: {name}" for name in sorted(files - rows)]
        faults += [f"A row of {role} has no file: {name}" for name in sorted(rows - files)]
    keys = Counter(row["idempotency_key"] for row in jobs.values() if row["idempotency_key"] is not None)
    faults += [f"There are {count} jobs of key {key}." for key, count in keys.items() if count > 1]
    faults += [f"There is a job of key {key}, which nobody was told of." for key in keys.keys() - asked.keys()]
    for row in jobs.values():
        if row["status"] not in TERMINAL:
            faults.append(f"Job {row['id']} is {row['status']}, and nothing draws it.")
        if row["status"] == "failed" and (row["error_type"] != "WorkerError" or row["lost"] < MAX_RETRIES):
            faults.append(
                f"Job {row['id']} failed: {row['error_type']}: {row['error_message']} ({row['lost']} attempts were lost before)"
            )
    # The last loss of a job that is given up is its end, and is not counted in its row.
    lost = sum(row["lost"] + (row["error_type"] == "WorkerError") for row in jobs.values())
    if losses is not None and lost > losses:
        faults.append(f"{lost} attempts were lost, where {losses} at most can have been.")
    for key, told in asked.items():
        if len(told.ids) != 1:
            faults.append(f"Key {key} stands for {len(told.ids)} jobs.")
        for job in told.ids:
            if job not in jobs:
                faults.append(f"Job {job} of key {key} was accepted and is gone.")
                continue
            status = jobs[job]["status"]
            if told.ends != {status}:
                faults.append(f"Job {job} of key {key} is {status}; clients saw {sorted(told.ends)}.")
            if status == "cancelled" and not told.cancelled:
                faults.append(f"Job {job} of key {key} is cancelled, and nobody asked for that.")
            results = [picture for picture in pictures if picture["job"] == job and picture["role"] == "results"]
            wanted = told.body.get("number", 1) if status == "succeeded" else 0
            if len(results) != wanted:
                faults.append(f"Job {job} of key {key} is {status} with {len(results)} pictures, not {wanted}.")
            for place, picture in enumerate(results):
                path = folder / "results" / picture["id"][:2] / f"{picture['id']}.png"
                if path.exists() and (fault := _fault_of(path, told.body, place)):
                    faults.append(f"Picture {place} of key {key}: {fault}")
    return faults


def _fault_of(path: Path, body: dict[str, Any], place: int) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
            if image.format != "PNG":
                return f"is a {image.format}"
        request = read_settings(path)["request"]
    except (OSError, SyntaxError, ImageFileError, KeyError) as error:
        return f"cannot be read: {error}"
    wanted = {"prompt": body["prompt"], "steps": body["steps"], "seed": body["seed"] + place}
    found = {name: request.get(name) for name in wanted}
    return None if found == wanted else f"was made with {found}, not {wanted}"
