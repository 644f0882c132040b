from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command

from hwaga.memory.budget import process_memory
from hwaga.version import __version__


def test_findings_cover_the_machine(hwaga: Command) -> None:
    findings = {finding["subject"]: finding for finding in json.loads(hwaga("doctor", "--json").out)}
    assert findings["hwaga"]["text"] == __version__
    assert torch.__version__ in findings["torch"]["text"]
    assert {"Python", "RAM", "Swap", "Disk"} <= set(findings)
    assert findings["mini"]["good"] is True
    assert "not on this machine" in findings["z-image-turbo"]["text"]
    assert "mini" in hwaga("doctor").out


def findings(hwaga: Command) -> dict[str, dict[str, object]]:
    outcome = hwaga("doctor", "--json")
    assert outcome.code == 0
    return {finding["subject"]: finding for finding in json.loads(outcome.out)}


def test_the_plan_in_a_line(hwaga: Command) -> None:
    found = findings(hwaga)
    assert found["plan"]["good"] is True
    assert "256x256" in str(found["plan"]["text"])
    assert "all weights stay" in str(found["plan"]["text"])
    assert process_memory() is None or "RssAnon" in str(found["process"]["text"])


def test_a_model_that_does_not_fit(hwaga: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWAGA_DEVICE", "cpu")
    monkeypatch.setenv("HWAGA_RAM", "1 MiB")
    found = findings(hwaga)
    for subject in ("mini", "plan"):
        assert found[subject]["good"] is False
        assert "This needs" in str(found[subject]["text"])


def test_settings_that_cannot_be_read_end_nothing(
    hwaga: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("model = [")
    monkeypatch.setenv("HWAGA_CONFIG", str(config))
    monkeypatch.setenv("HWAGA_VRAM", "loads")
    found = findings(hwaga)
    assert found["settings"]["good"] is False
    assert str(config) in str(found["settings"]["text"])
    assert found["plan"]["good"] is True
    assert str(tmp_path / "data") in str(found["Disk"]["text"])  # what can be told is kept to
