"""Captions say what their scenes show, in the grammar of both languages."""

from __future__ import annotations

import random
import re

import pytest
from training import english, korean
from training.captions import PLAIN, Captioner, Habits
from training.colours import COLOURS, WHITE, names_colour
from training.pack import STYLES, Names, Thing
from training.scenes import BACKGROUND, BEHIND_DYED, MOST_OBJECTS, Placed, Scene, SceneMaker, place
from training.wording import ASKING, BACKGROUNDS, COUNTED, FILLERS, PAIRS, QUALITIES


def _thing(word: str, korean_word: str, *, category: str = "Food & Drink", key: str = "1f34e") -> Thing:
    names = Names(word, (word, f"red {word}"), ()), Names(korean_word, (korean_word, f"빨간 {korean_word}"), ())
    return Thing(key, category, *names, dict.fromkeys(STYLES, (0.6, 0.2, 0.1)), dyeable=True, natural=3)


THINGS = (
    _thing("apple", "사과"),
    _thing("cat", "고양이", category="Animals & Nature", key="1f431"),
    _thing("bread", "빵"),
)
BLUE = next(number for number, colour in enumerate(COLOURS) if colour.name == "blue")


def _scene(*things: int, kind: str = "one", dye: int = -1, background: int = WHITE) -> Scene:
    placed = tuple(Placed(thing, (i + 1) / (len(things) + 1), 0.5, 0.4, 0, dye) for i, thing in enumerate(things))
    return Scene(kind, placed, background, background, dye >= 0, background != WHITE)


def test_the_plainest_captions() -> None:
    class First(random.Random):
        """Always the usual form."""

        def random(self) -> float:
            return 0.0

    captioner = Captioner(THINGS, habits=PLAIN)
    blue_cat, on_blue = _scene(1, dye=BLUE), _scene(0, background=BLUE)
    assert captioner.caption(First(), blue_cat, "en") == "a blue cat"
    assert captioner.caption(First(), blue_cat, "ko") == "파란 고양이"
    assert captioner.caption(First(), on_blue, "en") == "an apple on a blue background"
    assert captioner.caption(First(), on_blue, "ko") == "사과, 파란 배경"
    assert captioner.caption(First(), _scene(1, 1, kind="count"), "ko") == "고양이 두 마리"
    assert captioner.caption(First(), _scene(0, 0, 0, kind="count"), "en") == "three apples"
    assert captioner.caption(First(), _scene(2, 1, kind="two"), "ko") == "빵과 고양이"
    assert captioner.caption(First(), _scene(1, 2, kind="two"), "en") == "a cat and a bread"
    assert captioner.caption(First(), _scene(1, kind="small"), "ko") == "작은 고양이"


def test_a_coloured_object_is_not_called_by_another_colour() -> None:
    captioner, rng = Captioner(THINGS, habits=Habits(slips=0, filler=0, many_fillers=0)), random.Random(0)
    for language in ("en", "ko"):
        captions = [captioner.caption(rng, _scene(0, dye=BLUE), language) for _ in range(300)]
        assert not [caption for caption in captions if re.search(r"\bred\b|빨간", caption)]
        shown = COLOURS[BLUE].english if language == "en" else [word for pair in COLOURS[BLUE].korean for word in pair]
        assert all(any(name in caption.lower() for name in shown) for caption in captions)


def test_backgrounds_are_mentioned_just_where_they_are_to_be() -> None:
    captioner, rng = Captioner(THINGS, habits=Habits(slips=0)), random.Random(0)
    names = {"en": COLOURS[BLUE].english, "ko": [word for pair in COLOURS[BLUE].korean for word in pair]}
    for language, shown in names.items():
        said = [captioner.caption(rng, _scene(1, background=BLUE), language) for _ in range(200)]
        unsaid = [captioner.caption(rng, _scene(1), language) for _ in range(200)]
        assert all(any(name in caption.lower() for name in shown) for caption in said)
        assert not [caption for caption in unsaid if any(name in caption.lower() for name in shown)]


def test_captions_vary() -> None:
    captioner, rng = Captioner(THINGS, ["It is a watercolour."]), random.Random(0)
    captions = [captioner.caption(rng, _scene(1, background=BLUE)) for _ in range(500)]
    assert len(set(captions)) > 250
    assert 0.3 < sum(bool(re.search("[가-힣]", caption)) for caption in captions) / 500 < 0.6
    assert any(caption.endswith("It is a watercolour.") for caption in captions)
    assert not [caption for caption in captions if "{" in caption]


