"""Model families. Each is a package that implements ``family.Family``; this table names them without importing any."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from hwaga.errors import CardError
from hwaga.families.family import Family, Tokenizer

FAMILIES = {"z_image": "hwaga.families.z_image.family:ZImage", "sdxl": "hwaga.families.sdxl.family:Sdxl"}
"""Family by name: module and class. A family is imported when a model of it is opened."""


TOKENIZERS = {
    "z_image": "hwaga.families.z_image.tokenizer:of_checkpoint",
    "sdxl": "hwaga.families.sdxl.words:PromptTokenizer",
}
"""What makes a family's tokenizer of a checkpoint's folder, likewise. It brings no torch."""

WITH_TOKENIZER = frozenset({"sdxl"})
"""Families whose tokenizer comes with Hwaga, so that tokens are counted without a checkpoint."""


PACKAGES = {"sdxl": ("diffusers", "transformers")}
"""What a family draws with that does not come with Hwaga, but with the extra of the family's name."""


def find_family(name: str) -> Family:
    """The family of a model card.

    Raises:
        CardError: no family of that name.
    """
    if name not in FAMILIES:
        raise CardError(f"There is no model family {name!r}. There is {', '.join(FAMILIES)}.")
    return cast(Family, _imported(FAMILIES[name])())


def open_tokenizer(family: str, folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, without its networks.

    Args:
        folder: the checkpoint.

    Raises:
        CardError: no family of that name has one.
        CheckpointError: the checkpoint has none, or a damaged one.
    """
    if family not in TOKENIZERS:
        raise CardError(f"The model family {family!r} has no tokenizer of its own. {', '.join(TOKENIZERS)} has.")
    return cast(Tokenizer, _imported(TOKENIZERS[family])(folder))


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
