"""From named slots to one text, in the form that a model family reads best.

``z_image`` reads sentences: no weights such as (word:1.2), no lists of quality words, no negative prompt. ``sdxl`` reads
phrases between commas, in windows of 77 tokens, and has a negative prompt. Both get what matters most first. Words are put side
by side, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hwaga.errors import PromptError, RequestError
from hwaga.prompt_form import FORMS

FAMILIES = tuple(FORMS)

ORDER = ("subject", "action", "style", "setting", "composition", "lighting", "atmosphere", "details")
"""Slots by importance, which is the order of their text. The medium comes early: it decides about all that follows."""

_LEADS = {
    "style": "The style is ",
    "setting": "The setting is ",
    "composition": "The composition is ",
    "lighting": "The light is ",
    "atmosphere": "The atmosphere is ",
    "details": "Details that show: ",
    "avoid": "The finished picture shows ",
}


@dataclass(frozen=True)
class Slots:
    """A picture's parts in words. Each is a phrase: "a barista", "pouring milk", "a small café", "soft morning light".

    Raises:
        PromptError: a slot that is not text, or no subject.
    """

    subject: str
    action: str = ""
    setting: str = ""
    lighting: str = ""
    atmosphere: str = ""
    composition: str = ""
    style: str = ""
    details: str = ""

    def __post_init__(self) -> None:
        for name, text in self.filled(all_slots=True):
            if not isinstance(text, str):
                raise PromptError(f"The slot {name} must be text, not {type(text).__name__}.")
        if not self.subject.strip():
            raise PromptError(f"The slot subject is empty: say what the picture should show. {_slots_there_are()}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Slots:
        """Slots by name.

        Raises:
            PromptError: a slot that does not exist, or no subject; it lists the slots.
        """
        unknown = [name for name in values if name not in ORDER]
        if unknown:
            raise PromptError(f"There is no slot {unknown[0]!r}. {_slots_there_are()}")
        if "subject" not in values:
            raise PromptError(f"The slot subject is missing: say what the picture should show. {_slots_there_are()}")
        return cls(**values)

    def filled(self, *, all_slots: bool = False) -> list[tuple[str, str]]:
        """Name and text of the slots that hold text, the most important first."""
        slots = [(name, getattr(self, name)) for name in ORDER]
        return slots if all_slots else [(name, text) for name, text in slots if text.strip()]

    def text(self, family: str) -> str:
        """The slots as one text."""
        who, *rest = self.filled()
        if rest and rest[0][0] == "action":
            who, rest = ("subject", f"{who[1].strip()} {rest[0][1].strip()}"), rest[1:]
        return join([who[1].strip(), *(phrase(name, text.strip(), family) for name, text in rest)], family)


def phrase(slot: str, wording: str, family: str) -> str:
    """One slot's wording as a sentence or, for a family that reads phrases, as it is."""
    return wording if FORMS[family].phrases else _LEADS[slot] + wording


def join(parts: Iterable[str], family: str) -> str:
    """Parts side by side, with the punctuation between them that is not there yet. One part alone stays as it is."""
    text, *rest = parts
    if not rest:
        return text
    phrases = FORMS[family].phrases
    for part in rest:
        text = text.rstrip()
        ended = text.rstrip("\"'”’」』)]")[-1:] in (".", "!", "?", "…", "。", "！", "？") or text[-1:] in ",;:，、"
        text += (" " if ended else ", " if phrases else ". ") + part
    if not phrases and not text.endswith((".", "!", "?", "…", "。")):
        text += "."
    return text


def check_family(family: str) -> None:
    """Refuses a family that no template is written for.

    Raises:
        RequestError: it lists the families.
    """
    if family not in FAMILIES:
        raise RequestError(f"There is no wording for the model family {family!r}. There is {', '.join(FAMILIES)}.")


def _slots_there_are() -> str:
    names = [field.name for field in fields(Slots)]
    return f"Slots are {', '.join(names)}; only subject is required."
