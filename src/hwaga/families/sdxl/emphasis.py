r"""Emphasis in a prompt: ``(word:1.2)``, ``(word)`` for 1.1, ``[word]`` for 1 / 1.1, and what they come to when nested.

It is the spelling that AUTOMATIC1111 and ComfyUI brought into use. Where the two differ, or where a text is not well formed:

- A bracket without its partner is a character like any other, as in ComfyUI. AUTOMATIC1111 weighs everything behind it, so
  that a smiley such as ``:(`` changes the rest of the picture.
- What stands behind a colon counts as a weight where it is a plain decimal number right before the closing parenthesis.
  Otherwise it is text, as in both: ``(ratio 16:9)`` is a weight of 9 and ``(time: noon)`` is words at 1.1.
- A weight beyond ``MOST`` is refused. Both programs take it, and draw noise.
- ``\(``, ``\)``, ``\[``, ``\]`` and ``\\`` stand for the character itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from hwaga.errors import PromptError

ROUND = 1.1
SQUARE = 1 / 1.1
"""What a bracket without a number multiplies by."""

MOST = 10.0
"""Largest weight, either way. Beyond 2 pictures fall apart; this leaves room for whoever wants to see that."""

_PARTNER = {")": "(", "]": "["}
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*", re.ASCII)
_NUMERIC = frozenset("0123456789.+- \t\n")


class Weighted(NamedTuple):
    """A run of a prompt, and what it weighs. 1 is as it is without brackets."""

    text: str
    weight: float


class _Bracket(NamedTuple):
    """A pair of brackets: where its text ends, where it goes on behind it, and by what it multiplies."""

    text_end: int
    after: int
    factor: float


def parse(prompt: str) -> list[Weighted]:
    """The runs of a prompt, brackets and escapes taken out. Neighbours differ in weight; of an empty prompt there are none."""
    marks, plain = _unescaped(prompt)
    pairs = _pairs(marks, plain)
    runs: list[tuple[list[str], float]] = []
    within: list[tuple[_Bracket, float]] = []
    weight, place = 1.0, 0
    while place < len(marks):
        if within and place == within[-1][0].text_end:
            bracket, weight = within.pop()
            place = bracket.after
        elif place in pairs:
            within.append((pairs[place], weight))
            weight *= pairs[place].factor
            place += 1
        else:
            if not runs or runs[-1][1] != weight:
                runs.append(([], weight))
            runs[-1][0].append(marks[place])
            place += 1
    return [Weighted("".join(text), weight) for text, weight in runs]


def check(runs: Sequence[Weighted]) -> None:
    """Refuses weights that no picture comes of.

    Raises:
        PromptError: with the words and what they came to.
    """
    for text, weight in runs:
        if not abs(weight) <= MOST:  # also where the product of many brackets is no number
            raise PromptError(
                f"“{text.strip()[:40]}” comes to a weight of {weight:.4g}. Weights go from {-MOST:g} to {MOST:g}, and those "
                "that help from 0.5 to 1.5. Brackets that are meant as such are written \\( and \\)."
            )


def _unescaped(prompt: str) -> tuple[list[str], list[bool]]:
    """The characters, and which of them were escaped."""
    characters, escaped = list[str](), list[bool]()
    place = 0
    while place < len(prompt):
        literal = prompt[place] == "\\" and prompt[place + 1 : place + 2] in ("(", ")", "[", "]", "\\")
        place += literal
        characters.append(prompt[place])
        escaped.append(literal)
        place += 1
    return characters, escaped


def _pairs(characters: Sequence[str], escaped: Sequence[bool]) -> dict[int, _Bracket]:
    """Pairs of brackets by the place of the first. One that is crossed by another pair has no partner."""
    found: dict[int, _Bracket] = {}
    open_ones: list[int] = []
    waiting = {"(": 0, "[": 0}
    for place, character in enumerate(characters):
        if escaped[place]:
            continue
        if character in "([":
            open_ones.append(place)
            waiting[character] += 1
        elif character in _PARTNER:
            partner = _PARTNER[character]
            if not waiting[partner]:
                continue
            depth = len(open_ones) - 1
            while characters[open_ones[depth]] != partner:
                depth -= 1
            for crossed in open_ones[depth:]:
                waiting[characters[crossed]] -= 1
            begin = open_ones[depth]
            del open_ones[depth:]
            end, factor = place, SQUARE
            if partner == "(":
                end, factor = _number_before(characters, escaped, begin, place)
            found[begin] = _Bracket(end, place + 1, factor)
    return found


def _number_before(characters: Sequence[str], escaped: Sequence[bool], begin: int, end: int) -> tuple[int, float]:
    """Where the text of a pair of parentheses ends, and its factor."""
    colon = end - 1
    while colon > begin and characters[colon] in _NUMERIC:
        colon -= 1
    if colon > begin and characters[colon] == ":" and not escaped[colon]:
        number = "".join(characters[colon + 1 : end])
        if _NUMBER.fullmatch(number):
            factor = float(number)
            return colon, factor if math.isfinite(factor) else math.inf
    return end, ROUND
