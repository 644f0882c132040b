"""A Z-Image checkpoint in whatever layout, as it is to be written in another: which rows go where, and which documents."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hwaga.errors import CheckpointError
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.single_files import (
    AUTOENCODER_CONFIG,
    SHIFT,
    TEXT_ENCODER,
    TRANSFORMER,
    FoundNetwork,
    SingleFiles,
)
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.checkpoint import Blueprint, read_config, weight_files
from hwaga.weights.conversion import Conversion, NetworkTargets, Rows, Target
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import (
    AUTOENCODER,
    Z_IMAGE_ORIGINAL,
    Layout,
    ldm_autoencoder,
    qwen3_encoder,
    z_image_transformer,
)
from hwaga.weights.shards import SHARD_BYTES
from hwaga.weights.stored import StoredTensor, stored_tensors

LAYOUTS = ("diffusers", "comfyui")

DOCUMENTS = (".json", ".txt", ".jinja")
"""What is copied of a tokenizer's folder."""


@dataclass(frozen=True)
class _Network:
    """One network of the source, matched with its files.

    Attributes:
        folder: its folder in diffusers' layout.
        values: its configuration in the words of a configuration file.
        layout: how the source spells the names.
        spellings: how the new layouts do.
    """

    folder: str
    values: Mapping[str, Any]
    blueprint: Blueprint[Any]
    stored: Sequence[StoredTensor]
    layout: Layout
    spellings: Mapping[str, Layout]


def z_image_conversion(
    folder: Path, files: Sequence[Path], *, precision: str | None, layout: str, quantised: Mapping[str, str]
) -> Conversion:
    """Matches a checkpoint with its networks and says what is to be written.

    Args:
        folder: the checkpoint, in diffusers' layout, or where its tokenizer lies.
        files: the files that hold the networks, where it is in another layout.
        precision: how the large weights are kept; bfloat16 where None.
        layout: of ``LAYOUTS``.
        quantised: patterns of the linear layers that may be kept in fewer bits, by the network's folder.

    Raises:
        CheckpointError: the checkpoint is damaged, or cannot be written in that layout.
    """
    if layout == "comfyui" and precision is not None:
        raise CheckpointError(
            "Fewer bits are written in diffusers' layout only; ComfyUI does not read Hwaga's. Drop one."
        )
    found = SingleFiles.read(files) if files else None
    networks = _networks(folder, found)
    if found is None and layout == "comfyui":
        _check_constants(folder, networks)
    written = []
    for network in networks:
        targets = _targets(
            network,
            layout,
            quantised.get(network.folder),
            whole=precision is None,
            kept_names=found is None and layout == "diffusers",
        )
        if layout == "diffusers":
            name = "model" if network.folder == "text_encoder" else "diffusion_pytorch_model"
            written.append(NetworkTargets(f"{network.folder}/{name}", targets, SHARD_BYTES))
        else:
            written.append(NetworkTargets(COMFYUI_FILES[network.folder], targets, None))
    tokenizer = {
        f"tokenizer/{path.name}": path
        for path in sorted((folder / "tokenizer").glob("*"))
        if path.suffix in DOCUMENTS and path.is_file()
    }
    documents = {} if layout == "comfyui" else _documents(folder, found, networks)
    return Conversion(written, precision, documents, tokenizer)


COMFYUI_FILES = {
    "transformer": "diffusion_models/z_image_turbo_bf16",
    "text_encoder": "text_encoders/qwen_3_4b",
    "vae": "vae/ae",
}
"""Files below ComfyUI's folder of models, less their endings."""


def _networks(folder: Path, found: SingleFiles | None) -> list[_Network]:
    if found is not None:
        parts: dict[str, FoundNetwork[Any, Any]] = {
            "text_encoder": found.text_encoder,
            "transformer": found.transformer,
            "vae": found.autoencoder,
        }
        configs: dict[str, Any] = {name: part.config for name, part in parts.items()}
        sources: dict[str, tuple[Any, Any, Any, Any]] = {
            name: (part.values, part.blueprint(), part.part.tensors, part.layout) for name, part in parts.items()
        }
    else:
        values = {name: read_config(folder / name) for name in ("text_encoder", "transformer", "vae")}
        text_encoder = TextEncoderConfig.from_json(values["text_encoder"])
        transformer = TransformerConfig.from_json(values["transformer"])
        autoencoder = AutoencoderConfig.from_json(values["vae"])
        configs = {"text_encoder": text_encoder, "transformer": transformer, "vae": autoencoder}
        layouts = {
            "text_encoder": qwen3_encoder(text_encoder.layers),
            "transformer": z_image_transformer(transformer.patch),
            "vae": AUTOENCODER,
        }
        builds: dict[str, Any] = {
            "text_encoder": lambda: Qwen3Encoder(text_encoder),
            "transformer": lambda: ZImageTransformer(transformer),
            "vae": lambda: Autoencoder(autoencoder),
        }
        sources = {}
        for name, layout in layouts.items():
            stored = stored_tensors(weight_files(folder / name))
            blueprint: Blueprint[nn.Module] = Blueprint.match(
                builds[name], stored, layout, folder / name, "config.json"
            )
            sources[name] = values[name], blueprint, stored, layout
    spellings = {
        "text_encoder": {
            "diffusers": qwen3_encoder(configs["text_encoder"].layers),
            "comfyui": qwen3_encoder(configs["text_encoder"].layers),
        },
        "transformer": {"diffusers": z_image_transformer(configs["transformer"].patch), "comfyui": Z_IMAGE_ORIGINAL},
        "vae": {"diffusers": AUTOENCODER, "comfyui": ldm_autoencoder(len(configs["vae"].channels))},
    }
    return [_Network(name, *source, spellings[name]) for name, source in sources.items()]


