"""Things that are kept in case they are used again, up to a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """A table from which those used longest ago leave when all take more than ``limit`` bytes. The last one always stays.

    Args:
        limit: bytes.
        size: bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit = limit
        self._size = size
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0
        """Bytes of all values."""

    def get(self, key: Key) -> Value | None:
        """The value, now the one used last; None where there is none."""
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> Value:
        """Keeps a value, and returns it."""
        if key in self._kept:
            self.nbytes -= self._size(self._kept.pop(key))
        self._kept[key] = value
        self.nbytes += self._size(value)
        while len(self._kept) > 1 and self.nbytes > self.limit:
            self.nbytes -= self._size(self._kept.popitem(last=False)[1])
        return value

    def clear(self) -> None:
        """Lets go of all."""
        self._kept.clear()
        self.nbytes = 0
