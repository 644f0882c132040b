"""SDXL's networks in miniature, of diffusers' and transformers' own classes, with random weights; and as one file.

Their heads are as wide as SDXL's, and so is whatever else the shapes of weights do not tell.
"""

from __future__ import annotations

import lzma
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from reference import randomise
from single_files import ldm_autoencoder
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hwaga.families.sdxl.words import PUBLISHED_MERGES
from hwaga.weights.layouts import ldm_unet

UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (64, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 16,
    "cross_attention_dim": 192, "projection_class_embeddings_input_dim": 6 * 16 + 128, "use_linear_projection": True,
}  # fmt: skip
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 1, "hidden_act": "quick_gelu",
    "projection_dim": 64, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
TEXT_ENCODER_2: dict[str, Any] = {
    **TEXT_ENCODER, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 2,
    "hidden_act": "gelu", "projection_dim": 128,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 2, "sample_size": 128,
    "scaling_factor": 0.13025,
}  # fmt: skip


SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading",
    "steps_offset": 1,
}  # fmt: skip

VOCABULARY = 1000
"""Of a text encoder, where CLIP's 49,408 tokens are not needed."""


def sdxl_networks(seed: int = 0, *, vocabulary: int = VOCABULARY) -> dict[str, nn.Module]:
    """The four networks by diffusers' names, in float32."""
    generator = torch.Generator().manual_seed(seed)
    networks = {
        "unet": UNet2DConditionModel(**UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, **TEXT_ENCODER)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=vocabulary, **TEXT_ENCODER_2)),
        "vae": AutoencoderKL(**VAE),
    }
    for network in networks.values():
        randomise(network.eval(), generator)
    return networks


def sdxl_pipeline(networks: dict[str, nn.Module]) -> StableDiffusionXLPipeline:
    """diffusers' pipeline over networks, with tokenizers that know no words."""
    return StableDiffusionXLPipeline(
        **networks,
        tokenizer=CLIPTokenizer(),
        tokenizer_2=CLIPTokenizer(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
    )


def published_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's, with a token for padding."""
    merges = lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode().splitlines()[1:]
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 324))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, [tuple(merge.split()) for merge in merges], pad_token=pad)


def single_file(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Their weights as SDXL's authors name and keep them; diffusers' own converters read it back in the tests."""
    tensors: dict[str, Tensor] = {}
    unet = ldm_unet([False, True, True])
    for name, tensor in networks["unet"].state_dict().items():
        tensors[f"model.diffusion_model.{unet.sources(name)[0]}"] = tensor
    for name, tensor in networks["text_encoder"].state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    clip = "conditioner.embedders.1.model."
    state = {
        name.removeprefix("text_model."): tensor for name, tensor in networks["text_encoder_2"].state_dict().items()
    }
    tensors[f"{clip}text_projection"] = state.pop("text_projection.weight").t()
    tensors[f"{clip}positional_embedding"] = state.pop("embeddings.position_embedding.weight")
    tensors[f"{clip}logit_scale"] = torch.tensor(4.6)
    for name, tensor in state.items():
        if "self_attn.q_proj" in name:
            qkv = [state[name.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")]
            name, tensor = name.replace("q_proj.", "in_proj_"), torch.cat(qkv)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for ours, theirs in OPEN_CLIP:
            name = name.replace(ours, theirs)
        tensors[clip + name] = tensor
    for name, tensor in ldm_autoencoder(dict(networks["vae"].state_dict())).items():
        tensors[f"first_stage_model.{name}"] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


OPEN_CLIP = (
    ("embeddings.token_embedding", "token_embedding"), ("encoder.layers.", "transformer.resblocks."), ("self_attn", "attn"),
    ("final_layer_norm", "ln_final"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
)  # fmt: skip


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
    ids = torch.randint(0, VOCABULARY - 1, (rows, 77), generator=torch.Generator().manual_seed(seed))
    ids[:, 40:] = VOCABULARY - 1
    return ids
