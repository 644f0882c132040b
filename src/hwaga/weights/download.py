"""Fetching what a plan says: byte ranges over several connections.

What has arrived is not asked for again: a killed process or a lost machine costs the last second. A file gets its own name once
its hash is that of the plan.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hwaga.errors import DamagedFileError, DownloadError
from hwaga.weights.download_plan import Plan, cached, disk_error, is_verified
from hwaga.weights.file_lock import locked
from hwaga.weights.hub import Hub, RangesIgnored, RemoteFile
from hwaga.weights.partial_file import PartialFile, beside, hashes_of
from hwaga.weights.patience import ATTEMPTS, PROGRESS, Patience, TooSlow, Unanswered
from hwaga.weights.verified import BLOCK, LOCK, PART, STATE, CheckedFile, Verified, sync_folder, unfinished

PIECE = 2**28
"""Bytes that one request asks for at most. A request costs a redirect and two handshakes: nothing beside this many bytes."""

CLAIM_EVERY = 1.0
"""Seconds between two claims of a piece. Each costs a sync; a crash loses what came since the last one."""


@dataclass(frozen=True)
class Progress:
    """How far a download is, in bytes.

    Attributes:
        fetched, to_fetch: over the network, with what had arrived before.
        checked, to_check: read from the disk for their hash.
        checking: path of a file that is being read, or "".
        failure: what the latest attempt that is waited after has met, or "".
        unavailable: names of styles that the hub lists and does not give out, each with why; the model is whole without.
    """

    fetched: int
    to_fetch: int
    checked: int
    to_check: int
    checking: str
    failure: str
    unavailable: tuple[tuple[str, str], ...]


def fetch(
    plan: Plan, hub: Hub, *, connections: int = 4, limit_rate: int | None = None
) -> Generator[Progress, None, None]:
    """Fetches what a plan says, and ends when every file is verified. Closing it stops; what has arrived is kept.

    A style that cannot be fetched ends nothing unless it was asked for by name: the last progress tells of it.

    Args:
        limit_rate: bytes a second, over all connections.

    Raises:
        DownloadError: why it cannot go on.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        at_work = DownloadError(f"Another download is at work in {plan.folder}. Wait for it, or stop it.")
        with locked(plan.folder / LOCK, at_work):
            yield from _Fetching(plan, hub, limit_rate).run(connections)
    except OSError as error:
        raise disk_error(error, plan.folder) from error


class _Throttle:
    """A token bucket that all connections draw from; it holds a quarter of a second."""

    def __init__(self, rate: int | None, stop: threading.Event) -> None:
        self._rate, self._stop = rate, stop
        self._lock, self._free_at = threading.Lock(), 0.0

    def take(self, size: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 0.25) + size / self._rate
            pause = self._free_at - now
        self._stop.wait(max(0.0, pause))


