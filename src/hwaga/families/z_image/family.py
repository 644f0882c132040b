"""Z-Image as a model family: how its checkpoints are opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hwaga.errors import CheckpointError
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.conversion import LAYOUTS, z_image_conversion
from hwaga.families.z_image.memory_use import Networks
from hwaga.families.z_image.model import IN_TEXT_ENCODER, IN_TRANSFORMER, ZImageModel, lora_targets_of
from hwaga.families.z_image.single_files import AUTOENCODER_CONFIG, SHIFT, TEXT_ENCODER, TRANSFORMER, SingleFiles
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.tokenizer import PromptTokenizer
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.checkpoint import Blueprint, file_digest, read_config, weights_digest
from hwaga.weights.config import ConfigValues
from hwaga.weights.conversion import Conversion
from hwaga.weights.layouts import AUTOENCODER, qwen3_encoder, z_image_transformer
from hwaga.weights.lora import LoraFile
from hwaga.weights.quantize import PRECISIONS, SOUND

PUBLISHED_TEXT_ENCODER = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
PUBLISHED_TRANSFORMER = {
    "all_patch_size": [2], "dim": 3840, "n_heads": 30, "n_layers": 30, "n_refiner_layers": 2, "in_channels": 16,
    "cap_feat_dim": 2560, "qk_norm": True,
}  # fmt: skip
PUBLISHED_AUTOENCODER = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16, "use_quant_conv": False,
    "use_post_quant_conv": False, "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
}  # fmt: skip
"""From the configuration files of Tongyi-MAI/Z-Image-Turbo: what else makes up its sizes, for plans without its files."""


class ZImage:
    """The family; see ``families.family.Family``. float16 is left out: too narrow for this transformer's activations."""

    dtypes = ("bfloat16", "float32")
    precisions = tuple(PRECISIONS)
    sound_precisions = SOUND
    layouts = LAYOUTS

    def open(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),
        device: torch.device,
        dtype: torch.dtype,
        lora_bytes: int,
        precision: str | None = None,
    ) -> ZImageModel:
        found = SingleFiles.read(files) if files else None
        networks = _read_configs(folder, found)
        tokenizer = PromptTokenizer(folder / "tokenizer")
        if found is None:
            text_encoder = Blueprint.read(
                lambda: Qwen3Encoder(networks.text_encoder),
                folder / "text_encoder",
                qwen3_encoder(networks.text_encoder.layers),
            )
            transformer = Blueprint.read(
                lambda: ZImageTransformer(networks.transformer),
                folder / "transformer",
                z_image_transformer(networks.transformer.patch),
            )
            autoencoder = Blueprint.read(lambda: Autoencoder(networks.autoencoder), folder / "vae", AUTOENCODER)
            digest = weights_digest([folder / part for part in ("text_encoder", "transformer", "vae")])
        else:
            text_encoder, transformer = found.text_encoder.blueprint(), found.transformer.blueprint()
            autoencoder = found.autoencoder.blueprint()
            digest = file_digest(found.files)
        return ZImageModel(
            tokenizer,
            text_encoder,
            transformer,
            autoencoder,
            networks,
            shift=_shift(folder) if found is None else SHIFT,
            weights_digest=digest,
            device=device,
            dtype=dtype,
            precision=PRECISIONS[precision] if precision else None,
            lora_bytes=lora_bytes,
        )

    def outline(self, *, device: torch.device, dtype: torch.dtype, precision: str | None = None) -> ZImageModel:
        networks = Networks(
            TextEncoderConfig.from_json(TEXT_ENCODER | PUBLISHED_TEXT_ENCODER),
            TransformerConfig.from_json(TRANSFORMER | PUBLISHED_TRANSFORMER),
            AutoencoderConfig.from_json(AUTOENCODER_CONFIG | PUBLISHED_AUTOENCODER),
        )
        return ZImageModel(
            None,
            Blueprint.outline(lambda: Qwen3Encoder(networks.text_encoder)),
            Blueprint.outline(lambda: ZImageTransformer(networks.transformer)),
            Blueprint.outline(lambda: Autoencoder(networks.autoencoder)),
            networks,
            shift=SHIFT,
            weights_digest="",
            device=device,
            dtype=dtype,
            precision=PRECISIONS[precision] if precision else None,
            lora_bytes=0,
        )

    def conversion(self, folder: Path, *, files: Sequence[Path] = (), precision: str | None, layout: str) -> Conversion:
        large = {"transformer": IN_TRANSFORMER, "text_encoder": IN_TEXT_ENCODER}
        return z_image_conversion(folder, files, precision=precision, layout=layout, quantised=large)

    def check_lora(self, folder: Path, lora: Path, *, files: Sequence[Path] = ()) -> None:
        found = _read_configs(folder, SingleFiles.read(files) if files else None)
        with torch.device("meta"):
            networks = Qwen3Encoder(found.text_encoder), ZImageTransformer(found.transformer)
        LoraFile.read(lora).match(lora_targets_of(*networks))


def _read_configs(folder: Path, found: SingleFiles | None) -> Networks:
    if found is None:
        text_encoder = TextEncoderConfig.from_json(read_config(folder / "text_encoder"))
        transformer = TransformerConfig.from_json(read_config(folder / "transformer"))
        autoencoder = AutoencoderConfig.from_json(read_config(folder / "vae"))
    else:
        text_encoder, transformer = found.text_encoder.config, found.transformer.config
        autoencoder = found.autoencoder.config
    if text_encoder.hidden != transformer.caption_dim:
        raise CheckpointError(
            f"{folder}: the text encoder is {text_encoder.hidden} wide and the transformer reads "
            f"{transformer.caption_dim}. They belong to different checkpoints."
        )
    if autoencoder.latent_channels != transformer.in_channels:
        raise CheckpointError(
            f"{folder}: the autoencoder has {autoencoder.latent_channels} latent channels and the "
            f"transformer {transformer.in_channels}. They belong to different checkpoints."
        )
    return Networks(text_encoder, transformer, autoencoder)


def _shift(folder: Path) -> float:
    """The shift of the schedule that the checkpoint was trained for."""
    values = read_config(folder / "scheduler", "scheduler_config.json")
    read = ConfigValues(values, "scheduler/scheduler_config.json")
    scheduler = read.text("_class_name")
    if scheduler != "FlowMatchEulerDiscreteScheduler":
        raise CheckpointError(f"{folder / 'scheduler'} asks for {scheduler}; Z-Image is sampled by flow matching.")
    unusual = [
        name
        for name in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                     "invert_sigmas", "stochastic_sampling", "shift_terminal")
        if values.get(name)
    ]  # fmt: skip
    if unusual:
        raise CheckpointError(f"{folder / 'scheduler'} sets {', '.join(unusual)}, which is not built here.")
    return read.positive("shift", 1.0)
