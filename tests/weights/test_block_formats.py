"""GGUF's blocks stand for the same numbers here and in the format's own package, to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf_files import HALVES, kind_of, random_rows

import hwaga.weights.block_formats as block_formats
from hwaga.weights.block_formats import BLOCK_FORMATS, OTHER_FORMATS


def reference(name: str, packed: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(packed, kind_of(name))


def test_the_table_is_ggmls() -> None:
    kinds = gguf.GGMLQuantizationType
    for entry in BLOCK_FORMATS.values():
        assert (entry.code, entry.weights, entry.nbytes) == (
            kinds[entry.name].value, *gguf.GGML_QUANT_SIZES[kinds[entry.name]],
        )  # fmt: skip
    assert {kinds(code).name for code in OTHER_FORMATS} == set(OTHER_FORMATS.values())
    known = {entry.code for entry in BLOCK_FORMATS.values()} | set(OTHER_FORMATS)
    assert known >= {kind.value for kind in kinds if kind.value <= 40}


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_rows(name: str, dtype: torch.dtype) -> None:
    numbers = np.random.default_rng(7)
    packed = random_rows(name, 37, 1024, numbers)
    expected = torch.from_numpy(reference(name, packed).copy()).to(dtype)
    assert expected.std() > 0.0001
    assert torch.equal(BLOCK_FORMATS[name].unpack(torch.from_numpy(packed), dtype), expected)


@pytest.mark.parametrize("name", HALVES)
def test_any_bytes(name: str) -> None:
    """Also where scales are zero, subnormal, the largest, infinite or no number."""
    numbers = np.random.default_rng(8)
    blocks = numbers.integers(0, 256, (3000, BLOCK_FORMATS[name].nbytes), dtype=np.uint8)
    edges = np.array([0.0, -0.0, 6e-8, 65504, -65504, np.inf, -np.inf, np.nan, 1.0], np.float16)
    for at in HALVES[name]:
        blocks[: len(edges) * 100, at : at + 2] = numbers.permutation(np.tile(edges, 100))[:, None].view(np.uint8)
    blocks[-1], blocks[-2] = 0, 255
    decoded = BLOCK_FORMATS[name].unpack(torch.from_numpy(blocks), torch.float32)
    np.testing.assert_array_equal(decoded.numpy(), reference(name, blocks))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_0", "Q5_1", "Q4_1"])
def test_what_the_package_packs_comes_back(name: str) -> None:
    """Within half a step of the quantiser, which is the block's range over the number of its codes."""
    weights = np.random.default_rng(9).standard_normal((8, 256)).astype(np.float32)
    packed = gguf.quantize(weights, kind_of(name))
    values = BLOCK_FORMATS[name].unpack(torch.from_numpy(packed), torch.float32).numpy()
    blocks = weights.reshape(-1, 32)
    span = 2 * np.abs(blocks).max(1) if name.endswith("_0") else blocks.max(1) - blocks.min(1)
    levels = {"Q8_0": 254, "Q5_0": 32, "Q5_1": 31, "Q4_0": 16, "Q4_1": 15}[name]
    assert (np.abs(values - weights).reshape(-1, 32).max(1) <= span / levels * 1.02).all()


def test_more_rows_than_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_formats, "VALUES_AT_ONCE", 2000)
    packed = random_rows("Q4_K", 103, 256, np.random.default_rng(10))
    decoded = BLOCK_FORMATS["Q4_K"].unpack(torch.from_numpy(packed), torch.float32)
    np.testing.assert_array_equal(decoded.numpy(), reference("Q4_K", packed))
