"""SDXL from one file without configurations, as its authors, kohya and ComfyUI write it.

Sizes are read off the shapes of the weights; what these cannot say is the published model's. What else a file may be is told
by its content, so that a file of another model is refused by what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwaga.errors import CheckpointError
from hwaga.families.sdxl.networks import FOLDERS, Networks
from hwaga.families.sdxl.noise import PUBLISHED
from hwaga.families.sdxl.published import PUBLISHED_NETWORKS
from hwaga.weights.checkpoint import Blueprint, listed
from hwaga.weights.layouts import Layout, clip_encoder, ldm_autoencoder, ldm_unet, open_clip_encoder
from hwaga.weights.single_file import Header, Part, part_of, read_weights

PREFIXES = {
    "unet": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "vae": "first_stage_model.",
}
"""What stands before the names of each network's weights."""

UNUSED = (
    r"model_ema\.", r"denoiser\.", r"(?:alphas_|betas|sqrt_|log_one_minus_|posterior_|logvar|scale_factor|model\.betas)",
    r"first_stage_model\.loss\.", r".*\.position_ids", r".*\.logit_scale", r"embedding_manager\.", r"global_step",
)  # fmt: skip
"""What training leaves in a file beside the networks."""

VELOCITY, ZERO_SIGNAL = "v_pred", "ztsnr"
"""Empty tensors by which a file says that its U-Net predicts velocities, and that its noise ends in noise alone."""

EDM = re.compile(r"edm_(?:mean|std|vpred\.).*")
"""Tensors of models that are sampled in another way."""

HEAD_DIM = 64
"""Channels of a head in all three networks that attend. Shapes cannot tell."""

RESNETS = 2
"""Residual blocks of a resolution on the way down."""

