"""Model cards: what a model is, as data. One TOML file each.

Built-in cards lie in ``assets/cards`` and beside the bundled model; a folder with a checkpoint may hold a ``card.toml`` of its
own, and a path to any card file works as a model's name. A checkpoint folder without a card is taken for what its
``model_index.json`` says, with the sizes of Z-Image Turbo. Without that too, its files of weights are taken for those of a
Z-Image; what they hold is found out when they are opened.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from hwaga.errors import CardError, CheckpointError, SizeError, UnknownModelError

ASSETS = Path(str(files("hwaga") / "assets"))

CARD_FILE = "card.toml"
INDEX_FILE = "model_index.json"

WEIGHT_FOLDERS = (".", "diffusion_models", "text_encoders", "vae")
"""Where files of weights without an index are looked for below a model's folder; the names are ComfyUI's."""

FAMILY_OF_PIPELINE = {"ZImagePipeline": "z_image", "ZImageImg2ImgPipeline": "z_image"}
"""Model families by the class that diffusers writes into ``model_index.json``."""


@dataclass(frozen=True)
class Part:
    """One network of a model.

    Attributes:
        parameters: how many numbers of it are kept in memory.
    """

    parameters: int


@dataclass(frozen=True)
class Style:
    """A look that the model can be given.

    Attributes:
        title: its name for people, by language.
        lora: file of the LoRA below the card's folder, or None for the base model's own look.
        weight: of the LoRA; 1 is as trained.
        wording: what is written into the prompt in place of the pack's words for this style; None for the pack's.
        steps: steps that suit its LoRA; None for the model's own default.
    """

    title: Mapping[str, str]
    lora: str | None
    weight: float = 1.0
    wording: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Limits:
    """What the model takes.

    Attributes:
        multiple: sides are multiples of this many pixels.
        min_side, max_side, max_pixels: bounds of a picture.
        listed_sizes_only: only the sizes of the card's aspects are good.
        max_steps: most steps.
        tokens: the prompt's limit unless a request raises it.
        max_tokens: how far it may be raised.
    """

    multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    listed_sizes_only: bool
    max_steps: int
    tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Download:
    """Where a model's files are fetched from, and which of them.

    Attributes:
        repo: owner and name on the hub.
        revision: a branch, a tag or a commit.
        include: patterns of the files that make up the model; ``*`` stands for any characters, also a slash.
        parts: the patterns of each part's files, by the part's name. Files of no part belong to all of them.
        sha256: what files must have, by path, where the card's author knows better than to ask the hub.
    """

    repo: str
    revision: str
    include: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class ModelCard:
    """What a model is.

    Attributes:
        name: what it is called on the command line.
        family: which family of networks it belongs to.
        title, license, source: for people.
        folder: where its files are or would be.
        files: files of weights, each with one network or several; empty for a folder in diffusers' layout.
        steps: default number of steps.
        aspects: sizes (width, height) by the name of the shape; the first one is the default.
        parts: its networks by name.
        styles: its styles by name.
        download: where its files are fetched from, or None where there is no such place.
        preview: factors from latents to small RGB pictures, ``[channels + 1][3]`` with the offset last; or None.
        own_words_only: the packs' wording is beyond this model, and left out.
    """

    name: str
    family: str
    title: str
    license: str
    source: str
    folder: Path
    steps: int
    aspects: Mapping[str, tuple[int, int]]
    limits: Limits
    parts: Mapping[str, Part]
    styles: Mapping[str, Style] = field(default_factory=lambda: MappingProxyType({}))
    download: Download | None = None
    preview: tuple[tuple[float, ...], ...] | None = None
    own_words_only: bool = False
    files: tuple[Path, ...] = ()

    @property
    def default_size(self) -> tuple[int, int]:
        return next(iter(self.aspects.values()))

    @property
    def present(self) -> bool:
        """Whether a checkpoint lies in the folder. Its files are checked when it is opened."""
        return all(file.is_file() for file in self.files or (self.folder / INDEX_FILE,))

    def check_present(self) -> None:
        """Refuses a model of which there is nothing on this machine.

        Raises:
            CheckpointError: with how to get it.
        """
        missing = [file for file in self.files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{self.name} is made of {missing[0]}, which is not there. Mend `files` in its card.")
        if not self.present:
            raise CheckpointError(
                f"{self.name} is not on this machine: {self.folder} holds no model. "
                + (f"`hwaga download {self.name}` fetches {self.source}; " if self.download else "")
                + "a folder that holds it can be given as the model too."
            )

    def size_of(self, aspect: str) -> tuple[int, int]:
        """Width and height of a shape by name.

        Raises:
            SizeError: no such shape on this card.
        """
        try:
            return self.aspects[aspect]
        except KeyError:
            raise SizeError(f"{self.name} has no aspect {aspect!r}. It has {', '.join(self.aspects)}.") from None

    def check_size(self, width: int, height: int) -> None:
        """Refuses a size that the model does not take.

        Raises:
            SizeError: with what would do instead.
        """
        size, limits = f"{width}x{height}", self.limits
        remedy = f"Nearest shape: {self.nearest_aspect(width, height)}."
        if limits.listed_sizes_only and (width, height) not in self.aspects.values():
            listed = ", ".join(f"{w}x{h} ({name})" for name, (w, h) in self.aspects.items())
            raise SizeError(f"{self.name} makes only the sizes that it was trained on: {listed}; not {size}. {remedy}")
        if width % limits.multiple or height % limits.multiple:
            down, up = (tuple(_round(side, limits.multiple, up=up) for side in (width, height)) for up in (0, 1))
            raise SizeError(
                f"Sides must be multiples of {limits.multiple}, and {size} is not. "
                f"Try {down[0]}x{down[1]} or {up[0]}x{up[1]}."
            )
        if min(width, height) < limits.min_side:
            raise SizeError(f"{size} is too small for {self.name}: sides start at {limits.min_side} pixels. {remedy}")
        if max(width, height) > limits.max_side or width * height > limits.max_pixels:
            raise SizeError(
                f"{size} is too large for {self.name}: sides end at {limits.max_side} pixels and "
                f"pictures at {limits.max_pixels:,} pixels. {remedy}"
            )

    def nearest_aspect(self, width: int, height: int) -> str:
        """The card's shape nearest to a size, as "4:3 (1152x896)"."""
        name = min(
            self.aspects, key=lambda a: abs(Fraction(*self.aspects[a]) - Fraction(max(width, 1), max(height, 1)))
        )
        return f"{name} ({self.aspects[name][0]}x{self.aspects[name][1]})"

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Reads a card file.

        Raises:
            CardError: with the file and what is wrong in it.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CardError(f"The model card {path} cannot be read: {error}.") from error
        try:
            return _card(_Table(values, ""), path.parent)
        except CardError as error:
            raise CardError(f"{path}: {error}") from None


