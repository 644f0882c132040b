"""How often each API key may ask for work: a bucket of tokens each, which fills at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """So many requests a minute for each owner, who may also send them all at once.

    Args:
        per_minute: above 0.
        clock: seconds, steady.
    """

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = per_minute / 60, max(per_minute, 1.0), clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def take(self, owner: str) -> float:
        """Takes a token. 0, or where there is none: the seconds until there is."""
        now = self._clock()
        tokens, then = self._buckets.get(owner, (self._most, now))
        tokens = min(self._most, tokens + (now - then) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[owner] = (tokens - (wait == 0), now)
        return wait
