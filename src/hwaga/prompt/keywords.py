"""Finding words in what somebody typed, in English and in Korean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# What may follow a Korean noun in the same word: particles, the plural, and "for", "in the manner of", "house", "shop".
_PARTICLE = (
    "은|는|이|가|을|를|과|와|의|에|도|만|로|으로|에서|에게|까지|부터|처럼|보다|이나|나|랑|이랑|하고|들|용|풍|집|점"
)


@dataclass(frozen=True)
class Words:
    """Words by language."""

    en: tuple[str, ...] = ()
    ko: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        yield from self.en
        yield from self.ko


class Found(NamedTuple):
    """A word met in a text, and where: offsets into the folded text, good for comparing only."""

    word: str
    start: int
    end: int


def fold(text: str) -> str:
    """A text without the differences that no keyword means: case, accents, composed or decomposed letters."""
    apart = unicodedata.normalize("NFD", text.casefold())
    return unicodedata.normalize("NFC", "".join(c for c in apart if unicodedata.category(c) != "Mn"))


def name_key(name: str) -> str:
    """What a name is looked up by: folded, without spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", fold(name))


def find(text: str, words: Words) -> list[Found]:
    """The words that a text holds, each at its first place.

    An English word is met whole, or in the plural. A Korean word is met where a word begins with it, or ends with it and at
    most one particle; a single syllable has to be the whole word, because so many words begin with it.
    """
    folded = fold(text)
    found = []
    for word in words:
        match = _pattern(word).search(folded)
        if match:
            found.append(Found(word, *match.span()))
    return found


def has_korean(text: str) -> bool:
    """Whether a text has Hangul in it."""
    return re.search("[가-힣ㄱ-ㅎㅏ-ㅣ]", fold(text)) is not None


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    folded = fold(word)
    if not has_korean(folded):
        core = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]+", folded))
        return re.compile(rf"(?<![a-z0-9]){core}(?:s|es|'s)?(?![a-z0-9])")
    # Long compounds are written with a space as often as without; in short words a gap would meet two other words.
    parts = folded.replace(" ", "") if len(folded) > 3 else folded.split()
    core = r"\s?".join(re.escape(part) for part in parts)
    start, end = "(?<![가-힣])", f"(?=(?:{_PARTICLE})?(?![가-힣]))"
    if len(folded) == 1:
        return re.compile(start + core + end)
    return re.compile(f"{start}{core}|{core}{end}")
