"""What is known of jobs, and who is told of it: the store, the log, those who listen for events and those who count.

The store is called in one thread, so that what it did first is heard of first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from hwaga.errors import StoreError, UnknownJobError
from hwaga.server.events import Event, Feeds
from hwaga.server.jobs import TERMINAL, Job, JobStore
from hwaga.server.wire import Progress

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class Ledger:
    """See the module's docstring. All of it but the store's methods runs in one event loop.

    Args:
        store: is closed at the end.
        on_end: is told of each job that ended after it had been claimed.
        on_step: is told of each step; one of a batch is one for each of its pictures.
    """

    def __init__(self, store: JobStore, on_end: Callable[[Job], None], on_step: Callable[[], None]) -> None:
        self.store, self.on_step = store, on_step
        self._on_end = on_end
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._feeds = Feeds()

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a method of the store, in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(method, *args, **kwargs))

    def tell(self, job: Job) -> None:
        """Tells the log and those who listen what has become of a job."""
        fields: dict[str, Any] = {"job": job.id, "attempt": job.attempt}
        if job.request_id is not None:
            fields["request_id"] = job.request_id
        if job.error is not None:
            fields["error"] = job.error[0]
        if job.started is not None and job.finished is not None:
            fields["seconds"] = round(job.finished - job.started, 3)
        _log.info("Job %s is %s.", job.id, job.status, extra=fields)  # never what it is about
        self._feeds.publish(job)

    def tell_outcome(self, job: Job) -> None:
        """As ``tell``, of a job whose attempt is over; those who count are told if the job is, too."""
        self.tell(job)
        if job.status in TERMINAL:
            self._on_end(job)

    def tell_step(self, job: Job, step: Progress) -> None:
        """Tells those who listen of a step of a job, which is as it is after that step."""
        self._feeds.publish(job, step=step)

    async def tell_places(self) -> None:
        """Tells those who listen for a job that waits of its new place."""
        with contextlib.suppress(StoreError, UnknownJobError):  # places are told again at the next change
            for position, job in enumerate(await self.call(self.store.queue)):
                feed = self._feeds.find(job)
                if feed is not None and feed.position != position:
                    found = await self.call(self.store.get, job)
                    if found.status == "queued":
                        self._feeds.publish(found, position=position)

    async def events(self, job: str, *, after: int = 0) -> AsyncIterator[Event]:
        """What happens to a job until it has ended, or until ``end_events``; first the recent events whose ids are above
        ``after``.

        Raises:
            UnknownJobError: there is no such job.
        """
        feed = self._feeds.find(job)
        if feed is None:
            feed = self._feeds.publish(await self.call(self.store.get, job))
            await self.tell_places()
        async for event in self._feeds.listen(feed, after):
            yield event

    def end_events(self) -> None:
        """Ends all listening."""
        self._feeds.close()

    async def close(self) -> None:
        """Closes the store, and ends its thread."""
        await self.call(self.store.close)
        self._thread.shutdown()
