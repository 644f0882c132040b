"""Scenes: what is in a picture and where, before anything is drawn or worded.

A scene says all that a picture shows, and which of that its caption mentions. It may have a source: another scene of the same
layout that image-to-image starts from, changed in just what the caption mentions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from training.colours import COLOURS, DYES, WHITE
from training.pack import Thing

MOST_OBJECTS = 4

NO_DYE = -1

EVERYDAY_WEIGHT = 3.0
"""How much oftener an everyday object is drawn than another."""


@dataclass(frozen=True)
class Placed:
    """An object in a picture.

    Attributes:
        thing: its number.
        x, y: of its middle, as shares of the picture's sides.
        size: of its square, as a share of the shorter side.
        angle: radians, clockwise.
        dye: number of the colour that it is dyed in, or NO_DYE.
    """

    thing: int
    x: float
    y: float
    size: float
    angle: float
    dye: int = NO_DYE


@dataclass(frozen=True)
class Scene:
    """A picture to be.

    Attributes:
        kind: "one", "small", "large", "side" (left or right), "two" (different objects) or "count" (equal ones).
        placed: its objects, from left to right or top to bottom.
        top, bottom: numbers of the background's colours; the same unless it is a gradient.
        says_colour: whether the caption names the objects' colour: their dye, or their own where they are not dyed.
        says_background: likewise. Without a word about it, a background is white.
        source: what image-to-image starts from.
    """

    kind: str
    placed: tuple[Placed, ...]
    top: int
    bottom: int
    says_colour: bool
    says_background: bool
    source: Scene | None = None

    @property
    def things(self) -> tuple[int, ...]:
        return tuple(placed.thing for placed in self.placed)


def held_out_background(thing: int, colour: int) -> bool:
    """Pairs of object and background that no training picture shows: one in ten. White is what all stand on by default."""
    return colour != WHITE and (thing * 7 + colour * 13) % 10 == 0


def held_out_dye(thing: int, colour: int) -> bool:
    """Pairs of object and colour that no training picture shows: one in ten."""
    return (thing * 11 + colour * 7) % 10 == 3


KINDS = {"one": 0.58, "small": 0.05, "large": 0.05, "side": 0.06, "two": 0.16, "count": 0.10}
"""How often scenes are of each kind."""

BACKGROUND = {"silent": 0.24, "plain": 0.64, "gradient": 0.12}
BEHIND_DYED = {"silent": 0.34, "plain": 0.57, "gradient": 0.09}
"""How often backgrounds are of each kind, and where the object is dyed: whoever asks for a blue cat often asks for no more, and
a model that seldom met a colour alone would take it for the background's."""

DYED = 0.25
NAMED = 0.10
"""Shares of scenes whose object is dyed, and whose object's own colour is mentioned, where either can be."""


