from __future__ import annotations

from dataclasses import fields

import pytest

from hwaga.errors import PromptError
from hwaga.prompt import Slots
from hwaga.prompt.template import ORDER

LATTE = {
    "details": "thin steam",
    "subject": "a barista",
    "lighting": "soft morning light",
    "action": "pouring milk into a latte",
    "style": "a film photograph",
    "setting": "a small café",
}


def test_sentences_for_z_image() -> None:
    assert Slots.of(LATTE).text("z_image") == (
        "a barista pouring milk into a latte. The style is a film photograph. The setting is a small café. "
        "The light is soft morning light. Details that show: thin steam."
    )


def test_phrases_for_sdxl() -> None:
    assert Slots.of(LATTE).text("sdxl") == (
        "a barista pouring milk into a latte, a film photograph, a small café, soft morning light, thin steam"
    )


def test_a_subject_alone_is_itself() -> None:
    assert Slots("라떼 한 잔").text("z_image") == "라떼 한 잔"


def test_every_slot_has_its_place() -> None:
    assert sorted(ORDER) == sorted(field.name for field in fields(Slots))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"subject": "a", "mood": "b"}, "no slot 'mood'"),
        ({"action": "b"}, "subject is missing"),
        ({"subject": " "}, "subject is empty"),
        ({"subject": "a", "style": 3}, "slot style must be text, not int"),
    ],
)
def test_slots_are_refused_with_those_that_exist(values: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message) as refused:
        Slots.of(values)
    assert "int" in message or "Slots are subject, action, setting, lighting" in str(refused.value)
