"""Which model's jobs a worker takes next, where its models don't fit beside each other and each change costs time."""

from __future__ import annotations

from collections.abc import Set

MOST = 8
"""Jobs that are taken of the model that is loaded while one of another model would be next."""

LONGEST = 30.0
"""Seconds for which that goes on: some ten times what a change takes."""


class Stay:
    """How a worker stays with a model for a while, and for how long jobs of others have waited for that.

    Attributes:
        model: the one that it drew with last.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self._since: float | None = None
        self._taken = 0

    def preferred(self, waiting: Set[str | None], now: float) -> str | None:
        """The model whose jobs go before others now; None where all take their turns.

        Args:
            waiting: the models of the jobs that wait.
            now: seconds, of any clock that goes on.
        """
        if waiting <= {self.model}:
            self._since, self._taken = None, 0
            return None
        if self.model not in waiting:
            return None
        if self._since is None:
            self._since = now
        return self.model if self._taken < MOST and now - self._since < LONGEST else None

    def took(self, model: str | None) -> None:
        """Notes the model of a job that was taken."""
        if model != self.model:
            self.model, self._since, self._taken = model, None, 0
        elif self._since is not None:
            self._taken += 1
