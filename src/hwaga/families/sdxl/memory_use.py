"""What SDXL's networks take beside their weights, by the sizes of pictures.

What is alive at a time was counted on a CPU, where ``tests/families/test_sdxl_memory_use.py`` holds it. What convolutions on a
GPU copy besides is reckoned, not measured: ``benchmarks/gpu_sdxl.py`` holds the sum against what a GPU allocates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from hwaga.families.family import Picture
from hwaga.families.sdxl.captions import ROWS
from hwaga.families.sdxl.networks import Networks
from hwaga.families.sdxl.words import CONTENT, WINDOW
from hwaga.families.tiles import ways
from hwaga.memory.demand import Phase, Work

MIB = 2**20

NOTHING: Mapping[str, int] = MappingProxyType({})

SLACK = 64 * MIB
"""In every phase: the workspaces of matrix products (32 MiB on an H100), those that convolutions keep, and small tensors."""

KERNELS = 2
"""A convolution on a GPU may copy its weights: so many times the largest's bytes."""

UNET, UNET_COPIES = 15.8, 4.0
"""The U-Net at its most, back at the latents' resolution: numbers for each latent and channel of the first level. 15.75 alive:
skipped states, what was doubled and joined with one of them, its norm and its activation. Besides, a convolution's copies of
its input and result in an order that a GPU likes better."""

LAYER = 10
"""A text encoder's layer at its most: numbers for each token and channel. 9 of them, beside the results of all layers."""

DECODER, DECODER_COPIES = 6.1, 4.0
"""The decoder at its most: numbers for each pixel and channel of its last level. 6.0 alive, where a picture of twice the
channels was doubled in size, and a convolution's copies of it and of its result. The like decoder of Z-Image took 9.5 on an
H100."""

ENCODER, ENCODER_COPIES = 5.1, 2.0
"""The same of the encoder. 5.0 alive."""


def phases(
    networks: Networks,
    pictures: Sequence[Picture],
    itemsize: int,
    vae_itemsize: int,
    filling: int,
    writing: Mapping[str, int] = NOTHING,
    scores: int = 0,
) -> tuple[Phase, ...]:
    """The stages of a batch, and what each of them takes.

    Args:
        itemsize, vae_itemsize: bytes of a number of the model, and of its autoencoder.
        filling: taken beside a unit of weights while it is read.
        writing: by part, taken while a weight is written out for a product.
        scores: taken by attention that writes its scores out.
    """
    windows = [shape_of(picture)[2] for picture in pictures]
    rows = [1 + picture.guided for picture in pictures]
    width = networks.caption_width
    # A caption, and the empty window beside it.
    captions = sum(row * (own + 1) for row, own in zip(rows, windows, strict=True)) * WINDOW * width * itemsize
    layers = max(
        int(each["hidden_size"]) * (LAYER + int(each["num_hidden_layers"]) + 1)
        for each in (networks.text_encoder, networks.text_encoder_2)
    )
    # What the encoders made of every window beside what they hold for those that go through at once.
    text = ROWS * WINDOW * layers * itemsize + 2 * captions
    sizes = [(picture.width // networks.scale) * (picture.height // networks.scale) for picture in pictures]
    latents = sum(4 * networks.latent_channels * size for size in sizes)
    together: dict[tuple[int, int, int], int] = {}
    for picture, row in zip(pictures, rows, strict=True):
        together[shape_of(picture)] = together.get(shape_of(picture), 0) + row
    channels = [int(count) for count in networks.unet["block_out_channels"]]
    kernel = KERNELS * 9 * 2 * max(channels) ** 2 * itemsize
    denoise = 0
    for (w, h, _), row in together.items():
        states = row * (w // networks.scale) * (h // networks.scale)
        denoise = max(denoise, round(states * (UNET + UNET_COPIES) * channels[0] * itemsize))
    # What every sampler keeps of each picture: its latents, the denoised ones of two steps, and the outputs of both prompts.
    held = captions + 4 * latents + scores
    found = [
        Phase("load", "", (Work(filling + SLACK),)),
        Phase("text", "text_encoder", (Work(text + writing.get("text_encoder", 0) + SLACK),)),
    ]
    last_level = int(networks.vae["block_out_channels"][0]) * vae_itemsize
    sources = [picture for picture in pictures if picture.source]
    if sources:
        encoder = (ENCODER + ENCODER_COPIES) * last_level
        found.append(Phase("source", "vae", ways(sources, lambda pixels: round(pixels * encoder), held + SLACK)))
    work = denoise + kernel + held + 2 * latents + writing.get("denoiser", 0) + SLACK
    found.append(Phase("denoise", "denoiser", (Work(work),)))
    decoder = (DECODER + DECODER_COPIES) * last_level
    found.append(Phase("decode", "vae", ways(pictures, lambda pixels: round(pixels * decoder), held + SLACK)))
    return tuple(found)


def shape_of(picture: Picture) -> tuple[int, int, int]:
    """Width, height and the windows of its longer prompt: pictures that share them go through the U-Net together."""
    return picture.width, picture.height, max(-(-picture.tokens // CONTENT), 1)
