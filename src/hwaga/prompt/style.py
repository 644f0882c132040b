"""The style router: from a style's name to its wording and LoRAs, and from a text to the industry and style it speaks of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from shlex import quote
from typing import NamedTuple

from hwaga.cards import STYLE_SIGN, ModelCard
from hwaga.errors import StyleError
from hwaga.prompt.keywords import Words, find, fold
from hwaga.prompt.library import Industry, Library, StylePack, by_name, near
from hwaga.prompt_form import FORMS
from hwaga.request import LoraUse

AUTO = "auto"
"""In place of a name: pick one by the words of the text."""


@dataclass(frozen=True)
class RoutedStyle:
    """What a style comes to on one model.

    Attributes:
        wording, negative: for the prompt and the negative prompt; empty where no pack knows the style.
        own_wording: the wording is the model card's, not the pack's.
        steps: steps that suit it; None where the card says nothing.
        loras: what the model's card has for it.
        notes: for people, about what was left out.
    """

    name: str
    wording: str
    negative: str
    loras: tuple[LoraUse, ...] = ()
    notes: tuple[str, ...] = ()
    own_wording: bool = False
    steps: int | None = None


def route(name: str, *, library: Library, card: ModelCard, family: str, fallback: bool) -> RoutedStyle:
    """The style of a name, title or alias.

    A style that a pack knows and the card does not is drawn by its wording alone; one that only the card knows, by its LoRA.
    A card may word a style in its own way, for a model that does not know the pack's words.
    Wording for another family than the card's goes without the card's LoRAs.

    Args:
        fallback: go on without a LoRA whose file is absent or a checkpoint that is another model, and say so in a note.

    Raises:
        StyleError: no such style, with near names; a LoRA whose file is absent, with how to get it; or a style that another
            model draws.
    """
    on_card = card.styles if family == card.family else {}
    pack = by_name(name, library.styles)
    name = pack.name if pack else name
    if pack is None and name not in on_card:
        names = dict.fromkeys([*library.styles, *on_card])
        raise StyleError(
            f"There is no style {name!r}. {near(name, library.styles, on_card)}Styles are {', '.join(names)}."
        )
    form = FORMS[family]
    wording = "" if pack is None else pack.sdxl if form.phrases else pack.z_image
    negative = pack.negative if pack and form.negative else ""
    if name not in on_card:
        return RoutedStyle(name, wording, negative)
    style = on_card[name]
    routed = RoutedStyle(
        name,
        wording if style.wording is None else style.wording,
        negative,
        own_wording=bool(style.wording),
        steps=style.steps,
    )
    if style.checkpoint is not None:
        other = f"{card.name}{STYLE_SIGN}{name}"
        if not fallback:
            raise StyleError(
                f"The style {name} of {card.name} is a checkpoint of its own. Draw with that one: --model "
                f"{quote(f'{card.address}{STYLE_SIGN}{name}')}, or of a server the model {other}, if it has it. Or go on with "
                "this one and the style's words: --style-fallback, style_fallback=True."
            )
        return replace(
            routed, notes=(f"Style {name} goes by its words alone: its checkpoint is another model, {other}.",)
        )
    if style.lora is None:
        return routed
    file = card.folder / style.lora
    if file.is_file():
        return replace(routed, loras=(LoraUse(file.stem, style.weight),))
    if not fallback:
        raise StyleError(
            f"The style {name} of {card.name} needs its LoRA, and {file} is not there. {card.remedy_for_style(style)}; or "
            "go on without it: --style-fallback, style_fallback=True."
        )
    return replace(routed, notes=(f"Style {name} goes without its LoRA: {file} is not there.",))


# Between a noun and the one that it qualifies: nothing, a space, or a Korean noun as well. A particle would end the phrase.
_QUALIFIES = re.compile(r"(?:\s(?:[가-힣]+\s)?)?")


class Pick(NamedTuple):
    """What a text speaks of, and the words that say so."""

    name: str
    words: tuple[str, ...]


class _Hit(NamedTuple):
    start: int
    end: int
    name: str
    word: str
    points: int


def pick(text: str, entries: Mapping[str, StylePack] | Mapping[str, Industry]) -> Pick | None:
    """The entry that a text speaks of most, or None.

    A title or alias counts 2, a keyword 1. A word inside a longer one that was met does not count ("카페" in "키즈카페"),
    nor does one that only says of what kind the next is: "strawberry" in "strawberry cake", "딸기" in "딸기 생크림 케이크".
    Of equals the one met first is picked, then the one that comes first in the packs.
    """
    hits = []
    for entry in entries.values():
        for points, words in ((2, (*entry.titles.values(), *entry.aliases)), (1, tuple(entry.keywords))):
            hits += [_Hit(f.start, f.end, entry.name, f.word, points) for f in find(text, Words(words))]
    hits = [h for h in hits if not any(o.start <= h.start and h.end <= o.end and o[:2] != h[:2] for o in hits)]
    folded = fold(text)
    hits = [h for h in hits if not any(o.name != h.name and _QUALIFIES.fullmatch(folded, h.end, o.start) for o in hits)]
    best, picked = (0, 0), None
    for name in entries:
        own = sorted(hit for hit in hits if hit.name == name)
        if not own:
            continue
        places: dict[tuple[int, int], int] = {}
        for hit in own:  # two spellings met at one place count once
            places[hit.start, hit.end] = max(hit.points, places.get((hit.start, hit.end), 0))
        score = (sum(places.values()), -own[0].start)
        if picked is None or score > best:
            best, picked = score, Pick(name, tuple(dict.fromkeys(hit.word for hit in own)))
    return picked
