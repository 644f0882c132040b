"""A file on its way: ``x.safetensors.part``, and beside it ``x.safetensors.part.json`` with the ranges that the disk has."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from hwaga.weights.hub import RemoteFile
from hwaga.weights.verified import PART, STATE, sync_folder, unfinished, write_durably


class PartialFile:
    """The bytes so far, the ranges that are on disk, and the hash so far. Several threads may write to it.

    A thread that writes names the ``epoch`` it began in. Starting the file again begins a new one, and what older threads
    still bring is dropped.

    Attributes:
        received: bytes that have arrived.
        whole: the server sends whole files only.
        damaged: it had the wrong hash once.
        hashed: bytes from the start that ``hashes`` have seen. They follow the bytes as long as these come in order.
    """

    def __init__(self, remote: RemoteFile, folder: Path) -> None:
        self.remote, self.path = remote, folder / remote.path
        self.part, self.state = beside(self.path, PART), beside(self.path, STATE)
        self.received = self.hashed = self.epoch = 0
        self.whole = self.damaged = False
        self.hashes = hashes_of(remote)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._ranges: list[tuple[int, int]] = []

    def open(self) -> list[tuple[int, int]]:
        """Opens the part file and returns the ranges that are still to come."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._ranges = finished_ranges(self.path, self.remote)
        self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        if not self._ranges:
            self._empty()
        self.received = sum(end - start for start, end in self._ranges)
        return gaps_of(self._ranges, self.remote.size)

    def write(self, position: int, data: bytes, epoch: int) -> bool:
        """Writes bytes and hashes them if they are the next ones. False when the file was started again meanwhile."""
        with self._lock:  # also around the write, so that the descriptor stays open
            if epoch != self.epoch:
                return False
            if position == self.hashed:
                for digest in self.hashes:
                    digest.update(data)
                self.hashed += len(data)
            self.received += len(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(self._descriptor, view, position)
                view, position = view[written:], position + written
            return True

    def claim(self, start: int, end: int, epoch: int) -> bool:
        """Notes a range as being on disk, once it is. True for the range that completes the file."""
        if end <= start:
            return False
        with self._lock:
            if epoch != self.epoch:
                return False
            descriptor = os.dup(self._descriptor)
        try:
            os.fsync(descriptor)  # others may write meanwhile
        finally:
            os.close(descriptor)
        with self._lock:
            if epoch != self.epoch:
                return False
            self._ranges = merge([*self._ranges, (start, end)])
            values = {"blob": self.remote.blob, "size": self.remote.size, "ranges": self._ranges}
            write_durably(self.state, json.dumps(values).encode())
            return self._ranges == [(0, self.remote.size)]

    def restart(self, epoch: int, *, whole: bool) -> bool:
        """Throws away what has arrived. False when another thread has just done so."""
        with self._lock:
            if epoch != self.epoch:
                return False
            self.epoch, self.whole = epoch + 1, whole
            self.received = self.hashed = 0
            self.hashes, self._ranges = hashes_of(self.remote), []
            self._empty()
            return True

    def _empty(self) -> None:
        """Takes the claims back first, then the bytes."""
        self.state.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        os.ftruncate(self._descriptor, 0)

    def finish(self) -> None:
        """Gives the file its name."""
        os.fsync(self._descriptor)
        self.part.replace(self.path)
        sync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Lets go of the part file; it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove_traces(self) -> None:
        """Removes the part file and its state."""
        for path in (self.state, unfinished(self.state), self.part):
            path.unlink(missing_ok=True)


def hashes_of(remote: RemoteFile) -> list[Any]:
    """sha256 and, for a file that git keeps, git's sha1 of a blob."""
    if remote.blob == remote.sha256:
        return [hashlib.sha256()]
    return [hashlib.sha256(), hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)]


def finished_ranges(path: Path, remote: RemoteFile) -> list[tuple[int, int]]:
    """The ranges that the state beside a file claims, if it is for this content; an unreadable state claims nothing."""
    try:
        values = json.loads(beside(path, STATE).read_text(encoding="utf-8"))
        ranges = [(start, end) for start, end in values["ranges"]]
        length = beside(path, PART).stat().st_size
        same = (values["blob"], values["size"]) == (remote.blob, remote.size)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    whole = all(type(start) is type(end) is int for start, end in ranges)
    good = whole and all(0 <= start < end <= min(remote.size, length) for start, end in ranges)
    return merge(ranges) if same and good else []


def merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few ranges as can be, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def gaps_of(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """What merged ranges leave out of 0 to ``size``."""
    starts, ends = [0, *(end for _, end in ranges)], [*(start for start, _ in ranges), size]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def beside(path: Path, suffix: str) -> Path:
    """The file of the same name with a suffix added."""
    return path.with_name(path.name + suffix)
