"""Makes the contact sheet of the README with the command line: ``python examples/contact_sheet.py [SHEET.png]``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PROMPTS = [
    "a red apple on a yellow background",
    "a dog, pink background",
    "a cup of coffee on a mint background",
    "a sunflower on white",
    "a slice of pizza on a purple background",
    "a birthday cake on a brown background",
    "파란 배경의 고양이",
    "하늘색 배경의 펭귄",
    "햄버거, 주황색 배경",
    "노란 배경 위의 토끼",
    "보라색 배경에 왕관",
    "초록 배경에 자동차",
]
SEED = 100
COLUMNS = 6


def main() -> None:
    sheet = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/contact-sheet.webp")
    hwaga = Path(sys.executable).with_name("hwaga")
    rows = -(-len(PROMPTS) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * 256, rows * 256))
    with tempfile.TemporaryDirectory() as folder:
        for place, prompt in enumerate(PROMPTS):
            path = f"{folder}/{place}.png"
            command = [hwaga, "text2image", prompt, "-m", "mini", "--device", "cpu", "--seed", str(SEED), "-o", path]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with Image.open(path) as picture:
                canvas.paste(picture, (place % COLUMNS * 256, place // COLUMNS * 256))
    canvas.save(sheet, quality=90)
    print(sheet)


if __name__ == "__main__":
    main()
