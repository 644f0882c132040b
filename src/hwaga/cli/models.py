"""``hwaga models``: what there is to draw with, and whether its files are still those that were fetched."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cards import ModelCard
from hwaga.cli.console import gibibytes, print_json, progress_bar, say
from hwaga.errors import DownloadError
from hwaga.model_lookup import built_in_cards, cards_by_name, find_card
from hwaga.settings import Settings
from hwaga.weights.verified import MARKER, Hashing, Report, condition, verify

models = typer.Typer(invoke_without_command=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@models.callback()
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models that are known by name, and whether they are on this machine. `verify` checks their files."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings.read()
    cards, wrong = cards_by_name(settings.models)
    if as_json:
        print_json([_describe(card) | {"error": str(wrong.get(name) or "") or None} for name, card in cards.items()])
        return
    console = Console(highlight=False)
    for card in cards.values():
        default = ", the default" if card.name == settings.model else ""
        console.print(Text(card.name, style="bold").append(f" ({_state(card)}{default})", style="not bold"))
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_column()
        table.add_column(overflow="fold")  # of a folder's name too long for a line, all is wanted
        table.add_row("what", Text(f"{card.title}. {card.license}"))
        table.add_row("weights", Text(f"{gibibytes(2 * _parameters(card))} in bfloat16, in {card.folder}"))
        table.add_row("sizes", ", ".join(f"{name} {width}x{height}" for name, (width, height) in card.aspects.items()))
        table.add_row("styles", Text(", ".join(_style(card, name) for name in card.styles) or "–"))
        table.add_row("source", Text(card.source))
        if card.name in wrong:
            table.add_row("error", Text(str(wrong[card.name])))
        console.print(table)


@models.command("verify")
def verify_models(
    model: Annotated[
        str | None, typer.Argument(help="A model's name or a fetched folder; every fetched model if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash all files of fetched models again. Exit code 1 when one is damaged or missing."""
    folders = _fetched_folders(model)
    reports: dict[Path, Report] = {}
    with progress_bar(transfer=True) as bar:
        for folder in folders:
            bar.begin(f"Checking {folder.name}", 0, None)
            with closing(verify(folder)) as steps:
                for step in steps:
                    if isinstance(step, Hashing):
                        bar.show(f"Checking {step.path}", step.done, step.total)
                    else:
                        reports[folder] = step
    if as_json:
        print_json(
            [{"folder": str(folder), "good": report.good, **asdict(report)} for folder, report in reports.items()]
        )
    else:
        console = Console(highlight=False, soft_wrap=True)
        for folder, report in reports.items():
            for word in ("damaged", "missing", "extra"):
                for path in getattr(report, word):
                    console.print(Text(f"{word:<9}{folder / path}"))
            for path in report.absent_styles:
                console.print(Text(f"{'absent':<9}{folder / path}, of a style. The model is whole without."))
            verdict = "good" if report.good else "not as they should be"
            console.print(Text(f"{folder}: {len(report.verified)} files checked, {verdict}."))
    if not all(report.good for report in reports.values()):
        say("`hwaga download` fetches what is damaged or missing, and nothing else.")
        raise typer.Exit(1)


def _fetched_folders(model: str | None) -> list[Path]:
    settings = Settings.read()
    cards = built_in_cards(settings.models)
    if model is None:
        folders = [card.folder for card in cards.values() if (card.folder / MARKER).is_file()]
        if not folders:
            raise DownloadError(
                "No model was fetched yet: `hwaga download` fetches one. The bundled one is part of Hwaga."
            )
        return folders
    with suppress(OSError):  # a name too long for a folder is none
        if model not in cards and (Path(model) / MARKER).is_file():
            return [Path(model)]
    card = find_card(model, settings.models)
    if card.download is None and not (card.folder / MARKER).is_file():
        raise DownloadError(f"{card.name} was not fetched, so that there is nothing to verify it by.")
    return [card.folder]


def _state(card: ModelCard) -> str:
    """What is to be said of a model's files. The bundled model came with Hwaga, and nobody fetched it."""
    state = condition(card)
    here = card.present and state in ("verified", "not verified")
    if here:
        return "on this machine" if card.download is None else f"on this machine, {state}"
    return state


def _style(card: ModelCard, name: str) -> str:
    """A style's name; with what its weights are, their licence and whether they are there, where others made them."""
    style = card.styles[name]
    if style.source is None or style.file is None:
        return name
    kind = "LoRA" if style.lora else "checkpoint"
    there = "" if (card.folder / style.file).is_file() else ", not fetched"
    return f"{name} ({kind} of {style.source.repo}, {style.source.license}{there})"


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
        "state": _state(card),
        "parameters": _parameters(card),
        "steps": card.steps,
        "aspects": {name: list(size) for name, size in card.aspects.items()},
        "styles": {name: dict(style.title) for name, style in card.styles.items()},
        "style_sources": {
            name: asdict(style.source) | {"present": style.file is not None and (card.folder / style.file).is_file()}
            for name, style in card.styles.items()
            if style.source is not None
        },
    }