def built_in_cards(models: Path) -> dict[str, ModelCard]:
    """The cards that come with Hwaga, by name.

    Args:
        models: the folder that fetched models lie in, one folder each, named after the card.
    """
    cards = [ModelCard.read(path) for path in sorted((ASSETS / "cards").glob("*.toml"))]
    bundled = ModelCard.read(ASSETS / "mini" / CARD_FILE)
    return {card.name: card for card in (bundled, *(replace(card, folder=models / card.name) for card in cards))}


def find_card(model: str | Path, models: Path) -> ModelCard:
    """The card for a model's name, a checkpoint folder or a card file.

    Args:
        model: "mini", "z-image-turbo", a folder, a path to a ``.toml`` file, or to one file with all of a model's weights.
        models: the folder that fetched models lie in.

    Raises:
        UnknownModelError: nothing of that name; near names are listed.
        CardError: a card that is not valid.
        CheckpointError: a folder that holds no model.
    """
    cards = built_in_cards(models)
    if str(model) in cards:
        return cards[str(model)]
    try:
        path = Path(model).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, nobody's home, a null byte
        raise UnknownModelError(
            f"There is no model {str(model)[:200]!r}: {error}. Known models: {', '.join(cards)}."
        ) from error
    if is_file:
        if path.suffix == ".toml":
            return ModelCard.read(path)
        if not _holds_weights(path):
            raise UnknownModelError(f"{path} is a file. Give the checkpoint's folder, or a model card (.toml).")
        return _card_of_files(path.parent, path.stem, (path,), cards["z-image-turbo"])
    if is_folder:
        return _card_of_folder(path, cards["z-image-turbo"])
    near = get_close_matches(str(model), cards, n=2, cutoff=0.4)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelError(
        f"There is no model {str(model)!r}.{meant} Known models: {', '.join(cards)}; a folder or a card file works too."
    )


