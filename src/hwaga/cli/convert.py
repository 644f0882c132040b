"""``hwaga convert``: a checkpoint in another layout or number format."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from hwaga.cli.console import gibibytes, print_json, print_result, progress_bar, say
from hwaga.model_lookup import find_card
from hwaga.settings import Settings


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A model's name, a checkpoint folder, a card file, or one file with it all."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make. It must not be there.")],
    precision: Annotated[
        str, typer.Option(help="bf16, or the large weights in fewer bits: int8, fp8 or int4.")
    ] = "bf16",
    layout: Annotated[str, typer.Option(help="diffusers, or comfyui (bf16 alone).")] = "diffusers",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan and what came of it as JSON.")] = False,
) -> None:
    """Write a model in another layout or precision. Prints the new folder, which is there whole or not at all."""
    card = find_card(source, Settings.read().models)
    from hwaga.convert import convert, plan_conversion  # brings torch, which `hwaga --help` need not wait for

    plan = plan_conversion(card, destination, precision=precision, layout=layout)
    total = plan.conversion.to_read
    described = {
        "source": str(card.folder),
        "folder": str(plan.destination),
        "precision": precision,
        "layout": layout,
        "to_read_bytes": total,
        "to_write_bytes": plan.conversion.to_write,
    }
    reading = f"{gibibytes(total)} to read, {gibibytes(plan.conversion.to_write)} to write."
    if dry_run:
        print_json(described) if as_json else say(reading)
        return
    plan.check_space()
    say(reading)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with progress_bar(transfer=True) as bar, closing(convert(plan)) as steps:
            for done in steps:
                bar.show(f"Writing {plan.destination.name}", done, total)
    except KeyboardInterrupt:
        say("Stopped. Nothing was kept.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(described | {"written": True})
    else:
        print_result(str(plan.destination))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
