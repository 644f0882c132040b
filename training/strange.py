"""Words that a caption can do without, put between its others, so that the model learns to listen past what it does not know.

People say what a picture is for, whom it shall please and how they feel about it, in words that no list foresees. Half of the
words here are such, half are made up of syllables: a word that nobody has heard must not call up an object.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

WORDS: dict[str, tuple[str, ...]] = {
    "en": (
        "today", "tomorrow", "because", "really", "quite", "somewhat", "maybe", "again", "always", "together",
        "quickly", "customers", "visitors", "family", "weekend", "monday", "evening", "morning", "spring", "winter",
        "holiday", "discount", "festival", "bakery", "florist", "restaurant", "boutique", "pharmacy", "library", "gym",
        "market", "corner", "street", "downtown", "menu", "card", "sticker", "newsletter", "website", "banner",
        "header", "brochure", "invitation", "wanted", "needed", "ordered", "thanks", "kindly", "would", "should",
        "could", "which", "whose", "where", "looks", "goes", "waits", "rests", "belongs", "appears", "happily",
        "gently", "for", "of", "at", "by", "our", "your", "their", "some", "any", "just", "only", "also", "once",
        "more", "first", "second", "idea", "kind", "version", "theme", "mood", "style", "season", "teacher", "student",
        "children", "friends", "neighbours", "celebrate", "welcome", "hungry", "famous", "local", "quiet", "busy",
        "proud", "cold", "sunny", "snowy",
    ),
    "ko": (
        "오늘", "내일", "정말", "아마", "다시", "항상", "함께", "빨리", "손님", "고객", "가족", "주말", "월요일",
        "저녁", "아침", "봄맞이", "겨울", "명절", "할인", "축제", "꽃집", "식당", "약국", "도서관", "시장", "골목",
        "동네", "시내", "명함", "스티커", "소식지", "홈페이지", "현수막", "초대장", "필요한", "주문한", "감사합니다",
        "혹시", "어떤", "저희", "여러분", "조금", "그냥", "오직", "또한", "한번", "처음", "두번째", "생각", "버전",
        "주제", "기분", "계절", "선생님", "학생", "친구", "이웃", "기념", "환영", "배고픈", "유명한", "조용한",
        "바쁜", "자랑스러운", "추운", "맑은", "있는", "하는", "보이는", "좋겠네요", "할게요", "주실래요", "입니다",
        "해서", "하고", "위해", "대한", "느낌으로", "같이", "살짝", "제발", "빨리요", "전해줄", "기다리는", "쉬는",
        "나타난", "행복한", "개업", "회원", "모집", "단골", "특가", "준비한", "마련한",
    ),
}  # fmt: skip
"""None is an object's name."""

_STARTS = (*"bcdfghjklmnprstvwz", "", "br", "ch", "fl", "gr", "pl", "sh", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou", "y")
_ENDS = ("", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "ng", "st")
_HANGUL, _SYLLABLES, _FINALS = 0xAC00, 11172, 28

LOOSE: dict[str, tuple[str, ...]] = {
    "en": (
        "{x} ? {c}", "{x} ? ? {c}", "{x}, ? {c}", "{x} ? {c} ?", "{c} ?, {x}", "? {c}, ? {x}", "? is {c}, ? {x}", "{c} ? ? {x}",
    ),
    "ko": (
        "{n} ?, {x}", "{x} ? {n}", "{x} ? {n} ?", "{n_instrument} ? {x}", "{c} ? ? {x}", "? {n}, ? {x}", "{x}, ? {n}",
        "{n} ? {x}",
    ),
}  # fmt: skip
"""Backgrounds that are told by nothing but a colour which stands apart from the object; a question mark is any word."""


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
    """A form of ``LOOSE`` with words for its question marks."""
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
        if " " in name and (start := text.find(name)) >= 0:
            gaps = [place for place in gaps if not start <= place < start + len(name)]
    places = sorted({rng.choice([0, len(text), *gaps]) for _ in range(rng.randint(1, 2))}, reverse=True)
    for place in places:
        words = " ".join(strange_word(rng, language) for _ in range(rng.randint(1, 2)))
        before, after = text[:place].rstrip(), text[place:].lstrip()
        mark = "," if before[-1:].isalnum() and rng.random() < 0.25 else ""
        text = " ".join(part for part in (before + mark, words, after) if part)
    return text
