"""The pictures of jobs: files in a folder, and rows that name them in the database of jobs.

    results/<xx>/<id>.png    finished pictures
    sources/<xx>/<id>        pictures to start from, as they were sent

A picture is on the disk before the row that names it, and goes after that row. So a crash may leave a file without a row, which
the next start removes, but never a row without its file. Files are written inside the transaction that records them, so that no
other process that starts takes a new one for one of those.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hwaga.errors import UnknownJobError
from hwaga.image_file import write
from hwaga.server.database import Database

Role = Literal["results", "sources"]

PICTURE_TABLES = """
CREATE TABLE pictures (
    id TEXT PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    role TEXT NOT NULL, position INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX pictures_by_job ON pictures (job, position);
"""


def make_folders(folder: Path) -> None:
    """Makes the folders of pictures, and has them reach the disk, so that later only files need to. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and pictures are nobody else's business
    roles = [folder / "results", folder / "sources"]
    for path in [role / f"{number:02x}" for role in roles for number in range(256)]:
        path.mkdir(parents=True, exist_ok=True)
    for path in [*roles, folder, folder.absolute().parent]:
        _sync(path)


class SqlitePictures:
    """The pictures of a store. Several threads and processes may use it at once.

    Args:
        folder: where ``make_folders`` has been.
        database: with ``PICTURE_TABLES``, and the jobs that these refer to.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self._database = folder, database
        self._written: list[Path] = []
        self._removed: list[Path] = []

    def sweep(self) -> None:
        """Removes files without a row: written by a process that ended before it could record them."""
        with self._database.transaction() as db:
            known = {row["id"] for row in db.execute("SELECT id FROM pictures")}
            for path in [*self._folder.glob("results/*/*"), *self._folder.glob("sources/*/*")]:
                if path.name.removesuffix(".png") not in known:
                    path.unlink(missing_ok=True)

    def source(self, job: str) -> bytes | None:
        """The picture that a job starts from, if it has one."""
        with self._database.reading() as db:
            row = db.execute("SELECT id FROM pictures WHERE job = ? AND role = 'sources'", (job,)).fetchone()
            return None if row is None else self._path("sources", row["id"]).read_bytes()

    def finished(self, image: str) -> tuple[str, bytes]:
        """A finished picture's job, and the bytes of its PNG. UnknownJobError if it is not there any more."""
        with self._database.reading() as db:
            row = db.execute("SELECT id, job FROM pictures WHERE id = ? AND role = 'results'", (image,)).fetchone()
            if row is None:
                raise UnknownJobError("There is no picture of that id. It may have been removed by its age.")
            return row["job"], self._path("results", row["id"]).read_bytes()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """As the database's, for the methods below. Files that were written in it go where it fails, and those of rows that
        were removed in it where it does not.
        """
        removed: list[Path] = []
        with self._database.transaction() as db:
            self._written, self._removed = [], removed
            try:
                yield db
            except BaseException:
                for path in self._written:
                    path.unlink(missing_ok=True)
                raise
            # When its end fails, the disk may hold it all the same: the files stay, and the next start decides.
        for path in removed:
            with contextlib.suppress(OSError):  # what stays has no row now, and goes at the next start
                path.unlink()

    def keep(self, job: str, role: Role, pictures: Sequence[bytes]) -> None:
        """Writes and records pictures. Their ids are drawn, and no part of a path comes from outside."""
        for position, data in enumerate(pictures):
            picture = secrets.token_hex(16)
            path = self._path(role, picture)
            self._written.append(path)
            write(path, data)
            self._database.connection.execute(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", (picture, job, role, position, len(data))
            )

    def remove(self, image: str) -> str:
        """Removes a finished picture. Returns its job's id. UnknownJobError if it is not there any more."""
        gone = "DELETE FROM pictures WHERE id = ? AND role = 'results' RETURNING job"
        rows = self._database.connection.execute(gone, (image,)).fetchall()
        if not rows:
            raise UnknownJobError("There is no picture of that id. It may have been removed by its age.")
        self._removed.append(self._path("results", image))
        return str(rows[0]["job"])

    def remove_all(self, job: str) -> None:
        """Removes all pictures of a job: finished ones, and what it starts from."""
        gone = "DELETE FROM pictures WHERE job = ? RETURNING role, id"
        rows = self._database.connection.execute(gone, (job,)).fetchall()
        self._removed += [self._path(row["role"], row["id"]) for row in rows]

    def _path(self, role: Role, picture: str) -> Path:
        return self._folder / role / picture[:2] / (f"{picture}.png" if role == "results" else picture)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
