"""Headers of GGUF files, as the format's own package writes them, and everything that may be wrong with them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
import torch
from gguf_files import write_gguf

import hwaga.weights.gguf_file as gguf_module
from hwaga.errors import CheckpointError
from hwaga.weights.gguf_file import is_gguf, read_gguf

SHAPES = {"a": (3, 256), "b.weight": (256,), "c": (2, 3, 4, 256), "scalar": (1,)}


def write(path: Path, **options: int) -> Path:
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    kinds = {"a": "Q4_K", "b.weight": "F32", "c": "Q8_0", "scalar": "BF16"}
    write_gguf(path, tensors, lambda name, _: kinds[name], metadata=options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    return str(caught.value)


@pytest.mark.parametrize("alignment", [32, 256])
def test_the_package_agrees(tmp_path: Path, alignment: int) -> None:
    path = write(tmp_path / "a", **({} if alignment == 32 else {"general.alignment": alignment}))
    header = read_gguf(path)
    assert is_gguf(path)
    assert header.architecture == "lumina2"
    data = path.read_bytes()
    theirs = gguf.GGUFReader(path)
    assert [tensor.name for tensor in theirs.tensors] == list(header.tensors) == list(SHAPES)
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert ours.number_format == tensor.tensor_type.name
        assert ours.shape == tuple(reversed(tensor.shape.tolist())) == SHAPES[tensor.name]
        assert data[ours.offset : ours.offset + tensor.n_bytes] == tensor.data.tobytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "whole").read_bytes()
    for length in [*range(0, 200), *range(200, len(data) - 31, 97)]:
        (tmp_path / "cut").write_bytes(data[:length])
        assert refusal(tmp_path / "cut")


def header(*parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, *dims: int, code: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


HUGE = 2**62


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends within"),
        (b"PK\3\4" + bytes(40), "no GGUF file"),
        (header(version=1), "version 1;"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (header(tensors=HUGE), f"{HUGE} tensors"),
        (header(entries=HUGE), "entries"),
        (header(entries=3), "ends within"),
        (header(struct.pack("<Q", HUGE), entries=1), f"text of {HUGE} bytes"),
        (header(text(b"\xff"), bytes(8), entries=1), "no UTF-8"),
        (header(text(b"k"), struct.pack("<I", 99), entries=1), "type 99"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 9, 1), bytes(40), entries=1), "list of values of type 9"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 8, HUGE), bytes(40), entries=1), f"list of {HUGE} texts"),
        (header(text(b"k"), struct.pack("<IIQ", 9, 10, HUGE), bytes(40), entries=1), "ends within"),
        (header(text(b"general.alignment"), struct.pack("<II", 4, 0), entries=1), "alignment is 0"),
        (header(text(b"general.alignment"), struct.pack("<II", 4, 24), entries=1), "alignment is 24"),
        (header(text(b"general.alignment"), struct.pack("<I", 8), text(b"x"), entries=1), "alignment is 'x'"),
        (header(tensor(b"a", *[1] * 5), bytes(64), tensors=1), "5 axes"),
        (header(tensor(b"a", HUGE, HUGE), bytes(64), tensors=1), "of F32"),
        (header(tensor(b"a", 100, code=12), bytes(64), tensors=1), r"\[100\] of Q4_K"),
        (header(tensor(b"a", 256, code=23), bytes(64), tensors=1), "stores a as IQ4_XS"),
        (header(tensor(b"a", 256, code=77), bytes(64), tensors=1), "number format 77"),
        (header(tensor(b"a", 4, offset=4), bytes(640), tensors=1), "inside the file"),
        (header(tensor(b"a", 4, offset=HUGE), bytes(640), tensors=1), "inside the file"),
        (header(tensor(b"a", 4), tensor(b"a", 4), bytes(640), tensors=2), "a twice"),
        (header(text(b"split.count"), struct.pack("<IH", 2, 3), entries=1), "one of 3 pieces.*gguf-split"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        read_gguf(tmp_path / "bad")


def test_a_header_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_module, "HEADER_BYTES", 5000)
    assert "its header has no end" in refusal(write(tmp_path / "a"))


def test_what_is_no_file(tmp_path: Path) -> None:
    assert not is_gguf(tmp_path)
    assert "cannot be read" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / "gone")


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(header(tensor(b"a"), tensor(b"b", 0, 4), tensors=2) + bytes(100))
    tensors = read_gguf(tmp_path / "a").tensors
    assert tensors["a"] == ("F32", (), 96)
    assert tensors["b"] == ("F32", (4, 0), 96)
