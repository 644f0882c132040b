"""The little Korean grammar that captions need: particles whose form depends on the sound before them, and counting."""

from __future__ import annotations

_FIRST, _LAST, _FINALS = 0xAC00, 0xD7A3, 28
_RIEUL = 8

_READ_ALOUD_WITH_FINAL = "0136780lmnr"
"""Digits and letters whose Korean names end in a consonant."""


def final(word: str) -> int:
    """The number of the consonant that the last syllable ends in; 0 where it ends in a vowel."""
    last = word[-1].lower()
    code = ord(last)
    if _FIRST <= code <= _LAST:
        return (code - _FIRST) % _FINALS
    return 1 if last in _READ_ALOUD_WITH_FINAL else 0


def particle(word: str, after_consonant: str, after_vowel: str) -> str:
    """The word with the form of a particle that fits it: 이/가, 을/를, 은/는, 과/와, 이랑/랑."""
    return word + (after_consonant if final(word) else after_vowel)


def towards(word: str) -> str:
    """The word with 으로 or 로, which also follows a final ㄹ."""
    return word + ("로" if final(word) in (0, _RIEUL) else "으로")


COUNTS = {1: "한", 2: "두", 3: "세", 4: "네"}

COUNTERS = {"Animals & Nature": "마리", "People & Body": "명"}
"""The word that counts a category's objects; 개 counts the rest, and plants and weather, which share a category
with animals, too."""

ANIMALS = range(0x1F400, 0x1F440)
MORE_ANIMALS = (
    *range(0x1F980, 0x1F9AF),
    *range(0x1FAB0, 0x1FAB4),
    0x1F577,
    0x1F43F,
    0x1FABF,
    0x1FACE,
    0x1FACF,
    0x1FAE0,
)


def counter(category: str, key: str) -> str:
    """The counting word for an object of a Unicode category and code points."""
    if category == "Animals & Nature":
        first = int(key.split("-")[0], 16)
        return COUNTERS[category] if first in ANIMALS or first in MORE_ANIMALS else "개"
    return COUNTERS.get(category, "개")
