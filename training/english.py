"""The little English grammar that captions need."""

from __future__ import annotations

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}

_ALWAYS_PLURAL = (
    "glasses",
    "scissors",
    "jeans",
    "trousers",
    "pants",
    "shorts",
    "socks",
    "gloves",
    "headphones",
    "fries",
)
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "mouse": "mice",
    "tooth": "teeth",
    "leaf": "leaves",
    "loaf": "loaves",
    "knife": "knives",
}
_UNCHANGED = ("fish", "sheep", "deer", "sushi", "ramen", "broccoli", "bacon", "salmon")


def with_article(words: str) -> str:
    """ "a" or "an" before the words, by their first letter's usual sound."""
    first = words.lstrip().lower()
    silent = first.startswith(("hour", "honest"))
    like_you = first.startswith(("uni", "ufo", "euro", "one ", "use"))
    return ("an " if (first[:1] in "aeiou" and not like_you) or silent else "a ") + words


def is_plural(word: str) -> bool:
    """Whether a word already speaks of several, so that it takes no article."""
    last = word.split()[-1]
    return last.endswith(_ALWAYS_PLURAL) or (last.endswith("s") and not last.endswith(("ss", "us", "is", "ns")))


def plural(word: str) -> str:
    """Several of it. Of "loaf of bread", the first noun is counted."""
    head, of, rest = word.partition(" of ")
    start, _, last = head.rpartition(" ")
    if last in _UNCHANGED or is_plural(head):
        changed = last
    elif last in _IRREGULAR:
        changed = _IRREGULAR[last]
    elif last.endswith(("s", "sh", "ch", "x", "z")):
        changed = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        changed = last[:-1] + "ies"
    elif last in ("tomato", "potato", "mango", "hero"):
        changed = last + "es"
    else:
        changed = last + "s"
    return (f"{start} " if start else "") + changed + of + rest
