"""What happens to jobs, as it happens: a short memory of each, and whoever listens."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal

from hwaga.server.jobs import TERMINAL, Job
from hwaga.server.wire import Progress

EventKind = Literal["queued", "started", "step", "succeeded", "failed", "cancelled"]

_KEPT_EVENTS = 64  # of a job
_KEPT_FEEDS = 256  # of jobs that have ended
_KEPT_PREVIEWS = 16  # feeds of jobs that have ended whose previews are kept too, for listeners that lag behind


@dataclass(frozen=True)
class Event:
    """Something happened to a job.

    Attributes:
        id: counts up, also from one start of the server to the next.
        kind: "queued" when its place changed, "started" once an attempt, "step", or how it ended.
        job: the job as it then was.
        position: of a job that waits: how many are before it.
        picture, own_step: of a step: which of the job's pictures it was a step of, from 0; and which one of those, from 1.
        preview: of a step: a small JPEG of that picture, or nothing.
    """

    id: int
    kind: EventKind
    job: Job
    position: int | None = None
    picture: int = 0
    own_step: int = 0
    preview: bytes = b""


class Feed:
    """The recent events of a job. ``changed`` is set, and replaced, at each."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self.changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].job.status in TERMINAL

    @property
    def position(self) -> int | None:
        """The job's place in the queue as it was last told."""
        return self.events[-1].position if self.events else None


class Feeds:
    """The feeds of the jobs that run, that someone listens for, or that ended lately."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._ended: deque[str] = deque()
        # From the clock, so that a client's last id is below the first one of the next start.
        self._ids = itertools.count(int(time.time() * 1000))
        self._closed = False

    def find(self, job: str) -> Feed | None:
        return self._feeds.get(job)

    def publish(self, job: Job, *, position: int | None = None, step: Progress | None = None) -> Feed:
        """Adds an event, unless the job has ended before. Of a job that waits, only a place is an event."""
        feed = self._feeds.setdefault(job.id, Feed())
        if feed.ended or (job.status == "queued" and position is None):
            return feed
        kind: EventKind = ("started" if step is None else "step") if job.status == "running" else job.status
        more = () if step is None else (step.picture, step.own_step, step.data)
        feed.events.append(Event(next(self._ids), kind, job, position, *more))
        feed.changed.set()
        feed.changed = asyncio.Event()
        if job.status in TERMINAL:
            self._ended.append(job.id)
            if len(self._ended) > _KEPT_PREVIEWS:
                old = self._feeds[self._ended[-_KEPT_PREVIEWS - 1]]
                old.events = deque((replace(event, preview=b"") for event in old.events), _KEPT_EVENTS)
            if len(self._ended) > _KEPT_FEEDS:
                del self._feeds[self._ended.popleft()]
        return feed

    async def listen(self, feed: Feed, after: int) -> AsyncIterator[Event]:
        """The events with ids above ``after``, until the job has ended or ``close``."""
        while True:
            changed = feed.changed
            for event in [event for event in feed.events if event.id > after]:
                yield event
                after = event.id
            if self._closed or feed.ended:
                return
            await changed.wait()

    def close(self) -> None:
        """Ends all listening."""
        self._closed = True
        for feed in self._feeds.values():
            feed.changed.set()
