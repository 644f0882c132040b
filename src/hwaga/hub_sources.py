"""Where on a hub a model's files are, as its card says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hwaga.errors import CardError
from hwaga.toml_table import Table


@dataclass(frozen=True)
class Download:
    """Where a model's files are fetched from, and which of them.

    Attributes:
        repo: owner and name on the hub.
        revision: a branch, a tag or a commit.
        include: patterns of the files that make up the model; ``*`` stands for any characters, also a slash.
        parts: the patterns of each part's files, by the part's name. Files of no part belong to all of them.
        sha256: what files must have, by path, where the card's author knows better than to ask the hub.
        also: other repositories that files of the model are from. Where two have a file of a path, the first one counts.
        into: the folder below the model's that files go to, under their paths in the repository; "" for the model's own.
        license: of another repository's files, where it is another than the model's; shown before they are fetched.
    """

    repo: str
    revision: str
    include: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    sha256: Mapping[str, str]
    also: tuple[Download, ...] = ()
    into: str = ""
    license: str = ""

    def place(self, path: str) -> str:
        """Where a file of the repository, or what a pattern of it names, lies below the model's folder."""
        return f"{self.into}/{path}" if self.into else path


@dataclass(frozen=True)
class LoraSource:
    """Where a style's LoRA is fetched from.

    Attributes:
        repo: owner and name on the hub.
        file: its path there.
        revision: a branch, a tag or a commit.
        license: what its author allows; shown before it is fetched.
        sha256: what it must have, where the card's author knows.
    """

    repo: str
    file: str
    revision: str
    license: str
    sha256: str | None


def read_lora_source(table: Table) -> LoraSource:
    """Reads a style's ``source``. Raises CardError for what is wrong in it."""
    source = LoraSource(
        repo=table.get("repo", str),
        file=table.get("file", str),
        revision=table.get("revision", str, "main"),
        license=table.get("license", str),
        sha256=table.get("sha256", str, "") or None,
    )
    table.close()
    _check_source(table.where, source.repo, source.revision, {source.file: source.sha256} if source.sha256 else {})
    if not source.file.endswith(".safetensors"):
        raise CardError(f"{table.where}file must be a .safetensors file, not {source.file!r}.")
    if not source.license:
        raise CardError(f"{table.where}license is empty. Say what the author allows.")
    return source


def read_download(table: Table, *, main: bool = True) -> Download:
    """Reads a card's ``download``, or one of its ``also``. Raises CardError for what is wrong in it."""
    parts, pins = table.table("parts", {}) if main else Table({}, ""), table.table("sha256", {})
    others = table.get("also", list, []) if main else []
    if not all(isinstance(other, dict) for other in others):
        raise CardError("download.also must be a list of tables.")
    download = Download(
        repo=table.get("repo", str),
        revision=table.get("revision", str, "main"),
        include=_patterns(table, "include"),
        parts=MappingProxyType({name: _patterns(parts, name) for name in parts.values}),
        sha256=MappingProxyType({path: pins.get(path, str) for path in pins.values}),
        also=tuple(read_download(Table(other, f"{table.where}also."), main=False) for other in others),
        into="" if main else table.get("into", str, ""),
        license="" if main else table.get("license", str, ""),
    )
    table.close()
    if download.into and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", download.into, re.ASCII):
        raise CardError(f'{table.where}into must be a folder below the model\'s, such as "vae", not {download.into!r}.')
    _check_source(table.where, download.repo, download.revision, download.sha256)
    return download


def _check_source(where: str, repo: str, revision: str, pins: Mapping[str, str]) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo, re.ASCII):
        raise CardError(f"{where}repo must be owner/name, not {repo!r}.")
    if not revision:
        raise CardError(f"{where}revision is empty; leave it out for the newest files.")
    for path, digest in pins.items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise CardError(f"{where}sha256.{path} must be 64 hexadecimal digits in small letters, not {digest!r}.")


def _patterns(table: Table, key: str) -> tuple[str, ...]:
    patterns = table.get(key, list)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise CardError(f'{table.where}{key} must be a list of patterns such as ["vae/*"], not {patterns!r}.')
    return tuple(patterns)
