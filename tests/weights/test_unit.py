"""Units of weights: what comes and goes is the same bytes, wherever it comes from, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from live_memory import peak_beside
from safetensors.torch import save_file
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights import quantize
from hwaga.weights import reader as reading
from hwaga.weights.checkpoint import Blueprint
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import Layout
from hwaga.weights.quantize import PRECISIONS, QuantizedLinear, write_codes
from hwaga.weights.reader import Reader
from hwaga.weights.unit import ALIGNMENT, Unit

CPU = torch.device("cpu")
LAYOUT = Layout(strip=(), renames=(), stacks={".qkv.": (".to_q.", ".to_k.", ".to_v.")}, unused=())


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = FusedLinear(70, (48, 16, 16), bias=True)
        self.gain = nn.Parameter(torch.ones(3))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 70)
        self.layers = nn.ModuleList(Layer() for _ in range(2))


def toy_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"first.weight": (70, 5), "first.bias": (70,)}
    for i in range(2):
        for piece, rows in (("q", 48), ("k", 16), ("v", 16)):
            shapes[f"layers.{i}.to_{piece}.weight"] = (rows, 70)
            shapes[f"layers.{i}.to_{piece}.bias"] = (rows,)
        shapes[f"layers.{i}.gain"] = (3,)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def blueprint(folder: Path, tensors: dict[str, Tensor]) -> Blueprint[Toy]:
    save_file(tensors, folder / "model.safetensors")
    return Blueprint.read(Toy, folder, LAYOUT)


def units_of(read: Blueprint[Toy], dtype: torch.dtype) -> dict[str, Unit]:
    return read.units(dtype, lambda name: name[:8] if name.startswith("layers") else "")


def memory_of(unit: Unit) -> Tensor:
    return torch.full((unit.nbytes,), 0xA5, dtype=torch.uint8)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr(reading, "CHUNK", 1000)
    with closing(Reader(CPU)) as opened:
        yield opened


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_unit_comes_and_goes(dtype: torch.dtype, reader: Reader, tmp_path: Path) -> None:
    tensors = toy_tensors()
    read = blueprint(tmp_path, tensors)
    units = units_of(read, dtype)
    assert set(units) == {"", "layers.0", "layers.1"}
    away = dict(read.network.named_parameters())
    assert {parameter.device.type for parameter in away.values()} == {"meta"}
    unit = units["layers.0"]
    for _ in range(2):
        memory = memory_of(unit)
        unit.bring(memory, reader)
        unit.attach(unit.parameters(memory))
        assert unit.attached
        layer = read.network.layers[0]
        assert isinstance(layer, Layer)
        stacked = torch.cat([tensors[f"layers.0.to_{piece}.weight"] for piece in "qkv"])
        assert torch.equal(layer.qkv.weight, stacked.to(dtype))
        assert torch.equal(layer.gain, tensors["layers.0.gain"].to(dtype))
        assert {name for name, each in read.network.named_parameters() if each.device.type != "meta"} == {
            "layers.0.qkv.weight", "layers.0.qkv.bias", "layers.0.gain",
        }  # fmt: skip
        inside = range(memory.data_ptr(), memory.data_ptr() + memory.nbytes)
        assert all(each.data_ptr() in inside for each in layer.parameters()), "no copies of the memory"
        unit.detach()
        assert not unit.attached
        assert {parameter.device.type for parameter in read.network.parameters()} == {"meta"}
        assert {name: each.shape for name, each in read.network.named_parameters()} == {
            name: each.shape for name, each in away.items()
        }


def test_places_are_aligned_and_apart(tmp_path: Path) -> None:
    for unit in units_of(blueprint(tmp_path, toy_tensors()), torch.bfloat16).values():
        spans = sorted((place.offset, place.offset + view.nbytes) for place, view in unit.views(memory_of(unit)))
        assert all(start % ALIGNMENT == 0 for start, _ in spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[-1][1] <= unit.nbytes


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_the_copy_on_the_host_gives_the_same_bytes(precision: str | None, reader: Reader, tmp_path: Path) -> None:
    read = blueprint(tmp_path, toy_tensors())
    if precision:
        read.quantize(r"layers\.\d+\.qkv", PRECISIONS[precision])
    unit = units_of(read, torch.bfloat16)["layers.1"]
    first = memory_of(unit)
    unit.bring(first, reader)
    unit.park(first)
    assert unit.host is not None
    assert unit.host.nbytes == unit.nbytes
    expected = first.clone()
    first.zero_()
    (tmp_path / "model.safetensors").unlink()
    reader.close()
    again = memory_of(unit)
    unit.bring(again, reader)  # the file is not asked
    assert torch.equal(again, expected)
    unit.park(torch.zeros_like(again))  # it has one
    unit.bring(again, reader)
    assert torch.equal(again, expected)
    unit.drop_copy()
    unit.drop_copy()
    with pytest.raises(CheckpointError, match="cannot be read"):
        unit.bring(again, reader)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fewer_bits_filled_are_fewer_bits_of_the_weight(
    name: str, dtype: torch.dtype, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of a few rows, as in one."""
    tensors, precision = toy_tensors(), PRECISIONS[name]
    weight = torch.cat([tensors[f"layers.0.to_{piece}.weight"] for piece in "qkv"]).to(dtype)
    kept = [torch.empty(shape, dtype=form or dtype) for shape, form in precision.kept(80, 70)]
    write_codes(weight, precision, kept)
    monkeypatch.setattr(quantize, "VALUES_AT_ONCE", 7 * 70 + 3)
    read = blueprint(tmp_path, tensors)
    read.quantize(r"layers\.\d+\.qkv", precision)
    unit = units_of(read, dtype)["layers.0"]
    memory = memory_of(unit)
    unit.bring(memory, reader)
    unit.attach(unit.parameters(memory))
    layer = read.network.layers[0]
    assert isinstance(layer, Layer)
    assert isinstance(layer.qkv, QuantizedLinear)
    for ours, theirs in zip(layer.qkv.kept, kept, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(layer.qkv.bias, torch.cat([tensors[f"layers.0.to_{p}.bias"] for p in "qkv"]).to(dtype))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [None, *PRECISIONS])
