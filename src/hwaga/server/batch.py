"""The jobs that a worker draws together, from their claim to their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hwaga.errors import StaleAttemptError, StoreError, WireError
from hwaga.server import wire
from hwaga.server.jobs import LEASE, Job
from hwaga.server.ledger import Ledger
from hwaga.server.process import WorkerProcess

GRACE = 10.0
"""Seconds that a worker has to stop at a job's time limit before it is killed: a step at the largest sizes, and some more."""

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


class Batch:
    """Claimed jobs and the worker that draws them. Whatever happens, each is ended in the store or its lease runs out.

    Args:
        ledger: is told of all that happens to the jobs.
        job_timeout: seconds that ``draw`` may take.
    """

    def __init__(self, ledger: Ledger, worker: WorkerProcess, job_timeout: float) -> None:
        self._ledger, self._worker, self._job_timeout = ledger, worker, job_timeout
        self._held: dict[str, _Held] = {}

    @property
    def jobs(self) -> list[Job]:
        """Those that have not ended, as they were claimed."""
        return [held.job for held in self._held.values()]

    def add(self, job: Job) -> None:
        """Adds a job that has just been claimed, and tells of it."""
        self._held[job.id] = _Held(job)
        self._ledger.tell(job)

    def cancel(self, job: str) -> None:
        """Has the worker stop a job, if it is one of these."""
        if job in self._held:
            self._worker.send(wire.Cancel(*self._held[job].key))

    async def draw(self) -> bool:
        """Has the jobs drawn, and ends each. Returns whether the worker can be used on."""
        loop, store, worker = asyncio.get_running_loop(), self._ledger.store, self._worker
        await self._hand_over()
        limit, late, renewing = loop.time() + self._job_timeout, False, loop.time() + LEASE / 3
        error = (
            "JobTimeoutError",
            f"The job took longer than {self._job_timeout:g} s. Ask for fewer steps or pictures.",
        )
        while self._held:
            if loop.time() >= limit:
                if late:
                    for held in list(self._held.values()):
                        await self._end(held, store.fail, error)
                    return False
                late, limit = True, loop.time() + GRACE
                for held in self._held.values():
                    worker.send(wire.Cancel(*held.key))
            if loop.time() >= renewing:  # by the clock: while one job is talked of, others of its batch may not be
                renewing = loop.time() + LEASE / 3
                for held in self._held.values():
                    await self._renew(held)
            try:
                message = await asyncio.wait_for(worker.messages.get(), min(limit, renewing) - loop.time())
            except TimeoutError:
                continue
            if not isinstance(message, wire.Report) or message.job not in self._held:  # it is gone, or talks nonsense
                await self.give_back(lost="the worker process ended")
                return False
            held = self._held[message.job]
            match message:
                case wire.Progress(_, step, total):
                    self._ledger.on_step()
                    await self._renew(held, (step, total))
                    if not held.lost:
                        self._ledger.tell_step(replace(held.job, progress=(step, total)), message)
                case wire.Picture(_, data):
                    held.pictures.append(data)
                case wire.Finished():
                    await self._end(held, store.finish, held.pictures)
                case wire.Failed(kind, text):
                    await self._end(held, store.fail, (kind, text))
                case wire.Stopped() if late and not held.cancelled:
                    await self._end(held, store.fail, error)
                case wire.Stopped():
                    await self._end(held, store.confirm_cancel)
        return True

    async def give_back(self, *, lost: str | None) -> None:
        """Ends the attempts at all jobs that have not ended: what happened to the worker, or None if nothing did."""
        for held in list(self._held.values()):
            await self._end(held, partial(self._ledger.store.release, lost=lost))

    async def _hand_over(self) -> None:
        """Tells the worker what to draw. Jobs of which that cannot be told end as failed."""
        store, draws = self._ledger.store, []
        for held in list(self._held.values()):
            try:
                source = await self._ledger.call(store.source, held.job.id)
                draw = wire.Draw(*held.key, held.job.body, data=source or b"")
                wire.encode(draw)
                draws.append(draw)
            except (StoreError, WireError) as failure:
                await self._end(held, store.fail, (type(failure).__name__, str(failure)))
        for place, draw in enumerate(draws, 1):
            self._worker.send(replace(draw, more=place < len(draws)))

    async def _end(self, held: _Held, method: Callable[..., Job], *outcome: Any) -> None:
        """Tells the store and who listens how a job ended."""
        store, ended = self._ledger.store, None
        if not held.lost:
            try:
                try:
                    ended = await self._ledger.call(method, *held.key, *outcome)
                except StoreError as failure:
                    if method != store.finish:
                        raise
                    _log.error("%s", failure)
                    ended = await self._ledger.call(store.fail, *held.key, (type(failure).__name__, str(failure)))
            except (StaleAttemptError, StoreError) as error:  # if it could not be ended, its lease will be over
                _log.error("%s", error)
        self._held.pop(held.job.id, None)
        if ended is not None:
            self._ledger.tell_outcome(ended)

    async def _renew(self, held: _Held, progress: tuple[int, int] | None = None) -> None:
        """Holds on to a job that is being drawn. Where it has been cancelled, or is another's by now, the worker is told."""
        if held.lost:
            return
        try:
            held.cancelled = await self._ledger.call(self._ledger.store.renew, *held.key, progress)
        except StaleAttemptError as error:
            _log.error("%s", error)
            held.lost = True
        except StoreError as error:
            _log.error("%s", error)
            return
        if held.cancelled or held.lost:
            self._worker.send(wire.Cancel(*held.key))
