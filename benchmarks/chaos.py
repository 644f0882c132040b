"""A server under attack: its worker and itself killed at bad moments, too many clients, rude ones, a full disk, a taken port.

    python benchmarks/chaos.py [--worker-kills 100] [--server-kills 50] [--load-seconds 300] [--seed 1]

A real ``hwaga serve`` with the bundled model on the CPU, over plain HTTP, that draws up to three pictures at once. Every job
that was accepted must come to exactly one end, with its pictures, whatever was killed; see ``examine`` in tests/storm.py for
all that is checked. The counts, and what was wrong, go to ``results/chaos.json``, of some parts alone to a file with their
names; the exit code is 1 if anything was. HWAGA_TEST_PATIENCE in seconds suits a machine that is busy besides. Linux only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import multiprocessing
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image
from report import write_report

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import full_disk
from storm import AIMS, PATIENCE, Asked, Crowd, Served, after_death, await_moment, examine, until

from hwaga.server.jobs import TERMINAL

_NOW = ("waiting", "given back", "lost")  # counts of what one death leaves and the next one finds again

PARTS = ("kills", "load", "rude", "taken_port", "full_disk")
PROMPTS = ["a red apple on a yellow background", "파란 배경의 고양이", "a cup of coffee on a mint background"]
SPAN = 0.25  # seconds after an event within which is killed: an encoding, a step or a decoding of the bundled model, and more
BATCH = 3
OPTIONS = ("--model", "mini", "--device", "cpu", "--batch", str(BATCH))
MAX_LIVE_P99 = 0.05
"""Seconds in which 99 of 100 questions whether the server lives are answered while it draws, under load."""


def kills(folder: Path, worker_kills: int, server_kills: int, seed: int) -> dict[str, Any]:
    """Kills the worker so many times, and the server so many times, in random order under clients that insist."""
    chance, aimed, found, faults = random.Random(seed), Counter[str](), Counter[str](), []
    victims = ["worker"] * worker_kills + ["server"] * server_kills
    chance.shuffle(victims)
    begin = time.monotonic()
    with Served(folder, *OPTIONS) as served:
        with Crowd(served, PROMPTS, source=small_picture(), seed=seed) as crowd:
            for count, victim in enumerate(victims, 1):
                served.until_ready()
                aim = chance.choice(AIMS)
                if not await_moment(served, aim, chance, span=SPAN):
                    faults.append(f"No job came to the moment '{aim}' in time.")
                if victim == "worker":
                    until(served.kill_worker, "there is a worker to kill")
                else:
                    served.kill()
                    left = after_death(served.folder)
                    found.update({name: count for name, count in left.items() if name not in _NOW})
                    found["with files without a row"] += left["files without a row"] > 0
                    served.start()
                aimed[f"{victim}, {aim}"] += 1
                if count % 5 == 0 or count == len(victims):
                    say(f"{count} of {len(victims)} killed, {len(crowd.asked)} jobs asked for")
            crowd.settle()
        code = served.terminate()
    faults += crowd.faults + examine(served.folder, crowd.asked, losses=BATCH * len(victims))
    if code:
        faults.append(f"The server ended with {code}.")
    came_to = ends(crowd.asked)
    if came_to.get("succeeded", 0) <= came_to.get("failed", 0):
        faults.append(f"Hardly anything was drawn: {came_to}")
    if found["damaged"]:
        faults.append(f"The database was damaged after {found['damaged']} kills.")
    return {
        "worker_kills": worker_kills,
        "server_kills": server_kills,
        "seconds": round(time.monotonic() - begin, 1),
        "aimed_at": dict(sorted(aimed.items())),
        "found_after_server_kills": dict(found),
        "keys": len(crowd.asked),
        "ends": came_to,
        "answers_to_submissions": dict(crowd.answers),
        "faults": faults,
    }


def load(folder: Path, clients: int, queue: int, seconds: float) -> dict[str, Any]:
    """More clients than the queue holds, for a while; then SIGTERM, and a second start that draws what was left."""
    asked: dict[str, Asked] = {}
    unanswered: dict[str, Asked] = {}
    faults: list[str] = []
    answers: Counter[str] = Counter()
    refused: list[float] = []
    lock, stopping = threading.Lock(), threading.Event()

    def work(number: int) -> None:
        try:
            ask(number)
        except httpx2.TransportError as error:
            if not stopping.is_set():
                faults.append(f"Client {number} was cut off: {error!r}")
        except Exception as error:  # noqa: BLE001 - a client that breaks must not look like a content one
            faults.append(f"Client {number} failed: {error!r}")

    def ask(number: int) -> None:
        place = 0
        with httpx2.Client(base_url=served.url, timeout=120) as client:
            while not stopping.is_set():
                key = f"client {number}, request {place}"
                body = {"prompt": PROMPTS[place % len(PROMPTS)], "seed": place, "steps": 1}
                with lock:
                    unanswered[key] = Asked(body)
                answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
                with lock:
                    del unanswered[key]
                    answers[str(answer.status_code)] += 1
                if answer.status_code == 202:
                    with lock:
                        asked[key] = Asked(body, {answer.json()["id"]})
                    place += 1
                    with client.stream("GET", f"/v1/jobs/{answer.json()['id']}/events") as stream:
                        for _ in stream.iter_lines():
                            pass
                elif answer.status_code == 429:
                    told = answer.headers.get("retry-after", "")
                    if not told.isdecimal() or int(told) < 1:
                        faults.append(f"A 429 came with Retry-After {told!r}.")
                    else:
                        refused.append(int(told))
                    stopping.wait(1)  # sooner than it was told to
                elif not (answer.status_code == 503 and stopping.is_set()):
                    faults.append(f"A submission was answered {answer.status_code}: {answer.text}")

    with Served(folder, *OPTIONS, "--queue", str(queue)) as served:
        served.until_ready()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        # In a process of its own: what is timed is the server, not how long a thread waits for its turn among the clients'.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            alive, silent = other.submit(ask_whether_alive, served.url, seconds).result()
        faults += ["The server did not say that it is alive."] * silent
        say(f"{clients} clients for {seconds:g} s: {dict(answers)}")
        stopping.set()
        begin = time.monotonic()
        if code := served.terminate():
            faults.append(f"SIGTERM under load ended the server with {code}.")
        drained = time.monotonic() - begin
        for thread in threads:
            thread.join()
        kept = after_death(served.folder)
        if not kept["nothing running"] or kept["lost"] or kept["given back"]:
            faults.append(f"SIGTERM did not wait for what was being drawn: {kept}")
        if not 0 < kept["waiting"] <= queue:
            faults.append(f"SIGTERM left {kept['waiting']} jobs in a queue of {queue}.")
        served.start()
        rest = Crowd(served, PROMPTS, clients=0)
        rest.asked = asked | unanswered
        with httpx2.Client(base_url=served.url, timeout=60) as client:
            for key, request in unanswered.items():  # who was cut off at the end asks again
                rest.insist(client, key, request)
        rest.settle()
        served.terminate()
    faults += rest.faults + examine(served.folder, rest.asked)
    centiles = statistics.quantiles(alive, n=100)
    if centiles[98] >= MAX_LIVE_P99:
        faults.append(
            f"/health/live took {centiles[98]:.3f} s at the 99th percentile, and less than {MAX_LIVE_P99} is due."
        )
    if not answers["202"] or not answers["429"]:
        faults.append(f"It was no load, as the queue was never full: {dict(answers)}")
    return {
        "clients": clients,
        "queue": queue,
        "seconds": seconds,
        "accepted": len(asked),
        "waiting_when_stopped": kept["waiting"],
        "cut_off_and_asked_again": len(unanswered),
        "ends": ends(rest.asked),
        "answers_to_submissions": dict(answers),
        "retry_after_seconds": {"min": min(refused), "max": max(refused)} if refused else None,
        "live_seconds": {
            "p50": round(centiles[49], 4),
            "p99": round(centiles[98], 4),
            "max": round(max(alive), 4),
            "count": len(alive),
        },
        "sigterm_to_exit_seconds": round(drained, 2),
        "faults": faults,
    }


def ask_whether_alive(url: str, seconds: float) -> tuple[list[float], int]:
    """Asks every 50 ms. Returns the seconds that each answer took, and how many were no good ones."""
    took, silent = [], 0
    end = time.monotonic() + seconds
    with httpx2.Client(base_url=url, timeout=60) as client:
        while time.monotonic() < end:
            begin = time.perf_counter()
            silent += client.get("/health/live").status_code != 200
            took.append(time.perf_counter() - begin)
            time.sleep(0.05)
    return took, silent


def rude(folder: Path, seconds: float) -> dict[str, Any]:
    """Clients that send a byte a second, leave in mid-stream, never read, or leave while they wait; and one that is polite."""
    faults: list[str] = []
    with Served(folder, *OPTIONS) as served, httpx2.Client(base_url=served.url, timeout=120) as client:
        served.until_ready()
        descriptors = Path(f"/proc/{served.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        words = json.dumps({"prompt": PROMPTS[0], "steps": 1, "seed": 1}).encode()
        slow: list[socket.socket] = []
        for head in (b"GET /v1/models HTTP/1.1\r\n", posted("/v1/jobs", words)):
            for _ in range(8):
                slow.append(connected(served.url))
                if head.startswith(b"POST"):
                    slow[-1].sendall(head[: -len(words)])
        asked: dict[str, Asked] = {}
        left: list[str] = []
        unread: list[socket.socket] = []
        ready, round_ = 0, 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.monotonic()
            for place, connection in enumerate(slow):
                with contextlib.suppress(OSError):
                    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"[round_ % 36 : round_ % 36 + 1] if place < 8
                                       else words[round_ : round_ + 1])  # fmt: skip
            # One that waits for its pictures and leaves: its job has no key, and goes with it.
            body = json.dumps({"prompt": PROMPTS[1], "size": "256x256", "n": 1, "steps": 20}).encode()
            waiting = connected(served.url)
            waiting.sendall(posted("/v1/images/generations", body))
            # One that leaves in the middle of a stream of previews, and one that never reads its own.
            key = f"polite {round_}"
            answer = client.post(
                "/v1/jobs",
                json={"prompt": PROMPTS[2], "seed": round_, "steps": 2, "previews": True},
                headers={"Idempotency-Key": key},
            )
            job = answer.json()["id"]
            asked[key] = Asked({"prompt": PROMPTS[2], "seed": round_, "steps": 2}, {job})
            leaving = connected(served.url)
            leaving.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            leaving.recv(100)
            unread.append(connected(served.url))
            unread[-1].sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            gone(leaving)
            gone(waiting)
            left.append(job)
            if client.get("/health/ready").status_code == 200:
                ready += 1
            else:
                faults.append("The server was not ready among rude clients.")
            round_ += 1
            time.sleep(max(0.0, begin + 1 - time.monotonic()))
        for connection in [*slow, *unread]:
            gone(connection)
        rest = Crowd(served, PROMPTS, clients=0)
        rest.asked = asked
        rest.settle()
        jobs = list(all_jobs(client))
        until(lambda: all(job["status"] in TERMINAL for job in all_jobs(client)), "all jobs have ended")
        deserted = Counter(job["status"] for job in all_jobs(client) if job["request"]["prompt"] == PROMPTS[1])
        if not deserted or deserted["cancelled"] != sum(deserted.values()):
            faults.append(f"Jobs whose clients left came to {dict(deserted)}.")
        time.sleep(1)
        after = len(list(descriptors.iterdir()))
        if after > before + 4:
            faults.append(f"The server held {before} descriptors before and {after} after.")
        served.terminate()
    faults += rest.faults + examine(served.folder, asked)
    return {
        "seconds": seconds,
        "one_byte_a_second": len(slow),
        "left_in_mid_stream": len(left),
        "never_read": len(unread),
        "left_while_queued": dict(deserted),
        "ready_of_checks": [ready, round_],
        "descriptors_before_and_after": [before, after],
        "jobs": len(jobs),
        "ends_of_polite_jobs": ends(asked),
        "faults": faults,
    }


def taken_port(folder: Path) -> dict[str, Any]:
    """A second server for the port of the first: it says so and ends, and the first one's jobs are none of its business."""
    faults: list[str] = []
    with Served(folder, *OPTIONS) as served, httpx2.Client(base_url=served.url, timeout=120) as client:
        served.until_ready()
        body = {"prompt": PROMPTS[0], "steps": 20, "seed": 1}
        asked = {"first": Asked(body)}
        job = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "first"}).json()["id"]
        asked["first"].ids.add(job)
        second = served.second()
        if second.returncode != 2 or "cannot be listened on" not in second.stderr:
            faults.append(f"A second server ended with {second.returncode}: {second.stderr[-500:]}")
        rest = Crowd(served, PROMPTS, clients=0)
        rest.asked = asked
        rest.settle()
        served.terminate()
    faults += rest.faults + examine(served.folder, asked)
    return {"exit_code_of_the_second": second.returncode, "ends": ends(asked), "faults": faults}


