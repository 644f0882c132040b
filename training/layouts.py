"""Pictures of any objects anywhere, for networks that look but do not read: the autoencoder and the judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from training.colours import COLOURS, DYES
from training.compose import Arrangement, Layer
from training.pack import Thing
from training.scenes import NO_DYE, held_out_background, held_out_dye


def random_scenes(things: Sequence[Thing], count: int, random_: torch.Generator, objects: int = 2) -> Arrangement:
    """So many pictures, with one or more objects of all sizes each, many dyed, over backgrounds of one colour or two.

    Held-out pairs are not among them.
    """
    numbers = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random_)))
    colours = np.array([colour.rgb for colour in COLOURS], np.float32) / 255
    chosen = np.stack([numbers.integers(len(things), size=count) for _ in range(objects)])
    ends = backgrounds_for(len(things), chosen, numbers)
    backgrounds = np.clip(colours[ends] + numbers.normal(0, 0.03, (count, 1, 3)).astype(np.float32), 0, 1)
    layers = []
    for slot in range(objects):
        rows = np.arange(count) if slot == 0 else np.flatnonzero(numbers.random(count) < 0.4)
        picked = chosen[slot][rows]
        scale = np.exp(numbers.uniform(math.log(0.25), math.log(1.05), len(rows)))
        spots = np.stack(
            [
                numbers.uniform(0.25, 0.75, len(rows)),
                numbers.uniform(0.25, 0.75, len(rows)),
                scale,
                numbers.normal(0, 0.05, len(rows)),
            ],
            axis=1,
        ).astype(np.float32)
        layers.append(Layer(rows, picked, spots, dyes(things, picked, numbers, 0.35)))
    return Arrangement(tuple(layers), backgrounds.astype(np.float32))


def backgrounds_for(things: int, chosen: np.ndarray, numbers: np.random.Generator, plain: float = 0.7) -> np.ndarray:
    """Numbers of two colours for each picture, mostly the same, of which neither is held out from its objects.

    Args:
        things: how many objects there are.
        chosen: those in the pictures ``[objects, B]``.
    """
    count = chosen.shape[1]
    kept = _open_backgrounds(things)[chosen].all(axis=0)
    ends = np.stack([(numbers.random(kept.shape) * kept).argmax(1) for _ in range(2)], axis=1)
    same = numbers.random(count) < plain
    ends[same, 1] = ends[same, 0]
    return ends


def dyes(things: Sequence[Thing], picked: np.ndarray, numbers: np.random.Generator, share: float) -> np.ndarray:
    """A colour for a share of the objects that can be dyed, none that is held out; NO_DYE for the others."""
    dyeable = np.array([thing.dyeable for thing in things])[picked] & (numbers.random(len(picked)) < share)
    colours = np.array(DYES)[numbers.integers(len(DYES), size=len(picked))]
    kept = _open_dyes(len(things))[picked, colours]
    return np.where(dyeable & kept, colours, NO_DYE)


@cache
def _open_backgrounds(things: int) -> np.ndarray:
    """For each object and colour, whether training may show them together."""
    return np.array([[not held_out_background(t, c) for c in range(len(COLOURS))] for t in range(things)])


@cache
def _open_dyes(things: int) -> np.ndarray:
    return np.array([[not held_out_dye(t, c) for c in range(len(COLOURS))] for t in range(things)])
