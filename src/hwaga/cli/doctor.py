"""``hwaga doctor``: what this machine has, and what will work on it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cards import ModelCard
from hwaga.cli.console import GIB, gibibytes, print_json
from hwaga.errors import HwagaError, SettingsError
from hwaga.memory.budget import host_memory, process_memory
from hwaga.model_lookup import built_in_cards
from hwaga.settings import Settings
from hwaga.version import __version__

if TYPE_CHECKING:
    from hwaga.forecast import Forecast


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``good`` is False where something will not work, and None where it is only a fact."""

    subject: str
    good: bool | None
    text: str


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Look at Python, torch, devices, memory and disk, and say what will work."""
    settings, wrong = _settings()
    findings = [*_software(), *wrong, *_machine(settings), *_devices(), *_models(settings), *_default(settings)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    marks = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: " "}
    for finding in findings:
        table.add_row(marks[finding.good], finding.subject, Text(finding.text))
    Console(highlight=False).print(table)


def _settings() -> tuple[Settings, list[Finding]]:
    """The settings; where they are not valid, what is wrong, and the defaults for looking at everything else."""
    try:
        return Settings.read(), []
    except SettingsError as error:
        folders = {name: value for name, value in os.environ.items() if name.startswith(("XDG_", "HWAGA_DATA_DIR"))}
        return Settings.read(folders | {"HWAGA_CONFIG": os.devnull}), [Finding("settings", False, str(error))]


def _software() -> list[Finding]:
    import torch

    return [
        Finding("hwaga", None, __version__),
        Finding("Python", None, f"{platform.python_version()} on {platform.platform()}"),
        Finding(
            "torch",
            None,
            f"{torch.__version__}, {torch.get_num_threads()} threads, "
            f"CPU kernels for {torch.backends.cpu.get_cpu_capability()}",
        ),
    ]


def _machine(settings: Settings) -> list[Finding]:
    findings = [
        Finding("CPU", None, f"{len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else "–")
    ]
    memory = host_memory()
    if memory is not None:
        text = f"{gibibytes(memory.available)} free of {gibibytes(memory.total)}"
        findings.append(Finding("RAM", None, text))
        findings.append(
            Finding("Swap", None if memory.swap_used < GIB else False,
                    f"{gibibytes(memory.swap_used)} used of {gibibytes(memory.swap_total)}"
                    + ("; a machine that swaps is slow: free some memory" if memory.swap_used >= GIB else ""))
        )  # fmt: skip
    place = _existing(settings.models)
    findings.append(
        Finding("Disk", None, f"{gibibytes(shutil.disk_usage(place).free)} free for models in {settings.models}")
    )
    return findings


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        reason = "" if torch.version.cuda else ": this torch is built without CUDA"
        return [Finding("GPU", None, f"none found{reason}; pictures are made on the CPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        capability = f"compute capability {properties.major}.{properties.minor}"
        good = properties.major >= 8
        lacks = "" if good else "; it lacks bfloat16, use --dtype float32"
        findings.append(
            Finding(
                f"cuda:{index}",
                good,
                f"{properties.name}, {gibibytes(free)} free of {gibibytes(total)}, {capability}{lacks}",
            )
        )
    return findings


def _models(settings: Settings) -> list[Finding]:
    findings = []
    for card in built_in_cards(settings.models).values():
        if card.present:
            findings.append(_verdict(card, settings))
        else:
            remedy = f"`hwaga download {card.address}` fetches it to {card.folder}"
            findings.append(Finding(card.name, None, f"not on this machine; {remedy}"))
    return findings


def _verdict(card: ModelCard, settings: Settings) -> Finding:
    """How a picture of the default size would be made."""
    from hwaga.forecast import forecast

    try:
        return Finding(card.name, True, f"here; {_in_a_line(forecast(card, settings=settings))}")
    except HwagaError as error:
        return Finding(card.name, False, f"here; {error}")


def _default(settings: Settings) -> list[Finding]:
    """Whether a command that names nothing would find its model, device and number format, and how it would use memory."""
    from hwaga.forecast import choose, forecast

    try:
        card, device, dtype = choose(settings.model, settings.device, settings.dtype, settings)
    except HwagaError as error:
        return [Finding("default", False, str(error))]
    text = f"{card.name} on {device} in {str(dtype).removeprefix('torch.')}"
    if not card.present:
        text = f"{card.name} is not on this machine: hwaga download {card.address}"
    found = [Finding("default", card.present, text)]
    try:
        made = forecast(card, settings=settings)
    except HwagaError as error:
        return [*found, Finding("plan", False, str(error)), *_process()]
    return [*found, Finding("plan", True, f"{_in_a_line(made)} (more: hwaga plan)"), *_process()]


def _in_a_line(made: Forecast) -> str:
    plan, (width, height) = made.plan, made.card.default_size
    away = [f"{part.name} {part.mode}" for part in plan.parts if part.mode != "resident"]
    vram = f"{gibibytes(plan.peak_vram_bytes)} of VRAM and " if plan.peak_vram_bytes else ""
    takes = f"{width}x{height} takes up to {vram}{gibibytes(plan.peak_ram_bytes)} of RAM"
    return f"{takes}, precision {made.precision}, {', '.join(away) or 'all weights stay'}"


def _process() -> list[Finding]:
    """What this process has come to: Python, torch, and a connection to the GPU where there is one."""
    process = process_memory()
    if process is None:
        return []
    swap = f"{gibibytes(process.swap)} more in swap" if process.swap else "none in swap"
    return [Finding("process", None, f"{gibibytes(process.rss_anon)} of RAM (RssAnon) before a model, {swap}")]
