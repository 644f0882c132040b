"""What Z-Image's networks take beside their weights, by the sizes of pictures.

The factors were read off an H100 (torch 2.11, bfloat16), as the peak of what was allocated over what lay there before. What
they foretell is held against what is measured in ``benchmarks/gpu_memory.py``, and on the CPU in the tests. In float32 each
number takes twice as much and fewer copies are made, so that they hold there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from hwaga.families.family import Picture
from hwaga.families.z_image.autoencoder import AutoencoderConfig
from hwaga.families.z_image.text_encoder import TextEncoderConfig
from hwaga.families.z_image.transformer import TOKEN_MULTIPLE, TransformerConfig
from hwaga.memory.plan import Phase, Work

MIB = 2**20

NOTHING: Mapping[str, int] = MappingProxyType({})

SLACK = 48 * MIB
"""In every phase: the workspaces of matrix products (32 MiB on an H100), and small tensors."""

BLOCK = 19.2
"""A block's tokens at their most: numbers for each token and channel. 18.7 to 19.0 of them from 1152 to 16640 tokens."""

LAYER = 4.5
"""A text encoder's layer at its most: numbers for each token and channel of the feed-forward. 4.4 of them, in
``tests/families/test_memory_use.py``: gate and up, silu of the one, and its product with the other, beside what comes in."""

DECODER = 8.1
"""The decoder at its most: numbers for each pixel and channel of its last level. 8.0 of them, from 512² to 2048²."""

ENCODER = 6.1
"""The same of the encoder. 6.0 of them."""

TILES = (1024, 768, 512, 256)
"""Sides in pixels of the pieces that pictures may be encoded and decoded in, where they don't fit as a whole. In smaller ones,
too little is seen of what the picture shows."""


@dataclass(frozen=True)
class Networks:
    """The sizes of a checkpoint's networks, known to fit one another."""

    text_encoder: TextEncoderConfig
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig


def phases(
    networks: Networks,
    pictures: Sequence[Picture],
    steps: int,
    itemsize: int,
    filling: int,
    writing: Mapping[str, int] = NOTHING,
    scores: int = 0,
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
        "text": read + round(longest * LAYER * (networks.text_encoder.intermediate + width) * itemsize),
        "caption": read + refined + round(max(captions) * BLOCK * dim * itemsize),
        "denoise": round(sum(tokens) * BLOCK * dim * itemsize) + rotations + modulation + refined + 4 * latent_bytes,
    }
    sources = [picture for picture in pictures if picture.source]
    found = [
        Phase("load", "", (Work(filling + SLACK),)),
        Phase("text", "text_encoder", (Work(work["text"] + writing.get("text_encoder", 0) + slack),)),
        Phase("caption", "refiner", (Work(work["caption"] + writing.get("refiner", 0) + slack),)),
    ]
    held = refined + latent_bytes + modulation + rotations
    if sources:
        found.append(
            Phase(
                "source", "vae", _in_tiles(sources, ENCODER * networks.autoencoder.channels[0], itemsize, held + scores)
            )
        )
    found.append(Phase("denoise", "denoiser", (Work(work["denoise"] + writing.get("denoiser", 0) + slack),)))
    found.append(
        Phase("decode", "vae", _in_tiles(pictures, DECODER * networks.autoencoder.channels[0], itemsize, held + scores))
    )
    return tuple(found)


def _in_tiles(pictures: Sequence[Picture], numbers: float, itemsize: int, held: int) -> tuple[Work, ...]:
    """Ways to take the pictures through the autoencoder, one after the other: whole, or in ever smaller pieces."""
    ways = []
    for tile in (None, *TILES):
        if tile is not None and tile >= max(max(p.width, p.height) for p in pictures):
            continue
        # A whole picture in float32 and the pieces that it is blended of.
        pixels = max(p.width * p.height for p in pictures)
        piece = pixels if tile is None else max(min(p.width, tile) * min(p.height, tile) for p in pictures)
        blended = 0 if tile is None else 2 * 16 * pixels
        ways.append(Work(round(piece * numbers * itemsize) + 12 * pixels + blended + held + SLACK, tile))
    return tuple(ways)


def _padded(tokens: int) -> int:
    return -(-tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
