"""Weights in fewer bits: how far they may be off, what they take, and pictures drawn with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hwaga import DeviceError, Engine, ImageRequest, Result, Settings, SettingsError
from hwaga.families.z_image.family import ZImageModel
from hwaga.kernels import reference
from hwaga.kernels.coded import Coded, Form
from hwaga.weights.adapters import Adapters, LayerAdapter, LowRank, adapted, plain
from hwaga.weights.fused import FusedLinear
from hwaga.weights.quantize import GROUP, PRECISIONS, Precision, QuantizedLinear, write_codes

ALL = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)


def quantized(weight: Tensor, precision: Precision) -> QuantizedLinear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    return filled(QuantizedLinear(linear, precision), weight)


def filled(layer: QuantizedLinear, weight: Tensor) -> QuantizedLinear:
    layer.kept = nn.ParameterList(
        nn.Parameter(torch.empty_like(part, device="cpu"), requires_grad=False) for part in layer.kept
    )
    write_codes(weight, layer.precision, list(layer.kept))
    return layer


@ALL
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 200),
    exponent=st.integers(-30, 30),
    offset=st.sampled_from([0.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_weight_is_off_by_more_than_half_a_step(
    precision: Precision, rows: int, width: int, exponent: int, offset: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows * width)
    weight = ((torch.randn(rows, width, generator=generator) + offset) * 2.0**exponent).to(dtype)
    kept = quantized(weight, precision).weight
    assert kept.dtype == dtype
    assert kept.shape == weight.shape
    off = (kept.float() - weight.float()).abs()
    if precision.name == "int4":
        groups = nn.functional.pad(weight.float(), (0, -width % GROUP)).unflatten(1, (-1, GROUP))
        step = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(GROUP, dim=1)[:, :width] / 15
    else:
        most = weight.float().abs().amax(1, keepdim=True)
        # e4m3 has three bits behind the point, so that its steps are a sixteenth of the largest weight where that lies.
        step = most / 127 if precision.name == "int8" else most / 14
    largest = weight.float().abs().amax(1, keepdim=True)
    assert (off <= 0.51 * step + largest / 100 + 1e-29).all()


@ALL
def test_zeros_stay_zeros_and_constants_stay_near(precision: Precision) -> None:
    assert (quantized(torch.zeros(3, 70), precision).weight == 0).all()
    constant = torch.full((3, 70), -0.3)
    torch.testing.assert_close(quantized(constant, precision).weight, constant, atol=0, rtol=0.01)


@ALL
def test_what_it_takes(precision: Precision) -> None:
    layer = quantized(torch.randn(4096, 512), precision)
    bits = 8 * sum(tensor.nbytes for tensor in layer.kept) / (4096 * 512)
    # Scales are kept in the model's format; Precision counts them as bfloat16.
    assert precision.bits <= bits <= precision.bits + 1.1
    assert len(layer.kept[0]) == 4096, "rows beyond those that are worked on at once"


@ALL
def test_a_layer_in_place_of_another(precision: Precision) -> None:
    linear = FusedLinear(64, (32, 16), bias=True)
    layer = filled(QuantizedLinear(linear, precision), linear.weight.data)
    assert (layer.outs, layer.in_features, layer.out_features) == ((32, 16), 64, 48)
    x = torch.randn(5, 64)
    low_rank = LowRank(torch.randn(2, 64), torch.randn(48, 2))
    adapters = Adapters({layer: LayerAdapter.of([(slice(0, 48), low_rank)], 48)})
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T + linear.bias)
        wanted = x @ (layer.weight + low_rank.up @ low_rank.down).T + linear.bias
        torch.testing.assert_close(adapted([adapters], [5])(layer, x), wanted, atol=1e-4, rtol=1e-4)


FLOORS = {"int8": 44.0, "fp8": 37.0, "int4": 24.0}
"""Least likeness of two of the mini's pictures to those with whole weights, in dB. The worst of the 24 that
`benchmarks/precision.py` compares were 42, 35.5 and 25."""

REQUESTS = [ImageRequest("a hamburger, orange background", seed=2), ImageRequest("하늘색 배경의 펭귄", seed=1)]


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    with Engine.open("mini", device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def drawn(whole: Engine) -> list[Result]:
    """What the pictures are like with whole weights."""
    return [whole.generate(request) for request in REQUESTS]


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_mini_draws_nearly_the_same(name: str, whole: Engine, drawn: list[Result]) -> None:
    with Engine.open("mini", device="cpu", precision=name) as engine:
        model = cast(ZImageModel, engine._opened().model)
        kept = {type(module) for module in model.transformer.layers[0].modules() if isinstance(module, nn.Linear)}
        assert kept == {QuantizedLinear, nn.Linear}, "the modulation stays whole"
        sizes = [
            sum(parameter.nbytes for parameter in each.transformer.parameters())
            for each in (model, cast(ZImageModel, whole._opened().model))
        ]
        assert sizes[0] < 0.45 * sizes[1]
        for request, theirs in zip(REQUESTS, drawn, strict=True):
            ours = engine.generate(request)
            assert (ours.precision, theirs.precision) == (name, "full")
            error = np.square(np.asarray(ours.image, float) - np.asarray(theirs.image, float)).mean()
            assert 10 * np.log10(255**2 / error) > FLOORS[name]


def test_a_style_on_weights_in_fewer_bits(whole: Engine) -> None:
    request = ImageRequest("a red apple on a yellow background", style="anime", seed=7)
    with Engine.open("mini", device="cpu", precision="int8") as engine:
        before = engine.generate(request.replace(style=None)).image
        ours = np.asarray(engine.generate(request).image, float)
        assert engine.generate(request.replace(style=None)).image.tobytes() == before.tobytes()
    theirs = np.asarray(whole.generate(request).image, float)
    assert np.abs(ours - theirs).mean() < 4
    assert np.abs(ours - np.asarray(before, float)).mean() > 5


def test_a_precision_that_is_none() -> None:
    with pytest.raises(DeviceError, match="one of auto, full, int8, fp8, int4, not 'int3'"):
        Engine.open("mini", precision="int3")
    with pytest.raises(DeviceError, match="not 'nf4'"):
        Engine.open("mini", settings=Settings(precision="nf4"))
    with pytest.raises(SettingsError, match=r"HWAGA_LORA_CACHE \(lora_cache\) must be a size"):
        Settings(lora_cache="much")


def codes_layer(rows: int, width: int, dtype: torch.dtype) -> QuantizedLinear:
    """A layer that multiplies codes, with weights."""
    linear = nn.Linear(width, rows, bias=True, dtype=dtype)
    nn.init.normal_(linear.weight)
    layer = QuantizedLinear(linear, PRECISIONS["fp8"])
    layer.multiply_codes()
    return filled(layer, linear.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_codes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = codes_layer(48, 64, dtype)
    assert layer.takes_codes
    x = torch.randn(9, 64).to(dtype)
    coded = reference.coded(x)
    assert isinstance(coded, Coded)
    with torch.inference_mode():
        exact, product = layer(x), layer(coded)
    assert product.dtype == exact.dtype == dtype
    # The codes stand for numbers that are 1/16 off at the most, and such errors cancel.
    assert ((product - exact).float().norm() / exact.float().norm()) < 0.05
    assert not torch.equal(product, exact)
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize(("name", "rows", "width"), [("int8", 48, 64), ("fp8", 50, 64), ("fp8", 48, 60)])
def test_what_no_gpu_multiplies_is_written_out(name: str, rows: int, width: int) -> None:
    layer = QuantizedLinear(nn.Linear(width, rows), PRECISIONS[name])
    layer.multiply_codes()
    assert not layer.takes_codes
    assert plain.form(layer) is Form.PLAIN


def test_loras_beside_a_product_of_codes() -> None:
    torch.manual_seed(1)
    layer = codes_layer(32, 64, torch.float32)
    delta = LowRank(torch.randn(4, 64), torch.randn(32, 4))
    some = Adapters({layer: LayerAdapter.of([(slice(0, 32), delta)], 32)})
    call = adapted([None, some, some, None], [2, 3, 1, 4])
    assert call.form(layer) is Form.BOTH
    x = torch.randn(10, 64)
    both, codes = reference.coded(x, Form.BOTH), reference.coded(x)
    with torch.inference_mode():
        expected = layer(codes)
        expected[2:6] += delta(x[2:6])
        torch.testing.assert_close(call(layer, both), expected)


def test_the_mini_draws_nearly_the_same_with_products_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    request = ImageRequest("a red apple on a yellow background", seed=7, steps=4)
    with Engine.open("mini", device="cpu", dtype="float32") as engine:
        whole = np.asarray(engine.generate(request).image, float)
    monkeypatch.setattr("hwaga.families.z_image.model._codes_pay", lambda *_: True)
    monkeypatch.setattr("hwaga.weights.quantize.RUN", 1)
    with Engine.open("mini", device="cpu", dtype="float32", precision="fp8") as engine:
        layers = [m for m in engine._opened().model.transformer.modules() if isinstance(m, QuantizedLinear)]
        assert layers
        assert all(layer.takes_codes for layer in layers)
        drawn = np.asarray(engine.generate(request).image, float)
    error = np.square(whole - drawn).mean()
    assert 10 * np.log10(255**2 / error) > 35
