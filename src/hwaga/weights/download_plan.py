"""What a download will do: which files of which commit, what of them is here already, and whether the disk has room."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from hwaga.card_styles import Style
from hwaga.cards import STYLES, ModelCard
from hwaga.errors import DamagedFileError, DiskSpaceError, DownloadError
from hwaga.hub_sources import Download
from hwaga.weights.hub import Hub, RemoteFile
from hwaga.weights.offline import Offline
from hwaga.weights.partial_file import finished_ranges, hashes_of
from hwaga.weights.verified import MARKER, PART, STATE, CheckedFile, Verified

HEADROOM = 1.1
"""Free disk space that is asked for, as a multiple of what is to be fetched."""

SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
"""Files of these kinds are fetched. They hold numbers and text; pickles (.bin, .pt, .ckpt) and scripts can run code."""

Listing = Callable[[str, str], tuple[str, list[RemoteFile]]]
"""From a repository and a revision to the commit that it stands for, and the files there."""

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
        licenses: what is fetched (the model, a style), its repository and its licence.
        styles: names of the styles that have weights of their own to fetch, each with where those go.
        styles_asked: whether they were asked for by name. Else the model is whole without them.
        unavailable: names of styles whose weights cannot be fetched, each with why.
    """

    repo: str
    commit: str
    folder: Path
    files: tuple[PlannedFile, ...]
    others: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]
    licenses: tuple[tuple[str, str, str], ...]
    styles: tuple[tuple[str, str], ...]
    styles_asked: bool
    unavailable: tuple[tuple[str, str], ...]

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
    """Asks the hub what a model consists of, or looks it up where the network is forbidden, and looks what of it is here.

    Args:
        folder: where it goes; the card's folder when left out.
        parts: names of the parts to fetch, ``STYLES`` for the styles' LoRAs; all when empty. Files of no part are always
            fetched. A style that cannot be fetched is left out, as the model is whole without; unless the styles were asked
            for by name. Nobody is asked for styles where other parts were.
        revision: a branch, tag or commit in place of the card's, of its main repository.

    Raises:
        DownloadError: the model cannot be fetched, or not from there.
    """
    source, loras = card.download, {name: style for name, style in card.styles.items() if style.source is not None}
    if source is None:
        reason = "it comes with Hwaga" if card.present else "its card has no [download] table"
        raise DownloadError(f"{card.name} is not fetched: {reason}.")
    offered = [*source.parts, *([STYLES] if loras else [])]
    for part in parts:
        if part not in offered:
            raise DownloadError(f"{card.name} has no part {part!r} to fetch. Its parts are {', '.join(offered)}.")
    folder = (folder or card.folder).absolute()
    offline = Offline(card, folder, hub.cache, revision) if hub.offline else None
    listing: Listing = offline.list_files if offline is not None else hub.list_files
    included: dict[str, RemoteFile] = {}
    commits = []
    for each in (replace(source, revision=revision or source.revision), *source.also):
        commit, files = _listed(each, listing, card.name)
        commits.append(commit)
        included = {**files, **included}
    found: dict[str, RemoteFile] = {}
    unavailable: list[tuple[str, str]] = []
    for name, style in loras.items() if not parts or STYLES in parts else ():
        try:
            found[name] = _lora(style, listing)
        except DownloadError as error:
            if STYLES in parts:
                raise
            unavailable.append((name, str(error)))
    fetched_loras = [*{file.path: file for file in found.values()}.values()]  # styles may share one
    for style in loras.values():
        if style.source is not None and style.file in included:
            raise DownloadError(
                f"The card puts {style.source.repo} where the model has a file of its own, at {style.file}."
            )
    if offline is not None:
        offline.check_whole({**included, **{file.path: file for file in fetched_loras}})
    wanted = [included[path] for path in sorted(included) if path.endswith(SUFFIXES)] + fetched_loras
    skipped = [
        pattern for name, patterns in source.parts.items() if parts and name not in parts for pattern in patterns
    ]
    chosen = [pattern for name in parts for pattern in source.parts.get(name, ())]
    others = [file for file in wanted if _matches(file.path, skipped) and not _matches(file.path, chosen)]
    try:
        marker = Verified.read(folder)
        planned = tuple(_placed(file, folder, marker, hub) for file in wanted if file not in others)
    except OSError as error:
        raise disk_error(error, folder) from error
    return Plan(
        repo=source.repo,
        commit=commits[0],
        folder=folder,
        files=planned,
        others=tuple(others),
        left_out=tuple(path for path in included if not path.endswith(SUFFIXES)),
        licenses=(
            (card.name, source.repo, card.license),
            *(
                (f"{card.name}, {each.into or 'parts'}", each.repo, each.license)
                for each in source.also
                if each.license
            ),
            *(
                (name, style.source.repo, style.source.license)
                for name, style in loras.items()
                if style.source and name in found
            ),
        ),
        styles=tuple((name, style.file) for name, style in loras.items() if style.file is not None),
        styles_asked=STYLES in parts,
        unavailable=tuple(unavailable),
    )


def _listed(source: Download, listing: Listing, model: str) -> tuple[str, dict[str, RemoteFile]]:
    """A repository's commit, and its files that the card names, by the paths that they go to."""
    commit, listed = listing(source.repo, source.revision)
    for file in listed:
        _check_path(file.path)
    included = {file.path: _pinned(file, source) for file in listed if _matches(file.path, source.include)}
    absent = sorted(path for path in source.sha256 if path not in included or not path.endswith(SUFFIXES))
    if absent or not any(path.endswith(SUFFIXES) for path in included):
        what = f"no {absent[0]}, which the card of {model} pins" if absent else f"no file of {model}"
        raise DownloadError(f"{source.repo} at {commit} has {what}. Choose another revision.")
    placed = (replace(file, path=source.place(path), source=path) for path, file in included.items())
    return commit, {file.path: file for file in placed} if source.into else included


def _lora(style: Style, listing: Listing) -> RemoteFile:
    """The LoRA or checkpoint of a style, from a repository of its own to its place below the model's folder."""
    source = style.source
    assert source is not None
    assert style.file is not None
    commit, listed = listing(source.repo, source.revision)
    for file in listed:
        if file.path == source.file:
            pins = {source.file: source.sha256} if source.sha256 else {}
            pinned = _pinned(file, Download(source.repo, source.revision, (), {}, pins))
            return replace(pinned, path=style.file, source=source.file)
    raise DownloadError(f"{source.repo} at {commit} has no {source.file}, which a style of the card names.")


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


def _placed(remote: RemoteFile, folder: Path, marker: Verified | None, hub: Hub) -> PlannedFile:
    path, known = folder / remote.path, marker.files.get(remote.path) if marker else None
    if is_verified(remote, folder, known):
        return PlannedFile(remote, "verified", remote.size)
    older = known is not None and remote.sha256 not in (None, known.sha256) and known.describes(path)
    if not older and path.is_file() and path.stat().st_size == remote.size:
        return PlannedFile(remote, "here", remote.size)
    if cached(hub, remote) is not None:
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


def cached(hub: Hub, remote: RemoteFile) -> Path | None:
    """The file in the cache of Hugging Face's client, where complete files are named after their content."""
    blob = hub.cache / f"models--{remote.repo.replace('/', '--')}" / "blobs" / remote.blob
    return blob if blob.is_file() and blob.stat().st_size == remote.size else None


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """What is to be said of an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskSpaceError(f"{folder} takes no more ({error.strerror}). Make room and run it again to go on.")
    return DownloadError(f"{folder} cannot be used: {error}. Choose another folder with --to or HWAGA_DATA_DIR.")
