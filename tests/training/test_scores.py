"""Evaluation's small rules, and the table that documents get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training import scores
from training.colours import COLOURS
from training.evaluate import Verdict, _stands_right, nearest_corner_colour, shares


def _plain(name: str, width: int = 128, height: int = 96) -> torch.Tensor:
    rgb = next(colour.rgb for colour in COLOURS if colour.name == name)
    return (torch.tensor(rgb) / 127.5 - 1)[:, None, None].expand(3, height, width).clone()


def test_backgrounds_are_told_by_the_corners() -> None:
    for number, colour in enumerate(COLOURS):
        picture = _plain(colour.name)
        picture[:, 20:70, 30:90] = -0.3
        assert nearest_corner_colour(picture) == number


@pytest.mark.parametrize(
    ("kind", "x", "left", "right", "stands"),
    [
        ("side", 0.27, 10, 50, True), ("side", 0.27, 80, 120, False), ("side", 0.73, 80, 120, True),
        ("side", 0.27, 44, 84, False), ("small", 0.5, 46, 82, True), ("small", 0.5, 20, 108, False),
        ("large", 0.5, 16, 112, True), ("large", 0.5, 46, 82, False),
    ],
)  # fmt: skip
def test_places_are_told_by_what_differs_from_the_background(
    kind: str, x: float, left: int, right: int, stands: bool
) -> None:
    picture = _plain("mint")
    picture[:, 30:60, left:right] = 0.9
    assert _stands_right(kind, x, picture) is stands
    assert _stands_right(kind, x, _plain("mint")) is False
    assert _stands_right("one", x, picture) is None


def test_shares_count_only_what_was_asked_for() -> None:
    verdicts = [
        Verdict(True, True, True, None, None, None),
        Verdict(False, True, None, True, None, None),
        Verdict(True, True, False, False, None, None),
    ]
    found = shares(verdicts)
    assert found == {"object_top_1": 0.667, "object_top_5": 1.0, "background": 0.5, "colour": 0.5, "all_right": 0.333}


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page, results = tmp_path / "mini.md", tmp_path / "scores.json"
    page.write_text(f"before\n{scores.BEGIN}\nold\n{scores.END}\nafter\n", encoding="utf-8")
    own = {"object_top_1": 1.0, "object_top_5": 1.0, "background": 1.0, "all_right": 1.0}
    found = {"pictures": 5, "object_top_1": 0.8, "object_top_5": 1.0, "background": 0.9, "all_right": 0.7}
    where = {"gpu": None, "cpu": "a processor", "date": "2026-01-01"}
    measured = {"combinations": {**found, "judge_on_real": own}, "size_336x192": {**found, "judge_on_real": own}}
    results.write_text(json.dumps({"where": where, "scores": measured}), encoding="utf-8")
    scores.write(page, results)
    text = page.read_text(encoding="utf-8")
    assert "| object × background never trained together | 5 | 0.800 (1.000) |" in text
    assert "| 336 × 192 pixels | 5 |" in text
    assert "old" not in text
    scores.write(page, results)
    assert page.read_text(encoding="utf-8") == text


def test_the_page_has_a_place_for_the_table() -> None:
    text = scores.PAGE.read_text(encoding="utf-8")
    assert text.count(scores.BEGIN) == text.count(scores.END) == 1
