"""``verified.json``: which files of a model folder were checked, and against what.

It names the repository and the commit, and for each file its size, sha256 and the time of its last change, so that a glance
tells whether a file is still the one that was checked. Files that belong to the model and are not there yet are listed too.
Those of its styles are told apart, as a model is whole without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hwaga.cards import CARD_FILE, ModelCard
from hwaga.errors import DownloadError

MARKER = "verified.json"
LOCK = ".download.lock"
PART, STATE = ".part", ".part.json"

BLOCK = 2**22

Condition = Literal["verified", "not verified", "partly fetched", "not on this machine"]


@dataclass(frozen=True)
class CheckedFile:
    """A file as it was when its content was checked."""

    size: int
    sha256: str
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, sha256: str) -> CheckedFile:
        """The file as it is now, with the hash that was just computed of it."""
        status = path.stat()
        return cls(status.st_size, sha256, status.st_mtime_ns)

    @classmethod
    def from_values(cls, values: Any) -> CheckedFile:
        """The file as a marker notes it. Raises ValueError, KeyError or TypeError for anything else."""
        size, sha256, mtime_ns = values["size"], values["sha256"], values["mtime_ns"]
        if type(size) is not int or type(mtime_ns) is not int or not 0 <= size < 2**63 or len(values) != 3:
            raise ValueError("no size or time of a file")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError("no sha256")
        return cls(size, sha256, mtime_ns)

    def describes(self, path: Path) -> bool:
        """Whether the file has not been touched since."""
        try:
            return self == CheckedFile.of(path, self.sha256)
        except OSError:
            return False


@dataclass(frozen=True)
class Verified:
    """What ``verified.json`` says.

    Attributes:
        repo, revision: where the files are from; the revision is a commit.
        files: those that were checked, by path.
        missing: paths of those that belong to the model and are not there, or not good; never one of a style.
        styles: paths of the files of its styles, there or not.
    """

    repo: str
    revision: str
    files: Mapping[str, CheckedFile]
    missing: tuple[str, ...]
    styles: tuple[str, ...] = ()

    @property
    def absent_styles(self) -> tuple[str, ...]:
        """Paths of files of styles that are not there, or not good."""
        return tuple(path for path in self.styles if path not in self.files)

    @classmethod
    def read(cls, folder: Path) -> Verified | None:
        """The folder's marker, or None where there is none that can be read; what it would say can be found out again."""
        try:
            values = json.loads((folder / MARKER).read_text(encoding="utf-8"))
            repo, revision, missing = values["repo"], values["revision"], values["missing"]
            files = {path: CheckedFile.from_values(entry) for path, entry in values["files"].items()}
            styles = values.get("styles")
            if styles is None:  # written before styles were told apart, when their LoRAs lay in one folder
                styles = sorted(path for path in {*files, *missing} if path.startswith("loras/"))
            if not isinstance(missing, list) or not isinstance(styles, list):
                return None
            if not all(map(_stays_below, (*files, *missing, *styles))) or not isinstance(repo + revision, str):
                return None
            return cls(repo, revision, files, tuple(path for path in missing if path not in styles), tuple(styles))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        """Writes the marker, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        values = {**vars(self), "files": {path: asdict(self.files[path]) for path in sorted(self.files)}}
        write_durably(folder / MARKER, (json.dumps(values, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Hashing:
    """So much of a file has been hashed."""

    path: str
    done: int
    total: int


@dataclass(frozen=True)
class Report:
    """What hashing a model's files again has found.

    Attributes:
        verified, damaged, missing: paths of the model's files, and of its styles' that are there.
        absent_styles: paths of files of styles that are not there. The model is whole without.
        extra: paths of files that the model does not have. They do no harm by being there.
    """

    verified: tuple[str, ...]
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    absent_styles: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.damaged and not self.missing


def condition(card: ModelCard) -> Condition:
    """Whether a model's files are there and were checked, by a glance at sizes and times."""
    marker = Verified.read(card.folder)
    if marker is None:
        fetched = card.folder.is_dir() and next(card.folder.rglob(f"*{STATE}"), None) is not None
        return "partly fetched" if fetched else "not verified" if card.present else "not on this machine"
    if marker.missing:
        return "partly fetched"
    for path, file in marker.files.items():
        gone = path in marker.styles and not os.path.exists(card.folder / path)  # noqa: PTH110 - never raises
        if not gone and not file.describes(card.folder / path):
            return "not verified"
    return "verified"


def verify(folder: Path) -> Generator[Hashing | Report, None, None]:
    """Hashes every file that the marker names, and yields the report last.

    The marker is brought up to date, so that a damaged file is fetched again by the next download.

    Raises:
        DownloadError: there is no marker, or it is damaged, or a file cannot be read.
    """
    marker = Verified.read(folder)
    if marker is None:
        if os.path.lexists(folder / MARKER):
            raise DownloadError(
                f"{folder / MARKER} is damaged. `hwaga download` checks what lies there and writes it anew; nothing that is "
                "good is fetched again."
            )
        raise DownloadError(
            f"{folder} has no {MARKER} to compare with. `hwaga download` writes it, once it has checked what lies there."
        )
    found: dict[str, CheckedFile] = {}
    damaged, missing, absent_styles = [], list(marker.missing), list(marker.absent_styles)
    done, total = 0, sum(file.size for file in marker.files.values())
    for name, file in marker.files.items():
        path = folder / name
        digest = hashlib.sha256()
        try:
            with path.open("rb") as opened:
                while block := opened.read(BLOCK):
                    digest.update(block)
                    yield Hashing(name, min(done + opened.tell(), total), total)
            if digest.hexdigest() == file.sha256:
                found[name] = CheckedFile.of(path, file.sha256)
            else:
                damaged.append(name)
        except FileNotFoundError:
            (absent_styles if name in marker.styles else missing).append(name)
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error.strerror}. Check the disk.") from error
        done += file.size
    ours = {MARKER, LOCK, CARD_FILE, *marker.files, *marker.missing, *marker.styles}
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = [path for path in sorted(paths - ours) if not path.endswith((PART, STATE, ".new"))]
    if Verified.read(folder) == marker:  # else a download was at work meanwhile, and knows better
        with suppress(OSError):  # a folder that may only be read can still be looked at
            lacking = tuple(sorted({*missing, *damaged} - {*marker.styles}))
            replace(marker, files=found, missing=lacking).write(folder)
    yield Report(tuple(found), tuple(damaged), tuple(sorted(missing)), tuple(sorted(absent_styles)), tuple(extra))


def _stays_below(path: object) -> bool:
    """Whether it is the name of a file below a folder."""
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return not any(name in ("", ".", "..") for name in path.split("/"))


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file that is there whole and for good, or not at all, even if the machine stops.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    temporary = unfinished(path)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def unfinished(path: Path) -> Path:
    """The name that a file has while it is written. It is always the same, so that a killed process leaves one at most."""
    return path.with_name(f".{path.name}.new")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
