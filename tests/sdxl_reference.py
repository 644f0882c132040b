"""Small random checkpoints of SDXL's kind, and diffusers' pipelines over them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from reference import randomise
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hwaga.families.sdxl.words import PUBLISHED_MERGES

MERGES = 400
"""Of CLIP's, the first: words fall into more tokens than with all of them, and the tables stay small."""

SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading",
    "steps_offset": 1,
}  # fmt: skip

TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "eos_token_id": 2}
TEXT_2 = {
    "hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 20,
    "hidden_act": "gelu", "eos_token_id": 2,
}  # fmt: skip
UNET: dict[str, Any] = {
    "block_out_channels": (16, 32, 48), "layers_per_block": 2, "norm_num_groups": 8, "attention_head_dim": (1, 2, 3),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2), "use_linear_projection": True, "cross_attention_dim": 64,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8, "sample_size": 16,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    "scaling_factor": 0.5, "sample_size": 64,
}  # fmt: skip

CARD = """
name = "tiny-xl"
family = "sdxl"
title = "Random weights, for tests"
license = "none"
source = "none"
steps = 3
guidance = 5.0
samplers = ["euler", "dpmpp_2m_karras"]
preview = [[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.1, 0.1, 0.0], [0.0, 0.1, 0.2]]

[aspects]
"1:1" = [64, 64]
"4:3" = [64, 48]

[limits]
multiple = 4
min_side = 16
max_side = 512
max_pixels = 262144
max_steps = 50
tokens = 225
max_tokens = 750

[parts.unet]
parameters = 1
"""


def random_sdxl(
    folder: Path,
    *,
    scheduler: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    force_zeros: bool = True,
    **vae: Any,
) -> Path:
    """Saves a random checkpoint in diffusers' layout, with a card, and returns the folder."""
    generator = torch.Generator().manual_seed(7)
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_tokenizer(folder / name, pad)
    vocabulary = len(json.loads((folder / "tokenizer/vocab.json").read_text()))
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, **TEXT)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=vocabulary, **TEXT_2)),
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**{**VAE, **vae}),
    }
    for network in parts.values():
        randomise(network, generator)
        network.to(dtype)
    pipeline = StableDiffusionXLPipeline(
        **parts,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        scheduler=EulerDiscreteScheduler(**{**SCHEDULER, **(scheduler or {})}),
        force_zeros_for_empty_prompt=force_zeros,
    )
    pipeline.save_pretrained(folder)
    (folder / "card.toml").write_text(CARD)
    return folder


def write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's tokenizer of few merges, in the files that SDXL was published with."""
    lines = lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode().splitlines()
    merges = [line for line in lines if not line.startswith("#version")][:MERGES]
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 324))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    marks = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**marks, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))


def sdxl_pipeline(folder: Path, scheduler: Any = None) -> StableDiffusionXLPipeline:
    """diffusers' text-to-image pipeline, in float32 and without a watermark.

    Args:
        scheduler: in place of the checkpoint's.
    """
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl_image_to_image(pipeline: StableDiffusionXLPipeline) -> StableDiffusionXLImg2ImgPipeline:
    """diffusers' image-to-image pipeline over the same networks."""
    other = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    return other
