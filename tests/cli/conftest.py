from __future__ import annotations

from pathlib import Path

import pytest
from command import Command

from hwaga.cards import ASSETS


@pytest.fixture
def hwaga(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line, run in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HWAGA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Command(monkeypatch, capsys)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A card of the bundled model as if it read the packs' wording, which its own card leaves out."""
    text = (ASSETS / "mini" / "card.toml").read_text(encoding="utf-8")
    assert "own_words_only = true" in text
    path = tmp_path / "reader.toml"
    path.write_text(f'folder = "{ASSETS / "mini"}"\n' + text.replace("own_words_only = true", ""), encoding="utf-8")
    return path