OTHERS = (
    (r"conditioner\.embedders\.0\.model\.", "SDXL's refiner, which only finishes pictures of the base model"),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2"),
    (r"cond_stage_model\.", "Stable Diffusion 1"),
    (r"(?:model\.diffusion_model\.)?double_blocks\.", "a model of the Flux or HunyuanVideo family"),
    (r"(?:model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
    (r"(?:model\.diffusion_model\.)?(?:cap_embedder|layers)\.", "a model of the Z-Image or Lumina family"),
    (r"(?:control_model|controlnet_cond_embedding|input_hint_block)\.", "a ControlNet"),
    (r"(?:down_blocks|up_blocks)\.", "a U-Net alone, under diffusers' names: give the folder of the whole checkpoint"),
    (r"(?:encoder|decoder)\.conv_in\.", "an autoencoder alone"),
    (r"(?:text_model|transformer\.resblocks|transformer\.text_model)\.", "a CLIP text encoder alone"),
)
"""What a file is that holds none of SDXL's text encoders, by the beginning of a name; the first that is found counts."""

CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's refiner", 2048: "SDXL"}
"""What a U-Net alone is of, by the width of what it reads of prompts."""

CHANNELS = {9: "paints parts of pictures anew (inpainting)", 8: "edits pictures by instruction"}
"""What a U-Net is made for, by its input channels; 4 make pictures."""


@dataclass(frozen=True)
class SingleFile:
    """The four networks of a file.

    Attributes:
        parts: their weights, by their folders' names in diffusers' layout.
        networks: their configurations.
        scheduler: the configuration of the noise that it was trained with.
    """

    path: Path
    parts: Mapping[str, Part]
    networks: Networks
    scheduler: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> SingleFile:
        """Tells the networks by their headers; no weights are read.

        Raises:
            CheckpointError: it is no SDXL, and what it is instead; damaged; or of a kind that is not drawn with here.
        """
        header = read_weights(path)
        _check_kind(path, header)
        found: dict[str, dict[str, Any]] = {name: {} for name in FOLDERS}
        strays = []
        for name, entry in header.items():
            part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
            if any(re.match(pattern, name) for pattern in UNUSED) or name in (VELOCITY, ZERO_SIGNAL):
                continue
            if part is None:
                strays.append(name)
            else:
                found[part][name.removeprefix(PREFIXES[part])] = entry
        if strays:
            raise CheckpointError(f"{path.name} holds {listed(strays)}, which is no part of an SDXL.")
        missing = [part for part, own in found.items() if not own]
        if missing:
            raise CheckpointError(
                f"{path.name} is an SDXL without its {' and '.join(missing)}. Give a file with all of its "
                "networks, or a folder."
            )
        parts = {part: part_of(path, PREFIXES[part], own) for part, own in found.items()}
        pooled = _shape(parts["text_encoder_2"], _projection(parts["text_encoder_2"]), 2)[1]
        networks = Networks(
            text_encoder=_text_encoder(parts["text_encoder"]),
            text_encoder_2=_text_encoder_2(parts["text_encoder_2"]),
            unet=_unet(parts["unet"], pooled),
            vae=_vae(parts["vae"]),
        )
        networks.check(path)
        scheduler: dict[str, object] = dict(PUBLISHED)
        if VELOCITY in header:
            scheduler |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": ZERO_SIGNAL in header}
        return cls(path, parts, networks, scheduler)

    def blueprint(self, name: str) -> Blueprint[nn.Module]:
        """A network, by the name of its folder, matched with its weights.

        Raises:
            CheckpointError: the file does not hold just the network that its shapes tell of.
            ModelError: the packages that the networks are borrowed from are not here.
        """
        build = getattr(self.networks, f"build_{name}")
        with torch.device("meta"):
            network: nn.Module = build()
        part = self.parts[name]
        layout = _layout(part, name, network).below(part.prefix)
        return Blueprint.match(lambda: network, part.tensors, layout, part.file, "the shape of its other weights")


def _layout(part: Part, name: str, network: nn.Module) -> Layout:
    if name == "unet":
        return ldm_unet(_attentions(part))
    if name == "vae":
        return ldm_autoencoder(_count(part, r"encoder\.down\.(\d+)\."))
    prefix = "text_model." if any(own.startswith("text_model.") for own, _ in network.named_parameters()) else ""
    return clip_encoder(prefix) if name == "text_encoder" else open_clip_encoder(prefix)


def _check_kind(path: Path, header: Header) -> None:
    """Refuses what is no SDXL, by what it is."""
    unet = next((p for p in (PREFIXES["unet"], "") if f"{p}input_blocks.0.0.weight" in header), None)
    whole = any(name.startswith(PREFIXES["text_encoder_2"]) for name in header) and unet == PREFIXES["unet"]
    if unet is not None:
        shape = header[f"{unet}input_blocks.0.0.weight"].shape
        if len(shape) == 4 and shape[1] in CHANNELS:
            raise CheckpointError(
                f"{path.name} {CHANNELS[shape[1]]}, and takes {shape[1]} channels. It is not drawn with here."
            )
    edm = next((name for name in header if EDM.fullmatch(name)), None)
    if edm is not None:
        raise CheckpointError(f"{path.name} holds {edm}: it is sampled as EDM, which is not built here.")
    if whole:
        return
    for pattern, what in OTHERS:
        if any(re.match(pattern, name) for name in header):
            raise CheckpointError(f"{path.name} is {what}. It is no SDXL.")
    if unet is not None:
        contexts = [entry.shape for name, entry in header.items() if name.endswith("attn2.to_k.weight")]
        width = contexts[0][-1] if contexts and contexts[0] else 0
        raise CheckpointError(
            f"{path.name} is the U-Net of {CONTEXTS.get(width, 'another model')} alone. Give a file with the text encoders and "
            "the autoencoder too."
        )
    known = f"among them {next(iter(header))}" if header else "none at all"
    raise CheckpointError(f"{path.name} holds {len(header)} tensors, {known}, and is no SDXL.")


def _shape(part: Part, name: str, axes: int) -> tuple[int, ...]:
    """Of a tensor by its name without the prefix."""
    shape = next((tensor.shape for tensor in part.tensors if tensor.name == part.prefix + name), None)
    if shape is None:
        raise CheckpointError(f"{part.file} lacks {part.prefix}{name}. Fetch it again.")
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{part.file}: {part.prefix}{name} is {list(shape)} and should have {axes} axes.")
    return shape


def _count(part: Part, pattern: str) -> int:
    """How many numbers the pattern finds at the beginning of names, which must be 0, 1 and so on."""
    found = {int(match[1]) for name in part.names if (match := re.match(pattern, name))}
    if not found or found != set(range(len(found))):
        raise CheckpointError(f"{part.file} lacks layers between those that it has. Fetch it again.")
    return len(found)


def _text_encoder(part: Part) -> dict[str, Any]:
    # Whoever repacks a file may leave out the outer name.
    top = "text_model." if any(name.startswith("text_model.") for name in part.names) else ""
    vocabulary, hidden = _shape(part, f"{top}embeddings.token_embedding.weight", 2)
    return {
        **PUBLISHED_NETWORKS.text_encoder,
        "hidden_size": hidden,
        "intermediate_size": _shape(part, f"{top}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _count(part, rf"{re.escape(top)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": _heads(part, hidden),
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(part, f"{top}embeddings.position_embedding.weight", 2)[0],
        "projection_dim": hidden,
    }


def _projection(part: Part) -> str:
    return "text_projection.weight" if "text_projection.weight" in part.names else "text_projection"


def _text_encoder_2(part: Part) -> dict[str, Any]:
    vocabulary, hidden = _shape(part, "token_embedding.weight", 2)
    projection = _projection(part)
    return {
        **PUBLISHED_NETWORKS.text_encoder_2,
        "hidden_size": hidden,
        "intermediate_size": _shape(part, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": _count(part, r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": _heads(part, hidden),
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(part, "positional_embedding", 2)[0],
        "projection_dim": _shape(part, projection, 2)[0 if projection.endswith(".weight") else 1],
    }


def _heads(part: Part, channels: int) -> int:
    if channels % HEAD_DIM:
        raise CheckpointError(
            f"{part.file}: {part.prefix} is {channels} wide, which makes no heads of {HEAD_DIM} channels."
        )
    return channels // HEAD_DIM


def _attentions(part: Part) -> list[bool]:
    """For each resolution, from the pixels on, whether its blocks have attention."""
    blocks = _count(part, r"input_blocks\.(\d+)\.")
    if blocks % (RESNETS + 1):
        raise CheckpointError(
            f"{part.file} has {blocks} input blocks: it is a smaller model that was made from SDXL, or damaged."
        )
    names = part.names
    firsts = range(1, blocks, RESNETS + 1)
    return [any(name.startswith(f"input_blocks.{first}.1.") for name in names) for first in firsts]


def _unet(part: Part, pooled: int) -> dict[str, Any]:
    attentions = _attentions(part)
    firsts = range(1, (RESNETS + 1) * len(attentions), RESNETS + 1)
    channels = [_shape(part, f"input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
    depths = [
        _count(part, rf"input_blocks\.{first}\.1\.transformer_blocks\.(\d+)\.") if attention else 1
        for first, attention in zip(firsts, attentions, strict=True)
    ]
    if not any(attentions):
        raise CheckpointError(f"{part.file} has a U-Net without attention, which is no SDXL's.")
    deepest = firsts[attentions.index(True)]
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attentions]
    up = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attentions)]
    told = _shape(part, "label_emb.0.0.weight", 2)[1]
    return {
        **PUBLISHED_NETWORKS.unet,
        "in_channels": _shape(part, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(part, "out.2.weight", 4)[0],
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": depths,
        "attention_head_dim": [_heads(part, width) for width in channels],
        "cross_attention_dim": _shape(part, f"input_blocks.{deepest}.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "projection_class_embeddings_input_dim": told,
        "addition_time_embed_dim": max((told - pooled) // 6, 1),
    }


def _vae(part: Part) -> dict[str, Any]:
    blocks = _count(part, r"encoder\.down\.(\d+)\.")
    return {
        **PUBLISHED_NETWORKS.vae,
        "block_out_channels": [_shape(part, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": _count(part, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(part, "decoder.conv_in.weight", 4)[1],
    }
