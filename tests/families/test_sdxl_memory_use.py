"""What planning takes SDXL's networks to need, against what they hold at their most.

The networks have the proportions of SDXL's own, at an eighth of their width. What tensors take is counted on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from live_memory import peak_beside
from torch import nn

from hwaga.families.family import Course, Picture
from hwaga.families.sdxl import memory_use
from hwaga.families.sdxl.autoencoder import Autoencoder
from hwaga.families.sdxl.captions import Caption
from hwaga.families.sdxl.denoiser import Denoiser
from hwaga.families.sdxl.memory_use import phases
from hwaga.families.sdxl.networks import Networks
from hwaga.families.sdxl.noise import PUBLISHED, Prediction
from hwaga.families.sdxl.published import TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE

NARROW = 8
NETWORKS = Networks(
    {**TEXT_ENCODER, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "vocab_size": 500},
    {**TEXT_ENCODER_2, "hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 5, "vocab_size": 500,
     "num_hidden_layers": 6, "projection_dim": 160},
    {**UNET, "block_out_channels": [320 // NARROW, 640 // NARROW, 1280 // NARROW], "norm_num_groups": 8,
     "attention_head_dim": [1, 2, 4], "transformer_layers_per_block": [1, 1, 2], "cross_attention_dim": 256,
     "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 160 + 6 * 32},
    {**VAE, "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8},
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
SMALL = 256 * 2**10
"""Of what does not grow with pictures; at full size it is in SLACK."""


@pytest.fixture(autouse=True)
def only_what_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLACK", "KERNELS", "UNET_COPIES", "DECODER_COPIES", "ENCODER_COPIES"):
        monkeypatch.setattr(memory_use, name, 0)


def predicted(pictures: Sequence[Picture], dtype: torch.dtype, phase: str, tile: int | None = None) -> int:
    found = next(p for p in phases(NETWORKS, pictures, dtype.itemsize, dtype.itemsize, 0) if p.name == phase)
    return next(work.nbytes for work in found.work if work.tile == tile)


def check(measured: int, foreseen: int, most: float) -> None:
    assert measured <= foreseen + SMALL, f"{measured / foreseen:.2f} of what was foreseen"
    assert foreseen <= most * measured + SMALL, f"only {measured / foreseen:.2f} of what was foreseen"


def built(network: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return network().to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "pictures",
    [[Picture(512, 512, 70)], [Picture(512, 384, 70, guided=True)], [Picture(256, 256, 70, guided=True)] * 3],
    ids=["one", "guided", "three"],
)
def test_denoise(pictures: list[Picture], dtype: torch.dtype) -> None:
    unet = built(NETWORKS.build_unet, dtype)
    caption = Caption(torch.randn(77, 256).to(dtype), torch.randn(160).to(dtype), torch.zeros(77, 256).to(dtype))
    prediction = Prediction.of(dict(PUBLISHED), "here")
    schedule = prediction.noise.even(3)

    def denoise() -> None:
        courses = [
            Course(
                caption,
                (4, p.height // 8, p.width // 8),
                schedule,
                negative=caption if p.guided else None,
                guidance=3.0,
            )
            for p in pictures
        ]
        denoiser = Denoiser(unet, courses, prediction, scale=8, dtype=dtype, adapting=lambda *_: nullcontext())
        latents = [torch.randn(course.shape) for course in courses]
        for step in range(2):
            slopes = denoiser(latents, [schedule[step].item()] * len(latents), range(len(latents)))
            latents = [latent - 0.1 * slope for latent, slope in zip(latents, slopes, strict=True)]

    denoise()
    check(peak_beside(denoise), predicted(pictures, dtype, "denoise"), 1.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 6])
def test_text(rows: int, dtype: torch.dtype) -> None:
    encoders = built(NETWORKS.build_text_encoder, dtype), built(NETWORKS.build_text_encoder_2, dtype)
    ids = torch.randint(0, 500, (rows, 77))

    def read() -> None:
        states = [encoder(input_ids=ids, output_hidden_states=True) for encoder in encoders]
        torch.cat([each.hidden_states[-2] for each in states], dim=-1)

    read()
    foreseen = predicted([Picture(512, 512, 75 * rows)], dtype, "text")
    check(peak_beside(read), foreseen, 5.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "height", "tile"), [(256, 256, None), (384, 192, None), (640, 320, 256)])
def test_decode_and_source(width: int, height: int, tile: int | None, dtype: torch.dtype) -> None:
    autoencoder = Autoencoder(built(NETWORKS.build_vae, dtype), dtype, 8, 0.13)
    pictures = [Picture(width, height, 70, source=True)]
    decoding = peak_beside(lambda: autoencoder.decode(torch.zeros(4, height // 8, width // 8), tile))
    check(decoding, predicted(pictures, dtype, "decode", tile), 2.0)
    noise = torch.zeros(4, height // 8, width // 8)
    encoding = peak_beside(lambda: autoencoder.encode(torch.zeros(3, height, width), noise, tile))
    check(encoding, predicted(pictures, dtype, "source", tile), 2.0)


def test_scores_that_are_written_out() -> None:
    pictures = [Picture(1024, 1024, 70, guided=True)]
    plain, kept = (
        next(p for p in phases(NETWORKS, pictures, 2, 2, 0, keeps_scores=keeps) if p.name == "denoise").work[0].nbytes
        for keeps in (False, True)
    )
    assert kept - plain == 3 * 2 * 2 * 4096**2 * 2, "three matrices of two rows, two heads and 4096 tokens"
