"""The process that draws: some models on one device, one batch of pictures at a time.

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
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hwaga.errors import HwagaError, ModelError, WireError
from hwaga.image_file import encode_result
from hwaga.memory.trim import prepare_process
from hwaga.model_lookup import find_card
from hwaga.request import ImageRequest
from hwaga.result import Result, Step
from hwaga.server import wire
from hwaga.server.folders import own_folders, without_folders
from hwaga.server.json_log import log_as_json
from hwaga.server.strange_pictures import decoded_picture
from hwaga.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from hwaga.engine import Engine
    from hwaga.engines import Engines

TELL = 1.0
"""Least seconds between two messages of how far loading is."""

IDLE = 10.0
"""Seconds after which a worker that has nothing to do tells of its memory again."""

_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """A job that is being drawn.

    Attributes:
        held: its id and the number of the attempt.
        requests: one for each picture.
        told: steps of each picture that were told of.
        over: it has ended, one way or another, and that was said.
    """

    held: tuple[str, int]
    requests: list[ImageRequest]
    previews: bool
    told: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def id(self) -> str:
        return self.held[0]


@dataclass(frozen=True)
class _Picture:
    """One of a job's pictures."""

    job: _Job
    place: int

    @property
    def request(self) -> ImageRequest:
        return self.job.requests[self.place]


