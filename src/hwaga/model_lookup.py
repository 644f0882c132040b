"""Which card a model's name, folder or file stands for.

A checkpoint folder without a card is taken for what its ``model_index.json`` says, with the sizes of its family's model, and
the styles whose LoRAs lie there too.
Without that too, its files of weights are taken for those of a Z-Image, but for what holds the U-Net of a Stable Diffusion,
which is taken for an SDXL. What else files hold is found out when they are opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from hwaga.cards import ASSETS, CARD_FILE, INDEX_FILE, STYLE_SIGN, ModelCard
from hwaga.errors import CardError, CheckpointError, UnknownModelError
from hwaga.settings import Settings

WEIGHT_FOLDERS = ("diffusion_models", "unet", "checkpoints", "text_encoders", "clip", "vae")
"""Where files of weights without an index are looked for, beside a model's folder itself; the names are ComfyUI's."""

SPLIT_FILES = "split_files"
"""The folder that its repositories on the hub keep these folders in."""

CARD_OF_PIPELINE = {
    "ZImagePipeline": "z-image-turbo",
    "ZImageImg2ImgPipeline": "z-image-turbo",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
}
"""The built-in card whose family and limits a folder has, by the class that diffusers writes into ``model_index.json``."""

_OF_STABLE_DIFFUSION = re.compile(
    rb'"(?:(?:model\.diffusion_model\.)?input_blocks|conditioner\.embedders|cond_stage_model)\.'
)
"""A name in the header of a file with the networks of a Stable Diffusion, of any version: the family says which it opens."""

_LONGEST_HEADER = 100_000_000
"""Bytes; what safetensors allows."""


def built_in_cards(models: Path) -> dict[str, ModelCard]:
    """The cards that come with Hwaga, by name.

    Args:
        models: the folder that fetched models lie in, one folder each, named after the card.
    """
    cards = [ModelCard.read(path) for path in sorted((ASSETS / "cards").glob("*.toml"), key=lambda path: path.stem)]
    bundled = ModelCard.read(ASSETS / "mini" / CARD_FILE)
    known = (bundled, *(_moved(card, models / card.name) for card in cards))
    return {card.name: replace(card, path=None) for card in known}


def cards_by_name(models: Path) -> tuple[dict[str, ModelCard], dict[str, CardError]]:
    """The cards that come with Hwaga, with the styles beside their models; and by model what is wrong with the file of those,
    which it goes without.

    Args:
        models: as of ``built_in_cards``.
    """
    cards, wrong = built_in_cards(models), {}
    for name, card in cards.items():
        try:
            cards[name] = card.with_styles_beside()
        except CardError as error:
            wrong[name] = error
    return cards, wrong


def _moved(card: ModelCard, folder: Path) -> ModelCard:
    """The card with its files in another folder."""
    return replace(card, folder=folder, files=tuple(folder / file.relative_to(card.folder) for file in card.files))


def card_of(model: str | Path | ModelCard | None, settings: Settings) -> ModelCard:
    """The card for a model in any way of naming one; the settings' model for None. Errors as of ``find_card``."""
    return model if isinstance(model, ModelCard) else find_card(model or settings.model, settings.models)


def find_card(model: str | Path, models: Path) -> ModelCard:
    """The card for a model's name, a checkpoint folder or a card file.

    Args:
        model: "mini", "z-image-turbo", a folder, a path to a ``.toml`` file, or to one file with all of a model's weights; or
            any of these, a colon and a style of it that is a checkpoint of its own.
        models: the folder that fetched models lie in.

    Raises:
        UnknownModelError: nothing of that name; near names are listed.
        StyleError: the model has no such style.
        CardError: a card that is not valid.
        CheckpointError: a folder that holds no model.
    """
    cards = built_in_cards(models)
    if str(model) in cards:
        return cards[str(model)].with_styles_beside()
    try:
        path = Path(model).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, nobody's home, a null byte
        raise UnknownModelError(
            f"There is no model {str(model)[:200]!r}: {error}. Known models: {', '.join(cards)}."
        ) from error
    if is_file:
        if path.suffix == ".toml":
            return ModelCard.read(path).with_styles_beside()
        if not _holds_weights(path):
            raise UnknownModelError(f"{path} is a file. Give the checkpoint's folder, or a model card (.toml).")
        like = cards["sdxl" if _holds_stable_diffusion(path) else "z-image-turbo"]
        return _unnamed_card(like, path, (path,))
    if is_folder:
        return _card_of_folder(path, cards)
    base, sign, style = str(model).rpartition(STYLE_SIGN)
    if sign and style:
        with suppress(UnknownModelError):  # a colon may be part of a name that is not there
            return find_card(base, models).of_style(style)
    near = get_close_matches(str(model), cards, n=2, cutoff=0.4)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelError(
        f"There is no model {str(model)!r}.{meant} Known models: {', '.join(cards)}; a folder or a card file works too."
    )


