"""Words that a caption can do without."""

from __future__ import annotations

import random
import re

import pytest
from training.everyday import everyday_words
from training.strange import LOOSE, WORDS, filled, strange_word, with_strange_words
from training.wording import UNSEEN


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


def test_nothing_here_says_what_is_held_out() -> None:
    """Words by which a phrasing for measuring tells what is behind are not among those that are listened past."""
    telling = {
        "framed",
        "beyond",
        "stage",
        "curtain",
        "photographed",
        "말고는",
        "둘러싸인",
        "커튼",
        "무대는",
        "너머로는",
    }
    assert all(any(word in form for forms in UNSEEN.values() for form in forms) for word in telling)
    assert not telling & {word for words in WORDS.values() for word in words}
