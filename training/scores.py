"""The table of ``docs/mini.md`` out of ``benchmarks/results/mini_scores.json``: no figure in it is typed.

python -m training.scores
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mini.md"
RESULTS = ROOT / "benchmarks" / "results" / "mini_scores.json"

BEGIN, END = "<!-- scores: made by python -m training.scores -->", "<!-- end of scores -->"

MEASURES = {
    "combinations": "object × background never trained together",
    "everyday": "everyday objects, likewise",
    "pairs": "two objects side by side, both right",
    "dyed": "object in a colour never trained, likewise",
    "unseen_phrasing": "phrasings never trained",
    "written": "prompts written by hand",
    "counted": "two to four of a thing",
    "placed": "left, right, small, large",
    "style_flat": "flat LoRA",
    "style_line": "line LoRA",
}

COLUMNS = {
    "object_top_1": "object, first guess",
    "object_top_5": "first five",
    "background": "background",
    "colour": "its colour",
    "count": "number",
    "place": "place",
    "all_right": "all right",
}


def table(report: dict[str, Any]) -> str:
    """Markdown: a line for each measure, each score before the judge's own on composed pictures of the same scenes."""
    scores = report["scores"]
    names = {**MEASURES, **{n: f"{n.removeprefix('size_').replace('x', ' × ')} pixels" for n in scores if "size_" in n}}
    lines = [
        f"| asked for | pictures | {' | '.join(COLUMNS.values())} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, title in names.items():
        if name in scores:
            found = scores[name]
            cells = [_cell(found, column) for column in COLUMNS]
            lines.append(f"| {title} | {found['pictures']} | {' | '.join(cells)} |")
    where = report["where"]
    drawn = f"Drawn on {where['gpu'] or where['cpu']}, {where['date']}."
    lines += ["", f"{drawn} In brackets, the judge's own score on composed pictures."]
    if "autoencoder" in scores:
        psnr = ", ".join(f"{style} {value} dB" for style, value in scores["autoencoder"]["psnr"].items())
        lines.append(f"Pictures that only went through the autoencoder: {psnr}.")
    if "diffusers" in scores:
        same = scores["diffusers"]
        lines.append(
            f"diffusers drew {same['pictures']} of them too: no pixel differed by more than "
            f"{same['largest_difference_of_255']:.0f} of 255."
        )
    if "image_to_image" in scores:
        lines += [
            "",
            "| image-to-image, strength | new object | new background | still the old object |",
            "|---|---|---|---|",
        ]
        for strength, found in scores["image_to_image"]["strengths"].items():
            row = (found["object_top_1"], found.get("background", ""), found["still_the_source"])
            lines.append(f"| {strength} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any], column: str) -> str:
    if column not in found:
        return ""
    return f"{found[column]:.3f} ({found['judge_on_real'].get(column, 0):.3f})"


def between(page: Path, begin: str, end: str, text: str) -> str:
    """A page with another text between two marks.

    Raises:
        ValueError: the page has lost its marks.
    """
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} has no place for what belongs between its marks: {begin} … {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Puts the table between its marks.

    Raises:
        ValueError: the page has lost its marks.
    """
    made = table(json.loads(results.read_text(encoding="utf-8")))
    page.write_text(between(page, BEGIN, END, made), encoding="utf-8")


if __name__ == "__main__":
    write()
