"""The Z-Image transformer (S3-DiT): one stream of image and caption tokens, after diffusers' ``ZImageTransformer2DModel``.

What does not depend on the step is computed outside of it: a caption is embedded and refined once a prompt
(``refine_caption``), the modulation of all steps once a generation (``modulate``), positions once a shape (``pack``). A step
(``forward``) then runs over packed tokens: every image has its own length, and attention stays inside an image.

Shapes: C latent channels, h × w latent pixels, p patch side, D model width, T packed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.families.z_image.blocks import QK_NORM_EPS, Block, BlockModulation, Run, run_blocks
from hwaga.families.z_image.positions import TOKEN_MULTIPLE, caption_positions, image_positions, rotation_tables
from hwaga.families.z_image.transformer_config import TIME_CHANNELS, TransformerConfig
from hwaga.kernels.attention import PLANNED, attention
from hwaga.kernels.coded import Form
from hwaga.kernels.operations import coded, gained_norm, residual_norm, swiglu, turned_heads
from hwaga.kernels.reference import rms_norm
from hwaga.weights.adapters import Adapters, LinearCall, adapted, plain

TIME_HIDDEN = 1024
FINAL_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Modulation:
    """Modulation of the whole network: a row for each distinct time of a generation, and for each set of LoRAs."""

    noise_refiner: tuple[BlockModulation, ...]
    layers: tuple[BlockModulation, ...]
    final_scale: Tensor


@dataclass(frozen=True)
class Pack:
    """How the images of a batch lie one behind the other, and where each token stands.

    Attributes:
        grids: token rows and columns of each image.
        image_lengths: image tokens of each, padding included.
        caption_lengths: caption tokens of each, padding included.
        image_rotation: complex64 ``[image tokens, head_dim / 2]``.
        joint_rotation: complex64 ``[T, head_dim / 2]``, image then caption for each image.
    """

    grids: tuple[tuple[int, int], ...]
    image_lengths: tuple[int, ...]
    caption_lengths: tuple[int, ...]
    image_rotation: Tensor
    joint_rotation: Tensor

    @property
    def joint_lengths(self) -> tuple[int, ...]:
        return tuple(a + b for a, b in zip(self.image_lengths, self.caption_lengths, strict=True))


class TimeEmbedder(nn.Module):
    """Sinusoid of the time, then two linear layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_CHANNELS, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, config.time_dim)
        )

    def forward(self, time: Tensor, linear: LinearCall) -> Tensor:
        """Float32 ``[times]`` to ``[times, time_dim]``."""
        half = TIME_CHANNELS // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
        angles = time[:, None] * rates
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        first, silu, second = cast("tuple[nn.Linear, nn.SiLU, nn.Linear]", tuple(self.mlp))
        return linear(second, silu(linear(first, sinusoid.to(first.weight.dtype))))


class FinalLayer(nn.Module):
    """Norm without weights, scaled by the time, then the projection to latent patches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.patch**2 * config.in_channels)
        self.modulation = nn.Linear(config.time_dim, config.dim)

    def modulate(self, time: Tensor, linear: LinearCall) -> Tensor:
        return 1 + linear(self.modulation, F.silu(time))

    def forward(self, x: Tensor, scale: Tensor, linear: LinearCall) -> Tensor:
        return linear(self.linear, F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS) * scale)


class CaptionEmbedder(nn.Module):
    """From the text encoder's width to the transformer's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.norm = nn.Parameter(torch.ones(config.caption_dim))
        self.linear = nn.Linear(config.caption_dim, config.dim)

    def forward(self, caption: Tensor, linear: LinearCall) -> Tensor:
        return linear(self.linear, rms_norm(caption, self.norm, self.eps))


