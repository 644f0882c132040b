"""From files to numbers in pieces: nothing is lost at their borders, and no error leaves a thread or a file behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights import reader as reading
from hwaga.weights.reader import Reader, Reading, staged_bytes
from hwaga.weights.stored import StoredTensor

CPU = torch.device("cpu")
NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}
CHUNK = 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", CHUNK)
    monkeypatch.setattr(reading, "AT_ONCE", 0)  # whatever is read goes through the threads


@pytest.fixture
def reader() -> Iterator[Reader]:
    with closing(Reader(CPU)) as opened:
        yield opened


def write(path: Path, *tensors: Tensor, scales: Sequence[float | None] = ()) -> list[StoredTensor]:
    """A file of tensors one behind the other, at offsets that suit no format."""
    found, content = [], b"123"
    for i, tensor in enumerate(tensors):
        scale = None
        if scales and scales[i] is not None:
            scale = StoredTensor(f"scale{i}", path, (), 4, len(content), "F32")
            content += torch.tensor(scales[i]).numpy().tobytes()
        form = NAMES[tensor.dtype]
        found.append(StoredTensor(f"t{i}", path, tuple(tensor.shape), tensor.nbytes, len(content), form, scale))
        content += tensor.view(-1).view(torch.uint8).numpy().tobytes() + b"x"
    path.write_bytes(content)
    return found


def read(reader: Reader, weights: Sequence[Sequence[StoredTensor]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Each weight, stacked from its pieces along the first axis."""
    done: list[Tensor] = []

    def into(pieces: Sequence[StoredTensor]) -> Callable[[], Tensor]:
        rows = sum(piece.shape[0] for piece in pieces)
        return lambda: torch.full((rows, *pieces[0].shape[1:]), float("nan"), dtype=dtype)

    reader.read(Reading(pieces, into(pieces), done.append) for pieces in weights)
    return done


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# What is read


@pytest.mark.parametrize("stored", NAMES, ids=str)
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("at_once", [0, 2**18], ids=["threads", "one thread"])
def test_conversions(
    stored: torch.dtype,
    wanted: torch.dtype,
    at_once: int,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", at_once)
    tensor = random(37, 5).to(stored)
    (found,) = write(tmp_path / "f", tensor)
    (weight,) = read(reader, [[found]], wanted)
    assert weight.dtype == wanted
    assert torch.equal(weight, tensor.float().to(wanted))


@pytest.mark.parametrize("stored", NAMES, ids=str)
def test_a_scale_multiplies_every_chunk(stored: torch.dtype, reader: Reader, tmp_path: Path) -> None:
    tensor = random(50, 3).to(stored)
    (found,) = write(tmp_path / "f", tensor, scales=[0.25])
    (weight,) = read(reader, [[found]])
    assert torch.equal(weight, tensor.float() * 0.25)
    assert torch.equal(reader.values(found).float(), tensor.float() * 0.25)
    assert torch.equal(reader.rows(found, [49, 0]).float(), tensor[[49, 0]].float() * 0.25)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=3), min_size=1, max_size=12),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pieces_of_any_length(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], form: torch.dtype
) -> None:
    """Empty ones, ones that end with a chunk and ones that take several times the ring."""
    folder = tmp_path_factory.mktemp("f")
    tensors = [[random(count, 3, dtype=form, seed=i * 7 + j) for j, count in enumerate(c)] for i, c in enumerate(rows)]
    flat = write(folder / "f", *[piece for pieces in tensors for piece in pieces])
    places = iter(flat)
    weights = [[next(places) for _ in pieces] for pieces in tensors]
    with pytest.MonkeyPatch.context() as patch, closing(Reader(CPU)) as reader:
        patch.setattr(reading, "CHUNK", CHUNK)
        patch.setattr(reading, "AT_ONCE", 0)
        found = read(reader, weights, form)
    assert len(found) == len(weights)
    for weight, pieces in zip(found, tensors, strict=True):
        assert torch.equal(weight, torch.cat(pieces))


def test_weights_come_in_order_and_only_when_they_are_there(reader: Reader, tmp_path: Path) -> None:
    tensors = [random(rows, 4, seed=rows) for rows in (9, 1, 200, 3)]
    found = write(tmp_path / "f", *tensors)
    events: list[tuple[str, int]] = []

    def reading_of(i: int) -> Reading:
        def into() -> Tensor:
            events.append(("into", i))
            return torch.full_like(tensors[i], float("nan"))

        def then(weight: Tensor) -> None:
            events.append(("then", i))
            assert torch.equal(weight, tensors[i])

        return Reading([found[i]], into, then)

    reader.read(reading_of(i) for i in range(4))
    assert events == [(what, i) for i in range(4) for what in ("into", "then")], "one weight's memory at a time"


def test_the_ring_is_made_once(reader: Reader, tmp_path: Path) -> None:
    tensor = random(1000, 4)
    found = write(tmp_path / "f", tensor)
    assert torch.equal(read(reader, [found])[0], tensor)
    ring = [buffer.tensor.data_ptr() for buffer in reader._ring]
    assert len(ring) == reading.THREADS
    for _ in range(3):
        assert torch.equal(read(reader, [found])[0], tensor)
    assert [buffer.tensor.data_ptr() for buffer in reader._ring] == ring
    assert all(buffer.nbytes == CHUNK for buffer in reader._ring)


