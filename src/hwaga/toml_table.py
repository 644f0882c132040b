"""Model cards are read without leniency: a TOML table in which nothing is missing, of another type, or unknown."""

from __future__ import annotations

from typing import Any, cast

from hwaga.errors import CardError


class Table:
    """A TOML table whose every key must be asked for: what is missing, of another type or never asked for is an error."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where, self.asked = values, where, set[str]()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self.asked.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise CardError(f"{self.where}{key} is missing.")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise CardError(f"{self.where}{key} must be of type {wanted}, not {value!r}.")
        return value

    def count(self, key: str) -> int:
        value = cast(int, self.get(key, int))
        if value < 1:
            raise CardError(f"{self.where}{key} must be at least 1, not {value}.")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> Table:
        return Table(self.get(key, dict, default), f"{self.where}{key}.")

    def tables(self) -> dict[str, Table]:
        return {key: self.table(key) for key in self.values}

    def close(self) -> None:
        unknown = sorted(set(self.values) - self.asked)
        if unknown:
            raise CardError(f"{self.where}{unknown[0]} is not a key of a model card.")
