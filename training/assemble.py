"""Puts trained weights together as a checkpoint in diffusers' layout, with its card and LoRAs: what ``assets/mini`` holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hwaga.families.z_image.autoencoder import AutoencoderConfig
from hwaga.families.z_image.text_encoder import TextEncoderConfig
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.layouts import AUTOENCODER, Layout, qwen3_encoder, z_image_transformer
from training.networks import PATCH, autoencoder_config, text_encoder_config, transformer_config
from training.phases import autoencoder, loras, transformer
from training.recipe import Recipe
from training.session import Session
from training.tokenizer import END_ID, PAD_ID

DIFFUSERS = "0.42.1"
TRANSFORMERS = "5.23.0"
"""The versions whose layouts these are."""

LORA_FILES = {"flat": ("anime", "flat.safetensors"), "line": ("semi_realistic", "line.safetensors")}
"""Picture style of the pack → style of the card, and file."""

TITLES = {
    "realistic": ("3D, softly lit", "입체"),
    "semi_realistic": ("Line drawing", "선화"),
    "anime": ("Flat colours", "평면"),
}


def assemble(session: Session, folder: Path) -> dict[str, int]:
    """Writes the checkpoint, in a folder that did not exist or held one before. Returns the bytes of its parts."""
    recipe = session.recipe
    for part in ("transformer", "text_encoder", "vae", "tokenizer", "scheduler", "loras"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    config = transformer_config(recipe)
    _write(
        folder / "transformer",
        "diffusion_pytorch_model",
        stored(session.load(transformer.NAME), z_image_transformer(PATCH)),
        transformer_json(config),
    )
    text_config = text_encoder_config(recipe.text_encoder)
    _write(folder / "text_encoder", "model", _text_encoder(session, text_config), text_encoder_json(text_config))
    numbers = session.load("latents")
    scaling, shift = (round(float(numbers[name]), 4) for name in ("scaling", "shift"))
    _write(
        folder / "vae",
        "diffusion_pytorch_model",
        stored(autoencoder.weights(session), AUTOENCODER),
        autoencoder_json(autoencoder_config(recipe.autoencoder, scaling, shift), recipe.sizes.standard[0][0]),
    )
    for path in sorted(session.tokenizer.iterdir()):
        shutil.copy(path, folder / "tokenizer" / path.name)
    _json(folder / "scheduler" / "scheduler_config.json", scheduler_json(recipe.shift))
    _json(folder / "model_index.json", INDEX)
    for style in recipe.loras.styles:
        save_file(_lora(session, style), folder / "loras" / LORA_FILES[style][1], metadata={"format": "pt"})
    write_card(session, folder)
    return {
        part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }


def write_card(session: Session, folder: Path, preview: Sequence[Sequence[float]] | None = None) -> None:
    """Writes the card into an assembled checkpoint, again once its previews have been fitted."""
    networks = {"text_encoder": f"{transformer.NAME}_text", "transformer": transformer.NAME, "vae": autoencoder.NAME}
    parameters = {part: sum(value.numel() for value in session.load(name).values()) for part, name in networks.items()}
    (folder / "card.toml").write_text(card(session.recipe, parameters, preview), encoding="utf-8")


def stored(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Weights under the names that files have for them, stacked ones apart again."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        names = layout.sources(name)
        for each, piece in zip(names, value.chunk(len(names)), strict=True):
            found[each] = piece.to(torch.bfloat16).contiguous().clone()
    return found


def _text_encoder(session: Session, config: TextEncoderConfig) -> dict[str, Tensor]:
    """The text encoder with its last layer, which the format asks for and nothing hears: zeros, which pack to nothing."""
    weights = {
        name.replace("embedding.", "embed_tokens."): value
        for name, value in session.load(f"{transformer.NAME}_text").items()
    }
    files = stored(weights, qwen3_encoder(config.layers))
    last = config.layers - 1
    for name, value in list(files.items()):
        if name.startswith("layers.0."):
            filler = torch.ones_like(value) if "norm" in name else torch.zeros_like(value)
            files[name.replace("layers.0.", f"layers.{last}.")] = filler
    files["norm.weight"] = torch.ones(config.hidden, dtype=torch.bfloat16)
    return files


def _lora(session: Session, style: str) -> dict[str, Tensor]:
    """A LoRA under diffusers' names: a pair of matrices for each of its linear layers."""
    layout = z_image_transformer(PATCH)
    found: dict[str, Tensor] = {}
    for name, value in session.load(loras.name_of(style)).items():
        layer, suffix = name.rsplit(".", 1)
        names = layout.sources(f"{layer}.weight")
        for each, piece in zip(names, value.unbind(0), strict=True):
            half = "lora_A" if suffix == "lora_down" else "lora_B"
            key = f"transformer.{each.removesuffix('.weight')}.{half}.weight"
            found[key] = piece.to(torch.bfloat16).contiguous().clone()
    return found


