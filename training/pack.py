"""The training pack: each object's picture in every style, and what is known about it. A folder of a few files.

``objects.json`` lists the objects; ``STYLE.zip`` holds a picture for each, ``KEY.webp``, 256×256 with transparency.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.colours import COLOURS, main_colour, names_colour, nearest, palette

BASE_STYLE = "solid"
STYLES = (BASE_STYLE, "flat", "line")

SIDE = 256
"""Pixels of a side of every picture."""

DYED_SHARE = 0.4
"""An object is dyed only where that much of it has one colour."""

NAMED_DISTANCE = 0.08
"""In Oklab: an object is called "red" of itself only if its colour is that close to ours."""

UNDYED = ("People & Body", "Symbols", "Flags")
"""Categories of which nothing is dyed: skin is no paint, and a sign's colour is what it says."""


@dataclass(frozen=True)
class Names:
    """What an object is called in one language.

    Attributes:
        name: its Unicode name.
        words: everyday words, the usual one first; none for objects that are not everyday ones.
        keywords: (word, objects that have it) pairs: looser words, which captions use more rarely.
    """

    name: str
    words: tuple[str, ...]
    keywords: tuple[tuple[str, int], ...]

    @property
    def usual(self) -> str:
        return self.words[0] if self.words else self.name


@dataclass(frozen=True)
class Thing:
    """An object of the pack.

    Attributes:
        key: its code points, as in "1f431".
        category: Unicode's.
        english, korean: its names.
        mains: for each style, its main colour in Oklab.
        dyeable: whether it can be dyed, and looks right when it is.
        natural: number of the colour that its solid picture has, or -1 where no name of a colour fits.
    """

    key: str
    category: str
    english: Names
    korean: Names
    mains: Mapping[str, tuple[float, float, float]]
    dyeable: bool
    natural: int

    @property
    def everyday(self) -> bool:
        return bool(self.english.words)

    def names(self, language: str) -> Names:
        return self.korean if language == "ko" else self.english


def describe(key: str, category: str, english: Names, korean: Names, pictures: Mapping[str, Image.Image]) -> Thing:
    """An object, with what its picture in each style tells of its colour."""
    mains, shares = {}, {}
    for style, picture in pictures.items():
        small = np.asarray(picture.resize((96, 96), Image.Resampling.BOX), np.float32) / 255
        mains[style], shares[style] = main_colour(torch.from_numpy(small).permute(2, 0, 1))
    solid = mains[BASE_STYLE]
    closest = nearest(solid)
    distance = float((palette(solid.device)[closest] - solid).norm())
    paintable = category not in UNDYED and not names_colour(english.usual) and not names_colour(korean.usual)
    return Thing(
        key=key,
        category=category,
        english=english,
        korean=korean,
        mains={style: (float(lab[0]), float(lab[1]), float(lab[2])) for style, lab in mains.items()},
        dyeable=paintable and min(shares.values()) >= DYED_SHARE,
        natural=closest if distance <= NAMED_DISTANCE and COLOURS[closest].dyes else -1,
    )


def encoded(picture: Image.Image, *, lossless: bool) -> bytes:
    """A picture as a WebP file: drawings stay exact, shaded ones become a third as large."""
    file = io.BytesIO()
    if lossless:
        picture.save(file, "WEBP", lossless=True, quality=60, method=4)
    else:
        picture.save(file, "WEBP", quality=92, method=4)
    return file.getvalue()


def write_pack(folder: Path, things: Sequence[Thing], pictures: Mapping[str, Sequence[bytes]]) -> None:
    """Writes objects and, for each style, their pictures as WebP files in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, files in pictures.items():
        with zipfile.ZipFile(folder / f"{style}.zip", "w") as archive:
            for thing, data in zip(things, files, strict=True):
                # A fixed date: the same pictures make the same file.
                archive.writestr(zipfile.ZipInfo(f"{thing.key}.webp"), data)
    table = [dataclasses.asdict(thing) for thing in things]
    text = ",\n".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) for entry in table)
    (folder / "objects.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def read_things(folder: Path) -> tuple[Thing, ...]:
    """The objects of a pack.

    Raises:
        FileNotFoundError: there is no pack.
    """
    path = folder / "objects.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no pack in {folder}. Make it: python -m training prepare")
    return tuple(_thing(entry) for entry in json.loads(path.read_text(encoding="utf-8")))


def read_pictures(folder: Path, style: str, things: Sequence[Thing]) -> Tensor:
    """Pictures of a style, uint8 ``[objects, 4, 256, 256]``, not premultiplied."""
    with zipfile.ZipFile(folder / f"{style}.zip") as archive:
        files = [archive.read(f"{thing.key}.webp") for thing in things]
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(_decoded, files))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _decoded(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)).convert("RGBA"))


def _thing(entry: dict[str, Any]) -> Thing:
    english, korean = (
        Names(names["name"], tuple(names["words"]), tuple((word, count) for word, count in names["keywords"]))
        for names in (entry["english"], entry["korean"])
    )
    mains = {style: (colour[0], colour[1], colour[2]) for style, colour in entry["mains"].items()}
    return Thing(entry["key"], entry["category"], english, korean, mains, entry["dyeable"], entry["natural"])
