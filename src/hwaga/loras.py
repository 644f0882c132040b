"""LoRAs by name: those that come with a model, and a library of the user's own.

A request names a LoRA and never a file, so that what a web page or an API sends cannot reach into the file system. The library
is one folder of ``<name>.safetensors``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hwaga.cards import ModelCard
from hwaga.errors import LoraError

SUFFIX = ".safetensors"

_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class LoraEntry:
    """A LoRA that can be asked for.

    Attributes:
        name: what a request calls it.
        file: where it lies, or would.
        model: name of the model that it comes with; None for the user's own.
    """

    name: str
    file: Path
    model: str | None


class LoraLibrary:
    """The user's own LoRAs in one folder.

    Args:
        folder: it need not exist until something is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self, card: ModelCard | None = None) -> dict[str, LoraEntry]:
        """All LoRAs by name. Where the model's and the user's share a name, the model's is meant."""
        own = sorted(path for path in self.folder.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.stem))
        found = {path.stem: LoraEntry(path.stem, path, None) for path in own}
        for style in card.styles.values() if card else ():
            if card is not None and style.lora is not None:
                file = card.folder / style.lora
                found[file.stem] = LoraEntry(file.stem, file, card.name)
        return found

    def find(self, name: str, card: ModelCard) -> Path:
        """The file of a LoRA.

        Raises:
            LoraError: nothing of that name, with near names; or a model's LoRA whose file is absent.
        """
        found = self.entries(card)
        name = unicodedata.normalize("NFC", name)
        if name not in found:
            near = get_close_matches(name, found, n=2, cutoff=0.5)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise LoraError(
                f"There is no LoRA {name!r}.{meant} {_there_are(found)} Add a file with `hwaga lora add FILE`."
            )
        if not found[name].file.is_file():
            raise LoraError(f"The LoRA {name} of {card.name} is not there: {found[name].file}. Fetch the model again.")
        return found[name].file

    def add(self, file: Path, name: str | None = None) -> LoraEntry:
        """Copies a file into the library; it is there whole or not at all.

        Args:
            file: a safetensors file. Whether it is a LoRA is for the caller to know.
            name: what to call it; the file's own name when left out.

        Raises:
            LoraError: no such file, a name that cannot be one or is taken, or no room.
        """
        name = unicodedata.normalize("NFC", file.stem if name is None else name)
        if not _NAME.fullmatch(name):
            raise LoraError(
                f"A LoRA cannot be called {name!r}: up to 64 letters, digits, '_', '-' and '.', the first of them a letter or "
                "digit. Give it another name with --name."
            )
        if not file.is_file():
            raise LoraError(f"There is no file {file}.")
        target = self.folder / f"{name}{SUFFIX}"
        if target.exists():
            raise LoraError(f"There is a LoRA {name} already. Remove it first, or give this one another name (--name).")
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, temporary)
                with temporary.open("rb") as copied:
                    os.fsync(copied.fileno())
                temporary.rename(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            raise LoraError(f"{file} cannot be copied to {self.folder}: {error.strerror}.") from error
        return LoraEntry(name, target, None)

    def remove(self, name: str) -> None:
        """Deletes a LoRA of the user's own.

        Raises:
            LoraError: nothing of that name in the library.
        """
        found = self.entries()
        name = unicodedata.normalize("NFC", name)
        if name not in found:
            raise LoraError(f"There is no LoRA {name!r} of your own. {_there_are(found)}")
        try:
            found[name].file.unlink()
        except OSError as error:
            raise LoraError(f"{found[name].file} cannot be removed: {error.strerror}.") from error


def _there_are(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"There is {listed}." if listed else "There is none yet."
