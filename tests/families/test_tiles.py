"""The autoencoder in pieces: near the whole, and nowhere can it be seen where a piece ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from placed import model_of, open_small
from torch import Tensor

from hwaga.families import tiles
from hwaga.families.tiles import OVERLAP, starts, tiled
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig

# Where pieces lie


@given(st.integers(1, 400), st.integers(1, 90), st.sampled_from([1, 2, 8, 16]))
def test_pieces_cover_a_side(length: int, tile: int, multiple: int) -> None:
    length, tile = length * multiple, tile * multiple
    found = starts(length, tile, multiple)
    assert found[0] == 0
    if length <= tile:
        assert found == [0]
        return
    assert found[-1] + tile == length
    assert all(start % multiple == 0 for start in found)
    steps = [after - before for before, after in pairwise(found)]
    assert min(steps) > 0
    assert tile - max(steps) >= tile // multiple // OVERLAP * multiple - multiple, "neighbours share about a quarter"
    least = -(-(length - tile) // (tile - tile // multiple // OVERLAP * multiple)) + 1
    assert len(found) == least, "and there are no more than that takes"


def blown_up(scale: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=scale, mode="nearest")


def averaged(scale: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.avg_pool2d(x, scale)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 24), st.sampled_from([1, 4, 8]), st.booleans())
def test_shares_of_the_pieces_add_up(height: int, width: int, tile: int, scale: int, smaller: bool) -> None:
    """What looks at no more than its own place comes out as it does from the whole."""
    generator = torch.Generator().manual_seed(height * width)
    if smaller:
        x = torch.randn(2, 3, height * scale, width * scale, generator=generator)
        compute, tile, ratio = averaged(scale), tile * scale, Fraction(1, scale)
    else:
        x = torch.randn(2, 3, height, width, generator=generator)
        compute, ratio = blown_up(scale), Fraction(scale)
    torch.testing.assert_close(tiled(compute, x, tile, ratio), compute(x), atol=2e-6, rtol=2e-6)


def test_pieces_are_no_larger_than_said() -> None:
    sizes: list[tuple[int, ...]] = []

    def compute(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return x

    tiled(compute, torch.zeros(1, 1, 50, 20), 16, Fraction(1))
    assert len(sizes) == 4 * 2
    assert set(sizes) == {(16, 16)}
    sizes.clear()
    tiled(compute, torch.zeros(1, 1, 50, 9), 16, Fraction(1))
    assert set(sizes) == {(16, 9)}


# With an autoencoder


def random_autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=(16, 24, 32), layers_per_block=1, latent_channels=4, groups=8, scaling=0.4, shift=-0.2,
        mid_attention=False, quant_conv=True, post_quant_conv=True,
    )  # fmt: skip
    return Autoencoder(config).eval()


@pytest.fixture(scope="module", params=["mini", "random"])
def autoencoder(request: pytest.FixtureRequest) -> Iterator[Autoencoder]:
    with torch.inference_mode():
        if request.param == "random":
            yield random_autoencoder()
        else:
            with open_small() as engine:
                yield model_of(engine).autoencoder


def scene(width: int, height: int) -> Tensor:
    """``[1, 3, H, W]``: a gradient, waves of several lengths and a few discs."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    rgb = torch.stack([x, y, 0.5 * torch.sin(9 * x * y + 20 * x)])
    for i in range(5):
        disc = (x - 0.8 * torch.sin(torch.tensor(5.0 * i))) ** 2 + (y - 0.8 * torch.cos(torch.tensor(3.0 * i))) ** 2
        rgb[i % 3][disc < 0.05] = 0.9
    return rgb[None].clamp(-1, 1)


def border_lines(length: int, tile: int) -> list[int]:
    """Between which pixels, and the ones before them, a piece begins or ends."""
    found = starts(length, tile)
    return sorted({*found[1:], *(start + tile for start in found[:-1])})


def jumps(difference: Tensor, dim: int, lines: list[int]) -> tuple[float, float]:
    """How much the difference to the whole changes from a pixel to the next: across borders, and elsewhere."""
    change = difference.diff(dim=dim).abs().mean(dim=[each for each in range(4) if each != dim])
    at = torch.zeros(len(change), dtype=torch.bool)
    at[[line - 1 for line in lines]] = True
    return change[at].mean().item(), change[~at].mean().item()


def near(difference: Tensor, dim: int, lines: list[int], reach: int) -> tuple[float, float]:
    """How large the difference is: near borders, and elsewhere."""
    size = difference.abs().mean(dim=[each for each in range(4) if each != dim])
    at = torch.zeros(len(size), dtype=torch.bool)
    for line in lines:
        at[max(line - reach, 0) : line + reach] = True
    return size[at].mean().item(), size[~at].mean().item()