def test_rows_and_values_take_no_ring(reader: Reader, tmp_path: Path) -> None:
    tensor = random(40, 6, dtype=torch.bfloat16)
    (found,) = write(tmp_path / "f", tensor)
    assert torch.equal(reader.rows(found, [39, 0, 7, 7]), tensor[[39, 0, 7, 7]])
    assert torch.equal(reader.values(found), tensor)
    assert reader.rows(found, []).shape == (0, 6)
    assert not reader._ring


# What goes wrong


def test_a_file_that_ends_early(reader: Reader, tmp_path: Path) -> None:
    whole = random(300, 4)
    sound, short = write(tmp_path / "a", whole)[0], write(tmp_path / "b", random(300, 4))[0]
    os.truncate(tmp_path / "b", 4000)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"t0 cannot be read from .*b: the file ends early. Fetch it again"):
            read(reader, [[sound], [short], [sound]])
        with pytest.raises(CheckpointError, match="ends early"):
            reader.values(short)
        assert torch.equal(read(reader, [[sound]])[0], whole), "the reader can be used on"


def test_a_file_that_is_gone(reader: Reader, tmp_path: Path) -> None:
    (found,) = write(tmp_path / "f", random(300, 4))
    (tmp_path / "f").unlink()
    for call in (lambda: read(reader, [[found]]), lambda: reader.hold([tmp_path / "f"])):
        with pytest.raises(CheckpointError, match=r"No such file or directory\. Fetch it again"):
            call()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_stays_the_one_that_was_opened(how: str, reader: Reader, tmp_path: Path) -> None:
    tensor = random(300, 4)
    found = write(tmp_path / "f", tensor)
    reader.hold([tmp_path / "f"])
    if how == "replaced":
        write(tmp_path / "g", random(300, 4, seed=1))
        (tmp_path / "g").replace(tmp_path / "f")
    else:
        (tmp_path / "f").unlink()
    assert torch.equal(read(reader, [found])[0], tensor)
    assert torch.equal(reader.rows(found[0], [5])[0], tensor[5])


def test_no_thread_writes_after_an_error(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk fails at once, while others are still being read: they have ended when the error arrives."""
    (found,) = write(tmp_path / "f", random(300, 4))
    pread, lock = os.preadv, threading.Lock()
    failed, inside, calls = threading.Event(), 0, 0

    def slow(file: int, buffers: Any, place: int) -> int:
        nonlocal inside, calls
        with lock:
            inside, calls = inside + 1, calls + 1
        try:
            if place == found.offset + CHUNK:
                failed.set()
                raise OSError(5, "Input/output error")
            assert failed.wait(30)
            return pread(file, buffers, place)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(reading.os, "preadv", slow)
    with pytest.raises(CheckpointError, match=r"t0 cannot be read from .*: Input/output error"):
        read(reader, [[found]])
    assert inside == 0
    before = calls
    assert reader._threads is not None
    reader._threads.submit(lambda: None).result()  # the queue is empty up to here
    assert calls == before
    monkeypatch.undo()
    monkeypatch.setattr(reading, "CHUNK", CHUNK)
    assert read(reader, [[found]])[0].isfinite().all()


@pytest.mark.parametrize("where", ["into", "then"])
def test_an_error_of_whoever_is_told(where: str, reader: Reader, tmp_path: Path) -> None:
    tensor = random(300, 4)
    (found,) = write(tmp_path / "f", tensor)

    def fail(*_: object) -> Any:
        raise MemoryError(where)

    into = fail if where == "into" else lambda: torch.empty(300, 4)
    with pytest.raises(MemoryError, match=where):
        reader.read([Reading([found], into, fail)])
    assert torch.equal(read(reader, [[found]])[0], tensor)


# What is left behind


def open_files(path: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(link.exists() and link.resolve() == path for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc to count open files in")
def test_files_are_opened_once_and_closed(tmp_path: Path) -> None:
    found = write(tmp_path / "f", *[random(300, 4)] * 4)
    with closing(Reader(CPU)) as reader:
        reader.hold([tmp_path / "f"] * 2)
        for _ in range(3):
            read(reader, [found])
        assert open_files(tmp_path / "f") == 1
    assert open_files(tmp_path / "f") == 0
    read(reader, [found])  # by whoever still has work to end
    assert open_files(tmp_path / "f") == 1
    del reader
    gc.collect()
    assert open_files(tmp_path / "f") == 0


def test_closing_ends_the_threads(tmp_path: Path) -> None:
    (found,) = write(tmp_path / "f", random(3000, 4))
    before = threading.active_count()
    with closing(Reader(CPU)) as reader:
        read(reader, [[found]])
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert not reader._ring
    reader.close()


def test_what_is_staged_on_a_gpu(tmp_path: Path) -> None:
    (plain,) = write(tmp_path / "f", random(8, 4))
    assert staged_bytes(plain, torch.float32) == 0
    assert staged_bytes(plain, torch.bfloat16) == CHUNK, "a chunk as it is stored"
    eight = replace(plain, number_format="F8_E4M3", nbytes=1000)
    assert staged_bytes(eight, torch.bfloat16) == CHUNK * 9, "the same, in float32, and times its scale"
