"""What the training took, for ``docs/mini.md`` and ``benchmarks/results/mini_training.json(l)``: all of it out of a run's log
and its table of progress.

python -m training.took
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.scores import PAGE, RESULTS, between

RUN = Path(__file__).parent / "data" / "run"
LOSSES = RESULTS.with_name("mini_training.jsonl")
PHASES = RESULTS.with_name("mini_training.json")

BEGIN, END = "<!-- took: made by python -m training.took -->", "<!-- end of took -->"

NAMES = {
    "autoencoder": "autoencoder",
    "pieces": "pieces",
    "judge": "judge",
    "text_encoder": "text encoder",
    "transformer": "transformer",
    "lora-flat": "LoRA, flat",
    "lora-line": "LoRA, line",
}
"""Of the phases, in the recipe's order; the text encoder's share of the transformer's time is no phase of its own."""


def phases(progress: dict[str, dict[str, Any]], entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Steps and seconds of each phase as it stands, and the devices of its slices, since it was last begun anew."""
    devices: dict[str, list[str]] = {}
    for entry in entries:
        on = devices.setdefault(entry["phase"], [])
        if entry.get("step") == 0:
            on.clear()
        if "on" in entry and entry["on"] not in on:
            on.append(entry["on"])
    return {
        name: {
            "steps": progress[name]["steps"],
            "seconds": round(progress[name]["seconds"], 1),
            "on": devices.get(name, []),
        }
        for name in NAMES
        if name in progress
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = ["| phase | seconds of training | steps | on |", "|---|---|---|---|"]
    for name, row in found.items():
        on = ", ".join(row["on"]) or "not written down"
        rows.append(f"| {NAMES[name]} | {row['seconds']:.0f} | {row['steps']} | {on} |")
    return "\n".join(rows)


def write(page: Path = PAGE, run: Path = RUN, losses: Path = LOSSES, results: Path = PHASES) -> None:
    """Keeps the log's training, and puts the table between its marks.

    Raises:
        FileNotFoundError: nothing was trained.
        ValueError: the page has lost its marks.
    """
    log, progress = run / "log.jsonl", run / "progress.json"
    if not (log.exists() and progress.exists()):
        raise FileNotFoundError(f"Nothing was trained in {run}. Run python -m training train first.")
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    trained = [entry for entry in entries if entry["phase"] != "evaluate"]
    found = phases(json.loads(progress.read_text(encoding="utf-8")), trained)
    text = between(page, BEGIN, END, table(found))
    losses.write_text("".join(json.dumps(entry) + "\n" for entry in trained), encoding="utf-8")
    results.write_text(json.dumps({"phases": found}, indent=1) + "\n", encoding="utf-8")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
