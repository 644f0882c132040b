"""Server-sent events, to a client that may leave at any time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection open."""


def content(*events: bytes) -> dict[str, Any]:
    """What the OpenAPI document says of a stream that has such events, as ``frame`` makes them."""
    return {
        "text/event-stream": {
            "schema": {
                "title": "Event",
                "description": "One of the stream's events. Its data is JSON.",
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
                "required": ["event", "data"],
            },
            "example": b"".join(events).decode(),
        }
    }


def frame(event: str, data: dict[str, Any], *, id: int | None = None) -> bytes:
    """One event as it goes over the wire."""
    number = "" if id is None else f"id: {id}\n"
    return f"{number}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


async def left(receive: Receive) -> None:
    """Returns when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends frames as they come. At the end, also where the client left first, ``frames`` is closed."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(left(receive))
        coming: asyncio.Task[bytes | None] | None = asyncio.create_task(_next(self._frames))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                coming = coming or asyncio.create_task(_next(self._frames))
                await asyncio.wait({coming, leaving}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return
                data: bytes | None = b": still here\n\n"
                if coming.done():
                    data, coming = coming.result(), None
                await send({"type": "http.response.body", "body": data or b"", "more_body": data is not None})
                if data is None:
                    return
        finally:
            for task in (leaving, coming):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            await self._frames.aclose()


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(frames, None)
