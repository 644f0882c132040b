"""Sizes of the Z-Image transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from hwaga.errors import CheckpointError
from hwaga.weights.config import ConfigValues

TIME_CHANNELS = 256
"""Width of the sinusoid that a time is written as, and the most that modulation sees of it."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network, as ``transformer/config.json`` gives them."""

    dim: int
    layers: int
    refiner_layers: int
    heads: int
    norm_eps: float
    qk_norm: bool
    in_channels: int
    patch: int
    caption_dim: int
    rope_theta: float
    time_scale: float
    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        return int(self.dim / 3 * 8)

    @property
    def time_dim(self) -> int:
        return min(self.dim, TIME_CHANNELS)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Reads diffusers' configuration.

        Raises:
            CheckpointError: a value is missing, or the network is of a kind that is not built here.
        """
        read = ConfigValues(values, "transformer/config.json")
        config = cls(
            dim=read.count("dim"),
            layers=read.count("n_layers"),
            refiner_layers=read.count("n_refiner_layers"),
            heads=read.count("n_heads"),
            norm_eps=read.epsilon("norm_eps"),
            qk_norm=read.flag("qk_norm"),
            in_channels=read.count("in_channels"),
            patch=read.counts("all_patch_size")[0],
            caption_dim=read.count("cap_feat_dim"),
            rope_theta=read.positive("rope_theta"),
            time_scale=read.number("t_scale"),
            axes_dims=cast("tuple[int, int, int]", read.counts("axes_dims")),
            axes_lens=cast("tuple[int, int, int]", read.counts("axes_lens")),
        )
        patches = (*read.counts("all_patch_size"), *read.counts("all_f_patch_size"))
        if values.get("siglip_feat_dim") is not None:
            raise CheckpointError(
                "This is an Omni checkpoint (siglip_feat_dim is set); only Z-Image and Turbo are built."
            )
        if patches != (config.patch, 1):
            raise CheckpointError("Only transformers with one patch size and single frames are built here.")
        axes = len(config.axes_dims), len(config.axes_lens)
        odd = any(dim % 2 for dim in config.axes_dims)
        if axes != (3, 3) or odd or config.dim != config.heads * sum(config.axes_dims):
            raise CheckpointError(
                f"transformer/config.json contradicts itself: {config.dim} channels over {config.heads} heads "
                f"with rotary axes {list(config.axes_dims)}."
            )
        return config