class Worker:
    """The worker's side of the connection. A thread of its own reads, so that cancelling is heard while a picture is drawn."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._messages: queue.SimpleQueue[wire.Open | wire.Draw] = queue.SimpleQueue()
        self._cancelled: set[tuple[str, int]] = set()
        self._peak = 0
        self._tell_at = 0.0
        self._folders: Sequence[str] = ()
        self._told: dict[str, Any] = {}
        self._left_out: dict[str | None, ModelError] = {}

    def run(self) -> None:
        """Opens the models that the server asks for, and draws batch after batch. Returns if that cannot be done."""
        threading.Thread(target=self._listen, args=(self._connection.makefile("rb"),), daemon=True).start()
        asked = cast(wire.Open, self._messages.get())
        # torch takes seconds to import. By now, the end of the parent is noticed.
        from hwaga.engines import Engines

        try:
            settings = Settings.read()
            models: list[str | None] = [*asked.models] or [None]
            cards = {model: find_card(model or settings.model, settings.models) for model in models}
            self._folders = own_folders(settings, *cards.values())
            engines = Engines.open(
                models,
                device=asked.device,
                dtype=asked.dtype,
                precision=asked.precision,
                vram=asked.vram,
                ram=asked.ram,
                progress=self._tell_of_loading,
                settings=settings,
                left_out=lambda model, error: self._leave_out(cards[cast(str | None, model)].name, error),
            )
            default = cards[next(iter(cards))].name
            if default in self._left_out:  # which jobs that name none mean
                self._left_out[None] = self._left_out[default]
            if asked.warm_up:  # the first picture chooses and loads kernels, which its asker would wait for
                for _ in engines.default.stream(ImageRequest("a warm-up", steps=1, seed=0)):
                    self._tell_of_loading()
        except HwagaError as error:
            self._send(wire.Failed(type(error).__name__, str(error)))
            return
        with engines:
            self._report_plans(engines)
            self._send(wire.Ready(engines.names, str(engines.default.device)))
            while True:
                self._report_memory(engines.default)
                for model, draws in groupby(self._batch(engines.default), lambda draw: draw.body.get("model")):
                    self._draw_with(engines, model, list(draws), asked.batch)
                self._report_plans(engines)

    def _leave_out(self, model: str, error: ModelError) -> None:
        _log.error("The model %s cannot be opened, and its jobs will fail; the others are drawn. %s", model, error)
        self._left_out[model] = error

    def _tell_of_loading(self, *_: object) -> None:
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL
            self._send(wire.Loading())

    def _listen(self, stream: BinaryIO) -> None:
        try:
            while (message := wire.receive(stream)) is not None:
                if isinstance(message, wire.Cancel):
                    self._cancelled.add((message.job, message.attempt))
                elif isinstance(message, wire.Open | wire.Draw):
                    self._messages.put(message)
        except WireError:
            _log.exception("The server sent what cannot be read.")
        os._exit(0)  # the server is gone, and nobody waits for what is being drawn

    def _batch(self, engine: Engine) -> list[wire.Draw]:
        """The next jobs, which are drawn together. What the memory is like is told from time to time while there are none."""
        batch: list[wire.Draw] = []
        while not batch or batch[-1].more:
            try:
                batch.append(cast(wire.Draw, self._messages.get(timeout=IDLE)))
            except queue.Empty:
                self._report_memory(engine)
        return batch

    def _draw_with(self, engines: Engines, model: str | None, batch: Sequence[wire.Draw], most: int) -> None:
        """As ``_draw``, with a model by its name; the default where it has none."""
        try:
            if model in self._left_out:
                raise self._left_out[model]
            engine = engines.default if model is None else engines[model]
        except ModelError as error:  # the store keeps them back; this is for a store that does not
            for draw in batch:
                self._send(wire.Failed(type(error).__name__, without_folders(str(error), self._folders), draw.job))
        else:
            self._draw(engine, batch, most)

    def _draw(self, engine: Engine, batch: Sequence[wire.Draw], most: int) -> None:
        """Draws the pictures of jobs, at most so many at once, and says of each job how it ended."""
        jobs = [job for draw in batch if (job := self._prepared(engine, draw)) is not None]
        waiting = [_Picture(job, place) for job in jobs for place in range(len(job.requests))]
        while waiting:
            count = pictures_at_once(engine, [picture.request for picture in waiting], most)
            together, waiting = waiting[:count], waiting[count:]
            if not self._pack(engine, together):
                for picture in together:
                    self._pack(engine, [picture])
            waiting = [picture for picture in waiting if not picture.job.over]
        self._cancelled -= {job.held for job in jobs}

    def _prepared(self, engine: Engine, draw: wire.Draw) -> _Job | None:
        """A job with its requests as the engine takes them; None if it takes them not, or if there is no such picture."""
        job = _Job((draw.job, draw.attempt), [], bool(draw.body.get("previews")))
        try:
            source = decoded_picture(draw.data) if draw.data else None
            first = engine.resolve(ImageRequest.from_json(draw.body["request"], image=source))
            job.requests = first.variations(draw.body.get("number", 1))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's, and the next one is another
            self._fail(engine, job, error)
            return None
        job.told = [0] * len(job.requests)
        return job

    def _pack(self, engine: Engine, pictures: Sequence[_Picture]) -> bool:
        """Draws pictures as one batch, but for those of jobs that are over. False if several of them failed at it together."""
        pictures = [picture for picture in pictures if not self._stopped(picture.job)]
        if not pictures:
            return True
        results: list[Result] = []
        try:
            with closing(cast(Any, engine.stream_many([picture.request for picture in pictures]))) as events:
                for event in events:
                    # A picture of a job that was cancelled stays in its batch, and nothing comes of it.
                    stopped = [self._stopped(picture.job) for picture in pictures]
                    if all(stopped):
                        return True
                    if isinstance(event, Step):
                        self._tell(event, pictures)
                    else:
                        results = event
        except Exception as error:  # noqa: BLE001 - as above
            if len(pictures) == 1:
                self._fail(engine, pictures[0].job, error)
                return True
            _log.warning("A batch of %d failed, and its pictures are drawn one by one: %r", len(pictures), error)
            _check_device(engine, error)
        # Not in the block above: the error holds on to what the batch held.
        if not results:
            return False
        for picture, result in zip(pictures, results, strict=True):
            if not self._stopped(picture.job):
                try:
                    self._send(wire.Picture(picture.job.id, encode_result(result, "png")))
                except HwagaError as error:
                    self._fail(engine, picture.job, error)
                    continue
                if picture.place == len(picture.job.requests) - 1:
                    picture.job.over = True
                    self._send(wire.Finished(picture.job.id))
        return True

    def _report_plans(self, engines: Engines) -> None:
        for engine in engines:
            plan, name = engine.plan, engine.card.name
            lies = {"held_bytes": engine.held_bytes, "away_bytes": engine.away_bytes}
            if plan is not None and self._told.get(name) != (plan, lies):
                self._told[name] = plan, lies
                kind, dtype = str(engine.device), str(engine.dtype).removeprefix("torch.")
                opened = {"model": name, "device": kind, "dtype": dtype, "precision": engine.precision}
                self._send(wire.Plan(opened | plan.to_json() | lies))

    def _tell(self, step: Step, pictures: Sequence[_Picture]) -> None:
        for place, picture in enumerate(pictures):
            job, own, total = picture.job, step.index, step.totals[place]
            # What is drawn a second time, as its batch had failed, is told of once.
            if not job.over and job.told[picture.place] < own <= total:
                preview = _jpeg(step.preview_of(place)) if job.previews else b""
                job.told[picture.place] = own
                steps = sum(job.told), total * len(job.requests)
                self._send(wire.Progress(job.id, *steps, picture.place, own, preview))

    def _stopped(self, job: _Job) -> bool:
        """Whether nothing more is to come of a job. The first time that it is found cancelled, that is said."""
        if not job.over and job.held in self._cancelled:
            job.over = True
            self._send(wire.Stopped(job.id))
        return job.over

    def _fail(self, engine: Engine, job: _Job, error: Exception) -> None:
        job.over = True
        if isinstance(error, HwagaError):
            message = without_folders(str(error), self._folders)
            if message != str(error):
                _log.warning("Job %s failed. %s", job.id, error)
            self._send(wire.Failed(type(error).__name__, message, job.id))
            return
        _log.error("Job %s failed.", job.id, exc_info=error)
        self._send(wire.Failed("InternalError", "The server failed at this job. Its log says why.", job.id))
        _check_device(engine, error)

    def _report_memory(self, engine: Engine) -> None:
        from hwaga.memory.device import device_memory, peak_allocated

        memory = device_memory(engine.device)
        if memory is not None:
            self._peak = max(self._peak, memory.allocated, peak_allocated(engine.device) or 0)
            self._send(wire.DeviceMemory(memory.allocated, memory.reserved, self._peak))

    def _send(self, message: wire.Message) -> None:
        self._connection.sendall(wire.encode(message))


def pictures_at_once(engine: Engine, requests: Sequence[ImageRequest], most: int) -> int:
    """How many of the first of these requests are drawn as one packed batch. Nothing else decides about it."""
    try:
        return 1 if most == 1 or len(requests) == 1 else engine.at_once(requests[:most])
    except HwagaError:  # the picture that it is about says so by itself
        return 1


def _check_device(engine: Engine, error: Exception) -> None:
    """Some errors break the process's connection to the GPU for good. This raises after one of those, the process ends, and the
    server starts a new one.
    """
    if engine.device.type == "cuda" and not isinstance(error, HwagaError):
        import torch

        torch.cuda.synchronize(engine.device)


def _jpeg(image: Image.Image | None) -> bytes:
    buffer = io.BytesIO()
    if image is not None:
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
    log_as_json(logging.WARNING)
    prepare_process()
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
