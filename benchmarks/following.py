"""Does a picture show what its prompt asks for? A small classifier of objects looks, and the corners tell the background.

The judge knows the emoji that the bundled model was trained on, and learnt them from composites of the same pictures. How many
of such composites it names, before its weights are rounded, stands beside each score in ``results/mini_scores.json``. Those in
``judge/`` are written by ``python -m training judge``: eight bits and a scale for each output channel, norms folded into the
convolutions. ``judge/objects.json`` lists everyday objects: their class and their names in English and Korean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "judge"

SIDE = 128
"""Pixels of a side that the judge looks at."""

CORNER = 10
"""Pixels of a corner that tell the background."""

BACKGROUNDS = {
    "white": ((255, 255, 255), "흰색"),
    "red": ((222, 52, 52), "빨간색"),
    "orange": ((245, 140, 40), "주황색"),
    "yellow": ((250, 216, 60), "노란색"),
    "green": ((66, 172, 88), "초록색"),
    "mint": ((152, 228, 202), "민트색"),
    "sky blue": ((138, 204, 246), "하늘색"),
    "blue": ((48, 98, 224), "파란색"),
    "purple": ((136, 80, 202), "보라색"),
    "pink": ((250, 168, 198), "분홍색"),
    "brown": ((130, 86, 56), "갈색"),
}
"""Colours that prompts name: red, green and blue, and the Korean word."""


@dataclass(frozen=True)
class Wish:
    """A prompt, and what it asks for: the object's class and the background's English name."""

    prompt: str
    object: int
    background: str


def wishes(count: int) -> Iterator[Wish]:
    """Prompts for everyday objects on all kinds of backgrounds, in English and Korean by turns. Always the same ones."""
    objects = json.loads((FOLDER / "objects.json").read_text(encoding="utf-8"))
    names = list(BACKGROUNDS)
    for i in range(count):
        entry, background = objects[i * 7 % len(objects)], names[i * 5 % len(names)]
        english = f"a {entry['en']} on a {background} background"
        korean = f"{entry['ko']}, {BACKGROUNDS[background][1]} 배경"
        yield Wish(korean if i % 2 else english, entry["class"], background)


class Judge:
    """Names the object in a picture."""

    def __init__(self) -> None:
        stored = load_file(FOLDER / "judge.safetensors")
        self._weights = {
            name.removesuffix(".codes"): codes.float() * stored[name.removesuffix("codes") + "scale"]
            for name, codes in stored.items()
            if name.endswith(".codes")
        }
        self._biases = {
            name.removesuffix(".bias"): bias.float() for name, bias in stored.items() if name.endswith(".bias")
        }

    @torch.inference_mode()
    def objects(self, image: Image.Image, count: int = 5) -> list[int]:
        """Classes that the picture may show, the likeliest first."""
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        x = torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        x = self._convolved(x, "stem", stride=2).relu()
        for level in range(3):
            x = self._convolved(x, f"down{level}", stride=2).relu()
            x = (x + self._convolved(self._convolved(x, f"res{level}a").relu(), f"res{level}b")).relu()
        scores = F.linear(x.mean((2, 3)), self._weights["head"], self._biases["head"])
        return scores[0].topk(count).indices.tolist()

    def _convolved(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = self._weights[name]
        return F.conv2d(x, weight, self._biases[name], stride=stride, padding=weight.shape[-1] // 2)


def background(image: Image.Image) -> str:
    """The name of the colour that the corners are nearest to."""
    pixels = np.asarray(image.convert("RGB"), float)
    edge = slice(None, CORNER), slice(-CORNER, None)
    mean = np.concatenate([pixels[a, b].reshape(-1, 3) for a in edge for b in edge]).mean(0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(np.array(BACKGROUNDS[name][0]) - mean).sum()))


def score(judge: Judge, pictures: list[tuple[Wish, Image.Image]]) -> dict[str, float | int]:
    """Shares of pictures with the object asked for at the first place and among the first five, and with the background."""
    seen = [(judge.objects(image), background(image)) for _, image in pictures]
    count = len(pictures)
    pairs = list(zip(pictures, seen, strict=True))
    return {
        "object_top_1": round(sum(found[0] == wish.object for (wish, _), (found, _) in pairs) / count, 3),
        "object_top_5": round(sum(wish.object in found for (wish, _), (found, _) in pairs) / count, 3),
        "background": round(sum(colour == wish.background for (wish, _), (_, colour) in pairs) / count, 3),
        "pictures": count,
    }
