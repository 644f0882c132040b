"""Packs: styles, industries, uses, things to avoid, and cues, which are the words by which a text speaks of light or framing.

They are TOML, one table an entry. The built-in packs lie in ``packs/``, and each file says on top how an entry is written.
A user's folder may hold files of the same names: an entry of a new name adds to the built-in ones, one of a known name
takes its place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from hwaga.errors import PackError, StyleError
from hwaga.prompt.keywords import Words, name_key

PACKS = Path(str(files("hwaga") / "prompt" / "packs"))

FILLED = ("setting", "composition", "lighting", "atmosphere", "details")
"""The slots that an industry has wording for."""


@dataclass(frozen=True)
class StylePack:
    """A look in words. What it takes in weights is the model card's to say.

    Attributes:
        titles: its name for people, by language ("en", "ko").
        aliases: other names that it answers to.
        keywords: words in a text that speak for it.
        z_image: sentences.
        sdxl: phrases between commas.
        negative: phrases for SDXL's negative prompt.
        replaces: slots that it decides itself, so that an industry has no say in them.
    """

    name: str
    titles: Mapping[str, str]
    aliases: Words
    keywords: Words
    z_image: str
    sdxl: str
    negative: str
    replaces: tuple[str, ...]


@dataclass(frozen=True)
class Industry:
    """What pictures for one kind of business look like.

    Attributes:
        titles, aliases, keywords: as a style's.
        wording: a phrase for each slot of ``FILLED``.
        aspects: the shape for each use.
    """

    name: str
    titles: Mapping[str, str]
    aliases: Words
    keywords: Words
    wording: Mapping[str, str]
    aspects: Mapping[str, str]


@dataclass(frozen=True)
class Use:
    """Where a picture will be shown: its usual shape, and how that place wants it composed."""

    name: str
    titles: Mapping[str, str]
    aspect: str
    composition: str


@dataclass(frozen=True)
class AvoidRule:
    """Something not wanted.

    Attributes:
        words: its names.
        z_image: what to ask for instead.
        negative: how SDXL's negative prompt forbids it.
        clears: words in an industry's wording that contradict it.
    """

    name: str
    words: Words
    z_image: str
    negative: str
    clears: tuple[str, ...]


Named = TypeVar("Named", StylePack, Industry)


@dataclass(frozen=True)
class Library:
    """All packs, by name."""

    styles: Mapping[str, StylePack]
    industries: Mapping[str, Industry]
    uses: Mapping[str, Use]
    avoid: Mapping[str, AvoidRule]
    cues: Mapping[str, Words]

    @classmethod
    def load(cls, folder: Path | None = None) -> Library:
        """The built-in packs, and those of a user's folder over them.

        Raises:
            PackError: with the file, the line, and what to do.
        """
        entries: dict[str, dict[str, _Entry]] = {kind: {} for kind in _KINDS}
        for place in [PACKS] if folder is None else [PACKS, folder]:
            if not place.is_dir():
                raise PackError(f"{place} is no folder. Name one that holds {', '.join(f'{k}.toml' for k in _KINDS)}.")
            for path in sorted(place.glob("*.toml")):
                if path.stem not in _KINDS:
                    raise PackError(
                        f"{path}:1: this is no pack. Rename it to one of {', '.join(f'{k}.toml' for k in _KINDS)}."
                    )
                entries[path.stem].update({entry.name: entry for entry in _entries(path)})
        uses = _read(entries["uses"], _use)
        usual = {name: use.aspect for name, use in uses.items()}
        styles = _read(entries["styles"], _style)
        industries = _read(entries["industries"], lambda entry: _industry(entry, usual))
        avoid = _read(entries["avoid"], _avoid)
        for kind in ("styles", "industries"):
            named = styles if kind == "styles" else industries
            _refuse_shared_names(entries[kind], {name: names_of(entry) for name, entry in named.items()}, "aliases")
        _refuse_shared_names(entries["avoid"], {name: tuple(rule.words) for name, rule in avoid.items()}, "words")
        return cls(styles, industries, uses, avoid, _read(entries["cues"], _cue))

    def industry(self, name: str) -> Industry:
        """The industry of a name, title or alias, in either language.

        Raises:
            StyleError: none; near names are listed.
        """
        found = by_name(name, self.industries)
        if found is None:
            raise StyleError(f"There is no industry {name!r}. {near(name, self.industries)}See `hwaga industries`.")
        return found

    def use(self, name: str) -> Use:
        """The use of a name.

        Raises:
            StyleError: none; it lists the uses.
        """
        if name not in self.uses:
            raise StyleError(f"There is no use {name!r}. Uses are {', '.join(self.uses)}.")
        return self.uses[name]


def names_of(entry: StylePack | Industry) -> tuple[str, ...]:
    """Every name that an entry answers to."""
    return (entry.name, *entry.titles.values(), *entry.aliases)


def by_name(name: str, entries: Mapping[str, Named]) -> Named | None:
    """The entry of a name, title or alias."""
    key = name_key(name)
    return next((entry for entry in entries.values() if key in map(name_key, names_of(entry))), None)


def near(name: str, entries: Mapping[str, StylePack] | Mapping[str, Industry], more: Iterable[str] = ()) -> str:
    """The question whether an entry of a near name was meant, or nothing."""
    owners = {name_key(alias): entry.name for entry in entries.values() for alias in names_of(entry)}
    owners |= {name_key(other): other for other in more}
    close = dict.fromkeys(owners[key] for key in get_close_matches(name_key(name), owners, n=4, cutoff=0.5))
    return f"Did you mean {' or '.join(close)}? " if close else ""


class _Entry:
    """One table of a pack file, which knows where it is written. Every key must be asked for."""

    def __init__(self, path: Path, source: str, name: str, values: Any) -> None:
        self.path, self.source, self.name, self.values = path, source, name, values
        self.asked = set[str]()

    def error(self, message: str, key: str | None = None) -> PackError:
        return PackError(f"{self.path}:{_line(self.source, self.name, key)}: [{self.name}] {message}")

    def _value(self, key: str) -> Any:
        self.asked.add(key)
        return self.values.get(key)

    def text(self, key: str, *, optional: bool = False) -> str:
        value = self._value(key)
        if value is None and optional:
            return ""
        if value is None:
            raise self.error(f'has no {key}. Add {key} = "…" to it.')
        if not isinstance(value, str) or not value.strip():
            raise self.error(f'{key} must be text, not {value!r}. Write {key} = "…".', key)
        return value.strip()

    def titles(self) -> Mapping[str, str]:
        value = self._value("title")
        good = isinstance(value, dict) and set(value) == {"en", "ko"}
        if not good or not all(isinstance(title, str) and title.strip() for title in value.values()):
            raise self.error('needs title = { en = "…", ko = "…" }: its name in both languages.', "title")
        return MappingProxyType(dict(value))

    def words(self, key: str, *, optional: bool = False) -> Words:
        value = self._value(key)
        if value is None and optional:
            return Words()
        form = f'needs {key} = {{ en = ["…"], ko = ["…"] }}: lists of words, either of which may be left out.'
        if not isinstance(value, dict) or not value or not set(value) <= {"en", "ko"}:
            raise self.error(form, key)
        for words in value.values():
            if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
                raise self.error(form, key)
        return Words(tuple(value.get("en", ())), tuple(value.get("ko", ())))

    def texts(self, key: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self._value(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.error(f'needs {key} = ["…"]: a list of words.', key)
        unknown = [item for item in value if known and item not in known]
        if unknown:
            raise self.error(f"{key}: {unknown[0]!r} is none of {', '.join(known)}.", key)
        return tuple(value)

    def aspect(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", value):
            raise self.error(f'{key}: an aspect is width to height, such as "3:4", not {value!r}.', key)
        return value

    def aspects(self, usual: Mapping[str, str]) -> Mapping[str, str]:
        value = self._value("aspects")
        if value is None:
            return usual
        if not isinstance(value, dict):
            raise self.error('needs aspects = { feed = "3:4" }: a shape for each use that differs.', "aspects")
        for use, aspect in value.items():
            if use not in usual:
                raise self.error(f"aspects: there is no use {use!r}. Uses are {', '.join(usual)}.", "aspects")
            self.aspect("aspects", aspect)
        return MappingProxyType({**usual, **value})

    def close(self) -> None:
        for key in self.values:
            if key not in self.asked:
                known = ", ".join(sorted(self.asked))
                raise self.error(f"{key} is no key here. Keys are {known}.", key)


def _entries(path: Path) -> list[_Entry]:
    try:
        source = path.read_text(encoding="utf-8")
        tables = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        line = at[1] if at else source.count("\n") + 1
        raise PackError(f"{path}:{line}: this is no TOML: {error}. Mend the line, or the one above it.") from error
    except RecursionError as error:
        raise PackError(f"{path}: this is no pack: its lists are nested too deeply. Write them flat.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"The pack {path} cannot be read: {error}. Save it as a text file in UTF-8.") from error
    entries = []
    for name, values in tables.items():
        entry = _Entry(path, source, name, values)
        if not isinstance(values, dict):
            raise entry.error("stands outside of any table. Put it under a [name].")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
            raise entry.error("is no good name. Use small letters, digits and _; what people see goes into title.")
        entries.append(entry)
    return entries


def _line(source: str, table: str, key: str | None) -> int:
    """The line that a table's key, or else the table, begins on."""
    current, header = "", 0
    for number, line in enumerate(source.splitlines(), 1):
        if match := re.match(r"\s*\[([^\[\]=]+)\]\s*(#.*)?$", line):
            names = [part.strip().strip("\"'") for part in match[1].split(".")]
            current = names[0]
            if current == table:
                header = header or number
                if key in names[1:2]:
                    return number
        elif match := re.match(r"""\s*["']?([^\s"'=.]+)["']?\s*[=.]""", line):
            if current == table and match[1] == key:
                return number
            if not current and match[1] == table:
                return number
    return header or 1


