"""From files to a device through a small ring of buffers.

A file's bytes are read by several threads into page-locked buffers, copied to the device while the next ones are read, and
turned into numbers there. The host never holds more than the ring.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights.host_buffer import HostBuffer
from hwaga.weights.stored import FORMATS, NUMBER_FORMATS, StoredFormat, StoredTensor

CHUNK = 16 * 2**20
"""Bytes of a buffer. Below a few MiB, starting copies costs as much as they take."""

THREADS = 8
"""Buffers, and threads that fill them. One thread copies from the page cache at 6.6 GB/s, eight at 26 (H100 host, 16 cores)."""

AT_ONCE = 2**18
"""Bytes below which handing a read to a thread takes longer than reading."""


@dataclass(frozen=True)
class Reading:
    """One weight to be read.

    Attributes:
        pieces: what it is made of, one behind the other.
        into: gives where its values go, contiguous, in the format that they are wanted in. Asked for once, when the first of
            them are there.
        then: is given the same when all values are in it.
    """

    pieces: Sequence[StoredTensor]
    into: Callable[[], Tensor]
    then: Callable[[Tensor], None]


class _Chunk(NamedTuple):
    piece: StoredTensor
    start: int
    """Of its bytes in the piece."""
    nbytes: int
    place: int
    """Of its first value in the weight."""
    reading: Reading
    first: bool
    last: bool


class Reader:
    """Reads stored tensors to one device. Files stay open until it is closed, so that what replaces them is not mixed in.

    It may be used on after ``close``, by whoever still has work to end; then it is closed when nobody holds it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._files: dict[Path, int] = {}
        self._ring: list[HostBuffer] = []
        self._copied: list[torch.cuda.Event | None] = [None] * THREADS
        self._threads: ThreadPoolExecutor | None = None
        weakref.finalize(self, _close, self._files)

    def hold(self, files: Iterable[Path]) -> None:
        """Opens files now, while they are those whose headers were read.

        Raises:
            CheckpointError: one is not there any more.
        """
        for path in files:
            try:
                self._file(path)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}. Fetch it again.") from error

    def read(self, readings: Iterable[Reading]) -> None:
        """Reads weights one after the other. On a GPU, the last copies may still be under way in the current stream.

        Raises:
            CheckpointError: a file ends early or cannot be read.
        """
        if not self._ring:
            self._ring = [HostBuffer(CHUNK, self.device) for _ in range(THREADS)]
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="weights")
        under_way: deque[tuple[_Chunk, int, Future[None] | None]] = deque()
        into: list[Tensor] = []
        try:
            for count, chunk in enumerate(self._chunks(readings)):
                if len(under_way) == THREADS:
                    self._land(*under_way[0], into)
                    under_way.popleft()
                under_way.append((chunk, count % THREADS, self._start(chunk, count % THREADS)))
            while under_way:
                self._land(*under_way[0], into)
                under_way.popleft()
        finally:
            for _, _, future in under_way:  # after an error: no thread may write into the ring any more
                if future is not None and not future.cancel():
                    future.exception()

    def values(self, tensor: StoredTensor) -> Tensor:
        """A whole tensor on the CPU, in the format that it is stored in."""
        raw = torch.empty(tensor.nbytes, dtype=torch.uint8, device="cpu")
        self._fill(raw, tensor, 0)
        return self._decoded(raw, tensor).view(tensor.shape)

    def slice(self, tensor: StoredTensor, begin: int, end: int) -> Tensor:
        """A part of a tensor along its first axis, on the CPU, as ``values`` gives the whole."""
        if len(tensor.shape) < 2:  # may be a part of one block
            values = self.values(tensor)
            return values[begin:end] if tensor.shape else values
        wide = tensor.nbytes // max(tensor.shape[0], 1)
        raw = torch.empty((end - begin) * wide, dtype=torch.uint8, device="cpu")
        self._fill(raw, tensor, begin * wide)
        return self._decoded(raw, tensor).view(end - begin, *tensor.shape[1:])

    def rows(self, table: StoredTensor, rows: Sequence[int]) -> Tensor:
        """Some rows of a stored matrix, ``[len(rows), width]``, on the CPU."""
        wide = table.nbytes // table.shape[0]
        raw = torch.empty(len(rows), wide, dtype=torch.uint8, device="cpu")
        for row, index in zip(raw, rows, strict=True):
            self._fill(row, table, index * wide)
        return self._decoded(raw.flatten(), table).view(len(rows), table.shape[1])

    def close(self) -> None:
        """Closes the files and gives the ring back."""
        if self._threads is not None:
            self._threads.shutdown()
        for event in self._copied:
            if event is not None:
                event.synchronize()
        for buffer in self._ring:
            buffer.close()
        _close(self._files)
        self._threads, self._ring, self._copied = None, [], [None] * THREADS

    def _chunks(self, readings: Iterable[Reading]) -> Iterator[_Chunk]:
        for reading in readings:
            place = 0
            for number, piece in enumerate(reading.pieces):
                stored = _format(piece)
                # Neither the bytes of a chunk nor what its values take on the way are more than some of a ring's buffers.
                step = CHUNK // max(stored.run_bytes, stored.run_values) * stored.run_bytes
                starts = range(0, piece.nbytes, step) or range(1)
                for start in starts:
                    nbytes = min(step, piece.nbytes - start)
                    first = number == 0 and start == 0
                    last = piece is reading.pieces[-1] and start == starts[-1]
                    yield _Chunk(piece, start, nbytes, place, reading, first, last)
                    place += nbytes // stored.run_bytes * stored.run_values

    def _start(self, chunk: _Chunk, slot: int) -> Future[None] | None:
        if chunk.nbytes >= AT_ONCE and self._threads is not None:
            return self._threads.submit(self._read_into, chunk, slot)
        self._read_into(chunk, slot)
        return None

    def _read_into(self, chunk: _Chunk, slot: int) -> None:
        event = self._copied[slot]
        if event is not None:
            event.synchronize()
        self._fill(self._ring[slot].tensor[: chunk.nbytes], chunk.piece, chunk.start)

    def _fill(self, raw: Tensor, tensor: StoredTensor, start: int) -> None:
        """Reads bytes of a tensor, from one of them on, over a contiguous uint8 tensor of the CPU."""
        view = memoryview(raw.numpy().data)
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self._file(tensor.file), [view[done:]], tensor.offset + start + done)
                if not got:
                    raise CheckpointError(
                        f"{tensor.name} cannot be read from {tensor.file}: the file ends early. Fetch it again."
                    )
                done += got
        except OSError as error:
            raise CheckpointError(
                f"{tensor.name} cannot be read from {tensor.file}: {error.strerror}. Fetch it again."
            ) from error

    def _file(self, path: Path) -> int:
        file = self._files.get(path)
        if file is None:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            file = self._files.setdefault(path, opened)  # two threads may come at once
            if file != opened:
                os.close(opened)
        return file

    def _land(self, chunk: _Chunk, slot: int, future: Future[None] | None, into: list[Tensor]) -> None:
        """Copies what has been read to its place, and finishes the weight with its last chunk."""
        if future is not None:
            future.result()
        if chunk.first:
            into[:] = [chunk.reading.into()]
        weight = into[0].view(-1)
        raw, stored = self._ring[slot].tensor[: chunk.nbytes], _format(chunk.piece)
        count = chunk.nbytes // stored.run_bytes * stored.run_values
        place = weight[chunk.place : chunk.place + count]
        if self.device.type == "cuda":
            if (
                stored.dtype == weight.dtype
                and chunk.piece.number_format in NUMBER_FORMATS
                and chunk.piece.scale is None
            ):
                place.copy_(stored.decode(raw), non_blocking=True)  # as it is, without a stop on the way
            else:
                place.copy_(self._decoded(raw.to(self.device, non_blocking=True), chunk.piece))
            event = self._copied[slot] or torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))  # which another device's stream is not
            self._copied[slot] = event
        else:
            place.copy_(self._decoded(raw, chunk.piece))
        if chunk.last:
            chunk.reading.then(into.pop())

    def _decoded(self, raw: Tensor, tensor: StoredTensor) -> Tensor:
        values = _format(tensor).decode(raw)
        if tensor.scale is None:
            return values
        return values * self.values(tensor.scale).item()


def _close(files: dict[Path, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def staged_bytes(tensor: StoredTensor, dtype: torch.dtype) -> int:
    """What a tensor takes on a GPU on its way to ``dtype``, beside the place that it is read to."""
    stored = _format(tensor)
    as_it_is = tensor.number_format in NUMBER_FORMATS and tensor.scale is None
    if as_it_is and stored.dtype == dtype:
        return 0
    raw = min(tensor.nbytes, CHUNK)
    if as_it_is:
        return raw
    # The values that are decoded, and those times their scale.
    return raw + raw // stored.run_bytes * stored.run_values * stored.dtype.itemsize * 2


def _format(tensor: StoredTensor) -> StoredFormat:
    return FORMATS[tensor.number_format]
