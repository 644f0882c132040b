"""Between those who want pictures and the workers: takes jobs, has them drawn on each device, and tells who listens.

All of it runs in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from hwaga.errors import ServerStoppingError, StoreError
from hwaga.server import wire
from hwaga.server.events import Event
from hwaga.server.jobs import Job, JobStore, Kind, not_served
from hwaga.server.ledger import Ledger
from hwaga.server.supervisor import POLL, Supervisor

_EXPIRE_EVERY = 600.0

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


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
        self.on_end: Callable[[Job], None] = lambda _: None
        self.on_step: Callable[[], None] = lambda: None
        self._ledger = Ledger(store, lambda job: self.on_end(job), lambda: self.on_step())  # who counts comes later
        self._batch, self._keep = batch, (keep_seconds, keep_bytes)
        self._stopping = asyncio.Event()
        self._supervisors = [
            Supervisor(
                wire.Open(list(models), device, dtype, precision, vram, ram, batch, warm_up),
                self._ledger,
                self._stopping,
                job_timeout=job_timeout,
                load_timeout=load_timeout,
            )
            for device in devices
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether jobs are being drawn."""
        running = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return running and not self._stopping.is_set() and any(each.ready for each in self._supervisors)

    @property
    def problems(self) -> list[str]:
        """Why workers are not ready, where one could not start."""
        return [each.problem for each in self._supervisors if each.problem is not None]

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return sum(each.restarts for each in self._supervisors)

    @property
    def workers(self) -> int:
        """How many jobs can be drawn at once."""
        return len(self._supervisors) * self._batch

    @property
    def processes(self) -> dict[int, tuple[int, wire.DeviceMemory | None]]:
        """The workers that run, by their place: process id, and what each last said of its device's memory."""
        found = ((place, each.worker) for place, each in enumerate(self._supervisors))
        return {place: (worker.pid, worker.memory) for place, worker in found if worker is not None}

    @property
    def plans(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Where weights lie in the workers that run, by their place and the model's name, as ``wire.Plan`` has it."""
        found = enumerate(self._supervisors)
        return {place: each.worker.plans for place, each in found if each.worker is not None}

    async def start(self) -> None:
        """Starts the workers, and does not wait until they are ready."""
        with contextlib.suppress(StoreError):  # which says so wherever it matters
            for model, count in (await self.call(self.store.waiting_for_models)).items():
                _log.warning("%s They are %d.", not_served(model), count)
        self._tasks = [asyncio.create_task(each.serve()) for each in self._supervisors]
        self._tasks.append(asyncio.create_task(self._look_after()))

    async def drain(self, deadline: float) -> None:
        """Takes no more jobs, neither in nor from the queue, and waits up to ``deadline`` seconds for those that run. What is
        not done by then waits in the queue for the next start. Subscriptions end; jobs can still be looked at and cancelled.
        """
        self._stopping.set()
        for supervisor, task in zip(self._supervisors, self._tasks, strict=False):
            supervisor.wake.set()
            if not supervisor.ready:
                task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=deadline)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for supervisor in self._supervisors:
            await supervisor.give_back(lost=None)
        self._ledger.end_events()

    async def stop(self, deadline: float) -> None:
        """As ``drain``; and the store is closed."""
        await self.drain(deadline)
        await self._ledger.close()

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a method of the store, in the store's thread."""
        return await self._ledger.call(method, *args, **kwargs)

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
        for supervisor in self._supervisors:
            supervisor.wake.set()
        await self._ledger.tell_places()
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
            self._ledger.tell(found)
            await self._ledger.tell_places()
        for supervisor in self._supervisors:
            supervisor.cancel(job)
        return found

    def events(self, job: str, *, after: int = 0) -> AsyncIterator[Event]:
        """What happens to a job until it has ended, or this stops; first the recent events whose ids are above ``after``.

        Raises:
            UnknownJobError: there is no such job.
        """
        return self._ledger.events(job, after=after)

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        expire_at = loop.time()
        while not self._stopping.is_set():
            try:
                if reaped := await self.call(self.store.reap):
                    for job in reaped:
                        self._ledger.tell_outcome(job)
                    await self._ledger.tell_places()
                if loop.time() >= expire_at:
                    expire_at += _EXPIRE_EVERY
                    await self.call(self.store.expire, *self._keep)
            except StoreError as error:
                _log.error("%s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), POLL)
