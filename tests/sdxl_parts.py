"""SDXL's networks in miniature, of diffusers' and transformers' own classes, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from reference import randomise
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (64, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 16,
    "cross_attention_dim": 112, "projection_class_embeddings_input_dim": 6 * 16 + 64, "use_linear_projection": True,
}  # fmt: skip
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 49408,
    "hidden_act": "quick_gelu", "projection_dim": 48, "max_position_embeddings": 77, "bos_token_id": 49406,
    "eos_token_id": 49407,
}  # fmt: skip
TEXT_ENCODER_2: dict[str, Any] = {
    **TEXT_ENCODER, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 1,
    "hidden_act": "gelu", "projection_dim": 64,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 2, "sample_size": 128,
    "scaling_factor": 0.13025,
}  # fmt: skip


def sdxl_networks(seed: int = 0) -> dict[str, nn.Module]:
    """The four networks by diffusers' names, in float32."""
    generator = torch.Generator().manual_seed(seed)
    networks = {
        "unet": UNet2DConditionModel(**UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2)),
        "vae": AutoencoderKL(**VAE),
    }
    for network in networks.values():
        randomise(network.eval(), generator)
    return networks


def sdxl_pipeline(networks: dict[str, nn.Module]) -> StableDiffusionXLPipeline:
    """diffusers' pipeline over networks, with tokenizers that know no words."""
    return StableDiffusionXLPipeline(
        **networks, tokenizer=CLIPTokenizer(), tokenizer_2=CLIPTokenizer(), scheduler=EulerDiscreteScheduler()
    )


def unet_inputs(rows: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of the U-Net for a batch."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    return {
        "sample": noise(4, 16, 16),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": noise(77, UNET["cross_attention_dim"]),
        "added_cond_kwargs": {
            "text_embeds": noise(TEXT_ENCODER_2["projection_dim"]),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]).repeat(rows, 1),
        },
    }


def token_ids(rows: int, seed: int = 0) -> Tensor:
    ids = torch.randint(0, 49000, (rows, 77), generator=torch.Generator().manual_seed(seed))
    ids[:, 40:] = 49407
    return ids