SHAPES = [(24, 24, 16), (35, 27, 12), (60, 8, 16), (9, 40, 13), (27, 20, 20)]
"""Width and height in latent pixels, and the side of a piece."""


@pytest.mark.parametrize(("width", "height", "tile"), SHAPES)
def test_decoding_leaves_no_seams(autoencoder: Autoencoder, width: int, height: int, tile: int) -> None:
    scale = autoencoder.config.scale
    latents = autoencoder.encode(scene(width * scale, height * scale))
    whole = autoencoder.decode(latents)
    pieces = autoencoder.decode(latents, tile * scale)
    assert pieces.shape == whole.shape
    assert pieces.dtype == torch.float32
    difference = pieces - whole
    check_near(difference, whole, autoencoder)
    check_seams(difference, tile * scale, [(2, height * scale), (3, width * scale)], reach=scale // 2, most=1.5)


@pytest.mark.parametrize(("width", "height", "tile"), SHAPES)
def test_encoding_leaves_no_seams(autoencoder: Autoencoder, width: int, height: int, tile: int) -> None:
    scale = autoencoder.config.scale
    pixels = scene(width * scale, height * scale)
    whole = autoencoder.encode(pixels)
    pieces = autoencoder.encode(pixels, None, tile * scale)
    assert pieces.shape == whole.shape == (1, autoencoder.config.latent_channels, height, width)
    difference = pieces - whole
    check_near(difference, whole, autoencoder)
    check_seams(difference, tile, [(2, height), (3, width)], reach=1, most=most_of_encoding(autoencoder))


def check_near(difference: Tensor, whole: Tensor, autoencoder: Autoencoder) -> None:
    """Near the whole, and not the same. Group norms of random weights tell much more of what is in a piece."""
    trained = autoencoder.config.mid_attention
    assert 0 < difference.abs().mean() < (0.15 if trained else 0.8) * whole.std()


def most_of_encoding(autoencoder: Autoencoder) -> float:
    """The bundled model's encoder was trained on whole pictures alone. What it makes of pieces changes up to twice as much
    across their borders as elsewhere, and more where there is no slope between them."""
    return 2.2 if autoencoder.config.mid_attention else 1.5


def check_seams(difference: Tensor, tile: int, sides: list[tuple[int, int]], reach: int, most: float) -> None:
    for dim, length in sides:
        lines = border_lines(length, tile)
        if lines:
            across, within = jumps(difference, dim, lines)
            assert across <= most * within, "a line shows"
            close, elsewhere = near(difference, dim, lines, reach)
            assert close <= 1.25 * elsewhere, "a border shows"


@pytest.mark.parametrize("encoding", [False, True])
def test_seams_would_be_seen(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch, encoding: bool) -> None:
    """That the measure can tell: pieces laid over each other without a slope."""
    scale, trained = autoencoder.config.scale, autoencoder.config.mid_attention
    if encoding and not trained:
        pytest.skip("random encoders change so much from pixel to pixel that a line is nothing")
    pixels = scene(24 * scale, 24 * scale)
    latents = autoencoder.encode(pixels)
    monkeypatch.setattr(tiles, "_slope", lambda length, *_: torch.ones(length))
    if encoding:
        difference, length, tile = autoencoder.encode(pixels, None, 16 * scale) - latents, 24, 16
    else:
        pieces = autoencoder.decode(latents, 16 * scale)
        difference, length, tile = pieces - autoencoder.decode(latents), 24 * scale, 16 * scale
    across, within = jumps(difference, 3, border_lines(length, tile))
    most = most_of_encoding(autoencoder) if encoding else 1.5 if trained else 1.05
    assert across > most * within


@pytest.mark.parametrize("beyond", [0, 1, 50])
def test_one_piece_is_the_whole(autoencoder: Autoencoder, beyond: int) -> None:
    scale = autoencoder.config.scale
    pixels = scene(12 * scale, 9 * scale)
    noise = torch.randn(1, autoencoder.config.latent_channels, 9, 12, generator=torch.Generator().manual_seed(0))
    latents = autoencoder.encode(pixels, noise)
    assert torch.equal(autoencoder.encode(pixels, noise, (12 + beyond) * scale), latents)
    assert torch.equal(autoencoder.decode(latents, (12 + beyond) * scale), autoencoder.decode(latents))


def test_a_sample_of_the_posterior_in_pieces(autoencoder: Autoencoder) -> None:
    """The noise is the whole picture's, wherever pieces lie."""
    scale = autoencoder.config.scale
    pixels = scene(24 * scale, 16 * scale)
    noise = torch.randn(1, autoencoder.config.latent_channels, 16, 24, generator=torch.Generator().manual_seed(0))
    sample, mean = (autoencoder.encode(pixels, each, 12 * scale) for each in (noise, None))
    whole = autoencoder.encode(pixels, noise)
    check_near(sample - whole, whole, autoencoder)
    assert not torch.equal(sample, mean)
