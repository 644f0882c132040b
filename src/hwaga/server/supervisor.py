"""Keeps a worker process on a device, and gives it the jobs whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from hwaga.errors import StoreError, WorkerError
from hwaga.server import wire
from hwaga.server.batch import Batch
from hwaga.server.jobs import Job
from hwaga.server.ledger import Ledger
from hwaga.server.packing import joins
from hwaga.server.process import WorkerProcess
from hwaga.server.stay import Stay

POLL = 1.0
"""Seconds between looks at the store for what nobody here caused: jobs of other processes, leases that are over."""

BACK_OFF = (1.0, 60.0)
"""Seconds before a worker that ended is started again: at first, doubled after each start that failed, and at most."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Serves on one device, from ``serve`` until ``stopping`` is set.

    Args:
        opening: what each worker there is told at first.
        ledger: where the jobs are.
        stopping: is set by whoever wants this to end. A batch that is being drawn is waited for.
        job_timeout: seconds that an attempt may take.
        load_timeout: seconds that a worker may say nothing for while it loads its model, before it is started anew.

    Attributes:
        wake: to be set when there is something to look at in the store, or ``stopping`` has been set.
        worker: the process, while there is one.
        ready: jobs are being drawn.
        problem: why not, where a worker could not start.
        restarts: how often a worker was started again.
    """

    def __init__(
        self,
        opening: wire.Open,
        ledger: Ledger,
        stopping: asyncio.Event,
        *,
        job_timeout: float,
        load_timeout: float,
    ) -> None:
        self.wake = asyncio.Event()
        self.worker: WorkerProcess | None = None
        self.ready = False
        self.problem: str | None = None
        self.restarts = 0
        self._opening, self._ledger, self._stopping = opening, ledger, stopping
        self._job_timeout, self._load_timeout = job_timeout, load_timeout
        self._batch: Batch | None = None
        self._stay = Stay()

    def cancel(self, job: str) -> None:
        """Has the worker stop a job, if it has it."""
        if self.worker is not None and self._batch is not None:
            self._batch.cancel(job)

    async def give_back(self, *, lost: str | None) -> None:
        """As ``Batch.give_back``, of what was being drawn when ``serve`` ended."""
        if self._batch is not None:
            await self._batch.give_back(lost=lost)

    async def serve(self) -> None:
        """Keeps a worker on the device, whatever happens to it."""
        delay, longest = BACK_OFF
        while not self._stopping.is_set():
            code = None
            try:
                self.worker = await WorkerProcess.start()
                self.worker.send(self._opening)
                match await self._loaded(self.worker):
                    case wire.Ready():
                        self.ready, self.problem, delay = True, None, BACK_OFF[0]
                        await self._work(self.worker)
                    case wire.Failed(message=message):
                        self.problem = message
                    case _:
                        self.problem = "The worker process ended before it was ready. The server's log says why."
            except WorkerError as error:
                self.problem = str(error)
            except Exception:  # noqa: BLE001 - a fault of ours in one job must not end the serving of all others
                _log.exception("Serving on %s failed.", self._opening.device or "the default device")
                await self.give_back(lost="the server failed at it")
            finally:
                self.ready = False
                if self.worker is not None:
                    code = await self.worker.end()
                    self.worker = None
            if not self._stopping.is_set():
                _log.warning(
                    "A worker ended (exit code %s), and starts in %g s again. %s", code, delay, self.problem or ""
                )
                await self._pause(delay)
                self.restarts += 1
                delay = min(2 * delay, longest)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

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

    async def _work(self, worker: WorkerProcess) -> None:
        """Draws batch after batch, until this stops or the worker is of no more use."""
        usable = True
        while usable and not worker.gone and not self._stopping.is_set():
            self.wake.clear()
            batch = self._batch = Batch(self._ledger, worker, self._job_timeout)
            try:
                while job := await self._claim(worker, batch):
                    batch.add(job)
                    if self._opening.batch == 1:
                        break
            except StoreError as error:
                _log.error("%s", error)
                if not batch.jobs:
                    await self._pause(POLL)
            if batch.jobs:
                await self._ledger.tell_places()
                usable = await batch.draw()
                await self._ledger.tell_places()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), POLL)

    async def _claim(self, worker: WorkerProcess, batch: Batch) -> Job | None:
        """The next job for a batch. Where models make room for each other, those of the one that is there go first a while."""
        model, store = None, self._ledger.store
        if worker.crowded:
            waiting = await self._ledger.call(store.models_waiting)
            model = self._stay.preferred(waiting, asyncio.get_running_loop().time())

        def suits(job: Job) -> bool:
            taken = batch.jobs
            return not taken or (not self._stopping.is_set() and joins(taken, job, self._opening.batch))

        job = await self._ledger.call(store.claim, self._opening.device or "default", suits=suits, model=model)
        if job is not None:
            self._stay.took(job.body.get("model"))
        return job
