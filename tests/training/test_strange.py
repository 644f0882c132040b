"""Words that a caption can do without."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from training.captions import PLAIN, Captioner
from training.colours import COLOURS
from training.everyday import everyday_words
from training.pack import STYLES, Names, Thing
from training.scenes import SceneMaker
from training.strange import LOOSE, OWN, WORDS, filled, strange_word, with_strange_words
from training.wording import BACKGROUNDS, UNSEEN


@pytest.mark.parametrize("language", ["en", "ko"])
def test_none_is_the_name_of_an_object(language: str) -> None:
    names = {name.casefold() for words in everyday_words().values() for name in words[language]}
    assert not names & set(WORDS[language])
    assert len(set(WORDS[language])) == len(WORDS[language])


@pytest.mark.parametrize(("language", "letters"), [("en", "[a-z]+"), ("ko", "[가-힣]+")])
def test_words_are_of_the_language_and_half_are_made_up(language: str, letters: str) -> None:
    rng = random.Random(1)
    words = [strange_word(rng, language) for _ in range(2000)]
    assert all(re.fullmatch(letters, word) for word in words)
    assert 0.4 < sum(word in WORDS[language] for word in words) / len(words) < 0.6
    assert len(set(words)) > 900, "made up anew"


def test_the_text_stays_in_its_order_and_names_stay_whole() -> None:
    rng, longest = random.Random(2), 0
    text = "a game controller on a sky blue background"
    for _ in range(500):
        more = with_strange_words(rng, text, "en", ["game controller", "sky blue", "navy"])
        assert "game controller" in more
        assert "sky blue" in more
        left = iter(re.findall(r"\w+", more))
        assert all(word in left for word in text.split()), more
        added = len(more.split()) - len(text.split())
        assert 1 <= added <= 4
        longest = max(longest, added)
        assert ",," not in more
        assert "  " not in more
    assert longest == 4


@pytest.mark.parametrize("language", ["en", "ko"])
def test_loose_backgrounds_get_a_word_for_each_gap(language: str) -> None:
    rng = random.Random(3)
    for form in LOOSE[language]:
        done = filled(rng, form, language)
        assert "?" not in done
        assert "{x}" in done
        assert re.search(r"\{(c|n|n_instrument)\}", done)
        assert len(done.split()) == len(form.split())


@pytest.mark.parametrize("language", ["en", "ko"])
def test_an_objects_colour_is_told_behind_its_name_too(language: str) -> None:
    names = {"en": Names("cat", ("cat",), ()), "ko": Names("고양이", ("고양이",), ())}
    thing = Thing("cat", "Animals & Nature", names["en"], names["ko"], dict.fromkeys(STYLES, (0.6, 0.2, 0.1)), False, 3)
    captioner, rng, maker = (
        Captioner([thing], habits=replace(PLAIN, loose_colour=1.0)),
        random.Random(5),
        SceneMaker([thing]),
    )
    said = set()
    for _ in range(600):
        scene = replace(maker.scene(rng, 256, 256), says_colour=True, says_background=False)
        if scene.kind != "one":
            continue
        text = captioner.caption(rng, scene, language)
        dye = COLOURS[scene.placed[0].dye if scene.placed[0].dye >= 0 else thing.natural]
        forms = dye.english if language == "en" else [form for pair in dye.korean for form in pair]
        name, _, behind = text.partition(names[language].name)
        assert name in ("", "a ")
        assert any(form in behind for form in forms), text
        said.add(behind)
    assert len(said) > 30


def test_nothing_here_says_what_is_held_out() -> None:
    """Words by which only a phrasing for measuring tells what is behind are not among those that are listened past."""
    for language, forms in UNSEEN.items():
        telling = _words(forms) - _words(BACKGROUNDS[language])
        assert len(telling) > 5
        assert not telling & set(WORDS[language])


def _words(forms: Sequence[str]) -> set[str]:
    return {word for form in forms for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", form).casefold())}


def test_a_colour_beside_its_object_is_the_objects() -> None:
    """No background is told by a colour that nothing but words part from the object: that is how objects are coloured."""
    for language, forms in LOOSE.items():
        for form in forms:
            assert re.search(r"[,.]", form), form
            assert "{x}" + form not in OWN[language]


def test_a_colour_behind_its_object_says_whose_it_is() -> None:
    """After a sign, a word stands for the object or for its colour, which no background's colour has."""
    own = {"en": r"\b(it|itself|kind|from top to bottom)\b", "ko": r"색(은|이|깔)"}
    for language, forms in OWN.items():
        for form in forms:
            parted = language == "ko" or form.startswith(",")
            assert not parted or re.search(own[language], form), form
    assert not any(re.search(own[language], form) for language, forms in LOOSE.items() for form in forms)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_captions_keep_names_and_colours_whole(language: str) -> None:
    names = {"en": Names("cup of coffee", ("cup of coffee",), ()), "ko": Names("커피 한 잔", ("커피 한 잔",), ())}
    thing = Thing("coffee", "Food & Drink", names["en"], names["ko"], dict.fromkeys(STYLES, (0.6, 0.2, 0.1)), False, -1)
    strange = Captioner([thing], habits=replace(PLAIN, strange=1.0))
    plain, rng, maker = Captioner([thing], habits=PLAIN), random.Random(4), SceneMaker([thing])
    longer = 0
    for number in range(1000):
        scene = maker.scene(rng, 256, 256)
        said, more = (
            plain.caption(random.Random(number), scene, language),
            strange.caption(random.Random(number), scene, language),
        )
        whole = "cups of coffee" if "cups of coffee" in said else names[language].name
        assert said.count(whole) == more.count(whole), more
        for colour in COLOURS:
            for form in colour.english if language == "en" else [form for pair in colour.korean for form in pair]:
                assert " " not in form or form not in said or form in more, more
        longer += len(more) > len(said)
    assert longer == 1000
