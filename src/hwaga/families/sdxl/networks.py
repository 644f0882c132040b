"""SDXL's networks, which are borrowed: diffusers' U-Net and autoencoder, transformers' two CLIP encoders.

They are built from the checkpoint's own configuration files, once it is known that these describe an SDXL. Both packages are
imported when the first network of theirs is built, so that everything else runs without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hwaga.errors import CheckpointError, ModelError
from hwaga.weights.checkpoint import read_config
from hwaga.weights.config import ConfigValues
from hwaga.weights.layouts import Layout

Config = Mapping[str, Any]
"""What a network's config.json holds."""

FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""The networks by the names of their folders in diffusers' layout."""

SIZES = 6
"""Numbers of a picture's size that the U-Net is told: original, cropped and wanted height and width."""

BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""Kinds of blocks that an SDXL has."""

NOT_BUILT = (
    "encoder_hid_dim_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim", "center_input_sample",
    "dual_cross_attention", "only_cross_attention",
)  # fmt: skip
"""Of a U-Net: what makes a different model of it, and is not set in SDXL's."""

CLIP = Layout(unused=("*embeddings.position_ids",))
CLIP_WITHOUT_PREFIX = Layout(strip=("text_model.",), unused=("*embeddings.position_ids",))
"""Files call a CLIP encoder's weights ``text_model.…``; transformers' network does or does not, by its version."""

BORROWED = Layout()
"""Files and networks of diffusers name weights alike."""

_UNIT = re.compile(
    r"(?:(down_blocks|up_blocks)\.(\d+)|(mid_block))\.(?:(resnets)\.(\d+)|(attentions)\.(\d+)\.transformer_blocks\.(\d+))(?=\.)"
)
_STAGES = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Networks:
    """The configurations of a checkpoint's networks, known to fit one another; see ``check``."""

    text_encoder: Config
    text_encoder_2: Config
    unet: Config
    vae: Config

    @classmethod
    def read(cls, folder: Path) -> Networks:
        """Of a checkpoint in diffusers' layout. Raises CheckpointError."""
        found = cls(*(read_config(folder / name) for name in FOLDERS))
        found.check(folder)
        return found

    @property
    def latent_channels(self) -> int:
        return int(self.vae["latent_channels"])

    @property
    def scale(self) -> int:
        """Pixels along a side for one of the latents."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def scaling(self) -> float:
        """Latents are the autoencoder's, times this."""
        return float(self.vae["scaling_factor"])

    @property
    def overflows(self) -> bool:
        """Whether the autoencoder's activations are too large for float16. Those of SDXL's own are."""
        return bool(self.vae.get("force_upcast", True))

    @property
    def caption_width(self) -> int:
        """Numbers of each token that the U-Net reads."""
        return int(self.text_encoder["hidden_size"] + self.text_encoder_2["hidden_size"])

    def check(self, place: Path) -> None:
        """Refuses what is no SDXL, or of several.

        Args:
            place: of the configurations, for messages.

        Raises:
            CheckpointError: with what is unusual or does not fit.
        """
        unet, vae = (
            ConfigValues(config, f"{place}, {name}") for config, name in ((self.unet, "unet"), (self.vae, "vae"))
        )
        texts = [
            ConfigValues(config, f"{place}, {name}")
            for config, name in ((self.text_encoder, "text_encoder"), (self.text_encoder_2, "text_encoder_2"))
        ]
        for text in texts:
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
                text.count(name)
        channels = vae.count("latent_channels")
        vae.counts("block_out_channels")
        vae.positive("scaling_factor")
        for name, kinds in BLOCKS.items():
            if others := [kind for kind in unet.texts(name) if kind not in kinds]:
                raise CheckpointError(f"{place}: the U-Net has {', '.join(others)}, which no SDXL has.")
        unusual = [name for name in NOT_BUILT if self.unet.get(name)]
        unusual += [name for name in ("latents_mean", "latents_std", "shift_factor") if self.vae.get(name)]
        if unusual:
            raise CheckpointError(f"{place} sets {', '.join(unusual)}, which is not built here.")
        if unet.text("addition_embed_type", "none") != "text_time":
            raise CheckpointError(
                f"{place} holds a U-Net that is not told the size of pictures, as SDXL's is. It is of another model."
            )
        if (unet.count("in_channels"), unet.count("out_channels")) != (channels, channels):
            raise CheckpointError(
                f"{place}: the U-Net takes {unet.count('in_channels')} channels and the autoencoder has {channels}. Inpainting "
                "models are not drawn with here; other models' parts belong to different checkpoints."
            )
        width = texts[0].count("hidden_size") + texts[1].count("hidden_size")
        pooled = texts[1].count("projection_dim") + SIZES * unet.count("addition_time_embed_dim")
        unet.counts("block_out_channels")
        for name, wanted in (("cross_attention_dim", width), ("projection_class_embeddings_input_dim", pooled)):
            if unet.count(name) != wanted:
                raise CheckpointError(
                    f"{place}: the U-Net's {name} is {unet.count(name)} and the text encoders come to {wanted}. They belong to "
                    "different checkpoints."
                )

    def build_text_encoder(self) -> Any:
        """The first encoder, transformers' ``CLIPTextModel``."""
        with _borrowing("text_encoder"):
            from transformers import CLIPTextConfig, CLIPTextModel

            return CLIPTextModel(CLIPTextConfig(**self.text_encoder))

    def build_text_encoder_2(self) -> Any:
        """The second encoder, transformers' ``CLIPTextModelWithProjection``."""
        with _borrowing("text_encoder_2"):
            from transformers import CLIPTextConfig, CLIPTextModelWithProjection

            return CLIPTextModelWithProjection(CLIPTextConfig(**self.text_encoder_2))

    def build_unet(self) -> Any:
        """The denoiser, diffusers' ``UNet2DConditionModel``."""
        with _borrowing("unet"):
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            return UNet2DConditionModel.from_config(dict(self.unet))

    def build_vae(self) -> Any:
        """diffusers' ``AutoencoderKL``."""
        with _borrowing("vae"):
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            return AutoencoderKL.from_config(dict(self.vae))