def test_what_filling_takes(
    name: str | None, dtype: torch.dtype, stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than ``filling_bytes`` beside the unit, and not far less either."""
    monkeypatch.setattr(quantize, "VALUES_AT_ONCE", 2**16)
    monkeypatch.setattr(reading, "CHUNK", 2**12)  # what is staged on a GPU is the ring's own on the CPU
    big = nn.Linear(1000, 700, bias=False)
    weight = torch.randn(700, 1000, generator=torch.Generator().manual_seed(0)).to(stored)
    save_file({"big.weight": weight}, tmp_path / "model.safetensors")
    read = Blueprint.read(lambda: nn.ModuleDict({"big": nn.Linear(1000, 700, bias=False)}), tmp_path, LAYOUT)
    if name:
        read.quantize("big", PRECISIONS[name])
    (unit,) = read.units(dtype).values()
    memory = memory_of(unit)
    with closing(Reader(CPU)) as reader:
        reader.read([])  # the ring is of the host
        peak = peak_beside(lambda: unit.bring(memory, reader))
    assert peak <= unit.filling_bytes + 4096
    if name:
        assert unit.filling_bytes <= big.weight.numel() * dtype.itemsize + 2.5 * (peak - 700 * 1000 * dtype.itemsize)
    else:
        assert unit.filling_bytes == (0 if stored == dtype else 2**12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_what_is_not_finite_is_named(value: float, precision: str | None, reader: Reader, tmp_path: Path) -> None:
    tensors = toy_tensors()
    tensors["layers.1.to_k.weight"][11, 69] = value
    read = blueprint(tmp_path, tensors)
    if precision:
        read.quantize(r"layers\.\d+\.qkv", PRECISIONS[precision])
    units = units_of(read, torch.float32)
    units["layers.0"].bring(memory_of(units["layers.0"]), reader)
    for _ in range(2):  # not only the first time
        with pytest.raises(CheckpointError, match=r"model\.safetensors: layers\.1\.to_k\.weight holds NaN or infinity"):
            units["layers.1"].bring(memory_of(units["layers.1"]), reader)


def test_values_beyond_the_format_are_named(reader: Reader, tmp_path: Path) -> None:
    tensors = toy_tensors()
    tensors["layers.0.to_v.weight"][3, 3] = 1e5
    (unit, *_) = (units_of(blueprint(tmp_path, tensors), torch.float16)[name] for name in ("layers.0",))
    with pytest.raises(CheckpointError, match=r"layers\.0\.to_v\.weight has values too large for float16"):
        unit.bring(memory_of(unit), reader)


def test_progress_is_the_stored_bytes(reader: Reader, tmp_path: Path) -> None:
    tensors = toy_tensors()
    units = units_of(blueprint(tmp_path, tensors), torch.bfloat16)
    for unit in units.values():
        told: list[int] = []
        unit.bring(memory_of(unit), reader, told.append)
        assert sum(told) == unit.stored_bytes
        assert len(told) == len(unit.weights)
    assert sum(unit.stored_bytes for unit in units.values()) == sum(tensor.nbytes for tensor in tensors.values())
    unit = units["layers.0"]
    memory = memory_of(unit)
    unit.bring(memory, reader)
    unit.park(memory)
    told.clear()
    unit.bring(memory, reader, told.append)
    assert told == [], "nothing was read"


def test_a_unit_of_nothing(reader: Reader) -> None:
    unit = Unit(nn.Module(), [], torch.float32)
    memory = memory_of(unit)
    unit.bring(memory, reader)
    unit.attach(unit.parameters(memory))
    unit.park(memory)
    unit.bring(memory, reader)
    unit.detach()
    unit.drop_copy()
    assert (unit.nbytes, unit.stored_bytes, unit.filling_bytes) == (0, 0, 0)
