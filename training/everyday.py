"""Everyday words for objects, from ``words/everyday.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

WORDS = Path(__file__).parent / "words" / "everyday.toml"

LANGUAGES = ("en", "ko")


def everyday_words() -> dict[str, dict[str, tuple[str, ...]]]:
    """Object → language → words, the usual one first.

    Raises:
        ValueError: two objects share a word.
    """
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    owners: dict[tuple[str, str], str] = {}
    for section in tomllib.loads(WORDS.read_text(encoding="utf-8")).values():
        for text, columns in section.items():
            key = key_of(text)
            words[key] = {
                language: tuple(column.split(", ")) for language, column in zip(LANGUAGES, columns, strict=True)
            }
            for language in LANGUAGES:
                for word in words[key][language]:
                    if owners.setdefault((language, word), text) != text:
                        raise ValueError(f"{WORDS.name}: {word!r} stands for {owners[language, word]} and {text}.")
    return words


def key_of(text: str) -> str:
    """An emoji's code points, as file names have them: without the sign that asks for its coloured form."""
    return "-".join(f"{ord(character):x}" for character in text if ord(character) != 0xFE0F)
