"""Who may speak to the server, and how much they may say at once. It is asked before a body is read.

A server on a workstation is within reach of every page that a browser there shows. So the name by which it was reached must be
one of its own (a foreign name may point here too), and a page of another origin is refused; there is no CORS to allow one.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hwaga.errors import HwagaError
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.rate_limit import RateLimit
from hwaga.server.refusals import answer, described, refusal
from hwaga.server.strange_pictures import MAX_PICTURE

LOOPBACK = ("localhost", "127.0.0.1", "::1")

MAX_BODY = 2**20
"""Most bytes of a body that holds words alone."""

MAX_UPLOAD = 4 * MAX_PICTURE // 3 + MAX_BODY
"""Most bytes of a body that may hold a picture, which takes a third more as base64."""

BODY_SECONDS = 300.0
"""Seconds that a body may take to arrive: the largest one takes a client of 1.5 Mbit/s as long."""

OPEN = ("/health/live", "/health/ready", "/openapi.json")
"""What is answered without an API key."""

QUICK = ("/v1/prompts/compose",)
"""What is no work, though it is sent by POST, and asked for while somebody types."""

PICTURE = re.compile(r"/v1/images/[0-9a-f]{32}")
"""Paths of finished pictures, which whoever knows one is shown, if without the settings: 128 random bits, told to the owner
alone. So an address that ``response_format=url`` gives works in a browser, which sends no key with a picture, and on the pages
of a shop.
"""

PAGE = re.compile(r"/(ui/.*)?")
"""Paths of the page's files, which hold no secret: the page itself asks for the key. A link on another site may lead to it."""


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        hosts: names that the server answers to, without ports, beside those of the loopback.
        anonymous: anyone is, until there is an API key. When the last one is removed, nobody is.
        per_minute: how often each key may ask for work, which is what POST does; who comes without one shares with all others.
    """

    hosts: Collection[str] = ()
    anonymous: bool = True
    per_minute: float | None = None


class Gate:
    """Lets a request through to ``app`` with its owner in ``request.state.owner``, or refuses it. None there is a stranger, to
    whom a picture is shown.
    """

    def __init__(self, app: ASGIApp, *, dispatcher: Dispatcher, access: Access, uploads: Sequence[str]) -> None:
        self.app, self._dispatcher, self._access, self._uploads = app, dispatcher, access, uploads
        self._rate = None if access.per_minute is None else RateLimit(access.per_minute)
        self._hosts = {name.lower() for name in (*LOOPBACK, *access.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = MAX_UPLOAD if scope["path"] in self._uploads else MAX_BODY
        try:
            reads = scope["method"] in ("GET", "HEAD")
            page = reads and PAGE.fullmatch(scope["path"]) is not None
            picture = reads and PICTURE.fullmatch(scope["path"]) is not None
            self._check_origin(headers, shown=picture or (page and headers.get("sec-fetch-mode") == "navigate"))
            owner: str | None = ""
            if picture:
                owner = await self._known(headers)
            elif not page and scope["path"] not in OPEN:
                owner = await self._owner(headers)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length[:20]) > limit:
                raise _too_large(limit)
            work = scope["method"] == "POST" and scope["path"] not in QUICK
            if self._rate is not None and work and (wait := self._rate.take(owner or "")):
                raise HTTPException(
                    429,
                    f"This key may ask for work {self._access.per_minute:g} times a minute. Try again in {math.ceil(wait)} s.",
                    {"Retry-After": str(math.ceil(wait))},
                )
        except HTTPException as error:
            code = {401: "invalid_api_key", 403: "forbidden", 413: "too_large", 429: "rate_limited"}[error.status_code]
            await refusal(error.status_code, error.detail, code=code, headers=error.headers)(scope, receive, send)
            return
        except HwagaError as error:  # the database of keys cannot be read
            await answer(*described(type(error), str(error)))(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        received, whole, until = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal received, whole
            try:
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                late = f"The body took longer than {BODY_SECONDS:g} s to arrive. Send it faster, or less of it."
                raise HTTPException(408, late, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if received > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, counted, send)

    def _check_origin(self, headers: Headers, *, shown: bool) -> None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in self._hosts:
            raise HTTPException(403, f"This server does not answer to the name {name!r}. Start it with --allow-host.")
        if headers.get("sec-fetch-site") == "cross-site" and not shown:
            raise HTTPException(403, "Pages of other sites may not use this server.")
        if "origin" in headers and headers["origin"].partition("://")[2].lower() != host.lower():
            raise HTTPException(403, "Pages of another origin may not use this server.")

    async def _owner(self, headers: Headers) -> str:
        owner = await self._known(headers)
        if owner is None:
            message = "Send an API key as 'Authorization: Bearer KEY'. `hwaga keys add NAME` makes one."
            if "authorization" in headers:
                message = f"That is no API key of this server, or none any more. {message}"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
        return owner

    async def _known(self, headers: Headers) -> str | None:
        """The owner by the key that was sent, "" where none is asked for, None without a good one."""
        store = self._dispatcher.store
        if self._access.anonymous and not await self._dispatcher.call(store.keys.required):
            return ""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        return await self._dispatcher.call(store.keys.owner_of, secret.strip()) if scheme.lower() == "bearer" else None


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The body is too large: {limit:,} bytes are the most here.")
