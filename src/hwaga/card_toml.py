"""A model card as the TOML that it could have been read from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hwaga.card_styles import Style
from hwaga.cards import ModelCard
from hwaga.hub_sources import LoraSource


def card_toml(card: ModelCard) -> str:
    """The card of a folder that it lies in.

    Where its own files would be fetched from is left out. A LoRA of somebody else's keeps its source, and so its licence.
    """
    values: dict[str, Any] = {
        "name": card.name,
        "family": card.family,
        "title": card.title,
        "license": card.license,
        "source": card.source,
        "steps": card.steps,
    }
    if card.files:
        values["files"] = [path.relative_to(card.folder).as_posix() for path in card.files]
    if card.guidance is not None:
        values["guidance"] = card.guidance
    if card.samplers:
        values["samplers"] = list(card.samplers)
    if card.own_words_only:
        values["own_words_only"] = True
    if card.preview is not None:
        values["preview"] = [list(row) for row in card.preview]
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    tables: dict[str, Mapping[str, Any]] = {
        "aspects": {name: list(size) for name, size in card.aspects.items()},
        "limits": vars(card.limits),
        **{f"parts.{_toml(name)}": vars(part) for name, part in card.parts.items()},
        **{
            f"styles.{_toml(name)}": _told(style) | ({"source": _told(style.source)} if style.source else {})
            for name, style in card.styles.items()
        },
    }
    for title, table in tables.items():
        lines += ["", f"[{title}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _told(entry: Style | LoraSource) -> dict[str, Any]:
    return {key: value for key, value in vars(entry).items() if key != "source" and value is not None}


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
