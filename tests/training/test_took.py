"""What the training took is what its log and its table of progress say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import took

LOG = [
    {"time": "1", "phase": "judge", "step": 0, "loss": 2.0},
    {"time": "2", "phase": "judge", "done": 1.0, "steps": 20, "seconds": 9.0, "on": "an old one"},
    {"time": "3", "phase": "judge", "step": 0, "loss": 1.0},
    {"time": "4", "phase": "judge", "done": 0.5, "steps": 10, "seconds": 5.04, "on": "one GPU"},
    {"time": "5", "phase": "judge", "done": 1.0, "steps": 19, "seconds": 10.04, "on": "another"},
    {"time": "6", "phase": "judge", "done": 1.0, "steps": 19, "seconds": 10.04, "on": "one GPU"},
    {"time": "7", "phase": "evaluate", "measure": "pairs"},
]
PROGRESS = {
    "judge": {"done": 1.0, "steps": 19, "seconds": 10.04},
    "autoencoder": {"done": 1.0, "steps": 3, "seconds": 1.0},
}


def test_devices_count_from_the_last_beginning() -> None:
    assert took.phases(PROGRESS, LOG) == {
        "autoencoder": {"steps": 3, "seconds": 1.0, "on": []},
        "judge": {"steps": 19, "seconds": 10.0, "on": ["one GPU", "another"]},
    }


def test_the_page_and_both_results_are_written(tmp_path: Path) -> None:
    page, losses, results = (tmp_path / name for name in ("mini.md", "losses.jsonl", "phases.json"))
    page.write_text(f"before\n{took.BEGIN}\nold\n{took.END}\nafter\n", encoding="utf-8")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    with pytest.raises(FileNotFoundError, match="python -m training train"):
        took.write(page, tmp_path, losses, results)
    (tmp_path / "progress.json").write_text(json.dumps(PROGRESS))
    took.write(page, tmp_path, losses, results)
    said = page.read_text(encoding="utf-8")
    assert "| judge | 10 | 19 | one GPU, another |" in said
    assert "| autoencoder | 1 | 3 | not written down |" in said
    assert said.startswith("before\n")
    assert said.endswith("after\n")
    assert [json.loads(line)["time"] for line in losses.read_text().splitlines()] == list("123456")
    assert json.loads(results.read_text())["phases"]["judge"]["steps"] == 19
