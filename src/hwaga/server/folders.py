"""Folders of this machine. Messages for its owner name them; over HTTP they are nobody's business."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hwaga.cards import ModelCard
from hwaga.settings import Settings


def own_folders(settings: Settings, *cards: ModelCard) -> list[str]:
    """What a message of ours may name, as it would: the longest first, so that a folder goes before the one that it is in."""
    package = Path(__file__).parents[1]
    folders = [settings.models, settings.loras, settings.server, settings.models.parent, package]
    folders += [card.folder for card in cards]
    folders += [Path.home(), Path(sys.prefix), Path.cwd(), *([settings.packs] if settings.packs else [])]
    names = {name for folder in folders for name in (str(folder), str(folder.absolute()), str(folder.resolve()))}
    return sorted((name for name in names if len(name) > 2), key=len, reverse=True)


def without_folders(message: str, folders: Sequence[str]) -> str:
    """A message with files by their names alone."""
    for folder in folders:
        message = message.replace(folder + os.sep, "").replace(folder, "the server's folder")
    return message
