"""What somebody typed, a style, an industry and things to avoid → the text that the model is given.

The words that somebody typed stand first and are never changed, dropped or reordered; what the packs add follows them.
Without a style, an industry or anything to avoid, the text goes through exactly as typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwaga.cards import ModelCard
from hwaga.errors import PromptError
from hwaga.prompt.keywords import Words, find, has_korean, name_key
from hwaga.prompt.library import FILLED, AvoidRule, Industry, Library
from hwaga.prompt.style import AUTO, pick, route
from hwaga.prompt.template import ORDER, Slots, check_family, join, phrase
from hwaga.prompt_form import FORMS, PromptForm
from hwaga.request import LoraUse

DROPPED_FIRST = ("details", "atmosphere", "lighting", "composition", "setting", "style", "avoid")
"""The packs' wording in the order that it is left out in when the text has too many tokens: an industry's from the least
important on, then what was asked for by name."""


@dataclass(frozen=True)
class Composition:
    """A prompt as the model is given it.

    Attributes:
        text: the prompt.
        negative: the negative prompt; None where there is none, or nothing is unwanted.
        loras: what the style takes in weights.
        steps: steps that suit the style's LoRA; None where the card has no wish.
        aspect: the shape that suits the use, on this card; None where no use was named.
        style, industry: what they came to; None where there is none.
        notes: for people: what was picked and why, what was left out.
        tokens: of the text, where a way to count them was given.
    """

    text: str
    negative: str | None = None
    loras: tuple[LoraUse, ...] = ()
    aspect: str | None = None
    style: str | None = None
    industry: str | None = None
    notes: tuple[str, ...] = ()
    tokens: int | None = None
    steps: int | None = None


def compose(
    text: str | Slots,
    *,
    family: str,
    library: Library,
    card: ModelCard,
    style: str | None = None,
    industry: str | None = None,
    avoid: Sequence[str] = (),
    use: str | None = None,
    style_fallback: bool = False,
    guidance: float | None = None,
    count_tokens: Callable[[str], int] | None = None,
    token_limit: int | None = None,
) -> Composition:
    """The prompt for a model family.

    Args:
        text: what to draw, as typed, or in slots.
        family: whose form the text takes, of ``hwaga.prompt_form.FORMS``.
        card: whose LoRAs and aspects count.
        style: a style's name, title or alias; "auto" picks one by the words of the text.
        industry: likewise.
        avoid: things not wanted, in either language: "text", "no people", "글자 없이".
        use: where the picture will be shown: "feed", "story", "banner", "poster".
        style_fallback: go on without a style's LoRA whose file is absent.
        guidance: that the request asks for; the card's where None. Without guidance there is no negative prompt.
        count_tokens: tokens of a text as the model counts them.
        token_limit: the packs' wording is left out, by ``DROPPED_FIRST``, until the text keeps to it. What was typed stays
            whole even where it is too long alone: then the engine refuses it.

    Raises:
        RequestError: (or a subclass) for a family, style, industry or use that does not exist, a style's LoRA that is
            absent, or an empty text.
    """
    check_family(family)
    form = FORMS[family]
    # Worded for another family, a prompt is for a model that is not known here.
    has_negative = form.negative and (family != card.family or card.is_guided(guidance))
    typed = text.text(family) if isinstance(text, Slots) else text
    if not typed.strip():
        raise PromptError("The prompt is empty. Say what the picture should show.")
    words = " ".join(part for _, part in text.filled()) if isinstance(text, Slots) else text
    notes: list[str] = []
    if industry == AUTO:
        industry = _auto("industry", words, library, notes)
    automatic = style == AUTO
    if automatic:
        style = _auto("style", words, library, notes)
    routed = None
    if style is not None:
        # A style that was only guessed is no reason to refuse the picture.
        routed = route(style, library=library, card=card, family=family, fallback=style_fallback or automatic)
        notes += routed.notes
    business = None if industry is None else library.industry(industry)
    place = None if use is None else library.use(use)
    rules = _rules(avoid, library, form, notes)

    pieces: dict[str, str] = {}
    if routed and routed.wording:
        pieces["style"] = routed.wording
    if business:
        replaces = library.styles[routed.name].replaces if routed and routed.name in library.styles else ()
        pieces |= _wording(business, text, library, replaces, rules, notes)
        if place and "composition" in pieces:
            pieces["composition"] += f"{', ' if form.phrases else '. The frame is '}{place.composition}"
    if rules and not form.negative:
        pieces["avoid"] = phrase("avoid", _listed([rule.z_image for rule in rules]), family)
    if card.own_words_only and family == card.family:
        kept = {"style"} if routed and routed.own_wording else set()
        if routed and not kept and routed.name not in card.styles:
            notes.append(
                f"The style {routed.name} changes nothing: {card.name} draws from your own words alone and has no LoRA for it. "
                f"Its styles are {', '.join(card.styles) or 'none'}."
            )
        if beyond := pieces.keys() - kept - {"style"}:
            names = ", ".join(slot for slot in (*ORDER, "avoid") if slot in beyond)
            notes.append(f"Left out: the packs' wording for {names}. {card.name} draws from your own words alone.")
        pieces = {slot: pieces[slot] for slot in kept}
    pieces = {slot: pieces[slot] for slot in (*ORDER, "avoid") if slot in pieces}
    for slot in pieces.keys() & set(FILLED):
        pieces[slot] = phrase(slot, pieces[slot], family)

    composed = join([typed, *pieces.values()], family)
    if count_tokens is not None and token_limit is not None:
        left_out = []
        for slot in DROPPED_FIRST:
            if slot in pieces and count_tokens(composed) > token_limit:
                del pieces[slot]
                left_out.append(slot)
                composed = join([typed, *pieces.values()], family)
        if left_out:
            notes.append(f"Left out to keep within {token_limit} tokens: the packs' wording for {', '.join(left_out)}.")
    if form.english_only and has_korean(typed):
        notes.append("The model reads English: Korean words in the prompt hardly count.")
    of_style = [part for part in (routed.negative if routed else "").split(", ") if part]
    # What somebody asks for in so many words is not worked against, because a style is usually without it.
    asked_for = [part for part in of_style if find(words, Words((part,)))]
    if asked_for and has_negative:
        notes.append(f"Left out of the negative prompt, as your own words speak of it: {', '.join(asked_for)}.")
    unwanted = [part for rule in rules for part in rule.negative.split(", ") if part]
    phrases = dict.fromkeys([*(part for part in of_style if part not in asked_for), *unwanted]) if form.negative else {}
    if phrases and not has_negative:
        why = f"{card.name} has no negative prompt" if card.guidance is None else "no negative prompt at guidance 1"
        notes.append(f"Left out: {', '.join(phrases)} ({why}).")
    aspect = (business.aspects[place.name] if business else place.aspect) if place else None
    if aspect is not None:
        card.size_of(aspect)
    return Composition(
        text=composed,
        negative=", ".join(phrases) if phrases and has_negative else None,
        loras=routed.loras if routed else (),
        aspect=aspect,
        style=routed.name if routed else None,
        industry=business.name if business else None,
        notes=tuple(notes),
        tokens=None if count_tokens is None else count_tokens(composed),
        steps=routed.steps if routed else None,
    )


def _auto(kind: str, words: str, library: Library, notes: list[str]) -> str | None:
    picked = pick(words, library.industries) if kind == "industry" else pick(words, library.styles)
    if picked is None:
        notes.append(f"No {kind} was picked: no word of the prompt speaks of one.")
        return None
    entry = (library.industries if kind == "industry" else library.styles)[picked.name]
    because = ", ".join(f'"{word}"' for word in picked.words)
    notes.append(f"Picked the {kind} {picked.name} ({entry.titles['ko']}) because of {because}.")
    return picked.name


def _wording(
    business: Industry,
    text: str | Slots,
    library: Library,
    replaces: Sequence[str],
    rules: Sequence[AvoidRule],
    notes: list[str],
) -> dict[str, str]:
    """An industry's wording for the slots that neither the text nor the style speaks of, less what is to be avoided."""
    pieces = {}
    for slot in FILLED:
        wording = business.wording[slot]
        if isinstance(text, Slots):
            if getattr(text, slot).strip():
                continue
        elif own := find(text, library.cues.get(slot, Words())):
            notes.append(f'The {slot} is left to your own words ("{own[0].word}").')
            continue
        unwanted = [rule for rule in rules if find(wording, Words(rule.clears))]
        if unwanted:
            notes.append(f"Left out, to avoid {unwanted[0].name}: the wording of {business.name} for {slot}.")
        elif slot not in replaces:
            pieces[slot] = wording
    return pieces


