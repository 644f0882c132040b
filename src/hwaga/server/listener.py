"""The socket that the server listens on, and its way from the first request to the last."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hwaga.errors import ServerError
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.json_log import log_as_json

DRAIN = 60.0
"""Seconds that pictures which are being drawn when the server is told to stop may take."""

HANG_UP = 5
"""Seconds that answers may take after that."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ServerError: the port is in use, or the address is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(
            f"Port {port} of {host} cannot be listened on: {reason}. Choose another one with --port or --host."
        ) from error


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Listener(uvicorn.Server):
    """Stops in two stages: at the first signal it refuses new work and finishes what is being drawn, at the second it ends."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self._loop is None or self._draining is not None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            try:
                await self._dispatcher.drain(DRAIN)
            finally:
                self.should_exit = True

        self._draining = self._draining or asyncio.create_task(drain())


def serve_app(app: FastAPI, dispatcher: Dispatcher, listening: socket.socket) -> None:
    """Serves until a signal says to stop. The log goes to standard error, as JSON."""
    log_as_json(logging.INFO)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=HANG_UP, ws="none"
    )
    Listener(config, dispatcher).run(sockets=[listening])
