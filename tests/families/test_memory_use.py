"""What planning takes networks to need, against what they hold at their most.

The networks have the proportions of Z-Image's own, at a sixteenth of its width. What tensors take is counted on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from launches import noted
from live_memory import LiveBytes, peak_beside
from torch import Tensor, nn

from hwaga.families.family import Picture
from hwaga.families.z_image import memory_use
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.memory_use import Networks, factors, phases
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import TransformerConfig, ZImageTransformer
from hwaga.kernels.attention import scores_alive
from hwaga.weights import quantize
from hwaga.weights.adapters import Adapters, LayerAdapter, LowRank
from hwaga.weights.quantize import PRECISIONS, QuantizedLinear

NETWORKS = Networks(
    TextEncoderConfig(
        hidden=160, intermediate=608, layers=3, heads=8, kv_heads=2, head_dim=32, vocabulary=100, norm_eps=1e-6,
        rope_theta=1e6, attention_bias=False, positions=2048,
    ),
    TransformerConfig(
        dim=256, layers=2, refiner_layers=1, heads=2, norm_eps=1e-5, qk_norm=True, in_channels=16, patch=2,
        caption_dim=160, rope_theta=256.0, time_scale=1000.0, axes_dims=(32, 48, 48), axes_lens=(1024, 512, 512),
    ),
    AutoencoderConfig(
        channels=(16, 32, 64, 64), layers_per_block=2, latent_channels=16, groups=8, scaling=0.3611, shift=0.1159,
        mid_attention=True, quant_conv=False, post_quant_conv=False,
    ),
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
SMALL = 64 * 2**10
"""Of what does not grow with pictures; at full size it is in SLACK."""


@pytest.fixture(autouse=True)
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "SLACK", 0)


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def fused(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Kernels are not run: their tensors count, and not what is in them."""
    if not request.param:
        yield False
        return
    pytest.importorskip("triton", reason="Triton has no build for this machine")
    with noted():
        yield True


def predicted(
    pictures: Sequence[Picture],
    dtype: torch.dtype,
    phase: str,
    fused: bool,
    tile: int | None = None,
    coded: bool = False,
    networks: Networks = NETWORKS,
) -> int:
    # Torch's own attention serves the others: the text encoder's looks back only, the autoencoder's is in one format.
    scores = scores_alive(torch.device("cpu"), dtype) if phase in ("caption", "denoise") and not fused else 0
    of = factors(networks, dtype.itemsize, fused=fused, coded=coded)
    found = next(
        p for p in phases(networks, pictures, 4, dtype.itemsize, 0, scores=scores, factors=of) if p.name == phase
    )
    return next(work.nbytes for work in found.work if work.tile == tile)


def check(measured: int, foreseen: int, fused: bool) -> None:
    most = 2.0 if fused else 3.0
    assert measured <= foreseen + SMALL, f"{measured / foreseen:.2f} of what was foreseen"
    assert foreseen <= most * measured + SMALL, f"only {measured / foreseen:.2f} of what was foreseen"


def built(network: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return network().to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(300,), (900,), (250, 40, 300)], ids=str)
def test_text(lengths: tuple[int, ...], dtype: torch.dtype, fused: bool) -> None:
    encoder = built(lambda: Qwen3Encoder(NETWORKS.text_encoder), dtype)

    def rows(self: object, ids: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.randn(len(ids), NETWORKS.text_encoder.hidden).to(dtype)

    encoder.embed_tokens.forward = MethodType(rows, encoder.embed_tokens)
    prompts, none = [list(range(length)) for length in lengths], [None] * len(lengths)
    measured = peak_beside(lambda: encoder(prompts, none, torch.device("cpu"), dtype))
    check(measured, predicted([Picture(64, 64, length) for length in lengths], dtype, "text", fused), fused)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(300,), (900,), (250, 40, 300)], ids=str)
def test_caption(lengths: tuple[int, ...], dtype: torch.dtype, fused: bool) -> None:
    transformer = built(lambda: ZImageTransformer(NETWORKS.transformer), dtype)

    def refine() -> None:
        captions = [torch.zeros(length, NETWORKS.transformer.caption_dim, dtype=dtype) for length in lengths]
        transformer.refine_captions(captions, [None] * len(lengths))

    refine()  # tables of positions
    check(
        peak_beside(refine), predicted([Picture(64, 64, length) for length in lengths], dtype, "caption", fused), fused
    )


SIZES = [[(256, 256, 60)], [(512, 384, 200)], [(256, 256, 60), (384, 128, 120), (64, 64, 30)]]


