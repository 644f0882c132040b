"""``hwaga models``: what there is to draw with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cards import ModelCard, built_in_cards
from hwaga.cli.console import gibibytes, print_json
from hwaga.settings import Settings


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the models as JSON.")] = False) -> None:
    """List the models that are known by name, and whether they are on this machine."""
    settings = Settings.read()
    cards = built_in_cards(settings.models).values()
    if as_json:
        print_json([_describe(card) for card in cards])
        return
    console = Console(highlight=False)
    for card in cards:
        default = ", the default" if card.name == settings.model else ""
        state = "on this machine" if card.present else "not on this machine"
        console.print(Text(card.name, style="bold").append(f" ({state}{default})", style="not bold"))
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_row("what", Text(f"{card.title}. {card.license}"))
        table.add_row("weights", Text(f"{gibibytes(2 * _parameters(card))} in bfloat16, in {card.folder}"))
        table.add_row("sizes", ", ".join(f"{name} {width}x{height}" for name, (width, height) in card.aspects.items()))
        table.add_row("styles", ", ".join(card.styles) or "–")
        table.add_row("source", Text(card.source))
        console.print(table)


def _parameters(card: ModelCard) -> int:
    return sum(part.parameters for part in card.parts.values())


def _describe(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "family": card.family,
        "license": card.license,
        "source": card.source,
        "folder": str(card.folder),
        "present": card.present,
        "parameters": _parameters(card),
        "steps": card.steps,
        "aspects": {name: list(size) for name, size in card.aspects.items()},
        "styles": {name: dict(style.title) for name, style in card.styles.items()},
    }
