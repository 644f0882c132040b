"""A worker without an engine, for ``python fake_worker.py FD``: draws as the body of the job says.

steps, delay    so many steps of so many seconds
way             "finish", "fail", "die", "die once" (a file whose path is "mark" tells), "hang" or "babble"
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from pathlib import Path

from hwaga.server import wire


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
    if asked.model is not None:
        mark = Path(asked.model)
        starts = int(mark.read_text()) if mark.exists() else 0
        mark.write_text(str(starts + 1))
        if starts == 0:
            send(wire.Failed("UnknownModelError", "There is no such model."))
        if starts <= 1:
            sys.exit(3)
    send(wire.Ready("fake", "cpu"))
    while True:
        job = messages.get()
        assert isinstance(job, wire.Draw)
        way, steps = job.body.get("way", "finish"), job.body.get("steps", 2)
        for step in range(1, steps + 1):
            time.sleep(job.body.get("delay", 0))
            if wire.Cancel(job.job, job.attempt) in cancelled and way != "hang":
                send(wire.Stopped())
                break
            send(wire.Progress(step, steps, b"preview %d" % step))
        else:
            match way:
                case "finish":
                    send(wire.Picture(b"picture of " + (job.data or b"words")))
                    send(wire.Finished())
                case "fail":
                    send(wire.Failed("SizeError", "No such size."))
                case "hang":
                    time.sleep(1000)
                case "babble":
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                case "die once" if Path(job.body["mark"]).exists():
                    send(wire.Picture(b"picture"))
                    send(wire.Finished())
                case _:
                    if way == "die once":
                        Path(job.body["mark"]).touch()
                    os._exit(9)


if __name__ == "__main__":
    main()
