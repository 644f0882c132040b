"""Makes the pack of the fetched packages: which objects, their names in two languages, their pictures in three styles."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from training.drawing import flat, line
from training.everyday import LANGUAGES, everyday_words, key_of
from training.pack import BASE_STYLE, SIDE, STYLES, Names, describe, encoded, write_pack

KEYWORD_SHARED = 4
"""Keywords of more objects than that tell none of them."""


OTHERS = {"en": ("another ", "full-body "), "ko": ("또 다른 ", "전신 ")}
"""What an object is called whose name everyday words keep for another one. Of animals, those have but a face."""


class Candidate(NamedTuple):
    """An object before it has names and pictures: its code points, and its name in the vector package."""

    key: str
    vector: str
    category: str


def prepare(packages: Path, folder: Path) -> str:
    """Writes the pack into ``folder`` and says how large it became."""
    icons = _json(packages / "flat" / "icons.json")
    annotations = {
        language: {
            key_of(text): entry
            for text, entry in _json(packages / "names" / "annotations" / language / "annotations.json")["annotations"][
                "annotations"
            ].items()
        }
        for language in LANGUAGES
    }
    words = everyday_words()
    files = {_plain(path.stem): path for path in sorted((packages / "solid" / "assets").glob("*.webp"))}
    chosen = [candidate for candidate in _candidates(packages, files) if _named(candidate.key, annotations)]
    if absent := words.keys() - {candidate.key for candidate in chosen}:
        # A word whose object has no picture would be taught nothing; it is left out, and said so.
        print("everyday words without a picture:", ", ".join(words[key]["en"][0] for key in sorted(absent)))
    names = _names(chosen, annotations, words)
    things, pictures = [], {style: list[bytes]() for style in STYLES}
    for candidate in chosen:
        body = _body(icons, candidate.vector)
        drawn = {BASE_STYLE: _solid(files[candidate.key]), "flat": flat(body), "line": line(body)}
        known = names[candidate.key]
        things.append(describe(candidate.key, candidate.category, known["en"], known["ko"], drawn))
        for style, picture in drawn.items():
            pictures[style].append(encoded(picture, lossless=style != BASE_STYLE))
    write_pack(folder, things, pictures)
    sizes = ", ".join(f"{style} {sum(map(len, files)) / 2**20:.1f} MiB" for style, files in pictures.items())
    return f"{len(things)} objects, {sum(thing.dyeable for thing in things)} to be dyed; {sizes}"


def _candidates(packages: Path, files: Mapping[str, Path]) -> Iterator[Candidate]:
    """Objects with a solid and a vector picture that one can ask for by name."""
    vectors = {_plain(code): name for code, name in _json(packages / "flat" / "chars.json").items()}
    listed = _json(packages / "flat" / "metadata.json")["categories"]
    categories = {name: category for category, names in listed.items() for name in names}
    for key in sorted(files):
        points = [int(point, 16) for point in key.split("-")]
        vector = vectors.get(key)
        if vector is None:
            continue
        category = categories.get(vector, "")
        skin_or_flag = any(0x1F3FB <= point <= 0x1F3FF or 0x1F1E6 <= point <= 0x1F1FF for point in points)
        clock = len(points) == 1 and 0x1F550 <= points[0] <= 0x1F567
        # Of signs and arrows only what people call things; of joined emoji only animals and the like, not families.
        sign = category == "Symbols" and not re.search("heart|star|note|music", vector)
        joined = 0x200D in points and category in ("People & Body", "Flags", "")
        if not (skin_or_flag or clock or sign or joined or 0x20E3 in points):
            yield Candidate(key, vector, category)


def _named(key: str, annotations: Mapping[str, Mapping[str, Any]]) -> bool:
    return all("tts" in annotations[language].get(key, ()) for language in LANGUAGES)


def _names(
    chosen: list[Candidate],
    annotations: Mapping[str, Mapping[str, Any]],
    words: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> dict[str, dict[str, Names]]:
    names: dict[str, dict[str, Names]] = {candidate.key: {} for candidate in chosen}
    for language in LANGUAGES:
        entries = {candidate.key: annotations[language][candidate.key] for candidate in chosen}
        titles = {key: _clean(entry["tts"][0]) for key, entry in entries.items()}
        keywords = {key: dict.fromkeys(map(_clean, entry.get("default", ()))) for key, entry in entries.items()}
        shared = Counter(word for found in keywords.values() for word in found)
        owner = {word: key for key in entries for word in words.get(key, {}).get(language, ())}
        taken = {*titles.values(), *owner}
        for candidate in chosen:
            key = candidate.key
            title = titles[key]
            if owner.get(title, key) != key:  # another object is meant by that word
                title = OTHERS[language][candidate.category == "Animals & Nature"] + title
            kept = tuple(
                (word, shared[word])
                for word in keywords[key]
                if word not in taken and shared[word] <= KEYWORD_SHARED and re.search(r"\w\w|[가-힣]", word)
            )
            names[key][language] = Names(title, words.get(key, {}).get(language, ()), kept)
    return names


def _solid(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _body(icons: Mapping[str, Any], name: str) -> str:
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    return str(icons["icons"][name]["body"]).replace("currentColor", "#000")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(code: str) -> str:
    return code.replace("-fe0f", "")


def _clean(word: str) -> str:
    return re.sub('[“”"]', "", word.replace("’", "'")).strip().lower()
