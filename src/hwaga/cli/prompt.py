"""``hwaga prompt``, ``hwaga styles`` and ``hwaga industries``: words, without drawing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cards import STYLE_SIGN
from hwaga.cli.console import print_json, print_result, say
from hwaga.errors import PromptError
from hwaga.model_lookup import built_in_cards, find_card
from hwaga.prompt import Composition, Library, Slots, compose
from hwaga.prompt.keywords import Words
from hwaga.prompt_form import FORMS
from hwaga.settings import Settings
from hwaga.tokens import is_countable, token_counter

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Whose styles and tokens count: a name, a folder or a card file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def prompt(
    text: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw, in your own words.")],
    slot: Annotated[
        list[str] | None,
        typer.Option(help="A further part of the picture, as lighting=TEXT; PROMPT is then the subject. Repeatable."),
    ] = None,
    style: Annotated[str | None, typer.Option(help="A style (see `hwaga styles`), or auto.")] = None,
    industry: Annotated[str | None, typer.Option(help="A business (see `hwaga industries`), or auto.")] = None,
    avoid: Annotated[
        list[str] | None, typer.Option(help="Something not wanted, as text or people. Repeatable.")
    ] = None,
    use: Annotated[str | None, typer.Option(help="Where it will be shown: feed, story, banner or poster.")] = None,
    model: Model = None,
    family: Annotated[
        str | None, typer.Option(help=f"Word it for {' or '.join(FORMS)} [default: the model's family].")
    ] = None,
    style_fallback: Annotated[
        bool, typer.Option("--style-fallback", help="Go on without the style's LoRA where it is absent.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the prompt that a text, a style and an industry come to. Nothing is drawn."""
    settings = Settings.read()
    card = find_card(model or settings.model, settings.models)
    family = family or card.family
    # Worded for another family, the prompt is counted as that family's own model would.
    reader = card if family == card.family else built_in_cards(settings.models).get(family)
    countable = reader is not None and is_countable(reader)
    composition = compose(
        _slots(text, slot) if slot else text,
        family=family,
        library=Library.load(settings.packs),
        card=card,
        style=style,
        industry=industry,
        avoid=avoid or (),
        use=use,
        style_fallback=style_fallback,
        count_tokens=token_counter(reader) if reader and countable else None,
        token_limit=reader.limits.tokens if reader and countable else None,
    )
    if as_json:
        print_json(_describe(composition))
        return
    print_result(composition.text)
    for note in composition.notes:
        say(note)
    if composition.negative is not None:
        say(f"Negative prompt: {composition.negative}")
    for lora in composition.loras:
        say(f"LoRA: {lora.name} at {lora.weight:g}")
    if composition.aspect is not None:
        say(f"Aspect: {composition.aspect}")
    if reader is not None and composition.tokens is not None:
        say(f"Tokens: {composition.tokens} of {reader.limits.tokens}")
    else:
        fetch = f" `hwaga download {card.name}` fetches it." if card.download and family == card.family else ""
        say(f"Tokens are not counted: the tokenizer for {family} of {card.name} is not on this machine.{fetch}")


def styles(model: Model = None, as_json: Json = False) -> None:
    """List the styles, and which of them the model has a LoRA or a checkpoint for."""
    settings = Settings.read()
    card = find_card(model or settings.model, settings.models)
    packs = Library.load(settings.packs).styles
    rows = []
    for name in dict.fromkeys([*packs, *card.styles]):
        own = card.styles.get(name)
        weights = {"lora": own.lora if own else None, "checkpoint": own.checkpoint if own else None}
        titles = packs[name].titles if name in packs else card.styles[name].title
        aliases = packs[name].aliases if name in packs else Words()
        rows.append(_row(name, dict(titles), aliases) | weights)
    _print(rows, as_json)


def industries(as_json: Json = False) -> None:
    """List the industries, with the names that they answer to."""
    found = Library.load(Settings.read().packs).industries.values()
    _print([_row(entry.name, dict(entry.titles), entry.aliases) for entry in found], as_json)


def _slots(text: str, slots: list[str]) -> Slots:
    values = {"subject": text}
    for slot in slots:
        name, equals, value = slot.partition("=")
        if not equals or name in values:
            raise PromptError(f"--slot takes name=text, each name once and not subject: not {slot!r}.")
        values[name] = value
    return Slots.of(values)


def _describe(composition: Composition) -> dict[str, Any]:
    return {**vars(composition), "loras": [vars(lora) for lora in composition.loras]}


def _row(name: str, titles: dict[str, str], aliases: Words) -> dict[str, Any]:
    return {"name": name, "title": titles, "aliases": list(aliases)}


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for row in rows:
        weights = f"LoRA {Path(row['lora']).stem}" if row.get("lora") else ""
        if row.get("checkpoint"):
            weights = f"a model of its own, …{STYLE_SIGN}{row['name']}"
        cells = [
            row["name"],
            row["title"].get("ko", ""),
            row["title"].get("en", ""),
            ", ".join(row["aliases"]),
            weights,
        ]
        table.add_row(*(Text(cell) for cell in cells))
    Console(highlight=False).print(table)
