"""What Z-Image's networks take beside their weights, by the sizes of pictures.

The factors were read off an H100 (torch 2.11, bfloat16), as the peak of what was allocated over what lay there before, or
counted where it says so. What they foretell is held against what is measured in ``benchmarks/gpu_memory.py``, and on the CPU in
the tests. In float32 each number takes twice as much and fewer copies are made, so that they hold there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from hwaga.families.family import Picture
from hwaga.families.tiles import ways
from hwaga.families.z_image.autoencoder import AutoencoderConfig
from hwaga.families.z_image.positions import TOKEN_MULTIPLE
from hwaga.families.z_image.text_encoder import TextEncoderConfig
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.kernels.attention import wide_attention_bytes
from hwaga.kernels.operations import turns
from hwaga.memory.demand import Phase, Work

MIB = 2**20

NOTHING: Mapping[str, int] = MappingProxyType({})

SLACK = 84 * MIB
"""In every phase: the workspaces of matrix products, 66 MiB on an H100 (33 for each thread that has multiplied: one draws, one
had operations compiled), and small tensors."""


@dataclass(frozen=True)
class Factors:
    """The most that networks take at a time, in numbers of the model's format.

    Attributes:
        block: of a transformer's block, for each token and channel.
        layer: of a text encoder's layer, for each token and channel of the feed-forward and of the layer.
        decoder, encoder: of the autoencoder, for each pixel and channel of its level of full size.
        wide: the autoencoder's attention goes through in pieces.
    """

    block: float
    layer: float
    decoder: float
    encoder: float
    wide: bool


BLOCK = 19.2
"""In plain torch. 18.7 to 19.0 of them from 1152 to 16640 tokens."""

FUSED_BLOCK = 12.4
"""With fused operations: tokens before and after attention, plain and normed (4), gate and up (5.33), and their product
(2.67). 12.0 of them, in ``tests/families/test_memory_use.py``."""

CODED_BLOCK = 14.8
"""The same where layers multiply codes, with a LoRA beside each of them: what is normed and the product come in both forms
(2.33 more). Without LoRAs it is 9.7."""

LAYER = 4.5
"""In plain torch. 4.4 of them, in the tests: gate and up, silu of the one, and its product with the other, beside what comes
in."""

FUSED_LAYER = 3.4
"""With fused operations: without silu's result, 3.2 of them in the proportions of Qwen3-4B."""

DECODER = 8.1
"""In plain torch. 8.0 of them, from 512² to 2048²."""

ENCODER = 6.1
"""The same of the encoder. 6.0 of them."""

FUSED_DECODER = 4.1
"""In channels-last order with kernels of ours. 4.00 of them, from 512² to 2048² (``benchmarks/gpu_vae.py``): a block's result
and its residual, at twice the channels of the last level."""

FUSED_ENCODER = 3.1
"""The same of the encoder. 3.02 of them."""

WIDE_NUMBERS = 6
"""Of the autoencoder's attention, for each latent pixel and channel there: its residual, what is normed, queries, keys, values
and the result. Scores come on top, see ``wide_attention_bytes``."""


@dataclass(frozen=True)
class Networks:
    """The sizes of a checkpoint's networks, known to fit one another."""

    text_encoder: TextEncoderConfig
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig


def factors(networks: Networks, itemsize: int, *, fused: bool, coded: bool = False) -> Factors:
    """What networks take, by what computes them.

    Args:
        itemsize: bytes of a number of the model.
        fused: the device fuses operations, see ``operations.why_not_fused``. What does not suit is computed in plain torch all
            the same: heads of an odd width, and the autoencoder in 32 bits.
        coded: layers of the transformer multiply codes.
    """
    block, layer = BLOCK, LAYER
    if fused and turns(networks.transformer.head_dim):
        block = CODED_BLOCK if coded else FUSED_BLOCK
    if fused and turns(networks.text_encoder.head_dim):
        layer = FUSED_LAYER
    if fused and itemsize == 2:
        return Factors(block, layer, FUSED_DECODER, FUSED_ENCODER, wide=networks.autoencoder.mid_attention)
    return Factors(block, layer, DECODER, ENCODER, wide=False)


