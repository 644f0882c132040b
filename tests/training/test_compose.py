"""Composed pictures show the scene: objects where and as large as it says, over its background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from packs import write_small_pack
from training.colours import COLOURS
from training.compose import Arrangement, Textures, compose
from training.scenes import NO_DYE, Placed, Scene

NAMES = [colour.name for colour in COLOURS]
BLUE, GREEN, YELLOW = (NAMES.index(name) for name in ("blue", "green", "yellow"))


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Textures:
    folder: Path = tmp_path_factory.mktemp("pack")
    return Textures(folder, "flat", write_small_pack(folder), torch.device("cpu"))


def _drawn(textures: Textures, *scenes: Scene, size: tuple[int, int] = (128, 128)) -> torch.Tensor:
    return (compose(textures, Arrangement.of(scenes, np.random.default_rng(0), jitter=0), *size) + 1) * 127.5


def _scene(*placed: Placed, top: int = BLUE, bottom: int = BLUE) -> Scene:
    return Scene("one", placed, top, bottom, False, True)


def test_an_object_stands_where_it_is_placed(textures: Textures) -> None:
    bread = 4  # a box that fills 0.72 of its square's width, below the middle
    picture = _drawn(textures, _scene(Placed(bread, 0.75, 0.5, 0.4, 0.0)))[0]
    blue = torch.tensor(COLOURS[BLUE].rgb)[:, None, None]
    changed = torch.nonzero(((picture - blue).abs().amax(0) > 30).any(0)).flatten()
    assert abs(changed.float().mean() / 128 - 0.75) < 0.02
    assert abs(len(changed) - 0.72 * 0.4 * 128) <= 2


def test_backgrounds_are_their_colours_and_gradients_go_down(textures: Textures) -> None:
    plain, gradient = _drawn(textures, _scene(top=GREEN, bottom=GREEN), _scene(top=BLUE, bottom=YELLOW), size=(160, 96))
    assert plain.shape == (3, 96, 160)
    torch.testing.assert_close(plain[:, 50, 50], torch.tensor(COLOURS[GREEN].rgb).float(), atol=1, rtol=0)
    torch.testing.assert_close(gradient[:, 0, 9], torch.tensor(COLOURS[BLUE].rgb).float(), atol=1, rtol=0)
    torch.testing.assert_close(gradient[:, -1, 9], torch.tensor(COLOURS[YELLOW].rgb).float(), atol=1, rtol=0)


def test_only_those_are_dyed_that_are_to_be(textures: Textures) -> None:
    apple = 0
    scenes = [_scene(Placed(apple, 0.5, 0.5, 0.8, 0.0, dye)) for dye in (NO_DYE, GREEN, NO_DYE)]
    middle = _drawn(textures, *scenes)[:, :, 70, 64]
    assert middle[0, 0] > middle[0, 1] + 80
    assert middle[1, 1] > middle[1, 0] + 60
    torch.testing.assert_close(middle[2], middle[0])


def test_scenes_of_different_numbers_of_objects_share_a_batch(textures: Textures) -> None:
    one = _scene(Placed(0, 0.25, 0.5, 0.4, 0.0))
    two = _scene(Placed(0, 0.25, 0.5, 0.4, 0.0), Placed(1, 0.75, 0.5, 0.4, 0.0))
    together = _drawn(textures, one, two)
    torch.testing.assert_close(together[0], _drawn(textures, one)[0])
    torch.testing.assert_close(together[1], _drawn(textures, two)[0])


def test_small_objects_do_not_shimmer(textures: Textures) -> None:
    """A tiny one, seen a quarter of a pixel further, is nearly the same."""
    star = 2
    pictures = _drawn(textures, *(_scene(Placed(star, 0.5 + x / 128, 0.5, 0.3, 0.0)) for x in (0, 0.25)))
    assert (pictures[0] - pictures[1]).abs().mean() < 2.5
