"""The server's side of a worker process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import Any

from hwaga.errors import WireError, WorkerError
from hwaga.server import wire

WORKER = (sys.executable, "-P", "-m", "hwaga.server.worker")
"""The command of a worker; the descriptor of its socket is added. -P: nothing is imported from the folder it is started in."""

_log = logging.getLogger(__name__)


class WorkerProcess:
    """A worker that was started: what it said waits in ``messages``, with None at its end, and ``gone`` is set by then.
    ``plans`` are the last that it told of where its models' weights lie, by their names, and ``memory`` of its device's, if it
    has any of its own.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.gone = False
        self.plans: dict[str, dict[str, Any]] = {}
        self.memory: wire.DeviceMemory | None = None
        self.messages: asyncio.Queue[wire.Message | None] = asyncio.Queue(maxsize=4)
        self._process, self._writer = process, writer
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls) -> WorkerProcess:
        """Starts a worker. It loads nothing before it is told to.

        Raises:
            WorkerError: the system starts no process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # The worker dies with the thread that starts it, so this must be the event loop's.
                process = await asyncio.create_subprocess_exec(
                    *WORKER, str(theirs.fileno()), pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL
                )
            except OSError as error:
                ours.close()
                raise WorkerError(f"The worker process cannot start: {error}.") from error
        return cls(process, *await asyncio.open_connection(sock=ours))

    @property
    def crowded(self) -> bool:
        """Whether some of its models make room for others."""
        return any(plan.get("away_bytes") for plan in self.plans.values())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await wire.receive_async(reader)) is not None:
                if isinstance(message, wire.Plan):
                    self.plans[str(message.plan.get("model"))] = message.plan
                elif isinstance(message, wire.DeviceMemory):
                    self.memory = message
                else:
                    await self.messages.put(message)
        except WireError:
            _log.exception("A worker sent what cannot be read.")
        self.gone = True
        await self.messages.put(None)

    def send(self, message: wire.Message) -> None:
        """Sends a message, without waiting for it to be read: a worker that hangs must not stop whoever watches it.

        Raises:
            WireError: it is too large.
        """
        self._writer.write(wire.encode(message))

    async def end(self) -> int:
        """Kills the process, which has nothing to tidy up. Returns its exit code."""
        self._reading.cancel()
        self._writer.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()
