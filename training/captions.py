"""Captions of scenes, in English and Korean.

A caption is put together of parts: words for the objects, with colour, size, number and place; then the background, in any of
many phrasings; then, for some, words that change nothing (moods, purposes, the style packs' sentences, words that are strange
to it), so that the model learns to listen past them. Phrasings for tests alone stand in ``wording.py`` as ``UNSEEN``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from training import english, korean
from training.colours import COLOURS, names_colour
from training.pack import Names, Thing
from training.scenes import Scene
from training.strange import LOOSE, OWN, filled, with_strange_words
from training.wording import (
    ASKING,
    BACKGROUNDS,
    COLOURED,
    COUNTED,
    FILLERS,
    GRADIENTS,
    LARGE,
    PAIRS,
    QUALITIES,
    SIDES,
    SMALL,
    STACKED,
    UNSEEN,
)  # fmt: skip

Form = TypeVar("Form", str, tuple[str, str])

KOREAN = 0.45
"""Share of captions in Korean."""


@dataclass(frozen=True)
class Habits:
    """How captions vary: shares of those that do each thing. Zeroes make the plainest caption there is."""

    loose_words: float = 0.45
    quality: float = 0.08
    asking: float = 0.18
    filler: float = 0.10
    many_fillers: float = 0.04
    addition: float = 0.08
    slips: float = 0.02
    strange: float = 0.2
    loose_background: float = 0.06
    loose_colour: float = 0.12


PLAIN = Habits(*[0] * len(fields(Habits)))


class Captioner:
    """Words scenes.

    Args:
        additions: longer texts that are put after some captions, as the style packs do.
    """

    def __init__(self, things: Sequence[Thing], additions: Sequence[str] = (), habits: Habits | None = None) -> None:
        self.things = things
        self.additions = additions
        self.habits = Habits() if habits is None else habits

    def caption(self, rng: random.Random, scene: Scene, language: str | None = None, *, unseen: bool = False) -> str:
        """A caption.

        Args:
            language: "en" or "ko"; either by chance if left out.
            unseen: use the phrasings that training never does.
        """
        language = language or ("ko" if rng.random() < KOREAN else "en")
        words = self._objects(rng, scene, language)
        text = self._with_background(rng, words, scene, language, unseen)
        if rng.random() < self.habits.strange:
            text = with_strange_words(rng, text, language, self._names(scene, language))
        return self._dressed(rng, text, language)

    def word(self, rng: random.Random, names: Names, *, coloured: bool = False) -> str:
        """A word for an object; one that tells its colour is passed over where ``coloured``."""
        words = [word for word in names.words if not (coloured and names_colour(word))]
        chance = rng.random()
        if chance < self.habits.loose_words:
            loose = chance / self.habits.loose_words
            keywords = [] if coloured else names.keywords
            if loose < 0.2 and keywords:
                return rng.choices([word for word, _ in keywords], [1 / count for _, count in keywords])[0]
            if loose < 0.65 and not (coloured and names_colour(names.name)):
                return names.name
            if words:
                return rng.choice(words)
        return words[0] if words else names.name

    def _names(self, scene: Scene, language: str) -> Iterator[str]:
        """What the scene's objects and colours may be called."""
        for thing in {*scene.things}:
            names = self.things[thing].names(language)
            for name in (names.name, *names.words, *(word for word, _ in names.keywords)):
                yield name
                if language == "en":
                    yield english.plural(name)
        for colour in COLOURS:
            yield from colour.english if language == "en" else (form for pair in colour.korean for form in pair)

    def _objects(self, rng: random.Random, scene: Scene, language: str) -> str:
        things = [self.things[thing] for thing in scene.things]
        if scene.kind == "two":
            return self._pair(rng, scene, language)
        colour = scene.placed[0].dye if scene.placed[0].dye >= 0 else things[0].natural
        coloured = scene.says_colour and colour >= 0
        noun = self.word(rng, things[0].names(language), coloured=coloured)
        korean_ = language == "ko"
        adjectives = []
        if rng.random() < self.habits.quality:
            adjectives.append(rng.choice(QUALITIES[language]))
        trailing = ""
        if coloured:
            names = COLOURS[colour]
            name = _usual(rng, names.korean)[0] if korean_ else _usual(rng, names.english)
            noun_colour = _usual(rng, names.korean)[1] if korean_ else name
            # A colour behind the name goes with one object, and in Korean with no clause after it.
            behind = scene.kind != "count" and not (korean_ and scene.says_background)
            if behind and rng.random() < self.habits.loose_colour:
                told = filled(rng, rng.choice(OWN[language]), language).format(c=name, n=noun_colour)
                noun, trailing = (noun + told, "") if korean_ else (noun, told)
            elif self.habits.loose_words and rng.random() < 0.15:
                form = rng.choice(COLOURED[language])
                trailing = ("" if korean_ else " ") + form.format(
                    c=noun_colour, c_instrument=korean.towards(noun_colour)
                )
            else:
                adjectives.append(name)
        if scene.kind in ("small", "large"):
            form = _usual(rng, SMALL[language] if scene.kind == "small" else LARGE[language])
            if "{x}" in form:
                return form.format(x=self._phrase(rng, adjectives, noun, trailing, language))
            adjectives.insert(0, form)
        if scene.kind == "count":
            return self._counted(rng, things[0], len(things), adjectives, noun, trailing, language)
        words = self._phrase(rng, adjectives, noun, trailing, language)
        if scene.kind == "side":
            words = _usual(rng, SIDES["left" if scene.placed[0].x < 0.5 else "right", language]).format(x=words)
        return words

    def _phrase(self, rng: random.Random, adjectives: Sequence[str], noun: str, trailing: str, language: str) -> str:
        if language == "ko":
            return " ".join([*([trailing] if trailing else []), *adjectives, noun])
        words = " ".join([*adjectives, noun])
        bare = english.is_plural(noun) or (self.habits.loose_words > 0 and rng.random() < 0.25)
        words = words if bare else english.with_article(words)
        return words + trailing

    def _counted(
        self, rng: random.Random, thing: Thing, count: int, adjectives: Sequence[str], noun: str, trailing: str, language: str
    ) -> str:  # fmt: skip
        if language == "ko":
            counter = korean.counter(thing.category, thing.key)
            described = " ".join([*([trailing] if trailing else []), *adjectives, noun])
            form = _usual(rng, COUNTED["ko"])
            return form.format(x=described, n=korean.COUNTS[count], d=count, k=counter)
        described = " ".join([*adjectives, english.plural(noun)])
        form = _usual(rng, COUNTED["en"])
        words = form.format(x=described, n=english.COUNTS[count], d=count)
        return words + trailing

    def _pair(self, rng: random.Random, scene: Scene, language: str) -> str:
        first, second = (self.word(rng, self.things[thing].names(language)) for thing in scene.things)
        stacked = abs(scene.placed[0].x - scene.placed[1].x) < abs(scene.placed[0].y - scene.placed[1].y)
        form = _usual(rng, STACKED[language] if stacked and rng.random() < 0.4 else PAIRS[language])
        if language == "en":
            first, second = (self._phrase(rng, [], word, "", "en") for word in (first, second))
            return form.format(a=first, b=second)
        return form.format(
            a=first,
            b=second,
            a_and=korean.particle(first, "과", "와"),
            a_with=korean.particle(first, "이랑", "랑"),
            b_with=korean.particle(second, "이랑", "랑"),
            b_subject=korean.particle(second, "이", "가"),
            a_subject=korean.particle(first, "이", "가"),
        )

    def _with_background(self, rng: random.Random, words: str, scene: Scene, language: str, unseen: bool) -> str:
        if not scene.says_background:
            return words
        top, bottom = COLOURS[scene.top], COLOURS[scene.bottom]
        if scene.top != scene.bottom:
            form = _usual(rng, GRADIENTS[language])
            if language == "en":
                first, second = _usual(rng, top.english), _usual(rng, bottom.english)
                return form.format(x=words, a=first, b=second, an_a=english.with_article(first))
            first, second = _usual(rng, top.korean)[1], _usual(rng, bottom.korean)[1]
            return form.format(
                x=words, a=first, a_and=korean.particle(first, "과", "와"), b=second, to_b=korean.towards(second)
            )
        form = rng.choice(UNSEEN[language]) if unseen else _usual(rng, BACKGROUNDS[language])
        if not unseen and rng.random() < self.habits.loose_background:
            form = filled(rng, rng.choice(LOOSE[language]), language)
        if language == "en":
            colour = _usual(rng, top.english)
            return form.format(x=words, c=colour, a_c=english.with_article(colour))
        before, noun = _usual(rng, top.korean)
        return form.format(
            x=words,
            x_subject=korean.particle(words, "이", "가"),
            x_object=korean.particle(words, "을", "를"),
            c=before,
            n=noun,
            n_object=korean.particle(noun, "을", "를"),
            n_instrument=korean.towards(noun),
        )

    def _dressed(self, rng: random.Random, text: str, language: str) -> str:
        habits = self.habits
        if rng.random() < habits.asking:
            text = rng.choice(ASKING[language]).format(x=text, x_object=korean.particle(text, "을", "를"))
        fillers = FILLERS[language]
        chance = rng.random()
        if chance < habits.many_fillers:
            text = ", ".join([text, *rng.sample(fillers, rng.randint(5, 9))])
        elif chance < habits.many_fillers + habits.filler:
            text = ", ".join([text, *rng.sample(fillers, rng.randint(1, 2))])
        if habits.loose_words:
            if rng.random() < 0.15:
                text += "."
            if language == "en" and rng.random() < 0.2:
                text = text[0].upper() + text[1:]
        if rng.random() < habits.slips:
            text = _slipped(rng, text)
        if self.additions and rng.random() < habits.addition:
            text = f"{text.rstrip('.')}. {rng.choice(self.additions)}"
        return text


def _usual(rng: random.Random, forms: Sequence[Form]) -> Form:
    """One of several forms, the first about as often as all others together."""
    return forms[0] if len(forms) == 1 or rng.random() < 0.4 else rng.choice(forms)


def _slipped(rng: random.Random, text: str) -> str:
    """The text with a slip of a hurried hand: a letter lost or two exchanged, or a space forgotten."""
    place = rng.randrange(1, max(2, len(text) - 1))
    kind = rng.random()
    if kind < 0.4 or len(text) < 6:
        spaces = [i for i, character in enumerate(text) if character == " "]
        place = rng.choice(spaces) if spaces else 0
        return text[:place] + text[place + 1 :] if spaces else text
    if kind < 0.7:
        return text[:place] + text[place + 1 :]
    return text[:place] + text[place : place + 2][::-1] + text[place + 2 :]
