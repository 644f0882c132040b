"""The outermost layer of the server: the id of each request, a line in the log, and headers that every answer carries."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hwaga.server.json_log import request_id
from hwaga.server.refusals import refusal

PICTURE = re.compile(r"(/images/[0-9a-f]{6})[0-9a-f]+")
"""A picture's id is all that it takes to see it, and the log is read by others than its owner."""

_log = logging.getLogger(__name__)


class AccessLog:
    """Logs each request to ``app``, and answers for it where it fails. What was asked for is not logged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, begin, status = f"req_{secrets.token_hex(12)}", time.perf_counter(), 0
        scope_of_log = request_id.set(name)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["X-Content-Type-Options"] = "nosniff"
                # The page has a policy of its own.
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            pass
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the reason
            _log.exception("Request %s failed.", name)
            if not status:
                await refusal(500, f"The server failed at request {name}. Its log says why.")(scope, receive, noting)
        finally:
            fields = {"method": scope["method"], "path": PICTURE.sub(r"\1…", scope["path"]), "status": status}
            fields |= {"request_id": name, "ms": round(1000 * (time.perf_counter() - begin), 1)}
            _log.info("%(method)s %(path)s", fields, extra=fields)
            request_id.reset(scope_of_log)
