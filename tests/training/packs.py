"""A pack of a few drawn objects, as ``prepare`` would write it, for tests of the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw
from training.pack import STYLES, Names, Thing, describe, encoded, write_pack

Draw = Callable[[ImageDraw.ImageDraw, str], None]


def _disc(draw: ImageDraw.ImageDraw, colour: str) -> None:
    draw.ellipse((40, 40, 216, 216), fill=colour)
    draw.rectangle((118, 12, 138, 60), fill="#20a040")


def _box(draw: ImageDraw.ImageDraw, colour: str) -> None:
    draw.rectangle((36, 70, 220, 210), fill=colour)
    draw.ellipse((60, 180, 100, 220), fill="#222222")
    draw.ellipse((156, 180, 196, 220), fill="#222222")


def _star(draw: ImageDraw.ImageDraw, colour: str) -> None:
    draw.polygon([(128, 20), (160, 100), (240, 110), (176, 160), (200, 240), (128, 196), (56, 240), (80, 160), (16,
    110), (96, 100)], fill=colour)  # fmt: skip


DRAWN: tuple[tuple[str, str, str, str, Draw, str], ...] = (
    ("1f34e", "Food & Drink", "apple", "사과", _disc, "#d03030"),
    ("1f697", "Travel & Places", "car", "자동차", _box, "#3060d0"),
    ("2b50", "Travel & Places", "star", "별", _star, "#f0c030"),
    ("1f431", "Animals & Nature", "cat", "고양이", _disc, "#f09030"),
    ("1f35e", "Food & Drink", "bread", "빵", _box, "#b07840"),
    ("1f47b", "Smileys & Emotion", "ghost", "유령", _star, "#e8e8ec"),
)


def write_small_pack(folder: Path) -> tuple[Thing, ...]:
    """Six objects in three styles that differ in their outlines."""
    things, pictures = [], {style: list[bytes]() for style in STYLES}
    for key, category, english, korean, draw, colour in DRAWN:
        drawn = {}
        for style in STYLES:
            picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
            pen = ImageDraw.Draw(picture)
            draw(pen, colour)
            if style == "line":
                pen.rectangle((120, 90, 136, 170), fill="#2b2633")
            drawn[style] = picture
        names = Names(english, (english,), ()), Names(korean, (korean,), ((f"{korean} 그림체", 1),))
        things.append(describe(key, category, *names, drawn))
        for style, picture in drawn.items():
            pictures[style].append(encoded(picture, lossless=style != "solid"))
    write_pack(folder, things, pictures)
    return tuple(things)
