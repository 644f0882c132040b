"""What a download will do: which files of which commit, what of them is here already, and whether the disk has room."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hwaga.cards import Download, ModelCard
from hwaga.errors import DamagedFileError, DiskSpaceError, DownloadError
from hwaga.weights.hub import Hub, RemoteFile
from hwaga.weights.partial_file import finished_ranges, hashes_of
from hwaga.weights.verified import MARKER, PART, STATE, CheckedFile, Verified

HEADROOM = 1.1
"""Free disk space that is asked for, as a multiple of what is to be fetched."""

SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
"""Files of these kinds are fetched. They hold numbers and text; pickles (.bin, .pt, .ckpt) and scripts can run code."""

Place = Literal["verified", "here", "cached", "partial", "missing"]


@dataclass(frozen=True)
class PlannedFile:
    """A file of the plan and where it stands.

    Attributes:
        place: verified before; here, not checked yet; in Hugging Face's cache; in part; or missing.
        arrived: bytes of it that need not be fetched, so far as its hash turns out right.
    """

    remote: RemoteFile
    place: Place
    arrived: int


@dataclass(frozen=True)
class Plan:
    """What a download will do.

    Attributes:
        repo, commit: where the files are from.
        folder: where they go.
        files: those that were asked for.
        others: files of the model's other parts.
        left_out: paths that the card's patterns name and that are never fetched, because of their kind.
    """

    repo: str
    commit: str
    folder: Path
    files: tuple[PlannedFile, ...]
    others: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]

    @property
    def to_fetch(self) -> int:
        """Bytes."""
        return sum(file.remote.size - file.arrived for file in self.files)

    @property
    def space_needed(self) -> int:
        """Bytes of free disk."""
        return int(self.to_fetch * HEADROOM)

    def check_space(self) -> None:
        """Refuses a disk that is too small.

        Raises:
            DiskSpaceError: with how much is missing.
        """
        free = shutil.disk_usage(next(path for path in (self.folder, *self.folder.parents) if path.is_dir())).free
        if free < self.space_needed:
            raise DiskSpaceError(
                f"{self.folder} has {free / 2**30:.1f} GiB free and {self.space_needed / 2**30:.1f} GiB are needed. "
                "Make room, or choose another disk with --to or HWAGA_DATA_DIR."
            )


def make_plan(
    card: ModelCard, hub: Hub, *, folder: Path | None = None, parts: Sequence[str] = (), revision: str | None = None
) -> Plan:
    """Asks the hub what a model consists of, and looks what of it is here.

    Args:
        folder: where it goes; the card's folder when left out.
        parts: names of the parts to fetch; all when empty. Files of no part are always fetched.
        revision: a branch, tag or commit in place of the card's.

    Raises:
        DownloadError: the model cannot be fetched, or not from there.
    """
    source = card.download
    if source is None:
        reason = "it comes with Hwaga" if card.present else "its card has no [download] table"
        raise DownloadError(f"{card.name} is not fetched: {reason}.")
    for part in parts:
        if part not in source.parts:
            raise DownloadError(f"{card.name} has no part {part!r} to fetch. Its parts are {', '.join(source.parts)}.")
    folder = (folder or card.folder).absolute()
    commit, listed = hub.list_files(source.repo, revision or source.revision)
    for file in listed:
        _check_path(file.path)
    included = [file for file in listed if _matches(file.path, source.include)]
    wanted = sorted((_pinned(file, source) for file in included if file.path.endswith(SUFFIXES)), key=lambda f: f.path)
    absent = sorted(set(source.sha256) - {file.path for file in wanted})
    if absent or not wanted:
        what = f"no {absent[0]}, which the card of {card.name} pins" if absent else f"no file of {card.name}"
        raise DownloadError(f"{source.repo} at {commit} has {what}. Choose another revision.")
    skipped = [
        pattern for name, patterns in source.parts.items() if parts and name not in parts for pattern in patterns
    ]
    chosen = [pattern for name in parts for pattern in source.parts[name]]
    others = [file for file in wanted if _matches(file.path, skipped) and not _matches(file.path, chosen)]
    try:
        marker = Verified.read(folder)
        files = tuple(_placed(file, folder, marker, hub, source.repo) for file in wanted if file not in others)
    except OSError as error:
        raise disk_error(error, folder) from error
    return Plan(
        repo=source.repo,
        commit=commit,
        folder=folder,
        files=files,
        others=tuple(others),
        left_out=tuple(file.path for file in included if not file.path.endswith(SUFFIXES)),
    )


def _check_path(path: str) -> None:
    """Refuses a name that would lead out of the folder or stand in our way."""
    names = path.split("/")
    bad = not all(re.fullmatch(r"[^\\\x00-\x1f\x7f]{1,200}", name) and name not in (".", "..") for name in names)
    if bad or path == MARKER or path.endswith((PART, STATE)):
        raise DownloadError(
            f"The hub lists a file called {path!r}, which is no name to write to. Do not trust this repository."
        )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _pinned(remote: RemoteFile, source: Download) -> RemoteFile:
    """The file with the sha256 of the card, if the card has one."""
    pin = source.sha256.get(remote.path, remote.sha256)
    if remote.sha256 not in (None, pin):
        raise DamagedFileError(
            f"{remote.path} of {source.repo} has sha256 {remote.sha256} and the model's card pins {pin}. "
            "Choose the revision that the card was written for."
        )
    return replace(remote, sha256=pin)


def _placed(remote: RemoteFile, folder: Path, marker: Verified | None, hub: Hub, repo: str) -> PlannedFile:
    path, known = folder / remote.path, marker.files.get(remote.path) if marker else None
    if is_verified(remote, folder, known):
        return PlannedFile(remote, "verified", remote.size)
    older = known is not None and remote.sha256 not in (None, known.sha256) and known.describes(path)
    if not older and path.is_file() and path.stat().st_size == remote.size:
        return PlannedFile(remote, "here", remote.size)
    if cached(hub, repo, remote) is not None:
        return PlannedFile(remote, "cached", remote.size)
    arrived = sum(end - start for start, end in finished_ranges(path, remote))
    return PlannedFile(remote, "partial" if arrived else "missing", arrived)


def is_verified(remote: RemoteFile, folder: Path, known: CheckedFile | None) -> bool:
    """Whether a file of the marker is untouched and what the plan wants. Small files of git are hashed to tell."""
    path = folder / remote.path
    if known is None or known.size != remote.size or not known.describes(path):
        return False
    if remote.sha256 is not None:
        return known.sha256 == remote.sha256
    digest = hashes_of(remote)[-1]
    digest.update(path.read_bytes())
    return bool(digest.hexdigest() == remote.blob)


def cached(hub: Hub, repo: str, remote: RemoteFile) -> Path | None:
    """The file in the cache of Hugging Face's client, where complete files are named after their content."""
    blob = hub.cache / f"models--{repo.replace('/', '--')}" / "blobs" / remote.blob
    return blob if blob.is_file() and blob.stat().st_size == remote.size else None


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """What is to be said of an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskSpaceError(f"{folder} takes no more ({error.strerror}). Make room and run it again to go on.")
    return DownloadError(f"{folder} cannot be used: {error}. Choose another folder with --to or HWAGA_DATA_DIR.")
