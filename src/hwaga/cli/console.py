"""What a terminal shows beside the results, all of it on standard error: errors, tables, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

GIB = 2**30


def say(message: str) -> None:
    """A line for people."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message))


def say_error(message: str) -> None:
    """What went wrong, for people."""
    line = Text("Error: ", style="bold red").append(Text(message, style="not bold default"))
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)


def print_result(line: str) -> None:
    """A line for programs, on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_json(values: Any) -> None:
    """One JSON document on standard output."""
    print_result(json.dumps(values, ensure_ascii=False, indent=2))


def gibibytes(size: int | None) -> str:
    """A size for people."""
    if size is None:
        return "–"
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


class Bar:
    """One line of progress that changes its subject as the work goes on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def show(self, subject: str, done: float, total: float | None) -> None:
        """Says what is being done and how much of it is."""
        self._progress.update(self._task, description=subject, completed=done, total=total)

    def begin(self, subject: str, done: float, total: float | None) -> None:
        """The same for a new subject, whose rate counts from here."""
        self._progress.reset(self._task, description=subject, completed=int(done), total=total)


@contextmanager
def progress_bar(*, transfer: bool = False) -> Iterator[Bar]:
    """A live bar on a terminal and nothing in a pipe; it is gone when the work is done.

    Args:
        transfer: what is counted are bytes: show them, their rate and the time left.
    """
    columns: tuple[ProgressColumn, ...] = (TaskProgressColumn(), TimeElapsedColumn())
    if transfer:
        columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    # Standard output is the caller's: rich would otherwise send it to the terminal while the bar is up.
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not sys.stderr.isatty(),
    ) as progress:
        yield Bar(progress)
