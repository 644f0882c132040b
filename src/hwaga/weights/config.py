"""Reading the values of a checkpoint's configuration files, which may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hwaga.errors import CheckpointError


class ConfigValues:
    """Values by name, each checked as it is read.

    Args:
        values: the JSON object.
        where: the file, for messages.

    Every method raises CheckpointError for a value that is missing or of another kind than asked for. A ``default`` stands
    in for a value that is absent or null.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        return int(self._checked(name, default, _is_count, "a whole number of at least 1"))

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of such numbers, not empty."""
        return tuple(self._checked(name, None, _all(_is_count), "a list of whole numbers of at least 1"))

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        return float(self._checked(name, default, _is_number, "a number"))

    def epsilon(self, name: str) -> float:
        """A finite number, 0 or above."""
        return float(self._checked(name, None, lambda v: _is_number(v) and v >= 0, "a number of at least 0"))

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        return float(self._checked(name, default, lambda v: _is_number(v) and v > 0, "a number above 0"))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        return bool(self._checked(name, default, lambda v: isinstance(v, bool), "true or false"))

    def text(self, name: str, default: str | None = None) -> str:
        """A text."""
        return str(self._checked(name, default, lambda v: isinstance(v, str), "a text"))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, not empty."""
        return tuple(self._checked(name, None, _all(lambda v: isinstance(v, str)), "a list of texts"))

    def table(self, name: str) -> ConfigValues:
        """A JSON object within; empty where it is absent or null."""
        return ConfigValues(
            self._checked(name, {}, lambda v: isinstance(v, dict), "an object"), f"{self._where}, {name}"
        )

    def _checked(self, name: str, default: Any, good: Any, kind: str) -> Any:
        value = self._values.get(name)
        value = default if value is None else value
        if not good(value):
            found = "is missing" if value is None else f"is {value!r}"
            raise CheckpointError(f"{self._where}: {name} must be {kind} and {found}. Fetch the checkpoint again.")
        return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _all(good: Any) -> Any:
    return lambda values: isinstance(values, list | tuple) and len(values) > 0 and all(map(good, values))
