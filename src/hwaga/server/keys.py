"""API keys: who may use the server, once there has been one. Of a secret only the digest is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hwaga.errors import StoreError, UnknownJobError
from hwaga.server.database import Database

KEY_TABLES = """
CREATE TABLE api_keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL, created REAL NOT NULL) STRICT;
"""
CLOSED_TABLE = "CREATE TABLE closed (once INTEGER PRIMARY KEY CHECK (once = 1)) STRICT;\n"
"""A row in it: who has no key is refused."""


@dataclass(frozen=True)
class ApiKey:
    """A key as it can be listed; the secret itself is not kept."""

    id: str
    name: str
    created: float


class KeyStore(Protocol):
    """What the server asks of whatever keeps the keys, in any thread. Every method raises StoreError when that itself fails."""

    def add(self, name: str) -> tuple[ApiKey, str]:
        """Makes a key. Its secret is returned here and nowhere else."""

    def all(self) -> list[ApiKey]:
        """Oldest first."""

    def required(self) -> bool:
        """Whether there has ever been a key, since ``open_to_all`` at the latest: removing the last one opens nothing."""

    def open_to_all(self) -> None:
        """Asks for no key any more. StoreError while there are keys."""

    def remove(self, key: str) -> None:
        """Ends a key, by its id; its jobs stay. UnknownJobError."""

    def owner_of(self, secret: str) -> str | None:
        """Id of the key that has this secret, if any has."""


class SqliteKeys:
    """``KeyStore`` in the database of jobs.

    Args:
        database: with the tables of ``KEY_TABLES`` and ``CLOSED_TABLE``.
        wall: the clock of ``ApiKey.created``.
    """

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        self._database, self._wall = database, wall

    def add(self, name: str) -> tuple[ApiKey, str]:
        key = ApiKey(secrets.token_hex(6), name, self._wall())
        secret = f"hwaga_{key.id}_{secrets.token_urlsafe(32)}"
        with self._database.transaction() as db:
            db.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?)", (key.id, name, _digest(secret), key.created))
            db.execute("INSERT OR IGNORE INTO closed VALUES (1)")
        return key, secret

    def all(self) -> list[ApiKey]:
        with self._database.reading() as db:
            return [ApiKey(*row) for row in db.execute("SELECT id, name, created FROM api_keys ORDER BY created, id")]

    def required(self) -> bool:
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM closed").fetchone() is not None

    def open_to_all(self) -> None:
        with self._database.transaction() as db:
            if db.execute("SELECT 1 FROM api_keys").fetchone() is not None:
                raise StoreError("There are API keys. Remove them first: `hwaga keys list` shows their ids.")
            db.execute("DELETE FROM closed")

    def remove(self, key: str) -> None:
        with self._database.transaction() as db:
            if not db.execute("DELETE FROM api_keys WHERE id = ?", (key,)).rowcount:
                raise UnknownJobError(f"There is no API key {key!r}. List the keys to see their ids.")

    def owner_of(self, secret: str) -> str | None:
        key = secret[len("hwaga_") :].partition("_")[0] if secret.isascii() else ""
        with self._database.reading() as db:
            row = db.execute("SELECT sha256 FROM api_keys WHERE id = ?", (key,)).fetchone()
        # A secret is 256 random bits, so that a plain digest of it gives nothing to guess at.
        return key if row is not None and hmac.compare_digest(row["sha256"], _digest(secret)) else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()
