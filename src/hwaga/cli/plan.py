"""``hwaga plan``: where weights would lie and what memory a picture would take, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cli.console import gibibytes, print_json
from hwaga.cli.generate import Aspect, Device, Dtype, Guidance, Precision, Size, Steps, parse_size
from hwaga.request import ImageRequest

if TYPE_CHECKING:
    from hwaga.forecast import Forecast
    from hwaga.memory.plan import Budget, PartPlan, Plan

BAR = 40
"""Characters of a bar."""

WIDEST = 1000
"""Characters, more than any row has: for what a table would take without an end of the line."""

KINDS = (("weights", "█", "blue"), ("brought", "▓", "cyan"), ("work", "▒", "yellow"), ("kept", "░", "magenta"))
OTHERS = ("others", "▚", "green")
"""What memory of a phase is for: its field, how it is drawn without colours, and its colour."""


def plan(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model's name, a checkpoint folder or a card file (HWAGA_MODEL, or mini). Repeatable: as they take turns in "
            "one server.",
        ),
    ] = None,
    size: Size = None,
    aspect: Aspect = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, max=64, help="How many pictures in one batch, as the library makes.")
    ] = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    image2image: Annotated[bool, typer.Option("--image2image", help="They start from a picture.")] = False,
    vram: Annotated[
        str | None,
        typer.Option(
            help="Most that may be taken of the GPU, such as 8GiB. Without a GPU here: the size of one to plan for."
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            help="Most that may be taken of the machine's memory; of a GPU's that is not here, all its host has."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show where a model's weights would lie, and the memory that pictures would take. Loads nothing, and needs no GPU."""
    width, height = parse_size(size)
    request = ImageRequest("a picture", width=width, height=height, aspect=aspect, steps=steps, guidance=guidance)
    from hwaga.forecasts import forecasts  # brings torch

    found = forecasts(
        model or [None], request, number=number, source=image2image, device=device, dtype=dtype, precision=precision,
        vram=vram, ram=ram,
    )  # fmt: skip
    if as_json:
        print_json(found[0].to_json() if len(found) == 1 else {"data": [each.to_json() for each in found]})
        return
    console = Console(highlight=False)
    for place, each in enumerate(found):
        if place:
            console.print()
        console.print(Text(_subject(each), "bold"))
        console.print()
        for table in (_parts(each), _phases(each.plan)):
            _print(console, table)
            console.print()
        for line in _totals(each):
            console.print(Text(line))


def _subject(found: Forecast) -> str:
    picture = found.pictures[0]
    count = "a picture" if len(found.pictures) == 1 else f"a batch of {len(found.pictures)}, each"
    source = " from a picture" if picture.source else ""
    device = "an NVIDIA GPU" if found.imagined else found.device
    return (
        f"{found.card.name} on {device}: {count} of {picture.width}x{picture.height}{source}, {found.steps} steps, "
        f"{picture.tokens} tokens{', with guidance' if picture.guided else ''}"
    )


def _print(console: Console, table: Table) -> None:
    """A table, the last column of which are reasons. Where a row with its reason is longer than a line, they stand below the
    table instead, each after the first cell of its row: beside it they would be columns of single words.
    """
    if console.measure(table, options=console.options.update(width=WIDEST)).maximum <= console.width:
        console.print(table)
        return
    below = Table.grid(padding=(0, 2))
    below.add_column(no_wrap=True)
    for name, reason in zip(table.columns[0].cells, table.columns.pop().cells, strict=True):
        if reason:
            below.add_row(name, reason)
    console.print(table)
    if below.row_count:
        console.print()
        console.print(below)


def _parts(found: Forecast) -> Table:
    parts = found.plan.parts
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("part", "mode", "precision"):
        table.add_column(title, no_wrap=True)
    table.add_column("stays", justify="right", no_wrap=True)
    leaves = any(part.source for part in parts)
    if leaves:
        table.add_column("blocks", justify="right", no_wrap=True)
        table.add_column("comes back from", no_wrap=True)
    table.add_column("reason")
    for part in parts:
        precision = found.precision if part.quantized else found.dtype
        away = (_blocks(part), _source(part)) if leaves else ()
        table.add_row(part.name, part.mode, precision, gibibytes(part.stays_bytes), *away, Text(part.reason))
    return table


def _blocks(part: PartPlan) -> str:
    return f"{len(part.stays)} of {part.blocks}" if part.mode == "streamed" else "–"


def _source(part: PartPlan) -> str:
    return {"": "–", "pinned": "locked RAM", "files": "files", "pinned and files": "locked RAM, files"}[part.source]


def _phases(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("phase", no_wrap=True)
    key = Text("")
    kinds = (*KINDS, OTHERS) if plan.others_bytes else KINDS
    for name, character, colour in kinds:
        key.append(f"{character} ", colour).append(f"{name}  ", "dim")
    table.add_column(key, no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("")
    scale = _scale(plan)
    for phase in plan.phases:
        bar, filled, total = Text(), 0, 0
        for name, character, colour in kinds:
            total += plan.others_bytes if name == "others" else getattr(phase, name)
            upto = round(BAR * total / scale)
            bar.append(character * (upto - filled), colour)
            filled = upto
        bar.append("·" * (BAR - filled), "dim")
        table.add_row(phase.name, bar, f"{(phase.nbytes + plan.others_bytes) / 2**30:.2f}", Text(phase.reason))
    return table


def _scale(plan: Plan) -> int:
    """Bytes that a whole bar stands for: the budget, where there is one to speak of."""
    return plan.budget.device_bytes if plan.budget.device_bytes < 100 * plan.device_bytes else plan.device_bytes


def _totals(found: Forecast) -> list[str]:
    plan, budget = found.plan, found.plan.budget
    lines = []
    if budget.device != "cpu":
        lines.append(f"VRAM: {_gib(plan.peak_vram_bytes)} at most, of {_given(budget, found.caps.vram)}")
        locked = f", {_gib(plan.pinned_bytes)} of it locked for weights" if plan.pinned_bytes else ""
    else:
        locked = f", of {_gib(budget.host_base + budget.device_bytes)} that may be taken"
    lines.append(f"RAM: {_gib(plan.peak_ram_bytes)} at most{locked}")
    if plan.moved_bytes:
        lines.append(f"Brought to the device for a request: {_gib(plan.moved_bytes)}")
    if plan.file_bytes:
        fits = plan.file_bytes <= plan.page_cache_bytes
        left = "the page cache can hold" if fits else f"of which the page cache can hold {_gib(plan.page_cache_bytes)}"
        lines.append(
            f"From the files, of that: {_gib(plan.file_bytes)} of weights, {'all of which ' if fits else ''}{left}"
        )
    for other in plan.neighbours:
        place = "memory" if budget.device == "cpu" else "the GPU"
        said = [f"{_gib(other.leaves_bytes)} of {other.model} leave {place} to make room"] if other.leaves_bytes else []
        if other.stays_bytes:
            said.append(f"{_gib(other.stays_bytes)} of {'it' if said else other.model} stay beside this")
        copies = f"; {_gib(other.pinned_bytes)} of it wait in locked RAM" if other.pinned_bytes else ""
        lines.append((", and ".join(said) or f"{other.model} is away") + copies)
    if not found.present:
        lines.append(f"The files of {found.card.name} are not on this machine: these are its published sizes.")
    return lines


def _given(budget: Budget, cap: int | None) -> str:
    given = f"{_gib(budget.device_bytes)} for weights and work"
    return given if cap is None else f"{given} ({_gib(cap)} less what CUDA and its allocator take)"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
