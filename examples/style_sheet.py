"""Draws prompts in each style of a model, side by side: a row for each prompt, a column for each style.

python examples/style_sheet.py docs/images/styles.webp --columns 2
python examples/style_sheet.py sheet.png "a cup of coffee" "파란 배경의 고양이" --model mini --seed 7
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from hwaga import Engine, ImageRequest

PROMPTS = [
    "a red apple on a yellow background",
    "딸기, 분홍색 배경",
    "a slice of pizza on a purple background",
    "하늘색 배경의 펭귄",
    "a hamburger, orange background",
    "노란 배경의 우산",
]
STYLES = ("realistic", "semi_realistic", "anime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="the file to write: .png, .jpg or .webp")
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--columns", type=int, default=1, help="prompts beside each other")
    arguments = parser.parse_intermixed_args()
    with Engine.open(arguments.model) as engine:
        width, height = engine.card.default_size
        rows = -(-len(arguments.prompts) // arguments.columns)
        canvas = Image.new("RGB", (arguments.columns * len(STYLES) * width, rows * height), "white")
        for place, prompt in enumerate(arguments.prompts):
            # One batch: the pictures of a row share everything but their LoRAs.
            requests = [ImageRequest(prompt, style=style, seed=arguments.seed) for style in STYLES]
            for column, result in enumerate(engine.generate_many(requests)):
                left = (place % arguments.columns * len(STYLES) + column) * width
                canvas.paste(result.image, (left, place // arguments.columns * height))
            print(f"{place + 1} of {len(arguments.prompts)}: {prompt}", flush=True)
    canvas.save(arguments.sheet, quality=90)
    print(arguments.sheet)


if __name__ == "__main__":
    main()