def denoise(
    transformer: ZImageTransformer, sizes: list[tuple[int, int, int]], adapters: Adapters | None = None
) -> None:
    """Two steps of a batch at different noise levels, as the engine takes them."""
    own, count, dtype = [adapters] * len(sizes), len(sizes), transformer.dtype
    captions = [torch.zeros(-(-length // 32) * 32, transformer.config.dim, dtype=dtype) for *_, length in sizes]
    latents = [torch.randn(16, height // 8, width // 8) for width, height, _ in sizes]
    modulation = transformer.modulate(torch.linspace(0, 1, 4), [None] * 4)
    pack = transformer.pack([latent.shape[1:] for latent in latents], [len(caption) for caption in captions])
    for step in range(2):
        rows = [(step + i) % 4 for i in range(count)]
        outputs = transformer(latents, captions, pack, modulation, rows, own)
        latents = [latent - 0.1 * output.float() for latent, output in zip(latents, outputs, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_denoise(sizes: list[tuple[int, int, int]], dtype: torch.dtype, fused: bool) -> None:
    transformer = built(lambda: ZImageTransformer(NETWORKS.transformer), dtype)
    denoise(transformer, sizes)
    measured = peak_beside(lambda: denoise(transformer, sizes))
    check(measured, predicted([Picture(*size) for size in sizes], dtype, "denoise", fused), fused)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("coded", [False, True])
def test_denoise_in_codes_and_with_loras(coded: bool, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers multiply codes, a LoRA beside them wants its tokens plain as well."""
    pytest.importorskip("triton", reason="Triton has no build for this machine")
    # Of a width whose feed-forward is a multiple of 16 too, as Z-Image's is.
    networks = replace(NETWORKS, transformer=replace(NETWORKS.transformer, dim=384, heads=3))
    transformer, sizes = built(lambda: ZImageTransformer(networks.transformer), torch.bfloat16), SIZES[1]
    if coded:
        monkeypatch.setattr(
            quantize,
            "scaled_product",
            lambda x, codes, scale, dtype: codes.new_empty(len(x.codes), len(codes), dtype=dtype),
        )
        for stack in (transformer.layers, transformer.noise_refiner):
            for parent in [part for block in stack for part in (block.attention, block.feed_forward)]:
                for name, linear in list(parent.named_children()):
                    kept = QuantizedLinear(linear, PRECISIONS["fp8"])
                    kept.multiply_codes()
                    setattr(parent, name, kept.to_empty(device="cpu"))
    adapters = {
        linear: LayerAdapter(
            LowRank(torch.zeros(8, linear.in_features).bfloat16(), torch.zeros(linear.out_features, 8).bfloat16()), ()
        )
        for linear in transformer.modules()
        if isinstance(linear, nn.Linear)
    }
    with noted():
        denoise(transformer, sizes)
        measured = peak_beside(lambda: denoise(transformer, sizes, Adapters(adapters) if lora else None))
    pictures = [Picture(*size) for size in sizes]
    check(measured, predicted(pictures, torch.bfloat16, "denoise", True, coded=coded, networks=networks), True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "height", "tile"), [(256, 256, None), (384, 192, None), (640, 320, 256)])
def test_decode_and_source(width: int, height: int, tile: int | None, dtype: torch.dtype, fused: bool) -> None:
    autoencoder = built(lambda: Autoencoder(NETWORKS.autoencoder), dtype)
    pictures = [Picture(width, height, 32, source=True)]

    def decode() -> None:
        autoencoder.decode(torch.zeros(1, 16, height // 8, width // 8), tile)

    def encode() -> None:
        noise = torch.zeros(1, 16, height // 8, width // 8)
        autoencoder.encode(torch.zeros(1, 3, height, width), noise, tile)

    check(peak_beside(decode), predicted(pictures, dtype, "decode", fused, tile), fused and dtype.itemsize == 2)
    check(peak_beside(encode), predicted(pictures, dtype, "source", fused, tile), fused and dtype.itemsize == 2)


def test_what_is_alive_is_counted() -> None:
    """The measure itself: views are no memory of their own, and what was freed does not count."""
    given = torch.zeros(1000)

    def call() -> None:
        one = given + 1  # 4000
        view = one.view(10, 100)[2:]
        two = view * 2  # 3200
        del one
        three = torch.cat([two, view])  # 6400; the view holds the first one
        del view, two
        three.add_(1)
        given.add_(1)
        _ = torch.zeros(2500)  # 10000

    assert peak_beside(call) == 6400 + 10000
    with LiveBytes() as live:
        call()
    assert live.now == 0
