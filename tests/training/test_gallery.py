"""The model card's pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from training import gallery

COLOURS = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta", "gray"]


def _sheet(folder: Path, name: str, places: list[int]) -> None:
    rows = -(-len(places) // gallery.COLUMNS)
    sheet = Image.new("RGB", (gallery.COLUMNS * gallery.SIDE, rows * gallery.SIDE))
    for at, place in enumerate(places):
        x, y = at % gallery.COLUMNS * gallery.SIDE, at // gallery.COLUMNS * gallery.SIDE
        sheet.paste(COLOURS[place], (x, y, x + gallery.SIDE, y + gallery.SIDE))
    sheet.save(folder / f"evaluate-{name}.png")
    (folder / f"evaluate-{name}.txt").write_text("".join(f"prompt {place}\n" for place in places), encoding="utf-8")


def test_what_failed_is_not_among_what_is_right(tmp_path: Path) -> None:
    _sheet(tmp_path, "written", list(range(9)))
    _sheet(tmp_path, "written-failed", [1, 8])
    assert [shown.prompt for shown in gallery.right("written", tmp_path)] == [
        f"prompt {i}" for i in (0, 2, 3, 4, 5, 6, 7)
    ]
    failed = gallery.sheet("written-failed", tmp_path)
    assert [shown.picture.getpixel((64, 64)) for shown in failed] == [(0, 255, 0), (128, 128, 128)]
    assert gallery.sheet("pairs-failed", tmp_path) == []


def test_the_page_gets_pictures_and_their_prompts(tmp_path: Path) -> None:
    page, images = tmp_path / "mini.md", tmp_path / "images"
    images.mkdir()
    page.write_text(f"before\n{gallery.BEGIN}\nold\n{gallery.END}\nafter\n", encoding="utf-8")
    _sheet(tmp_path, "written", [0, 1, 2, 3, 4])
    _sheet(tmp_path, "written-failed", [1])
    _sheet(tmp_path, "pairs", [5])
    gallery.write(page, tmp_path, images)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Right, row by row:\n\n1. “prompt 0”; “prompt 2”; “prompt 3”; “prompt 5”\n" in text
    assert "Wrong, row by row:\n\n1. “prompt 1”\n" in text
    with Image.open(images / "mini-drawn.webp") as drawn:
        assert drawn.size == (4 * gallery.SIDE, gallery.SIDE)
        colours = [drawn.getpixel((64 + place * gallery.SIDE, 64)) for place in (0, 1)]
    for colour, wanted in zip(colours, ((255, 0, 0), (0, 0, 255)), strict=True):
        assert isinstance(colour, tuple)
        assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 8


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "mini.md"
    page.write_text("nothing\n", encoding="utf-8")
    _sheet(tmp_path, "written", [0])
    with pytest.raises(ValueError, match="no place"):
        gallery.write(page, tmp_path, tmp_path)
    assert page.read_text(encoding="utf-8") == "nothing\n"
    assert not list(tmp_path.glob("*.webp"))


def test_without_sheets_the_page_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "mini.md"
    page.write_text(f"{gallery.BEGIN}\nold\n{gallery.END}\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="training evaluate"):
        gallery.write(page, tmp_path, tmp_path)
    assert "old" in page.read_text(encoding="utf-8")
