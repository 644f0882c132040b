"""The KL autoencoder between pixels and latents, after diffusers' ``AutoencoderKL`` (the Flux autoencoder in Z-Image).

Shapes: ``[batch, 3, H, W]`` pixels in [-1, 1]; ``[batch, C, h, w]`` latents with h = H / scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.families.z_image.tiles import tiled
from hwaga.kernels.attention import attend
from hwaga.kernels.reference import group_norm_silu, upsample_conv
from hwaga.weights.config import ConfigValues

NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the network, as ``vae/config.json`` gives them."""

    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    groups: int
    scaling: float
    shift: float
    mid_attention: bool
    quant_conv: bool
    post_quant_conv: bool

    @property
    def scale(self) -> int:
        """Pixels a latent pixel stands for, along a side."""
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Reads diffusers' configuration.

        Raises:
            CheckpointError: a value is missing, or the network is of a kind that is not built here.
        """
        read = ConfigValues(values, "vae/config.json")
        config = cls(
            channels=read.counts("block_out_channels"),
            layers_per_block=read.count("layers_per_block"),
            latent_channels=read.count("latent_channels"),
            groups=read.count("norm_num_groups"),
            scaling=read.number("scaling_factor"),
            shift=read.number("shift_factor", 0.0),
            mid_attention=read.flag("mid_block_add_attention", True),
            quant_conv=read.flag("use_quant_conv", True),
            post_quant_conv=read.flag("use_post_quant_conv", True),
        )
        blocks = {*read.texts("down_block_types"), *read.texts("up_block_types")}
        if config.scaling == 0:
            raise CheckpointError("vae/config.json: scaling_factor must not be 0. Fetch the checkpoint again.")
        if any(width % config.groups for width in config.channels):
            raise CheckpointError(
                f"vae/config.json contradicts itself: channels {list(config.channels)} in {config.groups} groups."
            )
        if values.get("act_fn", "silu") != "silu":
            raise CheckpointError(f"The autoencoder's activation is {values['act_fn']!r}; only silu is built here.")
        if blocks != {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            raise CheckpointError(
                f"The autoencoder is made of blocks that are not built here: {', '.join(sorted(blocks))}."
            )
        if values.get("in_channels", 3) != 3 or values.get("out_channels", 3) != 3:
            raise CheckpointError("Only autoencoders of RGB pictures are built here.")
        return config


class GroupNormSiLU(nn.GroupNorm):
    """Group norm and its activation, as one operation."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__(config.groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps)


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(config, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNormSiLU(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        update = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return cast(Tensor, update.add_(x if self.conv_shortcut is None else self.conv_shortcut(x)))


class SpatialAttention(nn.Module):
    """One-headed attention over all latent pixels."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(config.groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (project(tokens)[:, None] for project in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out[0](attend(q, k, v)[:, 0])
        return cast(Tensor, x + mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class MidBlock(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(config, channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialAttention(config, channels)] if config.mid_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return cast(Tensor, self.resnets[1](x))


class Downsample(nn.Module):
    """Halves each side; the padding is on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Doubles each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(x, self.conv.weight, self.conv.bias)


class DownBlock(nn.Module):
    """Resnet blocks of one resolution, then the step down."""

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int, *, last: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * config.layers_per_block
        self.resnets = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Resnet blocks of one resolution, then the step up."""

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int, *, last: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * (config.layers_per_block + 1)
        self.resnets = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of the latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = (config.channels[0], *config.channels)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(config, a, b, last=i == len(widths) - 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid_block = MidBlock(config, widths[-1])
        self.conv_norm_out = GroupNormSiLU(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return cast(Tensor, self.conv_out(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = (config.channels[-1], *reversed(config.channels))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config, widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(config, a, b, last=i == len(widths) - 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.conv_norm_out = GroupNormSiLU(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return cast(Tensor, self.conv_out(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Both halves. Latents go in and come out normalised, as the transformer has them."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        moments = 2 * config.latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.post_quant_conv else None
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    def encode(self, pixels: Tensor, posterior_noise: Tensor | None = None, tile: int | None = None) -> Tensor:
        """Latents of pixels: the posterior's mean, or with ``posterior_noise`` (of the latents' shape) a sample of it.

        Args:
            tile: side in pixels of the pieces that it is computed in, a multiple of ``scale``; None for all at once.

        Returns:
            Float32 latents.
        """
        pixels = pixels.to(self.device, self.dtype)
        scale = self.config.scale
        moments = self._moments(pixels) if tile is None else tiled(self._moments, pixels, tile, Fraction(1, scale))
        mean, log_variance = moments.chunk(2, dim=1)
        if posterior_noise is not None:
            deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
            mean = mean + deviation * posterior_noise.to(mean)
        return (mean.float() - self.config.shift) * self.config.scaling

    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """Float32 pixels, nominally in [-1, 1], not clamped.

        Args:
            tile: side in pixels of the pieces that it is computed in, a multiple of ``scale``; None for all at once.
        """
        x = latents.to(self.device, self.dtype) / self.config.scaling + self.config.shift
        if tile is None:
            return self._pixels(x).float()
        return tiled(self._pixels, x, tile // self.config.scale, Fraction(self.config.scale))

    def _moments(self, pixels: Tensor) -> Tensor:
        moments = self.encoder(pixels)
        return cast(Tensor, moments if self.quant_conv is None else self.quant_conv(moments))

    def _pixels(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(x if self.post_quant_conv is None else self.post_quant_conv(x)))
