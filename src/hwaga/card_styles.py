"""The styles of a model that need weights: a LoRA beside its own, or a whole checkpoint in their place.

They are tables of a model card, or of a file of the same form beside a model: ``styles.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hwaga.errors import CardError
from hwaga.hub_sources import LoraSource, read_lora_source
from hwaga.toml_table import Table

STYLES_FILE = "styles.toml"
"""Beside a model: styles that its owner has added."""


@dataclass(frozen=True)
class Style:
    """A look that the model can be given.

    Attributes:
        title: its name for people, by language.
        lora: file of the LoRA below the card's folder, or None for the base model's own look.
        checkpoint: file or folder below the card's folder with a whole model of this look, or None.
        weight: of the LoRA; 1 is as trained.
        wording: what is written into the prompt in place of the pack's words for this style; None for the pack's.
        steps: steps that suit its LoRA; None for the model's own default.
        source: where its LoRA or checkpoint is fetched from, if it is.
    """

    title: Mapping[str, str]
    lora: str | None
    weight: float = 1.0
    wording: str | None = None
    steps: int | None = None
    source: LoraSource | None = None
    checkpoint: str | None = None

    @property
    def file(self) -> str | None:
        """What it takes in weights, below the card's folder."""
        return self.lora or self.checkpoint


def read_styles(table: Table, others: Mapping[str, Style] = MappingProxyType({})) -> Mapping[str, Style]:
    """The styles of a card, or of a file beside a model, which count where both have one of a name.

    Args:
        others: of the card, where a file is read.

    Raises:
        CardError: with what is wrong in them.
    """
    styles = {**others, **{name: _style(style) for name, style in table.table("styles", {}).tables().items()}}
    files = {style.lora for style in styles.values() if style.lora is not None}
    if len({Path(file).stem for file in files}) < len(files):
        raise CardError(
            "Two of the styles' LoRAs are called alike, in different folders. Requests name them by their files' names."
        )
    sources: dict[str | None, LoraSource] = {}
    for name, style in styles.items():
        if style.source is not None and sources.setdefault(style.file, style.source) != style.source:
            raise CardError(
                f"styles.{name}.source is another than that of a style before it, and both go to {style.file}. Give one "
                'another place, such as lora = "loras/other.safetensors".'
            )
    return MappingProxyType(styles)


def read_styles_file(path: Path, others: Mapping[str, Style]) -> Mapping[str, Style]:
    """A card's styles with those that the model's owner has added, if there is such a file.

    Raises:
        CardError: with the file and what is wrong in it.
    """
    try:
        table = Table(tomllib.loads(path.read_text(encoding="utf-8")), "")
    except (FileNotFoundError, NotADirectoryError):
        return others
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CardError(f"The styles {path} cannot be read: {error}.") from error
    try:
        styles = read_styles(table, others)
        table.close()
    except CardError as error:
        raise CardError(f"{path}: {error}") from None
    return styles


def _style(table: Table) -> Style:
    titles = table.table("title")
    source = read_lora_source(table.table("source")) if "source" in table.values else None
    place = f"loras/{Path(source.file).name}" if source else ""
    checkpoint = table.get("checkpoint", str, "")
    style = Style(
        title=MappingProxyType({language: titles.get(language, str) for language in titles.values}),
        lora=table.get("lora", str, "" if checkpoint else place) or None,
        checkpoint=checkpoint or None,
        weight=float(table.get("weight", (int, float), 1.0)),
        wording=table.get("wording", str) if "wording" in table.values else None,
        steps=table.count("steps") if "steps" in table.values else None,
        source=source,
    )
    if not -10 <= style.weight <= 10:
        raise CardError(f"{table.where}weight must be from -10 to 10, not {style.weight:g}.")
    if style.lora is not None and style.checkpoint is not None:
        raise CardError(f"{table.where}checkpoint and lora exclude each other: a style is one or the other.")
    for key, file in (("lora", style.lora), ("checkpoint", style.checkpoint)):
        if file is not None and (Path(file).is_absolute() or ".." in Path(file).parts):
            raise CardError(f"{table.where}{key} must lie below the card's folder, not at {file!r}.")
    if source is not None and style.file is not None and not style.file.endswith(".safetensors"):
        key = "lora" if style.lora else "checkpoint"
        raise CardError(
            f"{table.where}{key} must be a .safetensors file where it has a source, which is one; not {style.file!r}."
        )
    table.close()
    return style
