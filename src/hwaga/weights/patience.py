"""How long to put up with a hub: attempts that fail, the waits between them, and connections that bring next to nothing."""

from __future__ import annotations

import http.client
import random
import time

from hwaga.errors import HubError

ATTEMPTS = 8
"""Attempts in a row that bring nothing before a file is given up. The waits between them make two minutes."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds: before the second attempt, doubled before each one after; and the most that a server may ask for."""

SLOWEST, WINDOW = 2**10, 60.0
"""Bytes a second that a connection must bring, on the average of so many seconds of waiting for it."""

PROGRESS = 2**10
"""Bytes that make an attempt one that brought something."""


class Unanswered(Exception):  # noqa: N818 - it never leaves this package
    """An attempt that failed in a way that may pass.

    Attributes:
        wait: seconds that the server asked for, or None.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class TooSlow(Unanswered):
    """An attempt that brought less than ``SLOWEST``."""


class Patience:
    """Counts attempts that brought nothing, and says how long to wait after each."""

    def __init__(self, attempts: int) -> None:
        self._attempts, self._failed = attempts, 0

    def renew(self) -> None:
        """Starts the count again, since something came."""
        self._failed = 0

    def wait_after(self, failure: Unanswered, subject: str) -> float:
        """Seconds to wait before the next attempt: what the server asked for, or twice as long as last time, give or take half.

        Raises:
            HubError: it was the last attempt, or the server asks for too long a wait.
        """
        self._failed += 1
        if failure.wait is not None and failure.wait > LONGEST_WAIT:
            raise HubError(
                f"{subject}: {failure}, and asks to come back in {failure.wait / 60:.0f} minutes. Run it again then."
            )
        if self._failed >= self._attempts:
            raise HubError(
                f"{subject}: {failure}, {self._failed} times in a row. "
                "Look at the connection and run it again: what has arrived is kept."
            )
        backoff = FIRST_WAIT * 2.0 ** (self._failed - 1) * random.uniform(0.5, 1.5)
        return max(failure.wait or 0.0, min(backoff, LONGEST_WAIT))


class Pace:
    """Reads a response, and gives it up when it drips.

    Only the time spent waiting for bytes counts, so that a reader that takes its time, by a limited rate, blames nobody.
    """

    def __init__(self) -> None:
        self._waited, self._brought = 0.0, 0

    def read(self, response: http.client.HTTPResponse, size: int) -> bytes:
        """The next bytes, at most ``size``; none at the end.

        Raises:
            TooSlow: there were too few of them lately.
            OSError, HTTPException: the connection failed.
        """
        begin = time.monotonic()
        data = response.read1(size)
        self._waited += time.monotonic() - begin
        self._brought += len(data)
        if self._waited >= WINDOW:
            if self._brought < SLOWEST * self._waited:
                raise TooSlow(f"less than {SLOWEST / 2**10:.0f} KiB a second came for {WINDOW:.0f} seconds")
            self._waited, self._brought = 0.0, 0
        return data
