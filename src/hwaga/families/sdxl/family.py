"""SDXL as a model family: how its checkpoints are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from hwaga.cards import INDEX_FILE
from hwaga.errors import CheckpointError
from hwaga.families.sdxl.lora import sdxl_lora_targets
from hwaga.families.sdxl.model import SdxlModel
from hwaga.families.sdxl.networks import BORROWED, FOLDERS, Networks, clip_layout
from hwaga.families.sdxl.noise import PUBLISHED, Prediction
from hwaga.families.sdxl.published import PUBLISHED_NETWORKS
from hwaga.families.sdxl.single_files import SingleFile
from hwaga.families.sdxl.words import PromptTokenizer
from hwaga.weights.checkpoint import Blueprint, file_digest, read_config, weights_digest
from hwaga.weights.config import ConfigValues
from hwaga.weights.conversion import Conversion
from hwaga.weights.lora import LoraFile
from hwaga.weights.quantize import PRECISIONS


class Sdxl:
    """The family; see ``families.family.Family``. What fewer bits do to its pictures was not looked at, so that none are chosen
    unless they are asked for.
    """

    dtypes = ("float16", "bfloat16", "float32")
    precisions = tuple(PRECISIONS)
    sound_precisions: tuple[str, ...] = ()
    layouts = ("diffusers",)

    def open(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),
        device: torch.device,
        dtype: torch.dtype,
        lora_bytes: int,
        precision: str | None = None,
    ) -> SdxlModel:
        if files:
            found = _single_file(folder, files)
            return SdxlModel(
                PromptTokenizer(folder),
                found.blueprint("text_encoder"),
                found.blueprint("text_encoder_2"),
                found.blueprint("unet"),
                found.blueprint("vae"),
                found.networks,
                Prediction.of(found.scheduler, f"{found.path}"),
                zeros=True,
                weights_digest=file_digest([found.path]),
                device=device,
                dtype=dtype,
                precision=PRECISIONS[precision] if precision else None,
                lora_bytes=lora_bytes,
            )
        networks = Networks.read(folder)
        index = ConfigValues(read_config(folder, INDEX_FILE), f"{folder / INDEX_FILE}")
        return SdxlModel(
            PromptTokenizer(folder),
            _read_clip(networks.build_text_encoder, folder / "text_encoder"),
            _read_clip(networks.build_text_encoder_2, folder / "text_encoder_2"),
            Blueprint.read(networks.build_unet, folder / "unet", BORROWED),
            Blueprint.read(networks.build_vae, folder / "vae", BORROWED),
            networks,
            Prediction.read(folder),
            zeros=index.flag("force_zeros_for_empty_prompt", True),
            weights_digest=weights_digest([folder / name for name in FOLDERS]),
            device=device,
            dtype=dtype,
            precision=PRECISIONS[precision] if precision else None,
            lora_bytes=lora_bytes,
        )

    def outline(self, *, device: torch.device, dtype: torch.dtype, precision: str | None = None) -> SdxlModel:
        networks = PUBLISHED_NETWORKS
        return SdxlModel(
            None,
            Blueprint.outline(networks.build_text_encoder),
            Blueprint.outline(networks.build_text_encoder_2),
            Blueprint.outline(networks.build_unet),
            Blueprint.outline(networks.build_vae),
            networks,
            Prediction.of(PUBLISHED, "the published scheduler"),
            zeros=True,
            weights_digest="",
            device=device,
            dtype=dtype,
            precision=PRECISIONS[precision] if precision else None,
            lora_bytes=0,
        )

    def conversion(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),  # noqa: ARG002
        precision: str | None,  # noqa: ARG002
        layout: str,  # noqa: ARG002
    ) -> Conversion:
        raise CheckpointError(
            f"{folder} is an SDXL, which is not converted. It is opened as it is, and --precision keeps its weights in fewer "
            "bits while it is drawn with."
        )

    def check_lora(self, folder: Path, lora: Path, *, files: Sequence[Path] = ()) -> None:
        networks = _single_file(folder, files).networks if files else Networks.read(folder)
        with torch.device("meta"):
            built = networks.build_unet(), networks.build_text_encoder(), networks.build_text_encoder_2()
        LoraFile.read(lora).match(sdxl_lora_targets(*built))


def _single_file(folder: Path, files: Sequence[Path]) -> SingleFile:
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise CheckpointError(
            f"{folder}: an SDXL is one file or a folder in diffusers' layout, and {len(files)} files were given ({names}). "
            "Give the one that holds all of its networks."
        )
    return SingleFile.read(files[0])


def _read_clip(build: Callable[[], nn.Module], folder: Path) -> Blueprint[nn.Module]:
    with torch.device("meta"):
        network = build()
    return Blueprint.read(lambda: network, folder, clip_layout(network))