@contextmanager
def _borrowing(name: str) -> Iterator[None]:
    """While a network is imported and built."""
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"Stable Diffusion XL is drawn with the packages diffusers and transformers, which are not here ({error}). "
            "Install them in a checkout of Hwaga: pip install '.[sdxl]'"
        ) from error
    except Exception as error:  # whatever the packages raise for a configuration that makes no sense
        raise CheckpointError(f"The configuration of {name} describes no network: {error}. Fetch it again.") from error


def clip_layout(network: nn.Module) -> Layout:
    """How files name the weights of a CLIP encoder."""
    prefixed = any(name.startswith("text_model.") for name, _ in network.named_parameters())
    return CLIP if prefixed else CLIP_WITHOUT_PREFIX


def clip_unit(name: str) -> str:
    """The unit of a weight of the two encoders, whose names begin with ``1.`` and ``2.``: its layer or the embeddings; "" for
    the few others.
    """
    found = re.match(r"\d\.(?:text_model\.)?(?:encoder\.layers\.\d+|embeddings)(?=\.)", name)
    return "" if found is None else found[0]


def clip_order(unit: str) -> tuple[int, int]:
    """Place of a unit of the encoders in the order that they run in."""
    layer = unit.rpartition(".")[2]
    return int(unit[0]), int(layer) if layer.isdecimal() else -1


def unet_unit(name: str) -> str:
    """The unit of a U-Net's weight: a residual block or a transformer block; "" for what lies between them, which is little."""
    found = _UNIT.match(name)
    return "" if found is None else found[0]


def unet_order(unit: str) -> tuple[int, ...]:
    """Place of a U-Net's unit in the order that they run in: down, through the middle and up again; within a stage each
    residual block is followed by its transformer blocks.
    """
    found = _UNIT.match(f"{unit}.")
    assert found is not None, "what is between blocks has no place"
    side, index, middle, resnet, place, _, attention, layer = found.groups()
    return (
        _STAGES.index(side or middle),
        int(index or 0),
        int(place or attention),
        0 if resnet else 1,
        int(layer or 0),
    )
