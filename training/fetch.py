"""Fetches the packages of ``sources.toml`` with the npm client, which knows the registry, its proxies and credentials."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "sources.toml"


@dataclass(frozen=True)
class Source:
    """A package: where it comes from, and what it must be."""

    name: str
    package: str
    version: str
    license: str
    integrity: str

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"


def sources() -> list[Source]:
    """The packages, in the order of the file."""
    tables = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    return [Source(name=name, **values) for name, values in tables.items()]


def fetch(folder: Path) -> None:
    """Brings every package into ``folder/NAME``. One that is there already is left alone.

    Raises:
        RuntimeError: npm is missing or failed, a package is not the one that was named, or its licence has changed.
    """
    if shutil.which("npm") is None:
        raise RuntimeError("The pictures come from npm packages: install the npm client first.")
    for source in sources():
        target = folder / source.name
        if not target.exists():
            _unpack(_download(source, folder), target)
        stated = json.loads((target / "package.json").read_text(encoding="utf-8"))
        if (stated["name"], stated["version"]) != (source.package, source.version):
            raise RuntimeError(f"{target} holds {stated['name']}@{stated['version']}, not {source.spec}. Delete it.")
        if stated["license"] != source.license:
            raise RuntimeError(
                f"{source.spec} is under {stated['license']}, where NOTICE says {source.license}. Read its licence first."
            )


def _download(source: Source, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), source.spec]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm could not fetch {source.spec}: {done.stderr.strip() or done.stdout.strip()}")
    archive = folder / done.stdout.split()[-1]
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != source.integrity:
        archive.unlink()
        raise RuntimeError(f"{source.spec} arrived with the integrity {found}, not {source.integrity}.")
    return archive


def _unpack(archive: Path, target: Path) -> None:
    # Complete or not there at all: the folder gets its name last.
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()
    archive.unlink()
