"""Model cards: what a model is, as data. One TOML file each.

Built-in cards lie in ``assets/cards`` and beside the bundled model; a folder with a checkpoint may hold a ``card.toml`` of its
own. ``model_lookup`` finds the card for a model's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from hwaga.card_styles import STYLES_FILE, Style, read_styles, read_styles_file
from hwaga.errors import CardError, CheckpointError, RequestError, SizeError, StyleError
from hwaga.hub_sources import Download, read_download
from hwaga.prompt_form import FORMS
from hwaga.request import MAX_GUIDANCE, SAMPLERS, ImageRequest
from hwaga.toml_table import Table

ASSETS = Path(str(files("hwaga") / "assets"))

CARD_FILE = "card.toml"
INDEX_FILE = "model_index.json"

STYLE_SIGN = ":"
"""Between a model's name and a style of it that is a checkpoint of its own."""

STYLES = "styles"
"""What the styles' LoRAs and checkpoints are called among the parts that can be fetched."""


@dataclass(frozen=True)
class Part:
    """One network of a model.

    Attributes:
        parameters: how many numbers of it are used, wherever they lie.
    """

    parameters: int


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
        guidance: how much its pictures follow their prompts unless a request says so; None for a model that is drawn without
            guidance, and so has no negative prompt.
        samplers: that may be chosen from, its default first; empty where there is no choice.
        path: the file that it was read from, or the model itself where it has none; None for one that is known by its name.
        remedy: what to do where its files are not there, if that is not the usual.
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
    guidance: float | None = None
    samplers: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False)
    remedy: str = field(default="", compare=False)

    @property
    def address(self) -> str:
        """What leads to it on this machine: its name, the card's file, or the model's own."""
        if self.path is None:
            return self.name
        # Messages are shown to clients of a server too, less the model's folder. Nothing beyond it is theirs to see.
        return f"{self.path}" if self.path.is_relative_to(self.folder) else f"…/{self.path.name}"

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
            fetching = f"`hwaga download {self.address}` fetches it, or mend" if self.download else "Mend"
            remedy = self.remedy or f"{fetching} `files` in its card."
            raise CheckpointError(f"{self.name} is made of {missing[0]}, which is not there. {remedy}")
        if not self.present:
            raise CheckpointError(
                f"{self.name} is not on this machine: {self.folder} holds no model. "
                + (self.remedy and f"{self.remedy} ")
                + (f"`hwaga download {self.address}` fetches {self.source}; a" if self.download else "A")
                + " folder that holds it can be given as the model too."
            )

    def remedy_for_style(self, style: Style) -> str:
        """What to do where a style's LoRA is not there, as a sentence's beginning."""
        fetched = self.download is not None and style.source is not None
        return f"`hwaga download {self.address} --parts {STYLES}` fetches it" if fetched else "Put the file there"

    def of_style(self, name: str) -> ModelCard:
        """The model that draws a style with a checkpoint of its own.

        Raises:
            StyleError: no such style, or one that this model draws itself.
        """
        own = {each: style for each, style in self.styles.items() if style.checkpoint is not None}
        if name not in own:
            there_are = f"Those that are: {', '.join(own)}." if own else "None is."
            raise StyleError(f"{self.name} has no style {name!r} that is a checkpoint of its own. {there_are}")
        style = own[name]
        place = self.folder / cast(str, style.checkpoint)
        folder = place.is_dir() or not place.suffix
        fetching = f"`hwaga download {self.address}` fetches it, or mend" if self.download and style.source else "Mend"
        return replace(
            self,
            name=f"{self.name}{STYLE_SIGN}{name}",
            title=f"{self.title}: {style.title.get('en', name)}",
            license=style.source.license if style.source else "",
            source=style.source.repo if style.source else "",
            folder=place if folder else place.parent,
            files=() if folder else (place,),
            steps=style.steps or self.steps,
            styles=MappingProxyType({name: replace(style, checkpoint=None, source=None)}),
            download=None,
            path=None,
            remedy=f"{fetching} `checkpoint` of [styles.{name}] in {self._styles_place} of {self.name}.",
        )

    def with_styles_beside(self) -> ModelCard:
        """The card with the styles of a file beside the model, if there is one, which count where both have one of a name.

        Raises:
            CardError: with the file and what is wrong in it.
        """
        return replace(self, styles=read_styles_file(self.folder / STYLES_FILE, self.styles))

    @property
    def _styles_place(self) -> str:
        if self.path is None or self.path.suffix != ".toml":
            return STYLES_FILE
        return f"the card or {STYLES_FILE}" if (self.folder / STYLES_FILE).is_file() else "the card"

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

    def is_guided(self, guidance: float | None) -> bool:
        """Whether a picture is drawn with guidance, and so with a negative prompt.

        Args:
            guidance: that its request asks for; None for the model's own.
        """
        return self.guidance is not None and (self.guidance if guidance is None else guidance) > 1

    def check_guidance(self, request: ImageRequest) -> None:
        """Refuses a way of drawing that the model does not have.

        Raises:
            RequestError: with what would do instead.
        """
        if self.guidance is None:
            given = [name for name in ("negative", "guidance") if getattr(request, name) is not None]
            if given:
                worded = not self.own_words_only and self.family in FORMS and not FORMS[self.family].negative
                instead = (
                    "goes into avoid" if worded else "has no place but the prompt: say what it should show instead"
                )
                raise RequestError(
                    f"{self.name} draws without guidance and has no negative prompt. Leave {' and '.join(given)} out; what the "
                    f"picture should not show {instead}."
                )
        elif request.negative is not None and not self.is_guided(request.guidance):
            raise RequestError(
                "At guidance 1 there is no negative prompt. Leave negative out, or ask for a guidance above 1."
            )
        if request.sampler is not None and request.sampler not in self.samplers:
            offered = (
                f"It has {', '.join(self.samplers)}" if self.samplers else "It has one of its own: leave sampler out"
            )
            raise RequestError(f"{self.name} is not drawn with the sampler {request.sampler}. {offered}.")

    def nearest_aspect(self, width: int, height: int) -> str:
        """The card's shape nearest to a size, and of those of one shape the one nearest in pixels, as "4:3 (1152x896)"."""
        wanted = Fraction(max(width, 1), max(height, 1))

        def distance(name: str) -> tuple[Fraction, int]:
            own_width, own_height = self.aspects[name]
            return abs(Fraction(own_width, own_height) - wanted), abs(own_width * own_height - width * height)

        name = min(self.aspects, key=distance)
        return f"{name} ({self.aspects[name][0]}x{self.aspects[name][1]})"

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Reads a card file.

        Raises:
            CardError: with the file and what is wrong in it.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise CardError(f"The model card {path} cannot be read: {error}.") from error
        try:
            return replace(_card(Table(values, ""), path.parent), path=path.resolve())
        except CardError as error:
            raise CardError(f"{path}: {error}") from None


