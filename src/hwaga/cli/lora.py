"""``hwaga lora``: a library of LoRAs, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cards import ModelCard
from hwaga.cli.console import gibibytes, print_json, print_result, progress_bar, say
from hwaga.loras import LoraEntry, LoraLibrary
from hwaga.model_lookup import cards_by_name, find_card
from hwaga.settings import Settings

Model = Annotated[str | None, typer.Option("--model", "-m", help="A model's name, a checkpoint folder or a card file.")]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]

lora = typer.Typer(name="lora", help="Add, list and remove LoRAs of your own.", no_args_is_help=True)


@lora.command()
def add(
    file: Annotated[Path, typer.Argument(help="A LoRA, LoHa or LoKr as safetensors, of any trainer.")],
    name: Annotated[str | None, typer.Option(help="What to call it (by default what the file is called).")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Copy a LoRA into the library, and say which models it fits. Prints its name."""
    settings = Settings.read()
    cards, wrong = cards_by_name(settings.models)
    chosen = find_card(model or settings.model, settings.models)
    present = [card for card in {chosen.name: chosen, **cards}.values() if card.present]
    with progress_bar() as bar:
        bar.show("Reading", 0, None)
        from hwaga.engine import check_lora  # brings torch

        fits = check_lora(file, present)
        bar.show("Copying", 0, None)
        taken = {
            Path(style.lora).stem
            for card in (chosen, *cards.values())
            for style in card.styles.values()
            if style.lora and (card.folder / style.lora).is_file()
        }
        entry = LoraLibrary(settings.loras).add(file, name, taken=taken)
    if as_json:
        print_json(_describe(entry) | {"fits": {model: reason is None for model, reason in fits.items()}})
        return
    print_result(entry.name)
    for error in wrong.values():
        say(str(error))
    for model_name, reason in fits.items():
        say(f"It fits {model_name}." if reason is None else f"It does not fit {model_name}: {reason}")
    if all(reason is not None for reason in fits.values()):
        say("It is kept for a model that is not on this machine yet.")


@lora.command("list")
def list_(model: Model = None, as_json: Json = False) -> None:
    """List the LoRAs that can be asked for: the model's own and those in the library."""
    settings = Settings.read()
    card: ModelCard = find_card(model or settings.model, settings.models)
    library = LoraLibrary(settings.loras)
    entries = library.entries(card).values()
    if as_json:
        print_json([_describe(entry) for entry in entries])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for entry in entries:
        there = entry.file.is_file()
        size = gibibytes(entry.file.stat().st_size) if there else "not there"
        license = f"{entry.source.license}, {entry.source.repo}" if entry.source else ""
        table.add_row(
            Text(entry.name),
            size,
            Text(f"of {entry.model}" if entry.model else "yours"),
            Text(license),
            Text(str(entry.file)),
        )
    Console(highlight=False).print(table)
    if not entries:
        say(f"There is none. Add a file with `hwaga lora add FILE`; it goes to {library.folder}.")


@lora.command()
def remove(name: Annotated[str, typer.Argument(help="What it is called.")]) -> None:
    """Delete a LoRA from the library. A model's own stay."""
    LoraLibrary(Settings.read().loras).remove(name)


def _describe(entry: LoraEntry) -> dict[str, Any]:
    size = entry.file.stat().st_size if entry.file.is_file() else None
    return {
        "name": entry.name,
        "file": str(entry.file),
        "bytes": size,
        "model": entry.model,
        "license": entry.source.license if entry.source else None,
        "source": entry.source.repo if entry.source else None,
    }
