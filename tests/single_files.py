"""Z-Image in ComfyUI's files: diffusers' state dicts under the names of those files, and headers without values."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from reference import CheckpointConfig, random_checkpoint
from safetensors.torch import load_file
from torch import Tensor

StateDict = dict[str, Tensor]
Header = Mapping[str, tuple[str, tuple[int, ...]]]

PUBLISHED = CheckpointConfig(
    transformer={
        "dim": 256, "n_heads": 2, "n_kv_heads": 2, "n_layers": 3, "n_refiner_layers": 2, "in_channels": 16,
        "axes_dims": (32, 48, 48), "axes_lens": (1536, 512, 512), "cap_feat_dim": 64, "norm_eps": 1e-5,
        "rope_theta": 256.0, "t_scale": 1000.0,
    },
    text_encoder={
        "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    vae={
        "block_out_channels": (32, 32, 64, 96), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 16, "layers_per_block": 2,
        "norm_num_groups": 32, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    shift=3.0,
)  # fmt: skip
"""A small checkpoint that has every constant of the published one."""


def published_checkpoint(folder: Path) -> Path:
    """Saves that checkpoint in diffusers' layout, and returns the folder."""
    return random_checkpoint(folder, "published", PUBLISHED)


def state_dict(folder: Path) -> StateDict:
    """All tensors of one network in diffusers' layout."""
    return load_file(next(folder.glob("*.safetensors")))


def original_transformer(tensors: StateDict) -> StateDict:
    """diffusers' transformer under its authors' names."""
    renamed = {}
    for name, tensor in tensors.items():
        if ".to_q." in name:
            pieces = [tensors[name.replace("to_q", piece)] for piece in ("to_q", "to_k", "to_v")]
            renamed[name.replace("to_q", "qkv")] = torch.cat(pieces)
        elif ".to_k." not in name and ".to_v." not in name:
            name = re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)
            name = name.replace("attention.to_out.0.", "attention.out.")
            renamed[re.sub(r"attention\.norm_([qk])\.", r"attention.\1_norm.", name)] = tensor
    return renamed


def ldm_autoencoder(tensors: StateDict) -> StateDict:
    """diffusers' autoencoder under the names of latent diffusion."""
    up_blocks = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up_blocks.")})
    renamed = {}
    for name, tensor in tensors.items():
        if re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", name):
            tensor = tensor[:, :, None, None]
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{up_blocks - 1 - int(match[1])}", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        for diffusers, ldm in (
            ("down_blocks.", "down."), ("mid_block.attentions.0.", "mid.attn_1."), ("group_norm.", "norm."),
            ("to_out.0.", "proj_out."), ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."), (".resnets.", ".block."),
            ("samplers.0.", "sample."), ("conv_shortcut.", "nin_shortcut."), ("conv_norm_out.", "norm_out."),
        ):  # fmt: skip
            name = name.replace(diffusers, ldm)
        renamed[name] = tensor.contiguous()
    return renamed


def causal_lm(tensors: StateDict) -> StateDict:
    """A bare Qwen3 under the names of the language model, which ComfyUI keeps."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: StateDict) -> StateDict:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def header_of(tensors: StateDict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a file in bfloat16 says of these tensors."""
    return {name: ("BF16", tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_header(path: Path, header: Header) -> Path:
    """A valid safetensors file of any size that takes no space, since its values are a hole."""
    entries, end = {}, 0
    for name, (number_format, shape) in header.items():
        size = math.prod(shape) * {"F32": 4, "I32": 4, "BF16": 2, "F16": 2}.get(number_format, 1)
        entries[name] = {"dtype": number_format, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
