"""Run by ``test_image_ops.py`` under TRITON_INTERPRET=1: the autoencoder's kernels against plain torch, and as a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.kernels import attention, group_norm, image_ops, reference, upsample, wide_attention
from hwaga.kernels.attention import attend

FEW = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.integers(1, 6)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that small pictures have several tiles and runs, and the interpreter little to do."""
    monkeypatch.setattr(group_norm, "PROGRAMS", 4)
    monkeypatch.setattr(group_norm, "JOINED", 32)
    monkeypatch.setattr(wide_attention, "BLOCK", 16)
    monkeypatch.setattr(attention, "WIDE_QUERIES", 8)
    monkeypatch.setattr(attention, "WIDE_SCORES", 1)
    for module in (group_norm, upsample):
        monkeypatch.setattr(module, "ROWS", 4)
        monkeypatch.setattr(module, "COLUMNS", 16)
    with torch.inference_mode():
        yield


def pictures(seed: int, *shape: int, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.contiguous(memory_format=torch.channels_last)


@FEW
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 3), width=st.integers(1, 12), height=SIDES, length=SIDES,
    offset=st.booleans(), silu=st.booleans(), mean=st.sampled_from([0.0, 300.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_group_norm(
    batch: int, groups: int, width: int, height: int, length: int, offset: bool, silu: bool, mean: float, seed: int
) -> None:
    channels = groups * width
    if height * length * width == 1:
        return  # torch refuses the norm of one value
    x = pictures(seed, batch, channels, height, length, mean=mean)
    weight, bias, added = torch.randn(3, channels, generator=torch.Generator().manual_seed(seed + 1))
    shift = added if offset else None
    # In float64: a large mean costs torch's float32 more digits than it costs ours.
    expected = reference.group_norm_silu(
        x.double(), groups, weight.double(), bias.double(), 1e-6, offset=added.double() if offset else None, silu=silu
    ).float()
    given_back = group_norm.group_norm_silu(x, groups, weight, bias, 1e-6, offset=shift, silu=silu)
    torch.testing.assert_close(given_back, expected, atol=2e-3 if mean else 1e-5, rtol=1e-4)
    assert given_back.data_ptr() == x.data_ptr()


@FEW
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 3), width=st.integers(2, 12), height=SIDES, length=SIDES,
    residual=st.booleans(), offset=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_sum_and_its_norm(
    batch: int, groups: int, width: int, height: int, length: int, residual: bool, offset: bool, seed: int
) -> None:
    channels = groups * width
    update, other = (pictures(seed + i, batch, channels, height, length) for i in range(2))
    weight, bias, added = torch.randn(3, channels, generator=torch.Generator().manual_seed(seed + 1))
    parts = (other if residual else None, added if offset else None)
    total, normed = reference.add_group_norm_silu(update.clone(), *parts, groups, weight, bias, 1e-6)
    sum_alone = group_norm.add(update.clone(), *parts)
    ours, ours_normed = group_norm.add_group_norm_silu(update, *parts, groups, weight, bias, 1e-6)
    torch.testing.assert_close(ours, total)
    torch.testing.assert_close(sum_alone, total)
    torch.testing.assert_close(ours_normed, normed, atol=1e-5, rtol=1e-4)
    assert ours.data_ptr() == update.data_ptr() != ours_normed.data_ptr()


def test_sums_in_sixteen_bits_are_what_is_normed() -> None:
    update, residual = (pictures(i, 1, 20, 5, 3, mean=20.0).bfloat16() for i in range(2))
    weight, bias = torch.randn(2, 20, generator=torch.Generator().manual_seed(2)).bfloat16()
    total, normed = group_norm.add_group_norm_silu(update, residual, None, 4, weight, bias, 1e-6)
    expected = reference.group_norm_silu(total.float(), 4, weight.float(), bias.float(), 1e-6)
    torch.testing.assert_close(normed.float(), expected, atol=1e-6, rtol=1 / 128)


@FEW
@given(batch=st.integers(1, 2), channels=st.integers(1, 20), height=SIDES, width=SIDES, bias=st.booleans())
def test_upsampling(batch: int, channels: int, height: int, width: int, bias: bool) -> None:
    x = pictures(0, batch, channels, height, width)
    weight = pictures(1, channels + 3, channels, 3, 3)
    added = torch.randn(channels + 3, generator=torch.Generator().manual_seed(2)) if bias else None
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, added, padding=1)
    torch.testing.assert_close(upsample.upsample_conv(x, weight, added), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reference.upsample_conv(x, weight, added), expected, atol=1e-4, rtol=1e-4)


@FEW
@given(
    batch=st.integers(1, 2), tokens=st.integers(1, 40), channels=st.integers(1, 24), spread=st.sampled_from([1.0, 30.0])
)
def test_wide_attention(batch: int, tokens: int, channels: int, spread: float) -> None:
    q, k, v = torch.randn(3, batch, tokens, channels, generator=torch.Generator().manual_seed(tokens))
    expected = attend(q[:, None] * spread, k[:, None], v[:, None])[:, 0]
    torch.testing.assert_close(wide_attention.attend_wide(q * spread, k, v), expected, atol=1e-5, rtol=1e-4)


def test_the_network_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(
        AutoencoderConfig((8, 16), 1, 4, 4, 0.36, 0.12, mid_attention=True, quant_conv=True, post_quant_conv=True)
    )
    for parameter in autoencoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    monkeypatch.setattr(group_norm, "ROWS", 32)
    monkeypatch.setattr(upsample, "ROWS", 32)
    monkeypatch.setattr(attention, "WIDE_QUERIES", 128)
    pixels, latents = torch.randn(1, 3, 12, 10), torch.randn(1, 4, 5, 6)
    expected = autoencoder.encode(pixels), autoencoder.decode(latents)
    monkeypatch.setattr(image_ops, "fused", lambda x: True)
    torch.testing.assert_close(autoencoder.encode(pixels), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(autoencoder.decode(latents), expected[1], atol=1e-4, rtol=1e-4)
