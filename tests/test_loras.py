from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from hwaga.cards import ASSETS, ModelCard
from hwaga.errors import LoraError
from hwaga.loras import LoraLibrary

MINI = ModelCard.read(ASSETS / "mini" / "card.toml")
FLAT = MINI.folder / "loras/flat.safetensors"


@pytest.fixture
def library(tmp_path: Path) -> LoraLibrary:
    return LoraLibrary(tmp_path / "data" / "loras")


def test_added_found_and_removed(library: LoraLibrary) -> None:
    assert library.entries() == {}
    entry = library.add(FLAT, "나의.스타일-1")
    assert library.entries() == {"나의.스타일-1": entry}
    assert entry.file.read_bytes() == FLAT.read_bytes()
    assert library.find("나의.스타일-1", MINI) == entry.file
    assert library.find(unicodedata.normalize("NFD", "나의.스타일-1"), MINI) == entry.file, "as macOS writes it"
    library.remove("나의.스타일-1")
    assert list(library.folder.iterdir()) == []


def test_a_model_s_own_come_first(library: LoraLibrary) -> None:
    assert library.add(FLAT, "line").file != library.find("line", MINI)
    assert library.find("line", MINI) == MINI.folder / "loras/line.safetensors"
    assert set(library.entries(MINI)) == {"flat", "line"}
    assert library.entries()["line"].model is None


def test_a_model_s_own_that_is_absent_shadows_nothing(library: LoraLibrary, tmp_path: Path) -> None:
    card = replace(MINI, folder=tmp_path)
    mine = library.add(FLAT, "line")
    assert library.find("line", card) == mine.file
    entries = library.entries(card)
    assert (entries["line"].model, entries["flat"].model) == (None, "mini")
    (tmp_path / "loras").mkdir()
    there = tmp_path / "loras/line.safetensors"
    there.write_bytes(FLAT.read_bytes())
    assert library.find("line", card) == there


def test_unknown_names_list_near_ones(library: LoraLibrary) -> None:
    with pytest.raises(LoraError, match=r"no LoRA 'flaat'\. Did you mean flat"):
        library.find("flaat", MINI)
    with pytest.raises(LoraError, match="There is none yet"):
        library.remove("flat")


def test_a_model_s_file_that_is_absent(library: LoraLibrary, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="Put the file there"):
        library.find("flat", replace(MINI, folder=tmp_path))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "-a", "a b", "a:1", "a\0", "x" * 65, ".hidden", "𝕏" * 64]
)
def test_names_that_cannot_be(library: LoraLibrary, name: str) -> None:
    with pytest.raises(LoraError, match="cannot be called"):
        library.add(FLAT, name)
    with pytest.raises(LoraError, match="There is no LoRA"):
        library.find(name, MINI)
    assert not library.folder.exists()


def test_a_file_put_into_the_folder_by_hand(library: LoraLibrary) -> None:
    library.folder.mkdir(parents=True)
    (library.folder / (unicodedata.normalize("NFD", "수묵화") + ".safetensors")).write_bytes(FLAT.read_bytes())
    (library.folder / "my lora v2.safetensors").write_bytes(FLAT.read_bytes())
    assert set(library.entries()) == {"수묵화", "my lora v2"}
    assert library.find("수묵화", MINI).is_file()
    library.remove("my lora v2")
    library.remove("수묵화")
    assert library.entries() == {}


def test_a_name_that_a_model_uses(library: LoraLibrary) -> None:
    with pytest.raises(LoraError, match="A model has a LoRA flat of its own"):
        library.add(FLAT, taken={"flat"})


def test_a_link_to_nothing(library: LoraLibrary, tmp_path: Path) -> None:
    library.add(FLAT, "mine").file.unlink()
    (library.folder / "mine.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(LoraError, match="Remove it, and add it again"):
        library.find("mine", MINI)
    library.remove("mine")


def test_a_name_that_is_taken(library: LoraLibrary) -> None:
    first = library.add(FLAT, "mine").file.read_bytes()
    with pytest.raises(LoraError, match="There is a LoRA mine already"):
        library.add(MINI.folder / "loras/line.safetensors", "mine")
    assert library.entries()["mine"].file.read_bytes() == first


def test_nothing_is_left_of_a_copy_that_failed(
    library: LoraLibrary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LoraError, match="No space left on device"):
        library.add(FLAT, "mine")
    assert list(library.folder.iterdir()) == []
    with pytest.raises(LoraError, match="There is no file"):
        library.add(tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraError, match="cannot be copied"):
        LoraLibrary(tmp_path / "file" / "loras").add(FLAT)