def ends(asked: dict[str, Asked]) -> dict[str, int]:
    return dict(Counter(" and ".join(sorted(told.ends)) for told in asked.values()))


def all_jobs(client: httpx2.Client) -> Iterator[dict[str, Any]]:
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/v1/jobs", params={"limit": "100", **cursor}).json()
        yield from page["data"]
        if page["next"] is None:
            return
        cursor = {"cursor": page["next"]}


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def gone(connection: socket.socket) -> None:
    """Closes a connection with a reset, as a client that crashes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def posted(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def small_picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 40, 40)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker-kills", type=int, default=100)
    parser.add_argument("--server-kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=64, help="of the load")
    parser.add_argument("--queue", type=int, default=32, help="of the load")
    parser.add_argument("--load-seconds", type=float, default=300)
    parser.add_argument("--rude-seconds", type=float, default=30)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all of them unless named")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in PARTS]
        for folder in folders:
            folder.mkdir()
        run: dict[str, Callable[[], dict[str, Any]]] = {
            "kills": lambda: kills(folders[0], arguments.worker_kills, arguments.server_kills, arguments.seed),
            "load": lambda: load(folders[1], arguments.clients, arguments.queue, arguments.load_seconds),
            "rude": lambda: rude(folders[2], arguments.rude_seconds),
            "taken_port": lambda: taken_port(folders[3]),
            "full_disk": lambda: (
                full_disk.run(folders[4], [sys.executable, "-m", "hwaga"], PROMPTS[0])
                or {"skipped": "no file system can be mounted here", "faults": []}
            ),
        }
        figures: dict[str, Any] = {"seed": arguments.seed, "patience_seconds": PATIENCE}
        figures |= {part: run[part]() for part in PARTS if part in arguments.parts}
    faults = [fault for part in PARTS if part in figures for fault in figures[part]["faults"]]
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    everything = set(arguments.parts) == set(PARTS)
    print(write_report("chaos" if everything else f"chaos_{'_'.join(sorted(arguments.parts))}", figures))
    if faults:
        sys.exit(f"{len(faults)} faults")


if __name__ == "__main__":
    main()
