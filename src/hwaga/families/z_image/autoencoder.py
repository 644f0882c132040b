"""The KL autoencoder between pixels and latents, after diffusers' ``AutoencoderKL`` (the Flux autoencoder in Z-Image).

Shapes: ``[batch, 3, H, W]`` pixels in [-1, 1]; ``[batch, C, h, w]`` latents with h = H / scale.

Its convolutions leave the GPU little to compute between them and much to move. So what is added to a result (a bias, a block's
residual) waits for the next operation, which reads the result anyway: blocks hand a ``Sum`` on, not a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.families.tiles import tiled
from hwaga.kernels.image_ops import add, add_group_norm_silu, attend_wide, convolve, group_norm_silu, upsample_conv
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

    def narrowed(self) -> AutoencoderConfig:
        """The same with as few groups as Triton compiles the same kernels for. What is in their code of a size is how many
        channels a group has, and whether numbers of channels are multiples of 16.
        """
        times = next(
            times
            for times in range(self.groups, 0, -1)
            if not self.groups % times
            and all((width // times % 16 == 0) == (width % 16 == 0) for width in self.channels)
        )
        return replace(self, channels=tuple(width // times for width in self.channels), groups=self.groups // times)

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


class Sum:
    """What goes from block to block: a tensor, and what is still to be added to it.

    It can be taken once, and then holds no memory any more, whoever still has it.
    """

    def __init__(self, update: Tensor, residual: Tensor | None = None, offset: Tensor | None = None) -> None:
        """
        Args:
            update: ``[batch, channels, height, width]``, may be written over.
            residual: of the same shape; likewise.
            offset: ``[channels]``.
        """
        self._parts = [(update, residual, offset)]

    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is to be added up."""
        return self._parts.pop()

    def tensor(self) -> Tensor:
        """All of it added up."""
        return add(*self.parts())


class Convolution(nn.Conv2d):
    """A convolution whose bias may wait."""

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result, and what is still to be added to it."""
        padding = int(self.padding[0])
        return convolve(x, self.weight, self.bias, stride=self.stride[0], padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """The whole result."""
        result, offset = self.begin(x)
        return result if offset is None else result + offset[:, None, None]


class GroupNorm(nn.GroupNorm):
    """Group norm, with its activation as one operation."""

    def __init__(self, config: AutoencoderConfig, channels: int, *, silu: bool = True) -> None:
        super().__init__(config.groups, channels, eps=NORM_EPS)
        self.silu = silu

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Of ``x + offset``; ``x`` may be written over."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, offset=offset, silu=self.silu)

    def of_sum(self, summands: Sum) -> tuple[Tensor, Tensor]:
        """The sum, and the norm of it."""
        x, residual, offset = summands.parts()
        return add_group_norm_silu(
            x, residual, offset, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu
        )


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config, channels)
        self.conv1 = Convolution(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(config, out_channels)
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Convolution(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, before: Sum) -> Sum:
        extra = None
        if self.conv_shortcut is None:
            residual, x = self.norm1.of_sum(before)
        else:
            x = before.tensor()
            residual, extra = self.conv_shortcut.begin(x)
            x = self.norm1(x)  # which may write over x now
        x, offset = self.conv1.begin(x)
        x = self.norm2(x, offset)
        x, offset = self.conv2.begin(x)
        return Sum(x, residual, offset if offset is None or extra is None else offset + extra)


class SpatialAttention(nn.Module):
    """One-headed attention over all latent pixels."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(config, channels, silu=False)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, before: Sum) -> Sum:
        residual, x = self.group_norm.of_sum(before)
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.to_out[0](attend_wide(*(project(tokens) for project in (self.to_q, self.to_k, self.to_v))))
        return Sum(mixed.transpose(1, 2).unflatten(2, x.shape[2:]), residual)


class MidBlock(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(config, channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialAttention(config, channels)] if config.mid_attention else [])

    def forward(self, x: Sum) -> Sum:
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return cast(Sum, self.resnets[1](x))


class Downsample(nn.Module):
    """Halves each side; the padding is on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3, stride=2)

    def forward(self, before: Sum) -> Sum:
        x, offset = self.conv.begin(F.pad(before.tensor(), (0, 1, 0, 1)))
        return Sum(x, offset=offset)


class Upsample(nn.Module):
    """Doubles each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3, padding=1)

    def forward(self, before: Sum) -> Sum:
        return Sum(upsample_conv(before.tensor(), self.conv.weight, self.conv.bias))


class DownBlock(nn.Module):
    """Resnet blocks of one resolution, then the step down."""

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int, *, last: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * config.layers_per_block
        self.resnets = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels)])

    def forward(self, x: Sum) -> Sum:
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

    def forward(self, x: Sum) -> Sum:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of the latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = (config.channels[0], *config.channels)
        self.conv_in = Convolution(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(config, a, b, last=i == len(widths) - 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid_block = MidBlock(config, widths[-1])
        self.conv_norm_out = GroupNorm(config, widths[-1])
        self.conv_out = Convolution(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result, offset = self.conv_in.begin(x)
        between = Sum(result, offset=offset)
        del result
        for block in (*self.down_blocks, self.mid_block):
            between = block(between)
        return cast(Tensor, self.conv_out(self.conv_norm_out.of_sum(between)[1]))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = (config.channels[-1], *reversed(config.channels))
        self.conv_in = Convolution(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config, widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(config, a, b, last=i == len(widths) - 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.conv_norm_out = GroupNorm(config, widths[-1])
        self.conv_out = Convolution(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result, offset = self.conv_in.begin(x)
        between = Sum(result, offset=offset)
        del result
        for block in (self.mid_block, *self.up_blocks):
            between = block(between)
        return cast(Tensor, self.conv_out(self.conv_norm_out.of_sum(between)[1]))


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

    def try_operations(self, device: torch.device, dtype: torch.dtype) -> None:
        """Takes two small pictures through a network like this one with few channels, so that whatever has to be compiled or
        loaded for its operations is.

        Weights need not be there.
        """
        with torch.device("meta"):
            few = Autoencoder(self.config.narrowed())
        few = few.to(dtype).to_empty(device=device).requires_grad_(False)
        for parameter in few.parameters():
            parameter.zero_()
        for side in (
            4,
            2,
        ):  # of latents: their number is a multiple of 16, which softmax is compiled for on its own, or not
            latents = torch.zeros(1, self.config.latent_channels, side, side, device=device)
            few.encode(few.decode(latents))

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
