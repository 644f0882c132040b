"""Who may speak to the server, and how much they may say at once. It is asked before a body is read.

A server on a workstation is within reach of every page that a browser there shows. So the name by which it was reached must be
one of its own (a foreign name may point here too), and a page of another origin is refused; there is no CORS to allow one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hwaga.errors import HwagaError
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.refusals import answer, described, refusal

LOOPBACK = ("localhost", "127.0.0.1", "::1")

MAX_PICTURE = 40 * 2**20
"""Most bytes of a picture to start from, as it is sent."""

MAX_BODY = 2**20
"""Most bytes of a body that holds words alone."""

MAX_UPLOAD = 4 * MAX_PICTURE // 3 + MAX_BODY
"""Most bytes of a body that may hold a picture, which takes a third more as base64."""

OPEN = ("/health/live", "/health/ready", "/openapi.json")
"""What is answered without an API key."""

PAGE = re.compile(r"/(ui/.*)?")
"""Paths of the page's files, which hold no secret: the page itself asks for the key. A link on another site may lead to it."""


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        hosts: names that the server answers to, without ports, beside those of the loopback.
        anonymous: anyone is, as long as there is no API key.
    """

    hosts: Collection[str] = ()
    anonymous: bool = True


class Gate:
    """Lets a request through to ``app`` with its owner in ``request.state.owner``, or refuses it."""

    def __init__(self, app: ASGIApp, *, dispatcher: Dispatcher, access: Access, uploads: Sequence[str]) -> None:
        self.app, self._dispatcher, self._access, self._uploads = app, dispatcher, access, uploads
        self._hosts = {name.lower() for name in (*LOOPBACK, *access.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = MAX_UPLOAD if scope["path"] in self._uploads else MAX_BODY
        try:
            page = scope["method"] in ("GET", "HEAD") and PAGE.fullmatch(scope["path"]) is not None
            self._check_origin(headers, followed=page and headers.get("sec-fetch-mode") == "navigate")
            owner = "" if page or scope["path"] in OPEN else await self._owner(headers)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length[:20]) > limit:
                raise _too_large(limit)
        except HTTPException as error:
            code = {401: "invalid_api_key", 403: "forbidden", 413: "too_large"}[error.status_code]
            await refusal(error.status_code, error.detail, code=code, headers=error.headers)(scope, receive, send)
            return
        except HwagaError as error:  # the database of keys cannot be read
            await answer(*described(type(error), str(error)))(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, counted, send)

    def _check_origin(self, headers: Headers, *, followed: bool) -> None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in self._hosts:
            raise HTTPException(403, f"This server does not answer to the name {name!r}. Start it with --allow-host.")
        if headers.get("sec-fetch-site") == "cross-site" and not followed:
            raise HTTPException(403, "Pages of other sites may not use this server.")
        if "origin" in headers and headers["origin"].partition("://")[2].lower() != host.lower():
            raise HTTPException(403, "Pages of another origin may not use this server.")

    async def _owner(self, headers: Headers) -> str:
        store = self._dispatcher.store
        if self._access.anonymous and not await self._dispatcher.call(store.keys):
            return ""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        owner = await self._dispatcher.call(store.owner_of, secret.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            message = "Send an API key as 'Authorization: Bearer KEY'. `hwaga keys add NAME` makes one."
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
        return owner


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The body is too large: {limit:,} bytes are the most here.")
