"""The pictures of ``docs/mini.md`` out of an evaluation's sheets: what came out right beside what did not, in the order drawn.

python -m training.gallery
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from training.scores import PAGE, between

SHEETS = Path(__file__).parent / "data" / "run" / "sheets"
IMAGES = PAGE.parent / "images"

BEGIN, END = "<!-- pictures: made by python -m training.gallery -->", "<!-- end of pictures -->"

SIDE, COLUMNS = 128, 8
"""Pixels of a picture on a sheet, and pictures in a row of it."""

MEASURES = ("combinations", "written", "unseen_phrasing", "dyed", "counted", "pairs", "style_line", "style_flat")
EACH = 3
"""Pictures of each measure."""


@dataclass(frozen=True)
class Shown:
    picture: Image.Image
    prompt: str


def sheet_name(measure: str) -> str:
    """Of the files of a measure's sheet: pictures in one, their prompts line by line in the other."""
    return f"evaluate-{measure}"


def sheet(name: str, folder: Path = SHEETS) -> list[Shown]:
    """Pictures of an evaluation's sheet and their prompts; none if there is no such sheet, as where nothing failed."""
    path = folder / f"{sheet_name(name)}.png"
    if not path.exists():
        return []
    prompts = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    with Image.open(path) as opened:
        whole = opened.convert("RGB")
    places = [(place % COLUMNS * SIDE, place // COLUMNS * SIDE) for place in range(len(prompts))]
    pictures = [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in places]
    return [Shown(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]


def right(name: str, folder: Path = SHEETS) -> list[Shown]:
    failed = {shown.prompt for shown in sheet(f"{name}-failed", folder)}
    return [shown for shown in sheet(name, folder) if shown.prompt not in failed]


def montage(shown: list[Shown]) -> Image.Image:
    """Pictures side by side, row by row."""
    canvas = Image.new("RGB", (min(len(shown), COLUMNS) * SIDE, -(-len(shown) // COLUMNS) * SIDE), "white")
    for place, each in enumerate(shown):
        canvas.paste(each.picture, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    return canvas


def write(page: Path = PAGE, folder: Path = SHEETS, images: Path = IMAGES) -> None:
    """Saves both pictures and puts them, with their prompts, between the page's marks.

    Raises:
        FileNotFoundError: there are no sheets.
        ValueError: the page has lost its marks.
    """
    if not any(sheet(measure, folder) for measure in MEASURES):
        raise FileNotFoundError(f"There are no sheets in {folder}. Run python -m training evaluate first.")
    parts, pictures = [], {}
    for name, title, found in (
        ("mini-drawn", "Right", [right(measure, folder)[:EACH] for measure in MEASURES]),
        ("mini-failed", "Wrong", [sheet(f"{measure}-failed", folder)[:EACH] for measure in MEASURES]),
    ):
        shown = [each for few in found for each in few]
        if shown:
            pictures[name] = montage(shown)
            prompts = [f"“{each.prompt}”" for each in shown]
            rows = ["; ".join(prompts[at : at + COLUMNS]) for at in range(0, len(prompts), COLUMNS)]
            parts += [
                f"![{title}](images/{name}.webp)",
                "",
                f"{title}, row by row:",
                "",
                *(f"1. {row}" for row in rows),
                "",
            ]
    text = between(page, BEGIN, END, "\n".join(parts).rstrip())
    for name, picture in pictures.items():
        picture.save(images / f"{name}.webp", quality=88)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