def _card_of_folder(folder: Path, cards: Mapping[str, ModelCard]) -> ModelCard:
    if (folder / CARD_FILE).is_file():
        return ModelCard.read(folder / CARD_FILE).with_styles_beside()
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        pipeline = index["_class_name"]
    except FileNotFoundError:
        named = [above / name for above in (folder, folder / SPLIT_FILES) for name in WEIGHT_FOLDERS]
        places: dict[Path, Path] = {}
        for place in filter(Path.is_dir, (folder, *named)):
            places.setdefault(place.resolve(), place)  # two names may lead to one folder
        files = [file for place in places.values() for file in sorted(place.glob("*")) if _holds_weights(file)]
        if files and not (folder / "transformer").is_dir():  # which would be diffusers' layout without its index
            checkpoints = [file for file in files if _holds_stable_diffusion(file)]
            if len(checkpoints) > 1 and len(checkpoints) == len(files):
                raise CheckpointError(
                    f"{folder} holds {len(files)} checkpoints. Give the file of one, such as {checkpoints[0]}."
                ) from None
            like = cards["sdxl" if checkpoints == files else "z-image-turbo"]
            return _unnamed_card(like, folder, files)
        raise CheckpointError(
            f"{folder} holds no {INDEX_FILE}, so it is no model in diffusers' layout, and no files of weights either. "
            "Give the folder that holds transformer/, text_encoder/, vae/ and tokenizer/, or one with the files of a "
            f"transformer, a text encoder and an autoencoder, in itself or in {', '.join(WEIGHT_FOLDERS)}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / INDEX_FILE} cannot be read: {error}. Fetch it again.") from error
    if not isinstance(pipeline, str) or pipeline not in CARD_OF_PIPELINE:
        raise CheckpointError(f"{folder} holds a {pipeline}. Hwaga opens {', '.join(CARD_OF_PIPELINE)}.")
    return _unnamed_card(cards[CARD_OF_PIPELINE[pipeline]], folder)


def _unnamed_card(like: ModelCard, model: Path, files: Sequence[Path] = ()) -> ModelCard:
    """The card of a folder, or of a file in one, that has none."""
    name, place = (model.stem, model.parent.resolve()) if model.is_file() else (model.resolve().name, model.resolve())
    fetched = {style: own for style, own in like.styles.items() if own.lora and (place / own.lora).is_file()}
    return replace(
        like, name=name, title=name, license="", source="", folder=place, styles=MappingProxyType(fetched), download=None,
        own_words_only=False, files=tuple(file.absolute() for file in files),
        path=place / model.name if model.is_file() else place,
    ).with_styles_beside()  # fmt: skip


def _holds_weights(path: Path) -> bool:
    """Whether a file begins as weights do, in a format that Hwaga reads or in one that it can refuse by name."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        header_fits = int.from_bytes(head[:8], "little") <= path.stat().st_size - 8
    except OSError:  # a folder, or nothing that may be read
        return path.suffix == ".safetensors" and path.is_file()
    pickled = head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"
    return path.suffix == ".safetensors" or (header_fits and head[8:] == b"{") or head[:4] == b"GGUF" or pickled


def _holds_stable_diffusion(path: Path) -> bool:
    """Whether a safetensors file holds the networks of a Stable Diffusion, by the names in its header."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return size <= _LONGEST_HEADER and _OF_STABLE_DIFFUSION.search(file.read(size)) is not None
    except OSError:
        return False
