"""SDXL's autoencoder between pixels and latents, whole or in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from hwaga.families.tiles import tiled


def autoencoder_dtype(dtype: torch.dtype, device: torch.device, *, overflows: bool) -> torch.dtype:
    """The number format that the autoencoder runs in, beside a U-Net in ``dtype``.

    The activations of SDXL's own autoencoder exceed float16's largest number, 65504, and the picture comes out black. They fit
    bfloat16, whose range is float32's. diffusers goes to float32 instead, which takes twice the memory; so do GPUs here that do
    not compute in bfloat16, which are those of NVIDIA's before Ampere.

    Args:
        overflows: as the checkpoint says of its autoencoder; of those that were tuned for float16 it says otherwise.
    """
    if dtype != torch.float16 or not overflows:
        return dtype
    older = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float32 if older else torch.bfloat16


@dataclass(frozen=True)
class Autoencoder:
    """diffusers' ``AutoencoderKL``, used.

    Attributes:
        scale: pixels along a side for one of the latents.
        scaling: latents are the autoencoder's, times this.
    """

    network: Any
    dtype: torch.dtype
    scale: int
    scaling: float

    def encode(self, pixels: Tensor, noise: Tensor | None, tile: int | None = None) -> Tensor:
        """Latents ``[C, h, w]`` float32 of pixels ``[3, H, W]``: the posterior's mean, or with noise a sample of it."""

        def moments(piece: Tensor) -> Tensor:
            return cast(Tensor, self.network.encode(piece).latent_dist.parameters)

        x = pixels[None].to(self.dtype)
        found = moments(x).float() if tile is None else tiled(moments, x, tile, Fraction(1, self.scale))
        mean, log_variance = found[0].chunk(2)
        if noise is not None:
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        return mean * self.scaling

    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """Pixels ``[3, H, W]`` float32 of latents ``[C, h, w]``."""

        def pixels(piece: Tensor) -> Tensor:
            return cast(Tensor, self.network.decode(piece).sample)

        x = (latents[None] / self.scaling).to(self.dtype)
        found = pixels(x).float() if tile is None else tiled(pixels, x, tile // self.scale, Fraction(self.scale))
        return found[0]