class SceneMaker:
    """Draws scenes that training may show: no held-out pair is among them."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = things
        weights = [EVERYDAY_WEIGHT if thing.everyday else 1.0 for thing in things]
        self._cumulative = list(accumulate(weights))

    def scene(self, rng: random.Random, width: int, height: int, *, edits: float = 0.0) -> Scene:
        """A scene for a picture of that size.

        Args:
            edits: the share of scenes that have a source.
        """
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        things = self._things(rng, kind)
        dye, says_colour = self._dye(rng, things, kind)
        top, bottom, says_background = self._background(rng, things, BACKGROUND if dye == NO_DYE else BEHIND_DYED)
        places = place(rng, kind, len(things), width, height)
        placed = tuple(replace(spot, thing=thing, dye=dye) for spot, thing in zip(places, things, strict=True))
        scene = Scene(kind, placed, top, bottom, says_colour, says_background)
        return self._with_source(rng, scene) if rng.random() < edits else scene

    def thing(self, rng: random.Random) -> int:
        return rng.choices(range(len(self.things)), cum_weights=self._cumulative)[0]

    def _things(self, rng: random.Random, kind: str) -> list[int]:
        if kind == "two":
            return [self.thing(rng), self.thing(rng)]
        count = rng.choice((2, 2, 3, 3, 4)) if kind == "count" else 1
        return [self.thing(rng)] * count

    def _dye(self, rng: random.Random, things: Sequence[int], kind: str) -> tuple[int, bool]:
        """One dye for all objects (two different ones are not dyed), and whether the caption names the colour."""
        first = self.things[things[0]]
        chance = rng.random()
        nameable = kind != "two" and first.natural >= 0 and not held_out_dye(things[0], first.natural)
        if kind == "two" or not first.dyeable:
            return NO_DYE, nameable and chance < NAMED
        if chance < DYED:
            return _allowed(rng, things, DYES, held_out_dye), True
        return NO_DYE, nameable and chance < DYED + NAMED

    def _background(
        self, rng: random.Random, things: Sequence[int], kinds: Mapping[str, float]
    ) -> tuple[int, int, bool]:
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "silent":
            return WHITE, WHITE, False
        top = _allowed(rng, things, range(len(COLOURS)), held_out_background)
        bottom = top if kind == "plain" else _allowed(rng, things, range(len(COLOURS)), held_out_background)
        return top, bottom, True

    def _with_source(self, rng: random.Random, scene: Scene) -> Scene:
        """The scene with another to start from: other objects, another background, or both.

        What the caption does not mention is the source's: a background that is not named stays as it was, and so does, of an
        object that stays, a colour that is not named.
        """
        same_thing = rng.random() < 0.3
        things = list(scene.things) if same_thing else self._things(rng, "count" if len(scene.placed) > 1 else "one")
        things = (things * MOST_OBJECTS)[: len(scene.placed)]
        dye, _ = self._dye(rng, things, "one")
        top, bottom, _ = self._background(rng, [*things, *scene.things], BACKGROUND)
        if not scene.says_background:
            scene = replace(scene, top=top, bottom=bottom)
        elif rng.random() < 0.2 and not _any_held_out(things, (scene.top, scene.bottom)):
            top, bottom = scene.top, scene.bottom
        if same_thing and not scene.says_colour:
            dye = scene.placed[0].dye
        placed = tuple(replace(spot, thing=thing, dye=dye) for spot, thing in zip(scene.placed, things, strict=True))
        return replace(scene, source=Scene(scene.kind, placed, top, bottom, False, False))


def place(rng: random.Random, kind: str, count: int, width: int, height: int) -> list[Placed]:
    """Where so many objects of a kind of scene stand in a picture. The objects are still to be filled in.

    The spread is small: the model is asked for a sharp picture of a given thing, and each free choice that its caption does not
    tell has to be learnt as a blur.
    """
    shorter = min(width, height)

    def spot(x: float, y: float, size: float) -> Placed:
        off = 0.01
        return Placed(0, x + rng.uniform(-off, off), y + rng.uniform(-off, off), size, rng.uniform(-0.03, 0.03))

    if kind == "side":
        return [spot(rng.choice((0.27, 0.73)), 0.5, rng.uniform(0.47, 0.53))]
    if count == 1:
        low, high = {"small": (0.36, 0.42), "large": (0.96, 1.04)}.get(kind, (0.72, 0.80))
        return [spot(0.5, 0.5, rng.uniform(low, high))]
    if count == MOST_OBJECTS and max(width, height) < 1.6 * shorter:  # two rows of two
        size = 0.44 * rng.uniform(0.96, 1.02)
        step = size * 0.53 * shorter
        return [spot(0.5 + a * step / width, 0.5 + b * step / height, size) for b in (-1, 1) for a in (-1, 1)]
    longer = max(width, height)
    size = min({2: 0.47, 3: 0.32, 4: 0.235}[count] * longer, 0.8 * shorter) * rng.uniform(0.96, 1.02)
    steps = [0.5 + (i - (count - 1) / 2) * size * 1.06 / longer for i in range(count)]
    return [spot(*((step, 0.5) if width >= height else (0.5, step)), size / shorter) for step in steps]


def _any_held_out(things: Sequence[int], backgrounds: Sequence[int]) -> bool:
    return any(held_out_background(thing, colour) for thing in things for colour in backgrounds)


def _allowed(
    rng: random.Random, things: Sequence[int], colours: Sequence[int], held_out: Callable[[int, int], bool]
) -> int:
    open_to_all = [colour for colour in colours if not any(held_out(thing, colour) for thing in things)]
    return rng.choice(open_to_all or [WHITE])
