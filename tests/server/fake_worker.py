"""A worker without an engine, for ``python fake_worker.py FD``: draws as the body of the job says, or, of a job that came over
HTTP, as its prompt says where that is a JSON object.

steps, delay    so many steps of so many seconds
turns           of others that it lets pass between its last step and its end
until           a file: its steps wait until it is there
error           the class of error that "fail" reports
way             "finish", "fail", "die", "die once" (a file whose path is "mark" tells), "hang" or "babble"
bytes           about the size of each picture
log             a file that is told how many jobs were drawn together, and with which model where that is known

The jobs of a batch take their steps in turn.
"""

from __future__ import annotations

import io
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from hwaga.image_file import encode
from hwaga.server import wire


def _waits(plan: dict[str, Any]) -> bool:
    """Whether the file of ``until`` is still to come. With the folder of a test that is over, it never would."""
    gate = Path(plan["until"]) if "until" in plan else None
    return gate is not None and gate.parent.exists() and not gate.exists()


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    messages: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
    cancelled: list[wire.Message] = []

    def listen() -> None:
        stream = connection.makefile("rb")
        while (message := wire.receive(stream)) is not None:
            (cancelled.append if isinstance(message, wire.Cancel) else messages.put)(message)
        os._exit(0)

    def send(message: wire.Message) -> None:
        connection.sendall(wire.encode(message))

    threading.Thread(target=listen, daemon=True).start()
    asked = messages.get()
    assert isinstance(asked, wire.Open)
    name = asked.models[0] if asked.models else "mini"
    if name.startswith("{"):  # as a job: what its loading is like
        plan = json.loads(name)
        hangs = plan.get("way") == "hang" and not Path(plan["mark"]).exists()
        Path(plan["mark"]).touch()
        while _waits(plan):
            time.sleep(0.005)
        for _ in range(plan["steps"]):
            time.sleep(plan["delay"])
            send(wire.Loading())
        if hangs:
            time.sleep(1000)
    elif name != "mini":  # but a file that counts its starts, of which two fail
        mark = Path(name)
        starts = int(mark.read_text()) if mark.exists() else 0
        mark.write_text(str(starts + 1))
        if starts == 0:
            send(wire.Failed("UnknownModelError", "There is no such model."))
        if starts <= 1:
            sys.exit(3)
    for model in asked.models[1:]:  # there is room for one of several
        send(wire.Plan({"model": model, "held_bytes": 0, "away_bytes": 1}))
    send(wire.Ready(asked.models, "cpu"))
    while True:
        batch: list[wire.Draw] = []
        while not batch or batch[-1].more:
            job = messages.get()
            assert isinstance(job, wire.Draw)
            batch.append(job)
        going = [draw(job, len(batch), cancelled, send) for job in batch]
        while going:
            going = [steps for steps in going if next(steps, None)]
        send(wire.DeviceMemory(1000, 2000, 3000))


def draw(
    job: wire.Draw, together: int, cancelled: list[wire.Message], send: Callable[[wire.Message], None]
) -> Iterator[int]:
    """Draws a job; yields the number of each step."""
    plan = job.body
    prompt = job.body["request"]["prompt"] if "request" in job.body else ""
    if prompt.startswith('{"'):
        plan = json.loads(prompt)
    number = job.body.get("number", 1) if prompt else 1
    way, own = plan.get("way", "finish"), plan.get("steps", 2)
    steps = own * number
    if way == "die once" and Path(plan["mark"]).exists():
        way = "finish"
    if "log" in plan:
        with Path(plan["log"]).open("a") as log:
            log.write(f"{together} {job.body.get('model', '')}".strip() + "\n")
    for step in range(1, steps + 1):
        time.sleep(plan.get("delay", 0))
        while _waits(plan):
            if wire.Cancel(job.job, job.attempt) in cancelled:
                break
            time.sleep(0.005)
        if wire.Cancel(job.job, job.attempt) in cancelled and way != "hang":
            send(wire.Stopped(job.job))
            return
        preview = b"preview %d" % step
        if prompt:
            preview = picture("JPEG", (32, 24), step) if job.body["previews"] else b""
        place, before = divmod(step - 1, own)
        send(wire.Progress(job.job, step, steps, place, before + 1, preview))
        yield step
    for _ in range(plan.get("turns", 0)):
        yield steps
    match way:
        case "finish":
            for place in range(number):
                made = (
                    finished(job.body["request"], place, plan.get("bytes", 0))
                    if prompt
                    else b"picture of " + (job.data or b"words")
                )
                send(wire.Picture(job.job, made))
            send(wire.Finished(job.job))
        case "fail":
            send(wire.Failed(plan.get("error", "SizeError"), plan.get("message", "No such size."), job.job))
        case "hang":
            time.sleep(1000)
        case "babble":
            os.write(int(sys.argv[1]), b"GET / HTTP/1.1\r\n\r\n")
        case _:
            if way == "die once":
                Path(plan["mark"]).touch()
            os._exit(9)


def picture(format: str, size: tuple[int, int], shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def finished(request: dict[str, Any], place: int, size: int) -> bytes:
    image = Image.new("RGB", (336, 192), (place, 0, 0))
    if size:  # noise does not get smaller
        image = Image.frombytes("L", (size // 192, 192), os.urandom(size // 192 * 192)).convert("RGB")
    if request.get("seed") is not None:
        request = request | {"seed": request["seed"] + place}
    return encode(image, "png", made_with={"request": request}, parameters="a picture")


if __name__ == "__main__":
    main()