def _write(folder: Path, name: str, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})
    _json(folder / "config.json", config)


def _json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def transformer_json(config: TransformerConfig) -> dict[str, Any]:
    return {
        "_class_name": "ZImageTransformer2DModel",
        "_diffusers_version": DIFFUSERS,
        "all_f_patch_size": [1],
        "all_patch_size": [config.patch],
        "axes_dims": list(config.axes_dims),
        "axes_lens": list(config.axes_lens),
        "cap_feat_dim": config.caption_dim,
        "dim": config.dim,
        "in_channels": config.in_channels,
        "n_heads": config.heads,
        "n_kv_heads": config.heads,
        "n_layers": config.layers,
        "n_refiner_layers": config.refiner_layers,
        "norm_eps": config.norm_eps,
        "qk_norm": config.qk_norm,
        "rope_theta": config.rope_theta,
        "siglip_feat_dim": None,
        "t_scale": config.time_scale,
    }


def text_encoder_json(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3Model"],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": PAD_ID,
        "dtype": "bfloat16",
        "eos_token_id": END_ID,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate,
        "layer_types": ["full_attention"] * config.layers,
        "max_position_embeddings": config.positions,
        "model_type": "qwen3",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": PAD_ID,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": TRANSFORMERS,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": config.vocabulary,
    }


def autoencoder_json(config: AutoencoderConfig, side: int) -> dict[str, Any]:
    blocks = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "sample_size": side,
        "scaling_factor": config.scaling,
        "shift_factor": config.shift,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }


def scheduler_json(shift: float) -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": 1000,
        "shift": shift,
        "use_dynamic_shifting": False,
    }


INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": DIFFUSERS,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


ASPECTS = ("1:1", "3:4", "4:3", "16:9", "9:16")


def card(recipe: Recipe, parameters: Mapping[str, int], preview: Sequence[Sequence[float]] | None = None) -> str:
    """The model's card.

    Args:
        parameters: of each network, as far as pictures need them.
        preview: see ``training.fit_preview``; without it the model shows no previews.
    """
    sizes = {name: list(size) for name, size in zip(ASPECTS, recipe.sizes.standard, strict=False)}
    sizes |= {f"{name} large": list(size) for name, size in zip(ASPECTS, recipe.sizes.large, strict=False)}
    millions = sum(parameters.values()) / 1e6
    lines = [
        'name = "mini"',
        'family = "z_image"',
        f'title = "Hwaga mini: Z-Image in miniature, {millions:.1f} M parameters, English and Korean, bundled"',
        'license = "Apache-2.0; trained on Microsoft Fluent Emoji (MIT)"',
        'source = "bundled"',
        f"steps = {recipe.sampler_steps}",
        "# It knows things, colours and backgrounds. Sentences about light and mood mean nothing to it.",
        "own_words_only = true",
    ]
    if preview is not None:
        lines += ["", "# Latent channels to red, green and blue, then the offset; fitted by training/fit_preview.py."]
        rows = (f"    [{', '.join(f'{value:.4f}' for value in row)}]," for row in preview)
        lines += ["preview = [", *rows, "]"]
    every = [side for size in recipe.sizes.all for side in size]
    lines += ["", "[aspects]", *(f'"{name}" = {size}' for name, size in sizes.items())]
    lines += [
        "",
        "[limits]",
        "multiple = 16",
        f"min_side = {min(every)}",
        f"max_side = {max(every)}",
        f"max_pixels = {max(width * height for width, height in recipe.sizes.all)}",
        "listed_sizes_only = true",
        "max_steps = 100",
        "tokens = 512",
        "max_tokens = 960",
    ]
    for part, count in parameters.items():
        lines += ["", f"[parts.{part}]", f"parameters = {count}"]
    files = dict(LORA_FILES.values())
    for style, (english, korean) in TITLES.items():
        lines += ["", f"[styles.{style}]", f'title = {{ en = "{english}", ko = "{korean}" }}']
        if style in files:
            lines.append(f'lora = "loras/{files[style]}"')
    return "\n".join(lines) + "\n"
