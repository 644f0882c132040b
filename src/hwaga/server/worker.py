"""The process that draws: one model on one device, one job at a time.

``python -m hwaga.server.worker FD`` speaks ``hwaga.server.wire`` over the socket that it inherits. It ends with its parent, and
with nothing else short of a kill: who stops the server decides whether the picture that is being drawn is waited for.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import queue
import signal
import socket
import sys
import threading
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hwaga.errors import HwagaError, WireError
from hwaga.image_file import encode_result
from hwaga.request import ImageRequest, Result, Step
from hwaga.server import wire
from hwaga.source_image import SourceImage

if TYPE_CHECKING:
    from hwaga.engine import Engine
    from hwaga.memory.plan import Plan

_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


class Worker:
    """The worker's side of the connection. A thread of its own reads, so that cancelling is heard while a picture is drawn."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._messages: queue.SimpleQueue[wire.Open | wire.Draw] = queue.SimpleQueue()
        self._cancelled = wire.Cancel("", 0)
        self._told: Plan | None = None

    def run(self) -> None:
        """Loads the model that the server asks for, and draws job after job. Returns if there is no such model."""
        threading.Thread(target=self._listen, args=(self._connection.makefile("rb"),), daemon=True).start()
        asked = cast(wire.Open, self._messages.get())
        # torch takes seconds to import. By now, the end of the parent is noticed.
        from hwaga.engine import Engine

        try:
            engine = Engine.open(
                asked.model,
                device=asked.device,
                dtype=asked.dtype,
                precision=asked.precision,
                vram=asked.vram,
                ram=asked.ram,
            )
        except HwagaError as error:
            self._send(wire.Failed(type(error).__name__, str(error)))
            return
        with engine:
            self._send(wire.Ready(engine.card.name, str(engine.device)))
            while True:
                self._report_plan(engine)
                self._draw(engine, cast(wire.Draw, self._messages.get()))

    def _listen(self, stream: BinaryIO) -> None:
        try:
            while (message := wire.receive(stream)) is not None:
                if isinstance(message, wire.Cancel):
                    self._cancelled = message
                elif isinstance(message, wire.Open | wire.Draw):
                    self._messages.put(message)
        except WireError:
            _log.exception("The server sent what cannot be read.")
        os._exit(0)  # the server is gone, and nobody waits for what is being drawn

    def _draw(self, engine: Engine, job: wire.Draw) -> None:
        try:
            drawn = self._draw_all(engine, job)
        except HwagaError as error:
            self._send(wire.Failed(type(error).__name__, str(error)))
        except Exception:  # noqa: BLE001 - whatever it is, it is this job's, and the next one is another
            _log.exception("Job %s failed.", job.job)
            self._send(wire.Failed("InternalError", "The server failed at this job. Its log says why."))
            if engine.device.type == "cuda":
                import torch

                # Some errors break the process's connection to the GPU for good. This raises after one of those, the
                # process ends, and the server starts a new one.
                torch.cuda.synchronize(engine.device)
        else:
            self._send(wire.Finished() if drawn else wire.Stopped())

    def _draw_all(self, engine: Engine, job: wire.Draw) -> bool:
        """Draws and sends the pictures of a job. False if it was cancelled, which is looked for after each step."""
        source = SourceImage.read(job.data) if job.data else None
        first = engine.resolve(ImageRequest.from_json(job.body["request"], image=source))
        requests = first.variations(job.body.get("number", 1))
        for place, request in enumerate(requests):
            with closing(cast(Any, engine.stream(request))) as events:
                for event in events:
                    if self._cancelled == wire.Cancel(job.job, job.attempt):
                        return False
                    if isinstance(event, Step):
                        preview = _preview(event) if job.body.get("previews") else b""
                        steps = place * event.total + event.index
                        self._send(wire.Progress(steps, len(requests) * event.total, preview))
            self._send(wire.Picture(encode_result(cast(Result, event), "png")))
        return True

    def _report_plan(self, engine: Engine) -> None:
        plan = engine.plan
        if plan is not None and plan != self._told:
            self._told = plan
            kind, dtype = str(engine.device), str(engine.dtype).removeprefix("torch.")
            opened = {"model": engine.card.name, "device": kind, "dtype": dtype, "precision": engine.precision}
            self._send(wire.Plan(opened | plan.to_json()))

    def _send(self, message: wire.Message) -> None:
        self._connection.sendall(wire.encode(message))


def _preview(step: Step) -> bytes:
    buffer = io.BytesIO()
    if (image := step.preview) is not None:
        image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def main() -> None:
    """Runs a worker on the socket that the command line names."""
    if sys.platform == "linux":
        # The end of the connection says that the parent is gone. This says so too while a long computation holds Python's lock.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a terminal or service manager signals all processes: the parent decides
        signal.signal(number, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
