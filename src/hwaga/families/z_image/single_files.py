"""Z-Image from files without configurations: the sizes of its networks, read off the shapes of their weights.

What shapes cannot say is a constant of the published models. The constants stand below in the words of the configuration
files that they are from, so that both ways to a configuration end in the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from hwaga.errors import CheckpointError
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.checkpoint import Blueprint
from hwaga.weights.layouts import (
    AUTOENCODER,
    Z_IMAGE_ORIGINAL,
    Layout,
    ldm_autoencoder,
    llama_cpp_qwen3,
    qwen3_encoder,
    z_image_transformer,
)
from hwaga.weights.single_file import Part, find_parts

PATCH = 2

TRANSFORMER = {
    "all_f_patch_size": [1], "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "norm_eps": 1e-5,
    "rope_theta": 256.0, "t_scale": 1000.0,
}  # fmt: skip
"""From transformer/config.json of Tongyi-MAI/Z-Image-Turbo, and so is ``PATCH``."""

HEAD_DIM = 128
"""Channels of a transformer's head: the sum of its rotary axes."""

TEXT_ENCODER = {"model_type": "qwen3", "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
"""From text_encoder/config.json there, which is Qwen3-4B's."""

TEXT_ENCODER_LAYERS = {2560: 36}
"""Layers of a published text encoder by its width, from the same file. A file may lack the last one, which is not needed."""

AUTOENCODER_CONFIG = {"norm_num_groups": 32, "scaling_factor": 0.3611, "shift_factor": 0.1159}
"""From vae/config.json there, which is that of the autoencoder of Flux.1."""

SHIFT = 3.0
"""Of the schedule; from scheduler/scheduler_config.json there."""

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class FoundNetwork(Generic[Config, Network]):
    """A network in a file, with the configuration that follows from it.

    Attributes:
        values: the configuration in the words of a configuration file.
    """

    config: Config
    values: Mapping[str, Any]
    part: Part
    layout: Layout
    build: Callable[[Config], Network]

    def blueprint(self) -> Blueprint[Network]:
        """Raises CheckpointError where the file does not hold just the network that its shapes tell of."""
        part = self.part
        return Blueprint.match(
            lambda: self.build(self.config), part.tensors, self.layout, part.file, "the shape of its other weights"
        )


@dataclass(frozen=True)
class SingleFiles:
    """The three networks of a model."""

    text_encoder: FoundNetwork[TextEncoderConfig, Qwen3Encoder]
    transformer: FoundNetwork[TransformerConfig, ZImageTransformer]
    autoencoder: FoundNetwork[AutoencoderConfig, Autoencoder]

    @classmethod
    def read(cls, files: Sequence[Path]) -> SingleFiles:
        """Finds the networks in files of any names, by their headers.

        Raises:
            CheckpointError: a network is missing, there twice, or of sizes that Z-Image cannot have.
        """
        parts = find_parts(files)
        return cls(
            _text_encoder(parts["text encoder"]), _transformer(parts["transformer"]), _autoencoder(parts["autoencoder"])
        )

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        parts = (self.text_encoder.part, self.transformer.part, self.autoencoder.part)
        return list(dict.fromkeys(part.file for part in parts))


class _Shapes:
    """Shapes of a part's tensors by the names of our networks."""

    def __init__(self, part: Part, layout: Layout) -> None:
        self._file = part.file
        self._shapes = {layout.target(tensor.name): tensor.shape for tensor in part.tensors}

    def __contains__(self, name: str) -> bool:
        return (name, 0) in self._shapes

    def of(self, name: str, axes: int, place: int = 0) -> tuple[int, ...]:
        shape = self._shapes.get((name, place))
        if shape is None:
            raise CheckpointError(f"{self._file} lacks {name}. Fetch it again.")
        if len(shape) != axes or 0 in shape:
            raise CheckpointError(f"{self._file}: {name} is {list(shape)} and should have {axes} axes.")
        return shape


def _transformer(part: Part) -> FoundNetwork[TransformerConfig, ZImageTransformer]:
    patches = [match[1] for name in part.names if (match := re.match(r"all_x_embedder\.([1-9])-1\.", name))]
    patch = int(patches[0]) if patches else PATCH
    layout = (z_image_transformer(patch) if patches else Z_IMAGE_ORIGINAL).below(part.prefix)
    shapes = _Shapes(part, layout)
    dim, inputs = shapes.of("x_embedder.weight", 2)
    if dim % HEAD_DIM or inputs % patch**2:
        raise CheckpointError(
            f"{part.file}: x_embedder.weight is {[dim, inputs]}. Z-Image has heads of {HEAD_DIM} channels and patches of "
            f"{patch}×{patch} latent pixels, so that this is another model."
        )
    values = {
        **TRANSFORMER,
        "all_patch_size": [patch],
        "dim": dim,
        "n_heads": dim // HEAD_DIM,
        "n_kv_heads": dim // HEAD_DIM,
        "n_layers": _count(part, r"layers\.(\d+)\."),
        "n_refiner_layers": _count(part, r"noise_refiner\.(\d+)\."),
        "in_channels": inputs // patch**2,
        "cap_feat_dim": shapes.of("cap_embedder.norm", 1)[0],
        "qk_norm": "layers.0.attention.q_norm" in shapes,
    }
    return FoundNetwork(TransformerConfig.from_json(values), values, part, layout, ZImageTransformer)


def _text_encoder(part: Part) -> FoundNetwork[TextEncoderConfig, Qwen3Encoder]:
    layers = _count(part, r"(?:(?:model\.)?layers|blk)\.(\d+)\.")
    spelling = llama_cpp_qwen3 if "blk.0.attn_q_norm.weight" in part.names else qwen3_encoder
    # Read with a layout that leaves nothing out, since the first layer may also be the last one there is.
    shapes = _Shapes(part, spelling(layers + 1).below(part.prefix))
    vocabulary, hidden = shapes.of("embed_tokens.weight", 2)
    if not any(re.fullmatch(r"(?:(?:model\.)?|output_)norm\.weight", name) for name in part.names):
        layers += 1  # a file without the final norm was cut off at the layer that is read
    layers = TEXT_ENCODER_LAYERS.get(hidden, layers)
    (head_dim,) = shapes.of("layers.0.self_attn.q_norm", 1)
    queries, keys = (shapes.of("layers.0.self_attn.qkv_proj.weight", 2, place)[0] for place in (0, 1))
    heads, kv_heads = queries // head_dim, keys // head_dim
    if not kv_heads or heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"{part.file}: {queries} channels of queries and {keys} of keys make no heads of {head_dim}. It is damaged."
        )
    values = {
        **TEXT_ENCODER,
        "hidden_size": hidden,
        "intermediate_size": shapes.of("layers.0.mlp.gate_up_proj.weight", 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "attention_bias": "layers.0.self_attn.qkv_proj.bias" in shapes,
    }
    config = TextEncoderConfig.from_json(values)
    return FoundNetwork(config, values, part, spelling(layers).below(part.prefix), Qwen3Encoder)


def _autoencoder(part: Part) -> FoundNetwork[AutoencoderConfig, Autoencoder]:
    blocks = _count(part, r"encoder\.down(?:_blocks)?\.(\d+)\.")
    original = any(name.startswith("decoder.mid.") for name in part.names)
    layout = (ldm_autoencoder(blocks) if original else AUTOENCODER).below(part.prefix)
    shapes = _Shapes(part, layout)
    widths = [shapes.of(f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(blocks)]
    if any(width % AUTOENCODER_CONFIG["norm_num_groups"] for width in widths):
        raise CheckpointError(f"{part.file} has {widths} channels, which is no autoencoder of Z-Image.")
    resnets = _count(part, r"encoder\.down(?:_blocks)?\.0\.(?:block|resnets)\.(\d+)\.")
    values = {
        **AUTOENCODER_CONFIG,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "block_out_channels": widths,
        "layers_per_block": resnets,
        "latent_channels": shapes.of("decoder.conv_in.weight", 4)[1],
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    return FoundNetwork(AutoencoderConfig.from_json(values), values, part, layout, Autoencoder)


def _count(part: Part, pattern: str) -> int:
    """How many different numbers the pattern finds at the beginning of names."""
    found = {match[1] for name in part.names if (match := re.match(pattern, name))}
    if not found:
        raise CheckpointError(
            f"{part.file} has no layers of the kind that its other weights belong to. Fetch it again."
        )
    return len(found)
