"""What an evaluation asks for: prompts with the scene that each one means. Always the same ones.

Scenes are made of pairs that training holds out. The same scenes, composed of the pack's own pictures, are what the judge's own
accuracy is measured on, beside every score.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.captions import PLAIN, Captioner
from training.colours import COLOURS, DYES, WHITE
from training.pack import BASE_STYLE, Thing
from training.scenes import NO_DYE, Placed, Scene, held_out_background, held_out_dye, place

WRITTEN = Path(__file__).parent / "words" / "written.toml"

SQUARE = (256, 256)


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        scene: what it means. Where it says nothing of the background, any will do.
        size: (width, height) of the picture.
        style: of the pack; others than the first are drawn with their LoRA.
    """

    prompt: str
    scene: Scene
    size: tuple[int, int] = SQUARE
    style: str = BASE_STYLE


def _language(number: int) -> str:
    return "ko" if number % 2 else "en"


class Asker:
    """Makes the prompts of each measure from a pack's objects."""

    def __init__(self, things: Sequence[Thing], square: tuple[int, int] = SQUARE) -> None:
        self.things = things
        self.square = square
        self.plain = Captioner(things, habits=PLAIN)
        self.everyday = [number for number, thing in enumerate(things) if thing.everyday]
        self.dyeable = [number for number, thing in enumerate(things) if thing.dyeable]

    def combinations(
        self,
        count: int,
        name: str,
        *,
        among: Sequence[int] = (),
        size: tuple[int, int] | None = None,
        style: str = BASE_STYLE,
        unseen: bool = False,
    ) -> list[Asked]:
        """An object before a background that training never showed it with."""
        rng = random.Random(f"asked {name}")
        size = size or self.square
        asked: list[Asked] = []
        while len(asked) < count:
            thing = rng.choice(among or range(len(self.things)))
            held = [colour for colour in range(len(COLOURS)) if held_out_background(thing, colour)]
            if held:
                scene = self._scene(rng, "one", [thing], size, rng.choice(held))
                prompt = self.plain.caption(rng, scene, _language(len(asked)), unseen=unseen)
                asked.append(Asked(prompt, scene, size, style))
        return asked

    def pairs(self, count: int) -> list[Asked]:
        """Two different everyday objects side by side."""
        rng = random.Random("asked pairs")
        asked = []
        for number in range(count):
            things = rng.sample(self.everyday, 2) if len(self.everyday) > 1 else self.everyday * 2
            colours = [c for c in range(len(COLOURS)) if not any(held_out_background(t, c) for t in things)]
            scene = self._scene(rng, "two", things, self.square, rng.choice(colours))
            asked.append(Asked(self.plain.caption(rng, scene, _language(number)), scene, self.square))
        return asked

    def dyed(self, count: int) -> list[Asked]:
        """An object in a colour that training never showed it in; half of them with a background."""
        rng = random.Random("asked dyed")
        asked: list[Asked] = []
        while len(asked) < count and self.dyeable:
            thing = rng.choice(self.dyeable)
            held = [c for c in DYES if held_out_dye(thing, c) and c != self.things[thing].natural]
            if not held:
                continue
            dye = rng.choice(held)
            # Nobody could tell a white cat from a white wall.
            colours = [c for c in range(len(COLOURS)) if c != dye and not held_out_background(thing, c)]
            said = len(asked) % 4 >= 2 or dye == WHITE
            scene = self._scene(rng, "one", [thing], self.square, rng.choice(colours) if said else WHITE, dye=dye)
            scene = replace(scene, says_background=said)
            asked.append(Asked(self.plain.caption(rng, scene, _language(len(asked))), scene, self.square))
        return asked

    def counted(self, count: int) -> list[Asked]:
        """Two to four of an everyday object."""
        rng = random.Random("asked counted")
        asked = []
        for number in range(count):
            things = [rng.choice(self.everyday)] * (2 + number % 3)
            scene = self._scene(rng, "count", things, self.square, WHITE)
            scene = replace(scene, says_background=False)
            asked.append(Asked(self.plain.caption(rng, scene, _language(number)), scene, self.square))
        return asked

    def placed(self, count: int) -> list[Asked]:
        """An everyday object on the left or right, small or large."""
        rng = random.Random("asked placed")
        asked = []
        for number in range(count):
            kind = ("side", "side", "small", "large")[number // 2 % 4]
            thing = rng.choice(self.everyday)
            colours = [c for c in range(len(COLOURS)) if not held_out_background(thing, c)]
            scene = self._scene(rng, kind, [thing], self.square, rng.choice(colours))
            asked.append(Asked(self.plain.caption(rng, scene, _language(number)), scene, self.square))
        return asked

    def written(self) -> list[Asked]:
        """The prompts that people wrote, as far as their objects are in the pack."""
        numbers = {thing.english.usual: number for number, thing in enumerate(self.things)}
        colours = {colour.name: number for number, colour in enumerate(COLOURS)}
        rng = random.Random("asked written")
        asked = []
        for entry in read_written():
            if entry.object not in numbers:
                continue
            number = numbers[entry.object]
            background = colours[entry.background] if entry.background else WHITE
            dye = colours[entry.colour] if entry.colour else NO_DYE
            # An object that has the colour already, or cannot be dyed, is right as it is.
            if dye != NO_DYE and (not self.things[number].dyeable or self.things[number].natural == dye):
                dye = NO_DYE
            kind = "count" if entry.count > 1 else "one"
            scene = self._scene(rng, kind, [number] * entry.count, self.square, background, dye=dye)
            scene = replace(scene, says_background=bool(entry.background), says_colour=dye != NO_DYE)
            asked.append(Asked(entry.prompt, scene, self.square))
        return asked

    def _scene(
        self, rng: random.Random, kind: str, things: Sequence[int], size: tuple[int, int], background: int, *,
        dye: int = NO_DYE,
    ) -> Scene:  # fmt: skip
        spots: list[Placed] = place(rng, kind, len(things), *size)
        placed = tuple(replace(spot, thing=thing, dye=dye) for spot, thing in zip(spots, things, strict=True))
        return Scene(kind, placed, background, background, dye != NO_DYE, True)


@dataclass(frozen=True)
class Written:
    """A prompt that somebody wrote: its object by its usual English word, and what else it asks for."""

    prompt: str
    object: str
    background: str = ""
    colour: str = ""
    count: int = 1


def read_written() -> list[Written]:
    """The hand-written prompts, English and Korean by turns."""
    return [Written(**entry) for entry in tomllib.loads(WRITTEN.read_text(encoding="utf-8"))["prompts"]]


UNKNOWN = (
    "a zorblax", "quixotic flimmerband on a blue background", "장삼이사의 뚜꾸뽕", "a photograph of serendipity",
    "보람찬 하루, 노란 배경",
    "blockchain strategy meeting", "the year 1995", "a Schnitzel with Spätzle", "국밥 한 그릇", "떡볶이, 초록 배경",
    "a hovercraft",
    "an ironing board on a pink background", "the concept of justice", "세탁기", "냉장고, 하늘색 배경", "한복 입은 아이",
)  # fmt: skip
"""Prompts for things that no picture of the pack shows. What comes of them should be some object, never noise."""
