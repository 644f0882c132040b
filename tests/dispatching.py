"""A dispatcher for a test, and what happens to its jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hwaga.server import process
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.events import Event
from hwaga.server.jobs import Job
from hwaga.server.store import SqliteStore

REAL = process.WORKER


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(180):
            await test()

    asyncio.run(limited())


@asynccontextmanager
async def dispatching(folder: Path, **options: Any) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(SqliteStore(folder), **options)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        with contextlib.suppress(RuntimeError):  # a test has stopped it
            await dispatcher.stop(0)


def held(dispatcher: Dispatcher) -> list[Job]:
    """The jobs that the first worker has."""
    batch = dispatcher._supervisors[0]._batch
    return [] if batch is None else batch.jobs


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def all_events(dispatcher: Dispatcher, job: Job, *, after: int = 0) -> list[Event]:
    return [event async for event in dispatcher.events(job.id, after=after)]


async def ended(dispatcher: Dispatcher, job: Job) -> Job:
    return (await all_events(dispatcher, job))[-1].job
