"""What happens to jobs, as it happens: a memory of each, and whoever listens."""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from hwaga.server.jobs import TERMINAL, Job
from hwaga.server.wire import Progress

EventKind = Literal["queued", "started", "step", "succeeded", "failed", "cancelled"]

_KEPT_FEEDS = 256  # of jobs that have ended
_KEPT_EVENTS = 50_000  # of jobs that have ended, in all; of one that goes on, all of them: at most its steps, thrice
_KEPT_PREVIEWS = 64 * 2**20  # bytes of all previews together; the oldest go first


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
    """The events of a job, by their ids. ``changed`` is set, and replaced, at each. Of places in the queue, which are many and
    of no use later, only the last one is kept of those with nothing else between them.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].job.status in TERMINAL

    @property
    def position(self) -> int | None:
        """The job's place in the queue as it was last told."""
        return self.events[-1].position if self.events else None

    def add(self, event: Event) -> None:
        if event.kind == "queued" and self.events and self.events[-1].kind == "queued":
            self.events.pop()
        self.events.append(event)
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, id: int) -> list[Event]:
        """The events with ids above that one."""
        return self.events[bisect_right(self.events, id, key=attrgetter("id")) :]


class Feeds:
    """The feeds of the jobs that run, that someone listens for, or that ended lately."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._ended: deque[str] = deque()
        self._ended_events = 0
        self._previews: deque[tuple[Feed, int, int]] = deque()  # where each is among its feed's events, and its bytes
        self._preview_bytes = 0
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
        feed.add(Event(next(self._ids), kind, job, position, *more))
        if step is not None and step.data:
            self._forget_previews(feed, len(step.data))
        if job.status in TERMINAL:
            self._forget_feeds(job.id, feed)
        return feed

    def _forget_previews(self, feed: Feed, size: int) -> None:
        """Makes room for a feed's newest preview."""
        self._previews.append((feed, len(feed.events) - 1, size))
        self._preview_bytes += size
        while self._preview_bytes > _KEPT_PREVIEWS:
            old, place, freed = self._previews.popleft()
            old.events[place] = replace(old.events[place], preview=b"")
            self._preview_bytes -= freed

    def _forget_feeds(self, job: str, feed: Feed) -> None:
        """Makes room for the feed of a job that has just ended."""
        self._ended.append(job)
        self._ended_events += len(feed.events)
        while len(self._ended) > _KEPT_FEEDS or (self._ended_events > _KEPT_EVENTS and len(self._ended) > 1):
            self._ended_events -= len(self._feeds.pop(self._ended.popleft()).events)

    async def listen(self, feed: Feed, after: int) -> AsyncIterator[Event]:
        """The events with ids above ``after``, until the job has ended or ``close``."""
        while True:
            changed = feed.changed
            for event in feed.after(after):
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
