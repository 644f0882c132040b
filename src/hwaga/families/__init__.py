"""Model families. Each is a package that implements ``family.Family``; this table names them without importing any."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hwaga.errors import CardError
from hwaga.families.family import Family, Tokenizer

if TYPE_CHECKING:
    from hwaga.families.sdxl.family import Sdxl
    from hwaga.families.z_image.family import ZImage

    # Found by name below, where nothing would hold them to what the engine asks for.
    _z_image: Family = ZImage()
    _sdxl: Family = Sdxl()


class Named(NamedTuple):
    """A family by the names of what it is made of, as "module:attribute". None of it is imported before it is used.

    Attributes:
        family: the class, imported when a model is opened.
        tokenizer: what makes a tokenizer of a checkpoint's folder. It brings no torch.
        with_tokenizer: its tokenizer comes with Hwaga, so that tokens are counted without a checkpoint.
        packages: what it draws with that does not come with Hwaga, but with the extra of the family's name.
    """

    family: str
    tokenizer: str
    with_tokenizer: bool = False
    packages: tuple[str, ...] = ()


FAMILIES = {
    "z_image": Named("hwaga.families.z_image.family:ZImage", "hwaga.families.z_image.tokenizer:of_checkpoint"),
    "sdxl": Named(
        "hwaga.families.sdxl.family:Sdxl",
        "hwaga.families.sdxl.words:PromptTokenizer",
        with_tokenizer=True,
        packages=("diffusers", "transformers"),
    ),
}


def find_family(name: str) -> Family:
    """The family of a model card.

    Raises:
        CardError: no family of that name.
    """
    return cast(Family, _imported(named(name).family)())


def open_tokenizer(family: str, folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, without its networks.

    Args:
        folder: the checkpoint.

    Raises:
        CardError: no family of that name.
        CheckpointError: the checkpoint has none, or a damaged one.
    """
    return cast(Tokenizer, _imported(named(family).tokenizer)(folder))


def named(family: str) -> Named:
    """What a family is made of. Raises CardError where there is none of that name."""
    if family not in FAMILIES:
        raise CardError(f"There is no model family {family!r}. There is {', '.join(FAMILIES)}.")
    return FAMILIES[family]


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