PLAIN = Factors(BLOCK, LAYER, DECODER, ENCODER, wide=False)


def phases(
    networks: Networks,
    pictures: Sequence[Picture],
    steps: int,
    itemsize: int,
    filling: int,
    writing: Mapping[str, int] = NOTHING,
    scores: int = 0,
    factors: Factors = PLAIN,
) -> tuple[Phase, ...]:
    """The stages of a batch, and what each of them takes.

    Args:
        steps: most of a picture.
        itemsize: bytes of a number of the model.
        filling: taken beside a unit of weights while it is read.
        writing: by part, taken while a weight is written out for a product.
        scores: taken by attention that writes its scores out.
    """
    slack = SLACK + scores
    dim, scale, patch = networks.transformer.dim, networks.autoencoder.scale, networks.transformer.patch
    width = networks.transformer.caption_dim
    latent_bytes = sum(
        4 * networks.autoencoder.latent_channels * (p.width // scale) * (p.height // scale) for p in pictures
    )
    captions = [_padded(p.tokens) for p in pictures]
    tokens = [
        _padded((p.width // scale // patch) * (p.height // scale // patch)) + caption
        for p, caption in zip(pictures, captions, strict=True)
    ]
    # A row for each noise level of each picture; those that agree share one. It is held until the pictures are decoded.
    rows = steps * len(pictures)
    modulation = rows * dim * itemsize * (4 * (networks.transformer.layers + networks.transformer.refiner_layers) + 2)
    refined = sum(captions) * dim * itemsize
    longest = max(p.tokens for p in pictures)
    read = sum(p.tokens for p in pictures) * width * itemsize * 2
    rotations = sum(tokens) * networks.transformer.head_dim * 8
    work = {
        "text": read + round(longest * factors.layer * (networks.text_encoder.intermediate + width) * itemsize),
        "caption": read + refined + round(max(captions) * factors.block * dim * itemsize),
        "denoise": round(sum(tokens) * factors.block * dim * itemsize)
        + rotations
        + modulation
        + refined
        + 4 * latent_bytes,
    }
    sources = [picture for picture in pictures if picture.source]
    found = [
        Phase("load", "", (Work(filling + SLACK),)),
        Phase("text", "text_encoder", (Work(work["text"] + writing.get("text_encoder", 0) + slack),)),
        Phase("caption", "refiner", (Work(work["caption"] + writing.get("refiner", 0) + slack),)),
    ]
    held = refined + latent_bytes + modulation + rotations + scores + SLACK
    autoencoder = partial(_autoencoder_bytes, networks.autoencoder, itemsize, wide=factors.wide)
    if sources:
        found.append(Phase("source", "vae", ways(sources, partial(autoencoder, factors.encoder), held)))
    found.append(Phase("denoise", "denoiser", (Work(work["denoise"] + writing.get("denoiser", 0) + slack),)))
    found.append(Phase("decode", "vae", ways(pictures, partial(autoencoder, factors.decoder), held)))
    return tuple(found)


def _autoencoder_bytes(config: AutoencoderConfig, itemsize: int, factor: float, pixels: int, *, wide: bool) -> int:
    """What a piece of so many pixels takes.

    Args:
        factor: of the decoder or the encoder.
        wide: its attention goes through in pieces.
    """
    computed = round(pixels * factor * config.channels[0] * itemsize)
    if not wide:
        return computed
    tokens = pixels // config.scale**2
    attending = tokens * WIDE_NUMBERS * config.channels[-1] * itemsize + wide_attention_bytes(tokens, itemsize)
    return max(computed, attending)


def _padded(tokens: int) -> int:
    return -(-tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
