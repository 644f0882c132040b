"""Between the store and the workers: starts a worker process for each device, hands it jobs, and tells who listens.

All of it runs in one event loop, with one thread beside it for the store, so that what the store did first is heard of first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from hwaga.errors import ServerStoppingError, StaleAttemptError, StoreError, UnknownJobError, WireError, WorkerError
from hwaga.server import wire
from hwaga.server.events import Event, Feeds
from hwaga.server.jobs import LEASE, TERMINAL, Job, JobStore, Kind, not_served
from hwaga.server.packing import joins
from hwaga.server.process import WorkerProcess
from hwaga.server.stay import Stay

POLL = 1.0
"""Seconds between looks at the store for what nobody here caused: jobs of other processes, leases that are over."""

BACK_OFF = (1.0, 60.0)
"""Seconds before a worker that ended is started again: at first, doubled after each start that failed, and at most."""

GRACE = 10.0
"""Seconds that a worker has to stop at a job's time limit before it is killed: a step at the largest sizes, and some more."""

_EXPIRE_EVERY = 600.0

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass
class _Held:
    """A job that a worker has been given.

    Attributes:
        pictures: that are finished.
        cancelled: somebody asked for it to be stopped.
        lost: the attempt is over, or the store could not be told how it ended. The worker is waited for all the same.
    """

    job: Job
    pictures: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    lost: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.job.id, self.job.attempt


@dataclass
class _Slot:
    """A device, and what is going on there. ``held`` are the jobs of the batch that is being drawn, by their ids."""

    device: str | None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    worker: WorkerProcess | None = None
    ready: bool = False
    problem: str | None = None
    held: dict[str, _Held] = field(default_factory=dict)
    stay: Stay = field(default_factory=Stay)