def _card_of_folder(folder: Path, like: ModelCard) -> ModelCard:
    if (folder / CARD_FILE).is_file():
        return ModelCard.read(folder / CARD_FILE)
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        pipeline = index["_class_name"]
    except FileNotFoundError:
        places = [folder / name for name in WEIGHT_FOLDERS if (folder / name).is_dir()]
        files = [file for place in places for file in sorted(place.glob("*")) if _holds_weights(file)]
        if files and not (folder / "transformer").is_dir():  # which would be diffusers' layout without its index
            return _card_of_files(folder, folder.resolve().name, files, like)
        raise CheckpointError(
            f"{folder} holds no {INDEX_FILE}, so it is no model in diffusers' layout, and no files of weights either. "
            "Give the folder that holds transformer/, text_encoder/, vae/ and tokenizer/, or one with the files of a "
            f"transformer, a text encoder and an autoencoder, in itself or in {', '.join(WEIGHT_FOLDERS[1:])}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / INDEX_FILE} cannot be read: {error}. Fetch it again.") from error
    if not isinstance(pipeline, str) or pipeline not in FAMILY_OF_PIPELINE:
        raise CheckpointError(f"{folder} holds a {pipeline}. Hwaga opens {', '.join(FAMILY_OF_PIPELINE)}.")
    return _unnamed_card(like, folder.resolve(), folder.resolve().name, family=FAMILY_OF_PIPELINE[pipeline])


def _card_of_files(folder: Path, name: str, files: Sequence[Path], like: ModelCard) -> ModelCard:
    return _unnamed_card(like, folder.resolve(), name, files=tuple(file.absolute() for file in files))


def _unnamed_card(like: ModelCard, folder: Path, name: str, **others: Any) -> ModelCard:
    return replace(
        like, name=name, title=name, license="", source="", folder=folder, styles=MappingProxyType({}), download=None,
        preview=None, own_words_only=False, **others,
    )  # fmt: skip


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


