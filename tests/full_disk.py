"""A server whose disk is full for a while, on a small file system of its own, which ``run`` makes in a namespace of its own.

``python full_disk.py FOLDER COMMAND…`` is what runs in there; it prints what it counted as JSON. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
from storm import Asked, Crowd, Served, examine, until

SIZE = "6m"
MOUNTED = 'mkdir -p "$1/server" && mount -t tmpfs -o size="$2" none "$1/server" && shift 2 && exec "$@"'


def run(folder: Path, command: Sequence[str], prompt: str) -> dict[str, Any] | None:
    """Counts and faults; None where this machine lets nobody mount a file system."""
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        return None
    script = [sys.executable, __file__, str(folder), prompt, *command]
    done = subprocess.run(
        [*inside, "sh", "-c", MOUNTED, "sh", str(folder), SIZE, *script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"faults": [f"It ended with {done.returncode}: {done.stderr[-2000:]}"]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def storm(folder: Path, command: Sequence[str], prompt: str) -> dict[str, Any]:
    """Jobs before, while and after the disk is full, and while there is room for jobs and for no picture."""
    faults: list[str] = []
    answers: dict[str, Counter[str]] = {}
    asked: dict[str, Asked] = {}
    with Served(folder, command=command) as served, httpx2.Client(base_url=served.url, timeout=60) as client:
        served.until_ready()

        def ask(when: str, count: int) -> None:
            told = answers.setdefault(when, Counter())
            for number in range(count):
                key = f"{when}, {number}"
                body = {"prompt": prompt, "steps": 1, "seed": len(asked)}
                answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
                told[str(answer.status_code)] += 1
                if answer.status_code == 202:
                    asked[key] = Asked(body, {answer.json()["id"]})
                elif answer.status_code != 507 or answer.json()["error"]["code"] != "store_full":
                    faults.append(f"A submission was answered {answer.status_code}: {answer.text}")
                if client.get("/health/live").status_code != 200:
                    faults.append("The server did not say that it is alive.")

        def ended() -> bool:
            return all(
                client.get(f"/v1/jobs/{job}").json()["status"] in ENDS for told in asked.values() for job in told.ids
            )

        ask("before", 3)
        until(ended, "the first jobs have ended")
        ballast = served.folder / "ballast"
        fill(ballast)
        ask("full", 10)
        for left in (16 * 1024, 64 * 1024):  # room for rows, and hardly for pictures
            ballast.unlink()
            fill(ballast, left)
            ask(f"{left // 1024} KiB left", 10)
            time.sleep(1)
        ballast.unlink()
        until(ended, "what was accepted has ended, now that there is room")
        ask("after", 3)
        rest = Crowd(served, [prompt], clients=0)
        rest.asked = asked
        rest.settle()
        if code := served.terminate():
            faults.append(f"The server ended with {code}.")
    # A lease that could not be renewed while the disk was full is a loss.
    found = [fault for fault in examine(served.folder, asked, losses=None) if "failed: StoreFullError" not in fault]
    if answers["full"]["507"] == 0:
        faults.append(f"A full disk was not told of: {answers}")
    for when in ("before", "after"):
        ends = [told.ends for key, told in asked.items() if key.startswith(when)]
        if ends != [{"succeeded"}] * 3:
            faults.append(f"Not all jobs of {when} were accepted and succeeded: {ends}")
    return {
        "answers": {when: dict(told) for when, told in answers.items()},
        "ends": dict(Counter(" and ".join(sorted(told.ends)) for told in asked.values())),
        "faults": faults + rest.faults + found,
    }


ENDS = ("succeeded", "failed", "cancelled")


def fill(path: Path, left: int = 0) -> None:
    """Writes until the disk is full, but for so many bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with path.open("rb+") as file:
        file.truncate(max(0, path.stat().st_size - left))


if __name__ == "__main__":
    json.dump(storm(Path(sys.argv[1]), sys.argv[3:], sys.argv[2]), sys.stdout)