class ZImageTransformer(nn.Module):
    """Predicts the velocity of latents, given captions and times. See the module's docstring for how it is called."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.patch**2 * config.in_channels, config.dim)
        self.x_pad_token = nn.Parameter(torch.zeros(1, config.dim))
        self.cap_embedder = CaptionEmbedder(config)
        self.cap_pad_token = nn.Parameter(torch.zeros(1, config.dim))
        self.t_embedder = TimeEmbedder(config)
        self.noise_refiner = nn.ModuleList(Block(config, modulated=True) for _ in range(config.refiner_layers))
        self.context_refiner = nn.ModuleList(Block(config, modulated=False) for _ in range(config.refiner_layers))
        self.layers = nn.ModuleList(Block(config, modulated=True) for _ in range(config.layers))
        self.final_layer = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.x_pad_token.dtype

    @property
    def device(self) -> torch.device:
        return self.x_pad_token.device

    def try_operations(self, device: torch.device, dtype: torch.dtype) -> None:
        """Runs each operation of the blocks once over a few tokens, so that whatever has to be compiled or chosen for it is.

        Weights need not be there.
        """
        config, few = self.config, PLANNED
        block = cast(Block, self.layers[0])
        x = torch.zeros(few, config.dim, device=device, dtype=dtype)
        gain, form = x[:1], plain.form(block.attention.qkv)
        forms = (form,) if form is Form.PLAIN else (form, Form.BOTH)  # both beside LoRAs
        # One row of the modulation for all tokens, and where the pictures of a batch are at other noise levels one for each.
        for row in (0, torch.zeros(few, dtype=torch.long, device=device)):
            for each in forms:
                gained_norm(x, gain, config.norm_eps, row, each)
                residual_norm(x, x, gain, gain, config.norm_eps, row, each)
            residual_norm(x, x, gain, None, config.norm_eps, row)
        gate_up = x.new_zeros(64, 2 * config.hidden)
        for each in forms:
            swiglu(gate_up, each)
        gains = (x[0, : config.head_dim],) * 2 if config.qk_norm else None
        rotation = torch.ones(few, config.head_dim // 2, dtype=torch.complex64, device=device)
        heads = (config.heads, config.heads)
        q, k, v = turned_heads(x.new_zeros(few, 3 * config.dim), heads, gains, QK_NORM_EPS, rotation)
        update = attention(q, k, v, (few,))
        for each in forms:
            coded(update, each)

    def refine_captions(self, captions: Sequence[Tensor], adapters: Sequence[Adapters | None]) -> list[Tensor]:
        """Embeds and refines captions with their LoRAs, each alone: ``[tokens, caption_dim]`` to ``[padded tokens, D]``."""
        pad, xs, runs = self.cap_pad_token, [], []
        for caption, own in zip(captions, adapters, strict=True):
            x = _padded(self.cap_embedder(caption.to(pad.dtype), adapted([own], [len(caption)])), pad)
            xs.append(x)
            rotation = self._rotation(caption_positions(len(x)), pad.device)
            runs.append(Run(rotation, (len(x),), adapted([own], [len(x)])))
        blocks = _blocks(self.context_refiner)
        return run_blocks(blocks, [block.unmodulated() for block in blocks], xs, runs)

    def modulate(self, times: Tensor, adapters: Sequence[Adapters | None] | None = None) -> Modulation:
        """Modulation of each row of a generation.

        Args:
            times: float32 ``[rows]``, 0 at pure noise and 1 at the picture.
            adapters: the LoRAs of each row.
        """
        linear = plain if adapters is None else adapted(adapters, [1] * len(times))
        embedded = self.t_embedder(times * self.config.time_scale, linear)
        return Modulation(
            noise_refiner=tuple(block.modulate(embedded, linear) for block in _blocks(self.noise_refiner)),
            layers=tuple(block.modulate(embedded, linear) for block in _blocks(self.layers)),
            final_scale=self.final_layer.modulate(embedded, linear),
        )

    def pack(self, sizes: Sequence[tuple[int, int]], caption_lengths: Sequence[int]) -> Pack:
        """Positions for latents of ``sizes`` (h, w) beside refined captions of the given lengths."""
        grids = tuple((h // self.config.patch, w // self.config.patch) for h, w in sizes)
        images, joints = [], []
        for (rows, columns), length in zip(grids, caption_lengths, strict=True):
            image = self._rotation(image_positions(rows, columns, length + 1), self.device)
            images.append(image)
            joints += [image, self._rotation(caption_positions(length), self.device)]
        return Pack(
            grids=grids,
            image_lengths=tuple(len(image) for image in images),
            caption_lengths=tuple(caption_lengths),
            image_rotation=torch.cat(images),
            joint_rotation=torch.cat(joints),
        )

    def forward(
        self,
        latents: Sequence[Tensor],
        captions: Sequence[Tensor],
        pack: Pack,
        modulation: Modulation,
        rows: Sequence[int],
        adapters: Sequence[Adapters | None] | None = None,
    ) -> list[Tensor]:
        """One step.

        Args:
            latents: ``[C, h, w]`` for each image.
            captions: refined captions, one for each image.
            pack: positions for just these latents and captions.
            modulation: of all times of the generation.
            rows: the modulation's row for each image.
            adapters: the LoRAs of each image.

        Returns:
            The network's output for each image, ``[C, h, w]``: the velocity from noise to picture.
        """
        sets = [None] * len(latents) if adapters is None else adapters
        patches = []
        for latent, own in zip(latents, sets, strict=True):
            tokens = self._patchify(latent.to(self.dtype))
            patches.append(_padded(adapted([own], [len(tokens)])(self.x_embedder, tokens), self.x_pad_token))
        xs = [torch.cat(patches)]
        patches.clear()
        row, linear = _rows(rows, pack.image_lengths, self.device), adapted(sets, pack.image_lengths)
        run = Run(pack.image_rotation, pack.image_lengths, linear, row)
        (x,) = run_blocks(_blocks(self.noise_refiner), modulation.noise_refiner, xs, [run])

        joint = [part for pair in zip(x.split(list(pack.image_lengths)), captions, strict=True) for part in pair]
        xs = [torch.cat(joint)]
        del x, joint
        row, linear = _rows(rows, pack.joint_lengths, self.device), adapted(sets, pack.joint_lengths)
        run = Run(pack.joint_rotation, pack.joint_lengths, linear, row)
        (x,) = run_blocks(_blocks(self.layers), modulation.layers, xs, [run])

        # Only image tokens are read, so only they pay for the last projection.
        kept = [
            run[: rows_ * columns]
            for run, (rows_, columns) in zip(x.split(list(pack.joint_lengths)), pack.grids, strict=True)
        ]
        lengths = [len(run) for run in kept]
        scale = modulation.final_scale[_rows(rows, lengths, self.device)]
        out = self.final_layer(torch.cat(kept), scale, adapted(sets, lengths))
        return [self._unpatchify(run, grid) for run, grid in zip(out.split(lengths), pack.grids, strict=True)]

    def _patchify(self, latent: Tensor) -> Tensor:
        """``[C, h, w]`` to ``[h/p * w/p, p * p * C]``."""
        channels, height, width = latent.shape
        p = self.config.patch
        x = latent.reshape(channels, height // p, p, width // p, p)
        return x.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns = grid
        p, channels = self.config.patch, self.config.in_channels
        x = tokens.view(rows, columns, p, p, channels)
        return x.permute(4, 0, 2, 1, 3).reshape(channels, rows * p, columns * p)

    def _rotation(self, positions: Tensor, device: torch.device) -> Tensor:
        """Complex64 ``[tokens, head_dim / 2]`` for integer positions ``[tokens, 3]``."""
        tables = rotation_tables(self.config.axes_dims, self.config.axes_lens, self.config.rope_theta)
        parts = [table[positions[:, axis]] for axis, table in enumerate(tables)]
        return torch.cat(parts, dim=-1).to(device)


def _blocks(stack: nn.ModuleList) -> list[Block]:
    return cast("list[Block]", list(stack))


def _padded(tokens: Tensor, pad: Tensor) -> Tensor:
    missing = -len(tokens) % TOKEN_MULTIPLE
    return torch.cat([tokens, pad.expand(missing, -1)]) if missing else tokens


def _rows(rows: Sequence[int], lengths: Sequence[int], device: torch.device) -> int | Tensor:
    """One row for all tokens where the images agree (a plain index costs no gather), else a row for each token."""
    if len(set(rows)) == 1:
        return rows[0]
    return (
        torch.tensor(rows, device="cpu")
        .repeat_interleave(torch.tensor(lengths, device="cpu"))
        .to(device, non_blocking=True)
    )