class _Table:
    """A TOML table whose every key must be asked for: what is missing, of another type or never asked for is an error."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where, self.asked = values, where, set[str]()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self.asked.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise CardError(f"{self.where}{key} is missing.")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise CardError(f"{self.where}{key} must be of type {wanted}, not {value!r}.")
        return value

    def count(self, key: str) -> int:
        value = cast(int, self.get(key, int))
        if value < 1:
            raise CardError(f"{self.where}{key} must be at least 1, not {value}.")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> _Table:
        return _Table(self.get(key, dict, default), f"{self.where}{key}.")

    def tables(self) -> dict[str, _Table]:
        return {key: self.table(key) for key in self.values}

    def close(self) -> None:
        unknown = sorted(set(self.values) - self.asked)
        if unknown:
            raise CardError(f"{self.where}{unknown[0]} is not a key of a model card.")


def _card(table: _Table, folder: Path) -> ModelCard:
    limits, place = _limits(table.table("limits")), (folder / table.get("folder", str, ".")).resolve()
    card = ModelCard(
        name=table.get("name", str),
        family=table.get("family", str),
        title=table.get("title", str),
        license=table.get("license", str),
        source=table.get("source", str),
        folder=place,
        files=_files(table.get("files", list, []), place),
        steps=table.count("steps"),
        aspects=MappingProxyType(_aspects(table.table("aspects"))),
        limits=limits,
        parts=MappingProxyType({name: _part(part) for name, part in table.table("parts").tables().items()}),
        styles=MappingProxyType({name: _style(style) for name, style in table.table("styles", {}).tables().items()}),
        download=_download(table.table("download")) if "download" in table.values else None,
        preview=_preview(table.get("preview", list, [])),
        own_words_only=table.get("own_words_only", bool, False),
    )
    table.close()
    loras = [Path(style.lora).stem for style in card.styles.values() if style.lora is not None]
    if len(set(loras)) < len({style.lora for style in card.styles.values() if style.lora is not None}):
        raise CardError(
            "Two of the styles' LoRAs are called alike, in different folders. Requests name them by their files' names."
        )
    for part in card.download.parts if card.download else ():
        if part not in card.parts:
            raise CardError(f"download.parts.{part} is none of the model's parts. They are {', '.join(card.parts)}.")
    for name, (width, height) in card.aspects.items():
        try:
            card.check_size(width, height)
        except SizeError as error:
            raise CardError(f"aspects.{name} breaks the card's own limits: {error}") from None
    if limits.max_tokens < limits.tokens:
        raise CardError("limits.max_tokens is below limits.tokens.")
    return card


def _files(names: list[Any], folder: Path) -> tuple[Path, ...]:
    if not all(isinstance(name, str) and name for name in names):
        raise CardError(f'files must be a list of paths such as ["vae/ae.safetensors"], not {names!r}.')
    return tuple(folder / name for name in names)


def _limits(table: _Table) -> Limits:
    limits = Limits(
        multiple=table.count("multiple"),
        min_side=table.count("min_side"),
        max_side=table.count("max_side"),
        max_pixels=table.count("max_pixels"),
        listed_sizes_only=table.get("listed_sizes_only", bool, False),
        max_steps=table.count("max_steps"),
        tokens=table.count("tokens"),
        max_tokens=table.count("max_tokens"),
    )
    table.close()
    return limits


def _aspects(table: _Table) -> dict[str, tuple[int, int]]:
    aspects = {}
    for name in table.values:
        size = table.get(name, list)
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise CardError(f"aspects.{name} must be [width, height], not {size!r}.")
        aspects[name] = (size[0], size[1])
    if not aspects:
        raise CardError("aspects is empty; its first entry is the default size.")
    return aspects


def _part(table: _Table) -> Part:
    part = Part(parameters=table.count("parameters"))
    table.close()
    return part


def _style(table: _Table) -> Style:
    titles = table.table("title")
    style = Style(
        title=MappingProxyType({language: titles.get(language, str) for language in titles.values}),
        lora=table.get("lora", str, "") or None,
        weight=float(table.get("weight", (int, float), 1.0)),
        wording=table.get("wording", str) if "wording" in table.values else None,
        steps=table.count("steps") if "steps" in table.values else None,
    )
    if not -10 <= style.weight <= 10:
        raise CardError(f"{table.where}weight must be from -10 to 10, not {style.weight:g}.")
    if style.lora is not None and (Path(style.lora).is_absolute() or ".." in Path(style.lora).parts):
        raise CardError(f"{table.where}lora must lie below the card's folder, not at {style.lora!r}.")
    table.close()
    return style


def _download(table: _Table) -> Download:
    parts, pins = table.table("parts", {}), table.table("sha256", {})
    download = Download(
        repo=table.get("repo", str),
        revision=table.get("revision", str, "main"),
        include=_patterns(table, "include"),
        parts=MappingProxyType({name: _patterns(parts, name) for name in parts.values}),
        sha256=MappingProxyType({path: pins.get(path, str) for path in pins.values}),
    )
    table.close()
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", download.repo, re.ASCII):
        raise CardError(f"download.repo must be owner/name, not {download.repo!r}.")
    if not download.revision:
        raise CardError("download.revision is empty; leave it out for the newest files.")
    for path, digest in download.sha256.items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise CardError(f"download.sha256.{path} must be 64 hexadecimal digits in small letters, not {digest!r}.")
    return download


def _patterns(table: _Table, key: str) -> tuple[str, ...]:
    patterns = table.get(key, list)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise CardError(f'{table.where}{key} must be a list of patterns such as ["vae/*"], not {patterns!r}.')
    return tuple(patterns)


def _preview(rows: list[Any]) -> tuple[tuple[float, ...], ...] | None:
    if not rows:
        return None
    if not all(isinstance(row, list) and len(row) == 3 and all(type(v) in (int, float) for v in row) for row in rows):
        raise CardError("preview must be rows of three numbers: one for each latent channel, then the offset.")
    return tuple(tuple(float(value) for value in row) for row in rows)


def _round(side: int, multiple: int, *, up: int) -> int:
    return max(multiple, (side // multiple + up * (side % multiple > 0)) * multiple)