class _Fetching:
    """A download under way: threads take tasks from a queue until none is left, and tasks may add others."""

    def __init__(self, plan: Plan, hub: Hub, limit_rate: int | None) -> None:
        self.plan, self.hub = plan, hub
        self.stop = threading.Event()
        self.throttle = _Throttle(limit_rate, self.stop)
        self.tasks: deque[Callable[[], None]] = deque()
        self.busy = 0
        self.changed = threading.Condition()
        """Guards the tasks and all that follows."""
        self.targets: dict[str, PartialFile] = {}
        self.checked = self.to_check = 0
        self.checking = self.failure = ""
        marker = Verified.read(plan.folder)
        known = marker.files if marker else {}
        self.expected = [*(file.remote for file in plan.files), *plan.others]
        self.verified = {
            file.path: known[file.path]
            for file in self.expected
            if is_verified(file, plan.folder, known.get(file.path))
        }
        self.unverified = [file for file in plan.files if file.remote.path not in self.verified]
        self.styles = {path for _, path in plan.styles}
        # What was good stays so, though nobody gives it out any more or it was not asked for this time.
        self.kept = {
            path: known[path] for path in self.styles & known.keys() if known[path].describes(plan.folder / path)
        }
        self.given_up: dict[str, str] = {}
        """Paths of files of styles that cannot be fetched, and why."""

    def run(self, connections: int) -> Generator[Progress, None, None]:
        """Does everything, and says meanwhile how far it is."""
        self._note()
        # The largest first: then their hash passes run beside the rest.
        for file in sorted(self.unverified, key=lambda file: -file.remote.size):
            self.tasks.append(partial(self._try, file.remote, partial(self._begin, file.remote)))
        with ThreadPoolExecutor(connections, thread_name_prefix="hwaga-download") as pool:
            pending = {pool.submit(self._work) for _ in range(connections)}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    yield self._progress()
            finally:
                self.stop.set()
                with self.changed:
                    self.changed.notify_all()
                self.hub.hang_up()
                pool.shutdown()
                for target in self.targets.values():
                    target.close()
        for path in self.given_up.keys() & self.targets.keys():
            if not self.targets[path].received:
                self.targets[path].remove_traces()
        self._sweep()

    def _progress(self) -> Progress:
        with self.changed:
            fetched = 0
            wanted = [file for file in self.unverified if file.remote.path not in self.given_up]
            for file in wanted:
                target = self.targets.get(file.remote.path)
                fetched += target.received if target else file.arrived
            to_fetch = sum(file.remote.size for file in wanted)
            unavailable = tuple((name, self.given_up[path]) for name, path in self.plan.styles if path in self.given_up)
            return Progress(
                fetched, to_fetch, self.checked, self.to_check, self.checking, self.failure, unavailable=unavailable
            )

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self.tasks and self.busy and not self.stop.is_set():
                    self.changed.wait()
                if not self.tasks or self.stop.is_set():
                    return
                task = self.tasks.popleft()
                self.busy += 1
            try:
                task()
            finally:
                with self.changed:
                    self.busy -= 1
                    self.changed.notify_all()

    def _try(self, remote: RemoteFile, task: Callable[[], None]) -> None:
        """Does a task of a file. What fails of a style that nobody asked for ends that file alone."""
        if remote.path in self.given_up:
            return
        try:
            task()
        except DownloadError as error:
            if self.plan.styles_asked or remote.path not in self.styles:
                raise
            with self.changed:
                self.given_up.setdefault(remote.path, str(error))

    def _begin(self, remote: RemoteFile) -> None:
        """Takes a file that is here or in the cache, if its hash is right, or sees to its pieces."""
        target = PartialFile(remote, self.plan.folder)
        blob = cached(self.hub, remote)
        for path in (target.path, blob):
            if path is None or not path.is_file() or path.stat().st_size != remote.size:
                continue
            sha256 = self._hash(path, remote, hashes_of(remote))
            if self.stop.is_set():
                return
            if sha256 is not None:
                if path is blob:
                    _link(path, target.path)
                self._accept(target, sha256)
                return
        gaps = target.open()
        with self.changed:
            self.targets[remote.path] = target
        if gaps:
            self._add_pieces(target, gaps)
        else:
            self._check(target)

    def _add_pieces(self, target: PartialFile, gaps: list[tuple[int, int]]) -> None:
        ends = [
            (begin, end if target.whole else min(begin + PIECE, end))
            for start, end in gaps
            for begin in ([start] if target.whole else range(start, end, PIECE))
        ]
        with self.changed:  # in front, so that a file is finished before the next one is begun
            for piece in reversed(ends):
                fetching = partial(self._fetch, target, *piece, target.epoch)
                self.tasks.appendleft(partial(self._try, target.remote, fetching))
            self.changed.notify_all()

    def _fetch(self, target: PartialFile, start: int, end: int, epoch: int) -> None:
        """Fetches one piece, however many attempts it takes."""
        remote, whole = target.remote, target.whole
        claimed = position = furthest = start
        claim_at = time.monotonic() + CLAIM_EVERY
        patience = Patience(ATTEMPTS)
        complete = False
        while position < end and epoch == target.epoch and not self.stop.is_set():
            if remote.path in self.given_up:  # by another piece of it
                return
            chunks = self.hub.stream(remote, position, end, whole=whole)
            try:
                with closing(chunks):
                    for data in chunks:
                        self.throttle.take(len(data))
                        if not target.write(position, data, epoch):
                            return
                        position += len(data)
                        if time.monotonic() >= claim_at:
                            complete = target.claim(claimed, position, epoch)
                            claimed, claim_at = position, time.monotonic() + CLAIM_EVERY
                        if self.stop.is_set():
                            break
            except RangesIgnored:
                if target.restart(epoch, whole=True):
                    self._add_pieces(target, [(0, remote.size)])
                return
            except Unanswered as failure:
                target.claim(claimed, position, epoch)
                claimed = position
                if self.stop.is_set():
                    return
                if position - furthest >= min(PROGRESS, remote.size) and not isinstance(failure, TooSlow):
                    patience.renew()
                    furthest = position
                pause = patience.wait_after(failure, f"{remote.path} did not arrive")
                if whole and target.restart(epoch, whole=True):
                    epoch += 1
                    claimed = position = 0
                self.failure = str(failure)
                self.stop.wait(pause)
                self.failure = ""
        if target.claim(claimed, position, epoch) or complete:
            self._check(target)

    def _check(self, target: PartialFile) -> None:
        """Gives a complete file its name, or starts it again, once."""
        sha256 = self._hash(target.part, target.remote, target.hashes, start=target.hashed)
        if self.stop.is_set():
            return
        if sha256 is not None:
            target.finish()
            self._accept(target, sha256)
        elif target.damaged or target.remote.size == 0:
            target.remove_traces()
            raise DamagedFileError(
                f"{target.remote.path} arrived damaged twice: its hash is not the one that {self.hub.endpoint} announced. "
                "Run it again later, or from another network: something on the way may change files."
            )
        else:
            target.damaged = True
            target.restart(target.epoch, whole=target.whole)
            self._add_pieces(target, [(0, target.remote.size)])

    def _hash(self, path: Path, remote: RemoteFile, hashes: list[Any], start: int = 0) -> str | None:
        """Hashes the rest of a file; its sha256 if it is the file of the plan."""
        with self.changed:
            self.checking = remote.path
            self.to_check += remote.size - start
        with path.open("rb") as file:
            file.seek(start)
            while (block := file.read(BLOCK)) and not self.stop.is_set():
                for digest in hashes:
                    digest.update(block)
                with self.changed:
                    self.checked += len(block)
        with self.changed:
            self.checking = "" if self.checking == remote.path else self.checking
        digests = [digest.hexdigest() for digest in hashes]
        wrong = remote.sha256 not in (None, digests[0]) or remote.blob not in digests
        return None if wrong else str(digests[0])

    def _accept(self, target: PartialFile, sha256: str) -> None:
        target.remove_traces()
        checked = CheckedFile.of(target.path, sha256)
        with self.changed:
            self.verified[target.remote.path] = checked
            self._note()

    def _note(self) -> None:
        files = {**self.kept, **self.verified}
        missing = sorted({file.path for file in self.expected} - {*files, *self.styles})
        marker = Verified(self.plan.repo, self.plan.commit, files, tuple(missing), tuple(sorted(self.styles)))
        marker.write(self.plan.folder)

    def _sweep(self) -> None:
        """Removes what an earlier download of another revision left unfinished."""
        expected = {self.plan.folder / path for path in (*(file.path for file in self.expected), *self.styles)}
        for state in [*self.plan.folder.rglob(f"*{STATE}")]:
            path = state.with_name(state.name.removesuffix(STATE))
            if path not in expected:
                for trace in (state, unfinished(state), beside(path, PART)):
                    trace.unlink(missing_ok=True)


def _link(blob: Path, path: Path) -> None:
    """Gives a file of the cache a second name; on another disk, a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, source = unfinished(path), blob.resolve()
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        temporary.symlink_to(source)
    temporary.replace(path)
    temporary.unlink(missing_ok=True)  # it stays if both names were the same file before
    sync_folder(path.parent)