def test_every_phrasing_can_be_filled_in() -> None:
    for language in ("en", "ko"):
        for forms in (BACKGROUNDS, PAIRS, COUNTED, ASKING):
            assert len(set(forms[language])) == len(forms[language])
        for word in (*QUALITIES[language], *FILLERS[language]):
            colours = {name for colour in COLOURS for name in colour.english}
            assert word not in colours


@pytest.mark.parametrize(
    ("word", "with_and", "with_to"),
    [("사과", "사과와", "사과로"), ("빵", "빵과", "빵으로"), ("연필", "연필과", "연필로"), ("TV", "TV와", "TV로")],
)
def test_particles(word: str, with_and: str, with_to: str) -> None:
    assert korean.particle(word, "과", "와") == with_and
    assert korean.towards(word) == with_to


@pytest.mark.parametrize(
    ("word", "several"),
    [
        ("cat", "cats"), ("box", "boxes"), ("strawberry", "strawberries"), ("toy", "toys"), ("knife", "knives"),
        ("loaf of bread", "loaves of bread"), ("glass of milk", "glasses of milk"), ("fish", "fish"), ("mouse", "mice"),
        ("tomato", "tomatoes"), ("jeans", "jeans"), ("police car", "police cars"), ("old woman", "old women"),
    ],
)  # fmt: skip
def test_plurals(word: str, several: str) -> None:
    assert english.plural(word) == several


def test_articles() -> None:
    assert english.with_article("apple") == "an apple"
    assert english.with_article("unicorn") == "a unicorn"
    assert english.with_article("hourglass") == "an hourglass"


def test_colours_are_found_in_names() -> None:
    assert names_colour("red apple")
    assert names_colour("빨간 사과")
    assert not names_colour("hundred points")
    assert not names_colour("고양이")


@pytest.mark.parametrize("size", [(256, 256), (336, 192), (192, 336), (512, 288)])
@pytest.mark.parametrize("count", range(1, MOST_OBJECTS + 1))
def test_objects_stand_inside_the_picture_and_apart(size: tuple[int, int], count: int) -> None:
    width, height = size
    for seed in range(20):
        spots = place(random.Random(seed), "count" if count > 1 else "one", count, width, height)
        boxes = []
        for spot in spots:
            half = 0.5 * spot.size * min(size)
            boxes.append((spot.x * width - half, spot.y * height - half, spot.x * width + half, spot.y * height + half))
        assert len(boxes) == count
        for left, top, right, bottom in boxes:
            assert left > -12 and top > -12 and right < width + 12 and bottom < height + 12  # noqa: PT018
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                overlap = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                assert min(overlap) < 8


def test_sources_keep_what_the_caption_does_not_mention() -> None:
    rng, maker = random.Random(3), SceneMaker(THINGS)
    changed = 0
    for _ in range(3000):
        scene = maker.scene(rng, 256, 256, edits=1.0)
        assert scene.source is not None
        assert [(p.x, p.y, p.size) for p in scene.placed] == [(p.x, p.y, p.size) for p in scene.source.placed]
        if not scene.says_background:
            assert (scene.top, scene.bottom) == (scene.source.top, scene.source.bottom)
        changed += (scene.top, scene.bottom) != (scene.source.top, scene.source.bottom)
    assert changed > 1000


def test_what_lies_behind_dyed_objects() -> None:
    """A colour alone is asked for often enough to be known as the object's."""
    names = Names("cat", ("cat",), ())
    thing = Thing("cat", "Animals & Nature", names, names, dict.fromkeys(STYLES, (0.6, 0.2, 0.1)), True, -1)
    rng, maker = random.Random(9), SceneMaker([thing, thing])
    silent: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(6000):
        scene = maker.scene(rng, 256, 256)
        silent[scene.placed[0].dye >= 0].append(not scene.says_background)
    shares = {dyed: sum(found) / len(found) for dyed, found in silent.items()}
    assert abs(shares[True] - BEHIND_DYED["silent"]) < 0.04
    assert abs(shares[False] - BACKGROUND["silent"]) < 0.03
