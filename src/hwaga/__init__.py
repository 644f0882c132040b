"""Hwaga (화가, "painter"): the image engine for Z-Image Turbo that fits the GPU you have and stays up."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hwaga.cards import ModelCard
from hwaga.errors import (
    CardError,
    CheckpointError,
    DamagedFileError,
    DeviceError,
    DeviceMemoryError,
    DiskSpaceError,
    DoesNotFitError,
    DownloadError,
    HubError,
    HwagaError,
    ImageFileError,
    LoraError,
    ModelError,
    PackError,
    PromptError,
    PromptTooLongError,
    RequestError,
    SettingsError,
    SizeError,
    SourceImageError,
    StyleError,
    UnknownModelError,
)
from hwaga.request import Composed, ImageRequest, LoraUse
from hwaga.result import MemoryUse, Result, Step, Timings
from hwaga.settings import Settings
from hwaga.source_image import SourceImage
from hwaga.version import __version__

if TYPE_CHECKING:
    from hwaga.engine import Engine
    from hwaga.engines import Engines

__all__ = [
    "CardError",
    "CheckpointError",
    "Composed",
    "DamagedFileError",
    "DeviceError",
    "DeviceMemoryError",
    "DiskSpaceError",
    "DoesNotFitError",
    "DownloadError",
    "Engine",
    "Engines",
    "HubError",
    "HwagaError",
    "ImageFileError",
    "ImageRequest",
    "LoraError",
    "LoraUse",
    "MemoryUse",
    "ModelCard",
    "ModelError",
    "PackError",
    "PromptError",
    "PromptTooLongError",
    "RequestError",
    "Result",
    "Settings",
    "SettingsError",
    "SizeError",
    "SourceImage",
    "SourceImageError",
    "Step",
    "StyleError",
    "Timings",
    "UnknownModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # The engine brings torch, which takes more than a second to import: only who makes pictures pays for it.
    if name == "Engine":
        return import_module("hwaga.engine").Engine
    if name == "Engines":
        return import_module("hwaga.engines").Engines
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
