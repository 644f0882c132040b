"""What is measured was never trained on: pairs of object and colour, phrasings, prompts written by hand."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from training.asked import Asker, read_written
from training.captions import Captioner
from training.colours import COLOURS
from training.everyday import everyday_words
from training.layouts import random_scenes
from training.pack import STYLES, Names, Thing
from training.phases.judge import examples
from training.recipe import Recipe
from training.scenes import NO_DYE, Scene, SceneMaker, held_out_background, held_out_dye
from training.wording import BACKGROUNDS, UNSEEN


@pytest.fixture(scope="module")
def things() -> tuple[Thing, ...]:
    """All everyday objects, with their words and without pictures."""
    return tuple(
        Thing(
            key,
            "Food & Drink",
            Names(words["en"][0], words["en"], ()),
            Names(words["ko"][0], words["ko"], ()),
            dict.fromkeys(STYLES, (0.6, 0.2, 0.1)),
            dyeable=number % 3 != 0,
            natural=number % len(COLOURS) if number % 2 else -1,
        )
        for number, (key, words) in enumerate(sorted(everyday_words().items()))
    )


@pytest.fixture(scope="module")
def scenes(things: tuple[Thing, ...]) -> list[Scene]:
    rng, maker = random.Random(0), SceneMaker(things)
    return [maker.scene(rng, *size, edits=0.3) for size in [(256, 256), (336, 192)] * 4000]


def _shown(scene: Scene) -> Iterator[Scene]:
    yield scene
    if scene.source is not None:
        yield scene.source


def test_no_scene_shows_a_held_out_pair(scenes: list[Scene], things: tuple[Thing, ...]) -> None:
    seen = 0
    for shown in (each for scene in scenes for each in _shown(scene)):
        for placed in shown.placed:
            seen += placed.dye != NO_DYE
            assert not held_out_background(placed.thing, shown.top)
            assert not held_out_background(placed.thing, shown.bottom)
            assert placed.dye == NO_DYE or not held_out_dye(placed.thing, placed.dye)
    assert seen > 500
    for scene in scenes:
        first = scene.placed[0]
        if scene.says_colour and first.dye == NO_DYE:
            assert not held_out_dye(first.thing, things[first.thing].natural)


def test_the_autoencoder_and_the_judge_see_none_either(things: tuple[Thing, ...]) -> None:
    palette = torch.tensor([colour.rgb for colour in COLOURS]) / 255
    size = Recipe.load("mini").sizes.standard[0]
    arrangements = [random_scenes(things, 400, torch.Generator().manual_seed(1))]
    arrangements += [examples(things, 400, count, size, np.random.default_rng(2))[0] for count in (1, 3)]
    for arrangement in arrangements:
        backgrounds = torch.from_numpy(arrangement.backgrounds).float()
        nearest = torch.cdist(backgrounds.flatten(0, 1), palette).argmin(1).view(-1, 2).tolist()
        off = torch.cdist(backgrounds.flatten(0, 1), palette).amin(1).view(-1, 2).tolist()
        for layer in arrangement.layers:
            for row, thing, dye in zip(layer.rows, layer.things, layer.dyes, strict=True):
                assert dye == NO_DYE or not held_out_dye(int(thing), int(dye))
                for colour, distance in zip(nearest[row], off[row], strict=True):
                    # A colour far off its name may pass for a neighbour's; near it there is no doubt.
                    assert distance > 0.05 or not held_out_background(int(thing), colour)


def test_measures_ask_for_held_out_pairs(things: tuple[Thing, ...]) -> None:
    asker = Asker(things)
    combinations, dyed = asker.combinations(64, "test"), asker.dyed(64)
    assert all(held_out_background(each.scene.things[0], each.scene.top) for each in combinations)
    assert all(held_out_dye(each.scene.things[0], each.scene.placed[0].dye) for each in dyed)
    assert sum(bool(re.search("[가-힣]", each.prompt)) for each in combinations) == 32


def test_phrasings_for_measuring_are_not_trained(scenes: list[Scene], things: tuple[Thing, ...]) -> None:
    assert not {form for forms in UNSEEN.values() for form in forms} & {f for fs in BACKGROUNDS.values() for f in fs}
    forms = [re.escape(form) for forms in UNSEEN.values() for form in forms]
    unseen = [re.compile(re.sub(r"\\{\w+\\}", "(.+)", form).replace(r"\ ", " "), re.IGNORECASE) for form in forms]
    rng, captioner = random.Random(1), Captioner(things)
    for scene in scenes:
        caption = captioner.caption(rng, scene)
        found = [form.pattern for form in unseen if form.fullmatch(caption.rstrip("."))]
        assert not found, caption
    asked = [each.prompt for each in Asker(things).combinations(40, "test", unseen=True)]
    assert all(any(form.fullmatch(prompt) for form in unseen) for prompt in asked)


def test_no_caption_is_a_written_prompt(scenes: list[Scene], things: tuple[Thing, ...]) -> None:
    written = {_plain(entry.prompt) for entry in read_written()}
    assert len(written) == 120
    rng, captioner = random.Random(2), Captioner(things)
    for scene in scenes * 3:
        assert _plain(captioner.caption(rng, scene)) not in written


def test_written_prompts_ask_for_things_and_colours_that_there_are(things: tuple[Thing, ...]) -> None:
    entries = read_written()
    usual, colours = {thing.english.usual for thing in things}, {colour.name for colour in COLOURS}
    for entry in entries:
        assert entry.object in usual
        assert entry.background in {*colours, ""}
        assert entry.colour in {*colours, ""}
    korean = sum(bool(re.search("[가-힣]", entry.prompt)) for entry in entries)
    assert korean == 60
    assert len(Asker(things).written()) == 120


def _plain(text: str) -> str:
    """Without case, punctuation and spaces: a caption that differs in those alone is the same."""
    return re.sub(r"[\W_]+", "", text.lower())
