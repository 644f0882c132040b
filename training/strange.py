"""Words that a caption can do without, put between its others, so that the model learns to listen past what it does not know.

People say what a picture is for, whom it shall please and how they feel about it, in words that no list foresees. Half of the
words here are such, half are made up of syllables: a word that nobody has heard must not call up an object.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

WORDS: dict[str, tuple[str, ...]] = {
    "en": (
        "today", "tomorrow", "because", "really", "quite", "somewhat", "always", "quickly", "customers", "visitors",
        "monday", "winter", "discount", "florist", "restaurant", "boutique", "pharmacy", "library", "street",
        "downtown", "menu", "sticker", "newsletter", "website", "header", "brochure", "invitation", "wanted", "needed",
        "ordered", "kindly", "would", "should", "could", "which", "whose", "waits", "rests", "belongs", "happily",
        "gently", "for", "our", "your", "their", "some", "any", "just", "also", "once", "more", "version", "mood",
        "season", "teacher", "student", "neighbours", "celebrate", "welcome", "hungry", "famous", "local", "quiet",
        "busy", "snowy",
    ),
    "ko": (
        "오늘", "내일", "정말", "아마", "다시", "항상", "손님", "고객", "가족", "월요일", "아침", "봄맞이", "할인",
        "꽃집", "식당", "약국", "도서관", "골목", "동네", "시내", "스티커", "홈페이지", "현수막", "초대장", "주문한",
        "감사합니다", "혹시", "어떤", "저희", "여러분", "그냥", "오직", "또한", "한번", "처음", "두번째", "버전",
        "주제", "기분", "계절", "선생님", "학생", "이웃", "유명한", "바쁜", "자랑스러운", "맑은", "좋겠네요", "할게요",
        "입니다", "해서", "하고", "위해", "대한", "느낌으로", "같이", "빨리요", "전해줄", "기다리는", "나타난", "행복한",
        "회원", "모집", "단골", "준비한", "마련한",
    ),
}  # fmt: skip
"""None is an everyday object's name."""

_STARTS = (*"bcdfghjklmnprstvwz", "", "br", "ch", "fl", "gr", "pl", "sh", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou", "y")
_ENDS = ("", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "ng", "st")
_HANGUL, _SYLLABLES, _FINALS = 0xAC00, 11172, 28

LOOSE: dict[str, tuple[str, ...]] = {
    "en": ("{x}, ? {c}", "{x}, ? ? {c}", "{x}. ? {c}", "{c} ?, {x}", "? {c}, ? {x}", "? is {c}, ? {x}"),
    "ko": ("{n} ?, {x}", "? {n}, ? {x}", "{x}, ? {n}", "{x}. ? {n}", "{n_instrument} ?, {x}"),
}
"""Backgrounds that are told by nothing but a colour which stands apart from the object; a question mark is any word. A sign
always parts the two: in "a cat looks red" the colour is the cat's."""

OWN: dict[str, tuple[str, ...]] = {
    "en": (
        " which is all {c}", " turned {c}", " dyed {c}", " whose colour is {c}", " and it is {c}", ", itself {c}",
        ", {c} from top to bottom", ", the {c} kind", ", ? it {c}", ", ? ? it ? {c}",
    ),
    "ko": ("인데 색은 {n}", "인데 색이 ? {n}", ", 색깔만 {n}", ", 몸 색깔 {n}"),
}  # fmt: skip
"""The object's colour, told behind its name. A word for it or for its colour says so: without one, a colour that stands apart
is the background's. A model that was taught otherwise painted objects in what unheard phrasings say of backgrounds."""


def strange_word(rng: random.Random, language: str) -> str:
    if rng.random() < 0.5:
        return rng.choice(WORDS[language])
    if language == "ko":
        return "".join(_hangul(rng) for _ in range(rng.randint(1, 3)))
    return "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(rng.randint(1, 3)))


def _hangul(rng: random.Random) -> str:
    """A syllable, in two of three cases without a final consonant, as they are in use."""
    first = rng.randrange(_SYLLABLES // _FINALS) * _FINALS
    return chr(_HANGUL + first + (rng.choice((1, 4, 8, 16, 17, 21)) if rng.random() < 0.33 else 0))


def filled(rng: random.Random, form: str, language: str) -> str:
    """A form of ``LOOSE`` or ``OWN`` with words for its question marks."""
    while "?" in form:
        form = form.replace("?", strange_word(rng, language), 1)
    return form


def with_strange_words(rng: random.Random, text: str, language: str, whole: Iterable[str]) -> str:
    """The text with one to four words more, in one or two places.

    Args:
        whole: what nothing is put into: names of several words.
    """
    gaps = [place for place, character in enumerate(text) if character == " "]
    for name in whole:
        if " " in name:
            for found in re.finditer(re.escape(name), text):
                gaps = [place for place in gaps if not found.start() <= place < found.end()]
    places = sorted({rng.choice([0, len(text), *gaps]) for _ in range(rng.randint(1, 2))}, reverse=True)
    for place in places:
        words = " ".join(strange_word(rng, language) for _ in range(rng.randint(1, 2)))
        before, after = text[:place].rstrip(), text[place:].lstrip()
        mark = "," if before[-1:].isalnum() and rng.random() < 0.25 else ""
        text = " ".join(part for part in (before + mark, words, after) if part)
    return text
