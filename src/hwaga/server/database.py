"""A database file of ours, which several threads and processes may use at once, and its failures as errors of ours."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hwaga.errors import ImageFileError, StoreError, StoreFullError

_BUSY_SECONDS = 10
_FULL = "The disk that holds jobs and pictures is full. Free some space; what is there already is unharmed."


class Database:
    """SQLite in WAL mode: a transaction is on the disk before its ``with`` ends.

    Args:
        path: the file, which is made if it is not there; its folder must be.
        version: number of the schema.
        schema: statements that make the tables of a new file.
        upgrades: statements that make the next version of each earlier one.

    Raises:
        StoreError: the file cannot be used, is damaged, not ours or of a newer Hwaga.
    """

    def __init__(self, path: Path, *, version: int, schema: str, upgrades: Mapping[int, str]) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(
                f"Serving needs SQLite 3.37; this Python has {sqlite3.sqlite_version}. Use a newer Python."
            )
        self._lock = threading.Lock()
        with translated():
            self.connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(path.parent, version, schema, upgrades)
            except BaseException:
                self.connection.close()
                raise

    def _prepare(self, folder: Path, newest: int, schema: str, upgrades: Mapping[int, str]) -> None:
        self.connection.row_factory = sqlite3.Row
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > newest:
            raise StoreError(
                f"The jobs in '{folder}' are of a newer Hwaga (schema {version}; this one knows {newest}). "
                "Upgrade hwaga, or choose another data folder."
            )
        if self.connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(f"'{folder}' is on a file system without shared memory. Choose a local disk.")
        self.connection.execute("PRAGMA synchronous = FULL")  # each commit reaches the disk before it returns
        self.connection.execute("PRAGMA foreign_keys = ON")
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]  # asked again: another process may have been here
            if version < newest:
                changes = [upgrades[each] for each in range(version, newest)] if version else [schema]
                for statement in "\n".join(changes).split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {newest}")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone."""
        with self._lock, translated():
            yield self.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk at its end. Takes the right to write at once, since asking for it later may fail."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self.connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """What SQLite and the disk say, as StoreError and StoreFullError; a fault of ours stays what it is."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
            raise StoreFullError(_FULL) from error
        raise StoreError(f"The database of jobs failed: {error}. See to its disk, or choose another folder.") from error
    except ImageFileError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(_FULL) from error
        raise StoreError(str(error)) from error
    except OSError as error:
        raise StoreError(f"'{error.filename}' cannot be used: {error.strerror}. Choose another folder.") from error