def _rules(avoid: Sequence[str], library: Library, form: PromptForm, notes: list[str]) -> list[AvoidRule]:
    """The rule for each thing to avoid, in the order given and each once. A thing without a rule gets a general one."""
    known = {name_key(word): rule for rule in library.avoid.values() for word in rule.words}
    rules: dict[str, AvoidRule] = {}
    for item in (part.strip() for given in avoid for part in re.split("[,，、]", given)):
        thing = _NEGATED.sub("", item).strip()
        if not thing:
            raise PromptError(f"There is nothing to avoid in {item!r}. Name a thing, such as 'text' or '글자'.")
        key = name_key(thing)
        rule = known.get(key) or known.get(key.removesuffix("s")) or known.get(key.removesuffix("es"))
        if rule is None:
            rule = AvoidRule(key, Words((thing,)), f"a scene free of {thing}", thing, (thing,))
            notes.append(f'No rule knows "{thing}": it is worded as {thing if form.negative else rule.z_image!r}.')
        rules[rule.name] = rule
    return list(rules.values())


_NEGATED = re.compile(
    r"^(?:no|without|avoid|not|never|any)\s+|\s*(?:(?:이|가|은|는|을|를)?\s*(?:없이|없는|없음|없게|금지|제외|빼고|말고))$",
    re.IGNORECASE,
)


def _listed(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"