Read = TypeVar("Read")


def _read(entries: Mapping[str, _Entry], read: Callable[[_Entry], Read]) -> Mapping[str, Read]:
    done = {}
    for name, entry in entries.items():
        done[name] = read(entry)
        entry.close()
    return MappingProxyType(done)


def _style(entry: _Entry) -> StylePack:
    return StylePack(
        name=entry.name,
        titles=entry.titles(),
        aliases=entry.words("aliases", optional=True),
        keywords=entry.words("keywords", optional=True),
        z_image=entry.text("z_image"),
        sdxl=entry.text("sdxl"),
        negative=entry.text("sdxl_negative", optional=True),
        replaces=entry.texts("replaces", FILLED),
    )


def _industry(entry: _Entry, usual: Mapping[str, str]) -> Industry:
    return Industry(
        name=entry.name,
        titles=entry.titles(),
        aliases=entry.words("aliases", optional=True),
        keywords=entry.words("keywords"),
        wording=MappingProxyType({slot: entry.text(slot) for slot in FILLED}),
        aspects=entry.aspects(usual),
    )


def _use(entry: _Entry) -> Use:
    return Use(entry.name, entry.titles(), entry.aspect("aspect", entry.text("aspect")), entry.text("composition"))


def _avoid(entry: _Entry) -> AvoidRule:
    wording = entry.text("z_image"), entry.text("sdxl_negative")
    return AvoidRule(entry.name, entry.words("words"), *wording, entry.texts("clears"))


def _cue(entry: _Entry) -> Words:
    if entry.name not in FILLED:
        raise entry.error(f"is no slot that packs fill. Slots are {', '.join(FILLED)}.")
    return entry.words("words")


_KINDS = ("styles", "industries", "uses", "avoid", "cues")


def _refuse_shared_names(entries: Mapping[str, _Entry], names: Mapping[str, Iterable[str]], key: str) -> None:
    owner: dict[str, str] = {}
    for entry, aliases in names.items():
        for alias in aliases:
            first = owner.setdefault(name_key(alias), entry)
            if first != entry:
                raise entries[entry].error(f"{alias!r} already names {first}. Take it out of one of the two.", key)