def _card(table: Table, folder: Path) -> ModelCard:
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
        styles=read_styles(table),
        download=read_download(table.table("download")) if "download" in table.values else None,
        preview=_preview(table.get("preview", list, [])),
        own_words_only=table.get("own_words_only", bool, False),
        guidance=_guidance(table) if "guidance" in table.values else None,
        samplers=_samplers(table.get("samplers", list, [])),
    )
    table.close()
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


def _guidance(table: Table) -> float:
    guidance = float(table.get("guidance", (int, float)))
    if not 1 <= guidance <= MAX_GUIDANCE:
        raise CardError(
            f"guidance must be from 1 to {MAX_GUIDANCE}, not {guidance:g}. Leave it out for a model without."
        )
    return guidance


def _samplers(names: list[Any]) -> tuple[str, ...]:
    if not all(name in SAMPLERS for name in names) or len(set(names)) < len(names):
        raise CardError(f"samplers must be some of {', '.join(SAMPLERS)}, each once, not {names!r}.")
    return tuple(names)


def _files(names: list[Any], folder: Path) -> tuple[Path, ...]:
    if not all(isinstance(name, str) and name for name in names):
        raise CardError(f'files must be a list of paths such as ["vae/ae.safetensors"], not {names!r}.')
    return tuple(folder / name for name in names)


def _limits(table: Table) -> Limits:
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


def _aspects(table: Table) -> dict[str, tuple[int, int]]:
    aspects = {}
    for name in table.values:
        size = table.get(name, list)
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise CardError(f"aspects.{name} must be [width, height], not {size!r}.")
        aspects[name] = (size[0], size[1])
    if not aspects:
        raise CardError("aspects is empty; its first entry is the default size.")
    return aspects


def _part(table: Table) -> Part:
    part = Part(parameters=table.count("parameters"))
    table.close()
    return part


def _preview(rows: list[Any]) -> tuple[tuple[float, ...], ...] | None:
    if not rows:
        return None
    if not all(isinstance(row, list) and len(row) == 3 and all(type(v) in (int, float) for v in row) for row in rows):
        raise CardError("preview must be rows of three numbers: one for each latent channel, then the offset.")
    return tuple(tuple(float(value) for value in row) for row in rows)


def _round(side: int, multiple: int, *, up: int) -> int:
    return max(multiple, (side // multiple + up * (side % multiple > 0)) * multiple)
