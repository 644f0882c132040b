"""``hwaga download``: a model from the hub to this machine."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cli.console import gibibytes, print_json, print_result, progress_bar, say
from hwaga.errors import DownloadError
from hwaga.model_lookup import find_card
from hwaga.settings import Settings
from hwaga.weights.verified import Verified

if TYPE_CHECKING:
    from hwaga.weights.download_plan import Plan

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def download(
    model: Annotated[str, typer.Argument(help="A model's name or a card file.")] = "z-image-turbo",
    parts: Annotated[
        str | None, typer.Option(help="Only these parts, as in transformer,vae,styles. The others can follow later.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="The folder it goes to (by default where Hwaga looks for it).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A commit, tag or branch in place of the card's.")] = None,
    limit_rate: Annotated[str | None, typer.Option(help="Bytes a second at most, as in 500K or 20M.")] = None,
    connections: Annotated[int, typer.Option(min=1, max=16, help="How many connections to use at once.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan and what came of it as JSON.")] = False,
) -> None:
    """Fetch a model and check every file. Prints its folder. Run it again to go on where it stopped."""
    rate = parse_rate(limit_rate)
    card = find_card(model, Settings.read().models)
    names = [name.strip() for name in parts.split(",") if name.strip()] if parts is not None else []
    if parts is not None and not names:
        raise DownloadError("--parts names no part. Leave it out for all of them.")
    from hwaga.weights.download import fetch  # brings urllib and ssl, which `hwaga --help` need not wait for
    from hwaga.weights.download_plan import make_plan
    from hwaga.weights.hub import Hub

    try:
        hub = Hub.from_environment()
        plan = make_plan(card, hub, folder=to, parts=names, revision=revision)
        _show(plan, Console(stderr=not dry_run or as_json, highlight=False))
        if dry_run:
            if as_json:
                print_json(_describe(plan))
            return
        plan.check_space()
        with (
            progress_bar(transfer=True) as bar,
            closing(fetch(plan, hub, connections=connections, limit_rate=rate)) as steps,
        ):
            checking, unavailable = None, plan.unavailable
            for step in steps:
                only_checks = step.fetched >= step.to_fetch and bool(step.checking)
                subject = f"Checking {step.checking}" if only_checks else "Fetching"
                if step.checking and not only_checks:
                    subject += f", checking {step.checking}"
                if step.failure:
                    subject += f", trying again ({step.failure})"
                done, total = (step.checked, step.to_check) if only_checks else (step.fetched, step.to_fetch)
                show = bar.show if checking is only_checks else bar.begin
                show(subject, done, total)
                checking = only_checks
                unavailable = (*plan.unavailable, *step.unavailable)
    except KeyboardInterrupt:
        say("Stopped. What has arrived is kept: run it again to go on.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(_describe(replace(plan, unavailable=unavailable)) | {"verified": True})
    else:
        print_result(str(plan.folder))
    for name, reason in unavailable[len(plan.unavailable) :]:
        say(_left_out(name, reason))
    marker = Verified.read(plan.folder)
    if marker is not None and marker.missing:
        say(f"Files of the other parts that are still to be fetched: {len(marker.missing)}.")


def parse_rate(text: str | None) -> int | None:
    """Bytes a second of "20M"; K, M and G are powers of 1024.

    Raises:
        DownloadError: the text is of another form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMG]?)B?", text.strip().upper())
    rate = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if rate < 1:
        raise DownloadError(f"--limit-rate takes bytes a second such as 500K, 20M or 1.5G, not {text!r}.")
    return rate


def _show(plan: Plan, console: Console) -> None:
    words = {"verified": "verified", "here": "here, to be checked", "cached": "in Hugging Face's cache, to be linked"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for file in plan.files:
        state = words.get(file.place, f"{gibibytes(file.arrived)} here" if file.arrived else "to be fetched")
        table.add_row(Text(file.remote.path), Text(_size(file.remote.size), justify="right"), Text(state))
    for path in plan.left_out:
        table.add_row(Text(path), "", Text("never fetched: such files can run code"))
    console.print(Text(f"{plan.repo} at {plan.commit} → {plan.folder}"), soft_wrap=True)
    for name, repo, license in plan.licenses:
        console.print(Text(f"Licence of {name} ({repo}): {license or 'not said on the card'}"), soft_wrap=True)
    console.print(table)
    for name, reason in plan.unavailable:
        console.print(Text(_left_out(name, reason)), soft_wrap=True)
    summary = f"{_size(plan.to_fetch)} to fetch; with a tenth to spare, {_size(plan.space_needed)} of free disk."
    console.print(summary if plan.to_fetch else "Nothing to fetch.")


def _left_out(name: str, reason: str) -> str:
    return f"The style {name} is left out: {reason}"


def _size(size: int) -> str:
    return gibibytes(size) if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _describe(plan: Plan) -> dict[str, Any]:
    return {
        "repo": plan.repo,
        "revision": plan.commit,
        "folder": str(plan.folder),
        "to_fetch_bytes": plan.to_fetch,
        "space_needed_bytes": plan.space_needed,
        "files": [
            {"path": file.remote.path, "size": file.remote.size, "blob": file.remote.blob, "place": file.place,
             "repo": file.remote.repo, "arrived_bytes": file.arrived}
            for file in plan.files
        ],
        "left_out": list(plan.left_out),
        "licenses": [{"of": name, "repo": repo, "license": text} for name, repo, text in plan.licenses],
        "unavailable_styles": [{"style": name, "reason": reason} for name, reason in plan.unavailable],
    }  # fmt: skip
