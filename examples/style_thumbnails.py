"""Draws the small example pictures of the styles that the page shows: one object in each style of the bundled model.

python examples/style_thumbnails.py            # into src/hwaga/ui/styles
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from hwaga import Engine, ImageRequest

PROMPT = "a red apple on a cream background"
SIDE = 160  # pixels: twice what the page shows, for fine screens
FOLDER = Path(__file__).parents[1] / "src" / "hwaga" / "ui" / "styles"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with Engine.open("mini") as engine:
        for style in engine.card.styles:
            picture = engine.generate(ImageRequest(arguments.prompt, style=style, seed=arguments.seed)).image
            # The object stands in the middle half; a little of the plain border can go.
            left = picture.width // 10
            box = (left, left, picture.width - left, picture.height - left)
            path = arguments.folder / f"{style}.webp"
            picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box).save(path, quality=70, method=6)
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