def _targets(network: _Network, layout: str, pattern: str | None, *, whole: bool, kept_names: bool) -> list[Target]:
    """What becomes of each stored tensor.

    Args:
        pattern: of the linear layers that may be kept in fewer bits.
        whole: keep what other programs want and Z-Image does not listen to: the text encoder's last layer and norm.
        kept_names: the names stay as they are.
    """
    spelling, everything = network.spellings[layout], replace(network.layout, unused=())
    prefix = "model." if network.folder == "text_encoder" and layout == "comfyui" else ""
    weights = dict(network.blueprint.network.named_parameters())
    outs = {
        f"{name}.weight": module.outs
        for name, module in network.blueprint.network.named_modules()
        if isinstance(module, FusedLinear)
    }
    rows: dict[str, dict[int, Rows]] = {}
    owners: dict[str, str] = {}
    for stored in network.stored:
        if stored.parts:
            raise CheckpointError(f"{stored.file} is in {stored.number_format} already. Convert the original.")
        ours, place = everything.target(stored.name) or ("", 0)
        if network.layout.target(stored.name) is None:
            useful = (kept_names and not ours.endswith("inv_freq")) or re.match(r"layers\.|norm\.weight$", ours)
            if not whole or not useful:
                continue
        names = (stored.name,) if kept_names else spelling.sources(ours)
        if kept_names or len(names) == 1:
            new = {names[0]: (place, Rows.all_of(stored))}
        elif len(network.layout.sources(ours)) > 1:
            new = {names[place]: (0, Rows.all_of(stored))}
        else:
            ends = [0, *itertools.accumulate(outs[ours])]
            new = {name: (0, Rows(stored, *ends[i : i + 2])) for i, name in enumerate(names)}
        for name, (at, piece) in new.items():
            rows.setdefault(prefix + name, {})[at] = piece
            owners[prefix + name] = ours
    targets = []
    for name, pieces in rows.items():
        ours, stack = owners[name], tuple(pieces[at] for at in sorted(pieces))
        axes = weights[ours].shape[1:] if ours in weights else stack[0].tensor.shape[1:]
        if spelling.is_pointwise(ours):
            axes = (*axes, 1, 1)
        module, _, last = ours.rpartition(".")
        large = pattern is not None and last == "weight" and re.fullmatch(pattern, module) is not None
        targets.append(Target(name, (sum(piece.end - piece.begin for piece in stack), *axes), stack, large))
    return targets


def _documents(folder: Path, found: SingleFiles | None, networks: Sequence[_Network]) -> dict[str, bytes]:
    """The configurations of diffusers' layout."""
    if found is None:
        index = read_config(folder, "model_index.json")
        scheduler = read_config(folder / "scheduler", "scheduler_config.json")
    else:
        index, scheduler = MODEL_INDEX, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": SHIFT}
    documents = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
    for network in networks:
        values = {**({} if found is None else CLASSES[network.folder]), **network.values}
        if network.folder == "text_encoder":
            values = {key: value for key, value in values.items() if key != "torch_dtype"} | {"dtype": "bfloat16"}
        documents[f"{network.folder}/config.json"] = values
    return {path: (json.dumps(values, indent=2) + "\n").encode() for path, values in documents.items()}


MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""As in Tongyi-MAI/Z-Image-Turbo."""

CLASSES: dict[str, dict[str, Any]] = {
    "text_encoder": {"architectures": ["Qwen3Model"], "tie_word_embeddings": True},
    "transformer": {"_class_name": "ZImageTransformer2DModel"},
    "vae": {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "act_fn": "silu"},
}
"""What configuration files say besides sizes."""


def _check_constants(folder: Path, networks: Sequence[_Network]) -> None:
    """Refuses a layout without configurations for a model whose configuration could not be told from its weights.

    Raises:
        CheckpointError: what would be lost.
    """
    scheduler = read_config(folder / "scheduler", "scheduler_config.json")
    wanted: dict[str, Mapping[str, Any]] = {
        "transformer": TRANSFORMER,
        "text_encoder": TEXT_ENCODER,
        "vae": AUTOENCODER_CONFIG,
    }
    for network in networks:
        rope = network.values.get("rope_parameters") or {}
        for key, value in wanted[network.folder].items():
            found = network.values.get(key, rope.get(key))
            if found != value and key != "max_position_embeddings":  # which bounds prompts, and changes no picture
                raise CheckpointError(
                    f"{folder} has {key} = {found!r} where Z-Image Turbo has {value!r}. ComfyUI's files cannot say so: "
                    "write it in diffusers' layout."
                )
    if scheduler.get("shift") != SHIFT:
        raise CheckpointError(f"{folder} has another shift than {SHIFT}. Write it in diffusers' layout.")
