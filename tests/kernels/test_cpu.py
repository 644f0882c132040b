"""A CPU's own operations against their references, over random shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.kernels import avx512, cpu, operations, reference

EPS = 1e-5

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference from the reference in float64, as a share of the largest value."""

DTYPES = pytest.mark.parametrize("dtype", list(BOUNDS), ids=["float32", "bfloat16"])
SHAPES = pytest.mark.parametrize(("tokens", "channels"), [(1, 8), (7, 48), (33, 320), (64, 853)])


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == exact.shape
    difference = (found.double() - exact).abs().max().item()
    assert difference <= BOUNDS[dtype] * exact.abs().max().item()


@torch.inference_mode()
@DTYPES
@SHAPES
@pytest.mark.parametrize("out", [5, 96])
def test_products(tokens: int, channels: int, out: int, dtype: torch.dtype) -> None:
    if not cpu.has_products(dtype):
        pytest.skip("this CPU has no such products of oneDNN's")
    x, weight = _randn(tokens, channels).to(dtype), _randn(2 * out, channels, seed=1).to(dtype) / channels**0.5
    bias = _randn(2 * out, seed=2).to(dtype)
    exact = F.linear(x.double(), weight.double())
    _assert_near(cpu.product(x, weight, None), exact, dtype)
    _assert_near(cpu.product(x, weight, bias), exact + bias.double(), dtype)
    gate, up = exact.chunk(2, -1)
    _assert_near(cpu.gated_product(x, weight), F.silu(gate) * up, dtype)


@torch.inference_mode()
@DTYPES
@SHAPES
@pytest.mark.parametrize("rows", ["one", "each"])
def test_norms(tokens: int, channels: int, rows: str, dtype: torch.dtype) -> None:
    x, update = _randn(tokens, channels).to(dtype), _randn(tokens, channels, seed=1).to(dtype)
    gate, gain = _randn(3, channels, seed=2).to(dtype), _randn(3, channels, seed=3).to(dtype)
    row = 2 if rows == "one" else torch.arange(tokens) % 3
    before = x.clone(), update.clone()

    def exact(gate: Tensor | None, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        factors = (None if factor is None else factor.double() for factor in (gate, gain))
        following, normed = reference.residual_norm(x.double(), update.double(), *factors, EPS, row)
        assert isinstance(normed, Tensor)
        return following, normed

    wanted = reference.gained_norm(x.double(), gain.double(), EPS, row)
    assert isinstance(wanted, Tensor)
    _assert_near(cpu.gained_norm(x, gain, EPS, row), wanted, dtype)
    for given in ((gate, gain), (gate, None), (None, gain), (None, None)):
        for found, expected in zip(cpu.residual_norm(x, update, *given, EPS, row), exact(*given), strict=True):
            assert found.dtype == dtype
            _assert_near(found, expected, dtype)
    assert torch.equal(x, before[0])
    assert torch.equal(update, before[1])


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("normed", [True, False])
def test_turned_heads(heads: tuple[int, int], normed: bool, dtype: torch.dtype) -> None:
    tokens, width = 9, 16
    qkv = _randn(tokens, (heads[0] + 2 * heads[1]) * width).to(dtype)
    gains = (_randn(width, seed=1).to(dtype), _randn(width, seed=2).to(dtype)) if normed else None
    rotation = torch.polar(torch.ones(tokens, width // 2), _randn(tokens, width // 2, seed=3))
    wide = None if gains is None else (gains[0].float(), gains[1].float())
    exact = reference.turned_heads(qkv.float(), heads, wide, EPS, rotation)
    found = cpu.turned_heads(qkv.clone(), heads, gains, EPS, rotation)
    for part, expected in zip(found, exact, strict=True):
        _assert_near(part, expected.double(), torch.float32)
    assert [part.dtype for part in found] == [torch.float32, torch.float32, dtype]


@torch.inference_mode()
@pytest.mark.parametrize("scores", [1, 400, 3000, 2**23])
def test_attention_in_pieces(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SCORES", scores)
    q, k = _randn(2, 3, 20, 16, seed=1), _randn(2, 3, 20, 16, seed=2)
    v = _randn(2, 3, 20, 16, seed=3).bfloat16()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    _assert_near(cpu.attend(q, k, v), exact, torch.bfloat16)


def test_products_in_other_formats_are_torchs_own() -> None:
    with torch.inference_mode():
        x, weight = _randn(4, 8).double(), _randn(6, 8, seed=1).double()
        assert not cpu.has_products(x.dtype)
        assert torch.equal(operations.product(x, weight, None), F.linear(x, weight))


def test_gradients_take_the_reference() -> None:
    x = _randn(4, 8).requires_grad_()
    weight = _randn(6, 8, seed=1)
    operations.product(x, weight, None).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.sum(0).expand(4, -1))
    assert operations.gated_product(x, weight) is None


@pytest.mark.parametrize("missing", ["mkldnn", "operation", "cpu"])
def test_without_onednn_products_are_torchs_own(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        pass

    if missing == "mkldnn":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif missing == "operation":
        monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(avx512, "_compiled", lambda: (None, avx512.NOTHING))
    cpu.has_products.cache_clear()
    try:
        with torch.inference_mode():
            x, weight = _randn(4, 8), _randn(6, 8, seed=1)
            assert not cpu.has_products(torch.float32)
            assert torch.equal(operations.product(x, weight, None), F.linear(x, weight))
            assert operations.gated_product(x, weight) is None
    finally:
        cpu.has_products.cache_clear()
