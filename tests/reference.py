"""The reference that Hwaga's numbers are held against: diffusers and transformers, and small random checkpoints they save.

The checkpoints are odd on purpose: whatever a network might take for granted about Z-Image's own sizes is different in one
of them. Their weights are scaled so that pictures are neither flat nor clipped, and no bias, norm or pad token is neutral.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from hwaga.cards import ASSETS

MINI = ASSETS / "mini"
"""The bundled checkpoint; its tokenizer serves the random ones too."""

VOCABULARY = 5120


@dataclass(frozen=True)
class CheckpointConfig:
    """One random checkpoint: constructor arguments of its networks, and how they are stored."""

    transformer: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    vae: Mapping[str, Any]
    shift: float
    causal_lm: bool = False
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    residual: float = 1.0
    """Size of the transformer's tokens. Small ones tell the norms' epsilons apart."""
    shard_size: str = "1GB"


def _vae(channels: tuple[int, ...], **others: Any) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        **others,
    }


CONFIGS: dict[str, CheckpointConfig] = {
    # Fewer channels than the time embedding; heads * head_dim is not hidden; an autoencoder of scale 4 with every option on.
    "narrow": CheckpointConfig(
        transformer={
            "dim": 96, "n_heads": 3, "n_kv_heads": 3, "n_layers": 3, "n_refiner_layers": 1, "in_channels": 4,
            "axes_dims": (8, 12, 12), "axes_lens": (160, 96, 96), "cap_feat_dim": 64,
        },
        text_encoder={
            "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        vae=_vae(
            (16, 24, 32), latent_channels=4, layers_per_block=2, norm_num_groups=8, mid_block_add_attention=False,
            use_quant_conv=True, use_post_quant_conv=True, scaling_factor=0.4, shift_factor=-0.2,
        ),
        shift=3.0,
    ),
    # More channels than modulation sees of the time; one key/value head; biases in the text encoder; 853 hidden channels.
    "wide": CheckpointConfig(
        transformer={
            "dim": 320, "n_heads": 5, "n_kv_heads": 5, "n_layers": 2, "n_refiner_layers": 2, "in_channels": 16,
            "axes_dims": (16, 24, 24), "axes_lens": (1024, 512, 512), "cap_feat_dim": 80, "norm_eps": 1e-3,
            "rope_theta": 100.0,
        },
        text_encoder={
            "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-3, "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vae=_vae(
            (8, 16, 16, 24), latent_channels=16, layers_per_block=1, norm_num_groups=4, scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        shift=1.0,
    ),
    # Many files, each network in another number format, the text encoder with its language-model head, no norm of q and k.
    "sharded": CheckpointConfig(
        transformer={
            "dim": 128, "n_heads": 1, "n_kv_heads": 1, "n_layers": 4, "n_refiner_layers": 1, "in_channels": 8,
            "axes_dims": (32, 48, 48), "axes_lens": (1024, 512, 512), "cap_feat_dim": 48, "qk_norm": False,
            "t_scale": 500.0,
        },
        text_encoder={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
        vae=_vae(
            (8, 8, 16, 16), latent_channels=8, layers_per_block=1, norm_num_groups=8, scaling_factor=1.2,
            shift_factor=0.0, use_quant_conv=True,
        ),
        shift=5.0,
        causal_lm=True,
        dtypes={"text_encoder": torch.bfloat16, "vae": torch.float16},
        shard_size="300KB",
    ),
    # An autoencoder of scale 16, so that sides must be multiples of 32; the quickest of them.
    "deep": CheckpointConfig(
        transformer={
            "dim": 64, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "n_refiner_layers": 1, "in_channels": 8,
            "axes_dims": (8, 12, 12), "axes_lens": (1024, 128, 128), "cap_feat_dim": 32,
        },
        text_encoder={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        vae=_vae(
            (4, 4, 8, 8, 8), latent_channels=8, layers_per_block=1, norm_num_groups=4, scaling_factor=0.5,
            shift_factor=0.1,
        ),
        shift=3.0,
        residual=0.03,
    ),
}  # fmt: skip

SIZES = {
    "narrow": [(256, 256), (288, 256)],
    "wide": [(256, 272), (320, 256)],
    "sharded": [(272, 272), (256, 304)],
    "deep": [(256, 256), (288, 320)],
}
"""Two sizes (width, height) for each checkpoint; several give numbers of image tokens that are no multiple of 32."""


def random_checkpoint(folder: Path, config_name: str, config: CheckpointConfig | None = None) -> Path:
    """Saves the random checkpoint of that name in diffusers' layout, and returns the folder."""
    config = config or CONFIGS[config_name]
    generator = torch.Generator().manual_seed(sum(config_name.encode()))
    text_config = Qwen3Config(
        vocab_size=VOCABULARY, max_position_embeddings=2048, **{"tie_word_embeddings": True, **config.text_encoder}
    )
    text_encoder = (Qwen3ForCausalLM if config.causal_lm else Qwen3Model)(text_config)
    transformer = ZImageTransformer2DModel(**config.transformer)
    vae = AutoencoderKL(**config.vae)
    for name, network in (("text_encoder", text_encoder), ("transformer", transformer), ("vae", vae)):
        randomise(network, generator, config.residual)
        network.to(config.dtypes.get(name, torch.float32))
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=config.shift),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(MINI / "tokenizer"),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, max_shard_size=config.shard_size)
    return folder


def reference_pipeline(folder: Path) -> ZImagePipeline:
    """diffusers' pipeline of a checkpoint with every network in float32.

    ``ZImagePipeline.from_pretrained(folder, dtype=torch.float32)`` alone leaves the text encoder in the format that its
    config.json names.
    """
    index = json.loads((folder / "model_index.json").read_text())
    text_encoder = getattr(transformers, index["text_encoder"][1]).from_pretrained(
        folder / "text_encoder", dtype=torch.float32
    )
    pipeline = ZImagePipeline.from_pretrained(folder, text_encoder=text_encoder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for network in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    return pipeline


def image_to_image(pipeline: ZImagePipeline) -> ZImageImg2ImgPipeline:
    """diffusers' image-to-image pipeline over the same networks."""
    other = ZImageImg2ImgPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    return other


def reference_embedding(pipeline: ZImagePipeline, prompt: str, limit: int = 512) -> Tensor:
    """What the reference conditions on: ``[tokens, hidden]``."""
    with torch.no_grad():
        embeddings, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device("cpu"), max_sequence_length=limit
        )
    return embeddings[0]


def reference_ids(tokenizer: Any, prompt: str, limit: int = 512) -> list[int]:
    """Token ids the way ``ZImagePipeline`` makes them, less the padding."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    encoded = tokenizer([text], padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    return encoded.input_ids[0][encoded.attention_mask[0].bool()].tolist()


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator, residual: float = 1.0) -> None:
    """Fills a network with weights that keep values near 1 and leave no bias, norm or pad token neutral."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("pad_token"):
            value = noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        elif parameter.ndim == 1:
            value = 1 + 0.2 * noise
        elif "embed_tokens" in name:
            value = noise
        else:
            fan_in = parameter[0].numel()
            value = noise / fan_in**0.5
            if name == "decoder.conv_out.weight":
                value *= 0.5  # pixels then mostly lie within [-1, 1]
        if re.search(
            r"x_embedder|cap_embedder\.1|pad_token|_norm2\.", name
        ):  # what writes into the transformer's tokens
            value *= residual
        parameter.copy_(value)