class Dispatcher:
    """Draws the jobs of a store, which it owns, from ``start`` to ``stop``.

    Args:
        store: is closed at the end.
        models, dtype, precision: what each worker opens, its default first; by its own settings where none are given.
        vram, ram: most that each worker may take of its GPU and of the host.
        devices: one worker for each; None is the device of its settings.
        batch: most pictures that a worker draws at once, of one job or of several.
        warm_up: a worker draws a first picture by itself before it is ready.
        job_timeout: seconds that an attempt may take.
        load_timeout: seconds that a worker may say nothing for while it loads its model, before it is started anew.
        keep_seconds, keep_bytes: how long ended jobs are kept, and how much room all pictures may take.

    Attributes:
        restarts: how often a worker was started again.
        on_end: is told of each job that ended after it had been claimed.
        on_step: is told of each step; one of a batch is one for each of its pictures.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        models: Sequence[str] = (),
        dtype: str | None = None,
        precision: str | None = None,
        vram: str | None = None,
        ram: str | None = None,
        devices: Sequence[str | None] = (None,),
        batch: int = 1,
        warm_up: bool = False,
        job_timeout: float = 600.0,
        load_timeout: float = 300.0,
        keep_seconds: float = 7 * 86400.0,
        keep_bytes: int = 20 * 2**30,
    ) -> None:
        self.store = store
        self.restarts = 0
        self.on_end: Callable[[Job], None] = lambda _: None
        self.on_step: Callable[[], None] = lambda: None
        self._models, self._dtype, self._batch, self._job_timeout = list(models), dtype, batch, job_timeout
        self._warm_up, self._load_timeout = warm_up, load_timeout
        self._precision, self._vram, self._ram = precision, vram, ram
        self._keep = (keep_seconds, keep_bytes)
        self._slots = [_Slot(device) for device in devices]
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._feeds = Feeds()

    @property
    def ready(self) -> bool:
        """Whether jobs are being drawn."""
        running = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return running and not self._stopping.is_set() and any(slot.ready for slot in self._slots)

    @property
    def problems(self) -> list[str]:
        """Why workers are not ready, where one could not start."""
        return [slot.problem for slot in self._slots if slot.problem is not None]

    @property
    def workers(self) -> int:
        """How many jobs can be drawn at once."""
        return len(self._slots) * self._batch

    @property
    def processes(self) -> dict[int, tuple[int, wire.DeviceMemory | None]]:
        """The workers that run, by their place: process id, and what each last said of its device's memory."""
        found = ((place, slot.worker) for place, slot in enumerate(self._slots))
        return {place: (worker.pid, worker.memory) for place, worker in found if worker is not None}

    @property
    def plans(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Where weights lie in the workers that run, by their place and the model's name, as ``wire.Plan`` has it."""
        found = enumerate(self._slots)
        return {place: slot.worker.plans for place, slot in found if slot.worker is not None}

    async def start(self) -> None:
        """Starts the workers, and does not wait until they are ready."""
        with contextlib.suppress(StoreError):  # which says so wherever it matters
            for model, count in (await self.call(self.store.waiting_for_models)).items():
                _log.warning("%s They are %d.", not_served(model), count)
        self._tasks = [asyncio.create_task(self._serve(slot)) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._look_after()))

    async def drain(self, deadline: float) -> None:
        """Takes no more jobs, neither in nor from the queue, and waits up to ``deadline`` seconds for those that run. What is
        not done by then waits in the queue for the next start. Subscriptions end; jobs can still be looked at and cancelled.
        """
        self._stopping.set()
        for slot, task in zip(self._slots, self._tasks, strict=False):
            slot.wake.set()
            if not slot.ready:
                task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=deadline)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self._slots:
            await self._give_back(slot, lost=None)
        self._feeds.close()

    async def stop(self, deadline: float) -> None:
        """As ``drain``; and the store is closed."""
        await self.drain(deadline)
        await self.call(self.store.close)
        self._thread.shutdown()

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a method of the store, in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(method, *args, **kwargs))

    async def submit(
        self,
        kind: Kind,
        body: dict[str, Any],
        *,
        owner: str = "",
        source: bytes | None = None,
        key: str | None = None,
        request_id: str | None = None,
    ) -> Job:
        """As ``JobStore.submit``; and the job is drawn as soon as it is its turn.

        ``body`` is what a worker reads: "model", the name of the one that draws, the default unless given; "request", the
        fields of an ImageRequest without its picture; "number" of pictures, 1 unless given; "previews", whether steps come
        with one.

        Raises:
            ServerStoppingError: this stops.
        """
        self._refuse_at_stop()
        job = await self.call(self.store.submit, kind, body, owner=owner, source=source, key=key, request_id=request_id)
        for slot in self._slots:
            slot.wake.set()
        await self._publish_places()
        return job

    async def check_room(self, owner: str, size: int, *, key: str | None) -> None:
        """As ``JobStore.check_room``. Raises ServerStoppingError as ``submit`` does."""
        self._refuse_at_stop()
        await self.call(self.store.check_room, owner, size, key=key)

    def _refuse_at_stop(self) -> None:
        if self._stopping.is_set():
            raise ServerStoppingError("The server is being stopped. Try again when it is back.")

    async def cancel(self, job: str) -> Job:
        """As ``JobStore.cancel``. The worker stops within one step."""
        found = await self.call(self.store.cancel, job)
        if found.status == "cancelled":
            _note(found)
            self._feeds.publish(found)
            await self._publish_places()
        for slot in self._slots:
            if job in slot.held and slot.worker is not None:
                slot.worker.send(wire.Cancel(*slot.held[job].key))
        return found

    async def events(self, job: str, *, after: int = 0) -> AsyncIterator[Event]:
        """What happens to a job until it has ended, or this stops; first the recent events whose ids are above ``after``.

        Raises:
            UnknownJobError: there is no such job.
        """
        feed = self._feeds.find(job)
        if feed is None:
            feed = self._feeds.publish(await self.call(self.store.get, job))
            await self._publish_places()
        async for event in self._feeds.listen(feed, after):
            yield event

    async def _publish_places(self) -> None:
        """Tells those who listen for a job that waits of its new place."""
        with contextlib.suppress(StoreError, UnknownJobError):  # places are told again at the next change
            for position, job in enumerate(await self.call(self.store.queue)):
                feed = self._feeds.find(job)
                if feed is not None and feed.position != position:
                    found = await self.call(self.store.get, job)
                    if found.status == "queued":
                        self._feeds.publish(found, position=position)

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        expire_at = loop.time()
        while not self._stopping.is_set():
            try:
                if reaped := await self.call(self.store.reap):
                    for job in reaped:
                        _note(job)
                        self._feeds.publish(job)
                        if job.status in TERMINAL:
                            self.on_end(job)
                    await self._publish_places()
                if loop.time() >= expire_at:
                    expire_at += _EXPIRE_EVERY
                    await self.call(self.store.expire, *self._keep)
            except StoreError as error:
                _log.error("%s", error)
            await self._pause(POLL)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _serve(self, slot: _Slot) -> None:
        """Keeps a worker on a device, whatever happens to it."""
        delay, longest = BACK_OFF
        while not self._stopping.is_set():
            code = None
            try:
                slot.worker = await WorkerProcess.start()
                slot.worker.send(
                    wire.Open(
                        self._models,
                        slot.device,
                        self._dtype,
                        self._precision,
                        self._vram,
                        self._ram,
                        self._batch,
                        self._warm_up,
                    )
                )
                match await self._loaded(slot.worker):
                    case wire.Ready():
                        slot.ready, slot.problem, delay = True, None, BACK_OFF[0]
                        await self._work(slot, slot.worker)
                    case wire.Failed(message=message):
                        slot.problem = message
                    case _:
                        slot.problem = "The worker process ended before it was ready. The server's log says why."
            except WorkerError as error:
                slot.problem = str(error)
            except Exception:  # noqa: BLE001 - a fault of ours in one job must not end the serving of all others
                _log.exception("Serving on %s failed.", slot.device or "the default device")
                await self._give_back(slot, lost="the server failed at it")
            finally:
                slot.ready = False
                if slot.worker is not None:
                    code = await slot.worker.end()
                    slot.worker = None
            if not self._stopping.is_set():
                _log.warning(
                    "A worker ended (exit code %s), and starts in %g s again. %s", code, delay, slot.problem or ""
                )
                await self._pause(delay)
                self.restarts += 1
                delay = min(2 * delay, longest)

    async def _loaded(self, worker: WorkerProcess) -> wire.Message | None:
        """What a worker says when it has loaded its model, or has not. A slow disk may take as long as it likes, as long as it
        gets on. Raises WorkerError where it does not.
        """
        while True:
            try:
                message = await asyncio.wait_for(worker.messages.get(), self._load_timeout)
            except TimeoutError:
                raise WorkerError(
                    f"The worker process got no further with loading the model for {self._load_timeout:g} s, and was ended. "
                    "Look whether its disk and device answer; --load-timeout gives it longer."
                ) from None
            if not isinstance(message, wire.Loading):
                return message

    async def _work(self, slot: _Slot, worker: WorkerProcess) -> None:
        """Draws batch after batch, until this stops or the worker is of no more use."""
        usable = True
        while usable and not worker.gone and not self._stopping.is_set():
            slot.wake.clear()
            try:
                while job := await self._claim(slot, worker):
                    slot.held[job.id] = _Held(job)
                    _note(job)
                    self._feeds.publish(job)
                    if self._batch == 1:
                        break
            except StoreError as error:
                _log.error("%s", error)
                if not slot.held:
                    await self._pause(POLL)
            if slot.held:
                await self._publish_places()
                usable = await self._draw(slot, worker)
                await self._publish_places()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(slot.wake.wait(), POLL)

    async def _claim(self, slot: _Slot, worker: WorkerProcess) -> Job | None:
        """The next job for a slot. Where models make room for each other, those of the one that is there go first a while."""
        model = None
        if worker.crowded:
            waiting = await self.call(self.store.models_waiting)
            model = slot.stay.preferred(waiting, asyncio.get_running_loop().time())
        suits = partial(self._joins, slot)
        job = await self.call(self.store.claim, slot.device or "default", suits=suits, model=model)
        if job is not None:
            slot.stay.took(job.body.get("model"))
        return job

    def _joins(self, slot: _Slot, job: Job) -> bool:
        taken = [held.job for held in slot.held.values()]
        return not taken or (not self._stopping.is_set() and joins(taken, job, self._batch))

    async def _draw(self, slot: _Slot, worker: WorkerProcess) -> bool:
        """Has the jobs of a slot drawn, and ends each. Returns whether the worker can be used on."""
        loop, store = asyncio.get_running_loop(), self.store
        await self._hand_over(slot, worker)
        limit, late, renewing = loop.time() + self._job_timeout, False, loop.time() + LEASE / 3
        error = (
            "JobTimeoutError",
            f"The job took longer than {self._job_timeout:g} s. Ask for fewer steps or pictures.",
        )
        while slot.held:
            if loop.time() >= limit:
                if late:
                    for held in list(slot.held.values()):
                        await self._end(slot, held, store.fail, error)
                    return False
                late, limit = True, loop.time() + GRACE
                for held in slot.held.values():
                    worker.send(wire.Cancel(*held.key))
            if loop.time() >= renewing:  # by the clock: while one job is talked of, others of its batch may not be
                renewing = loop.time() + LEASE / 3
                for held in slot.held.values():
                    await self._renew(held, worker)
            try:
                message = await asyncio.wait_for(worker.messages.get(), min(limit, renewing) - loop.time())
            except TimeoutError:
                continue
            if not isinstance(message, wire.Report) or message.job not in slot.held:  # it is gone, or talks nonsense
                await self._give_back(slot, lost="the worker process ended")
                return False
            held = slot.held[message.job]
            match message:
                case wire.Progress(_, step, total):
                    self.on_step()
                    await self._renew(held, worker, (step, total))
                    if not held.lost:
                        self._feeds.publish(replace(held.job, progress=(step, total)), step=message)
                case wire.Picture(_, data):
                    held.pictures.append(data)
                case wire.Finished():
                    await self._end(slot, held, store.finish, held.pictures)
                case wire.Failed(kind, text):
                    await self._end(slot, held, store.fail, (kind, text))
                case wire.Stopped() if late and not held.cancelled:
                    await self._end(slot, held, store.fail, error)
                case wire.Stopped():
                    await self._end(slot, held, store.confirm_cancel)
        return True

    async def _hand_over(self, slot: _Slot, worker: WorkerProcess) -> None:
        """Tells a worker what to draw. Jobs of which that cannot be told end as failed."""
        draws = []
        for held in list(slot.held.values()):
            try:
                source = await self.call(self.store.source, held.job.id)
                draw = wire.Draw(*held.key, held.job.body, data=source or b"")
                wire.encode(draw)
                draws.append(draw)
            except (StoreError, WireError) as failure:
                await self._end(slot, held, self.store.fail, (type(failure).__name__, str(failure)))
        for place, draw in enumerate(draws, 1):
            worker.send(replace(draw, more=place < len(draws)))

    async def _end(self, slot: _Slot, held: _Held, method: Callable[..., Job], *outcome: Any) -> None:
        """Tells the store and who listens how a job ended."""
        ended = None
        if not held.lost:
            try:
                try:
                    ended = await self.call(method, *held.key, *outcome)
                except StoreError as failure:
                    if method != self.store.finish:
                        raise
                    _log.error("%s", failure)
                    ended = await self.call(self.store.fail, *held.key, (type(failure).__name__, str(failure)))
            except (StaleAttemptError, StoreError) as error:  # if it could not be ended, its lease will be over
                _log.error("%s", error)
        slot.held.pop(held.job.id, None)
        if ended is not None:
            _note(ended)
            self._feeds.publish(ended)
            if ended.status in TERMINAL:
                self.on_end(ended)

    async def _give_back(self, slot: _Slot, *, lost: str | None) -> None:
        """Ends the attempts at all that a slot holds: what happened to its worker, or None if nothing did."""
        for held in list(slot.held.values()):
            await self._end(slot, held, partial(self.store.release, lost=lost))

    async def _renew(self, held: _Held, worker: WorkerProcess, progress: tuple[int, int] | None = None) -> None:
        """Holds on to a job that is being drawn. Where it has been cancelled, or is another's by now, the worker is told."""
        if held.lost:
            return
        try:
            held.cancelled = await self.call(self.store.renew, *held.key, progress)
        except StaleAttemptError as error:
            _log.error("%s", error)
            held.lost = True
        except StoreError as error:
            _log.error("%s", error)
            return
        if held.cancelled or held.lost:
            worker.send(wire.Cancel(*held.key))


def _note(job: Job) -> None:
    """Has the log say what has become of a job: never what it is about."""
    fields: dict[str, Any] = {"job": job.id, "attempt": job.attempt}
    if job.request_id is not None:
        fields["request_id"] = job.request_id
    if job.error is not None:
        fields["error"] = job.error[0]
    if job.started is not None and job.finished is not None:
        fields["seconds"] = round(job.finished - job.started, 3)
    _log.info("Job %s is %s.", job.id, job.status, extra=fields)
