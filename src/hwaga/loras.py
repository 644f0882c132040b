"""LoRAs by name: those that come with a model, and a library of the user's own.

A request names a LoRA and never a file, so that what a web page or an API sends cannot reach into the file system. The library
is one folder of ``<name>.safetensors``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from hwaga.cards import ModelCard
from hwaga.errors import LoraError
from hwaga.hub_sources import LoraSource

SUFFIX = ".safetensors"

PEFT_NOTE = "lora_adapter_metadata"
"""Where the header of a file holds peft's configuration, if it does."""

PEFT_CONFIG = "adapter_config.json"
"""The file beside ``adapter_model.safetensors`` that holds it otherwise."""

_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class LoraEntry:
    """A LoRA that can be asked for.

    Attributes:
        name: what a request calls it.
        file: where it lies, or would.
        model: name of the model that it comes with; None for the user's own.
        source: where it is fetched from and what its author allows, so far as the model's card says.
        remedy: how to get its file, for a model's own.
    """

    name: str
    file: Path
    model: str | None
    source: LoraSource | None = None
    remedy: str = ""


class LoraLibrary:
    """The user's own LoRAs in one folder.

    Args:
        folder: it need not exist until something is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self, card: ModelCard | None = None) -> dict[str, LoraEntry]:
        """All LoRAs by name. Where the model's and the user's share a name, the model's is meant, if its file is there."""
        found = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            name = unicodedata.normalize("NFC", path.stem)  # macOS takes letters apart
            found[name] = LoraEntry(name, path, None)
        for style in card.styles.values() if card else ():
            if card is not None and style.lora is not None:
                file = card.folder / style.lora
                if file.stem in found and not file.is_file():
                    continue
                again = f"{card.remedy_for_style(style)}."
                found[file.stem] = LoraEntry(file.stem, file, card.name, style.source, again)
        return found

    def find(self, name: str, card: ModelCard) -> Path:
        """The file of a LoRA.

        Raises:
            LoraError: nothing of that name, with near names; or a model's LoRA whose file is absent.
        """
        found = self.entries(card)
        name = unicodedata.normalize("NFC", name)
        if name not in found and (Path(name).suffix == SUFFIX or Path(name).name != name):
            raise LoraError(f"There is no LoRA {name!r}. If it is a file, `hwaga lora add` gives it a name to ask for.")
        if name not in found:
            near = get_close_matches(name, found, n=2, cutoff=0.5)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise LoraError(
                f"There is no LoRA {name!r}.{meant} {_there_are(found)} Add a file with `hwaga lora add FILE`."
            )
        if not found[name].file.is_file():
            again = found[name].remedy or "Remove it, and add it again."
            raise LoraError(f"The LoRA {name} is not there: {found[name].file}. {again}")
        return found[name].file

    def add(self, file: Path, name: str | None = None, *, taken: Collection[str] = ()) -> LoraEntry:
        """Copies a file into the library; it is there whole or not at all.

        Args:
            file: a safetensors file. Whether it is a LoRA is for the caller to know. What peft's ``adapter_config.json`` beside
                it says about alphas goes into the copy.
            name: what to call it; the file's own name when left out.
            taken: names of LoRAs that models have of their own, which would be meant instead.

        Raises:
            LoraError: no such file, a name that cannot be one or is taken, or no room.
        """
        name = unicodedata.normalize("NFC", file.stem if name is None else name)
        if not _NAME.fullmatch(name) or len(name.encode()) > 200:
            raise LoraError(
                f"A LoRA cannot be called {name!r}: up to 64 letters, digits, '_', '-' and '.', the first of them a letter or "
                "digit. Give it another name with --name."
            )
        if not file.is_file():
            raise LoraError(f"There is no file {file}.")
        target = self.folder / f"{name}{SUFFIX}"
        if name in self.entries():
            raise LoraError(f"There is a LoRA {name} already. Remove it first, or give this one another name (--name).")
        if name in taken:
            raise LoraError(f"A model has a LoRA {name} of its own. Give this one another name (--name).")
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with file.open("rb") as source, temporary.open("xb") as copy:
                    copy.write(_header_with_config(source, file))
                    shutil.copyfileobj(source, copy, 2**20)
                    copy.flush()
                    os.fsync(copy.fileno())
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


def _header_with_config(source: BinaryIO, file: Path) -> bytes:
    """The header of a safetensors file, up to which ``source`` is read, with peft's configuration from beside it.

    peft keeps the alphas apart from the weights. diffusers writes them into the header, where they travel with the file.
    """
    beside = file.with_name(PEFT_CONFIG)
    length = source.read(8)
    header = source.read(int.from_bytes(length, "little"))
    if not file.name.startswith("adapter_model.") or not beside.is_file():
        return length + header
    values = json.loads(header)
    notes = values.setdefault("__metadata__", {})
    notes.setdefault(PEFT_NOTE, beside.read_text(encoding="utf-8", errors="replace"))
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the format's own writer aligns the data
    return len(text).to_bytes(8, "little") + text


def _there_are(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"There is {listed}." if listed else "There is none yet."
