"""Scenes on their way to the device: written by processes of their own, composed and encoded, kept in pools, drawn
as batches."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.additions import additions
from training.captions import Captioner
from training.compose import Arrangement
from training.networks import PATCH
from training.pack import Thing
from training.recipe import Recipe
from training.scenes import Scene, SceneMaker
from training.tokenizer import token_ids

WORDS = 32
"""Captions are padded to a multiple of so many tokens, as the transformer has them."""

MOST_WORDS = 256

WITHOUT_CAPTION = 0.08
"""Share of scenes that get an empty caption: from them the model learns what it draws of itself."""

PIXELS = 8
"""Pixels of a side of a latent pixel."""


def grid(size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of tokens for a picture of (width, height)."""
    return size[1] // (PIXELS * PATCH), size[0] // (PIXELS * PATCH)


@dataclass(frozen=True)
class Chunk:
    """Scenes of one size with their captions, on the host.

    Attributes:
        size: number of the size in the recipe's list.
        target: what the captions say.
        source: what some of the scenes start from instead, and ``source_rows``, which ones.
        ids: token ids, int16 ``[B, MOST_WORDS]``, zeros behind a caption's end.
        lengths: tokens of each caption ``[B]``.
        named: what captions tell in numbers, int64 ``[B, 4]``: two objects (one past the last for none), dye (0 for
        none), objects
            less one.
        places: float32 ``[B, 4]``: x, y and size of the first object, x of the last.
    """

    size: int
    target: Arrangement
    source: Arrangement | None
    source_rows: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    named: np.ndarray
    places: np.ndarray

    @property
    def words(self) -> np.ndarray:
        """Padded tokens of each caption."""
        return -(-self.lengths // WORDS) * WORDS


class Writer:
    """Makes chunks, the same ones for the same seed."""

    def __init__(
        self,
        things: Sequence[Thing],
        recipe: Recipe,
        tokenizer: Path,
        seed: str,
        *,
        edits: float = 0.0,
        empty: float = WITHOUT_CAPTION,
    ) -> None:
        self.recipe, self.edits, self.empty = recipe, edits, empty
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(self.rng.getrandbits(64))
        self.maker = SceneMaker(things)
        self.captioner = Captioner(things, additions())
        self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def chunk(self, count: int, size: int | None = None) -> Chunk:
        """So many scenes of a size, or of one drawn by its share."""
        sizes = self.recipe.sizes
        if size is None:
            size = self.rng.choices(range(len(sizes.all)), sizes.shares)[0]
        width, height = sizes.all[size]
        scenes = [self.maker.scene(self.rng, width, height, edits=self.edits) for _ in range(count)]
        captions = [
            "" if self.rng.random() < self.empty else self.captioner.caption(self.rng, scene) for scene in scenes
        ]
        found = token_ids(self.tokenizer, captions, MOST_WORDS)
        ids = np.zeros((count, MOST_WORDS), np.int16)
        for row, tokens in enumerate(found):
            ids[row, : len(tokens)] = tokens
        sources = [(row, scene.source) for row, scene in enumerate(scenes) if scene.source is not None]
        return Chunk(
            size,
            Arrangement.of(scenes, self.numbers),
            Arrangement.of([source for _, source in sources], self.numbers) if sources else None,
            np.array([row for row, _ in sources], np.int64),
            ids,
            np.array([len(tokens) for tokens in found]),
            np.array([self._named(scene) for scene in scenes]),
            np.array([_places(scene) for scene in scenes], np.float32),
        )

    def _named(self, scene: Scene) -> tuple[int, ...]:
        second = scene.things[1] if scene.kind == "two" else len(self.maker.things)
        return scene.things[0], second, scene.placed[0].dye + 1, len(scene.placed) - 1


def _places(scene: Scene) -> tuple[float, ...]:
    first = scene.placed[0]
    return first.x, first.y, first.size, scene.placed[-1].x


class _Chunks(IterableDataset[Chunk]):
    def __init__(self, make: Callable[[int], Writer], count: int) -> None:
        self.make, self.count = make, count

    def __iter__(self) -> Iterator[Chunk]:
        worker = torch.utils.data.get_worker_info()
        writer = self.make(worker.id if worker else 0)
        while True:
            yield writer.chunk(self.count)


def written(make: Callable[[int], Writer], count: int, workers: int) -> Iterator[Chunk]:
    """Endless chunks from so many processes, or from this one if there are none.

    Args:
        make: the writer of each worker by its number.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # the processes are parallel enough, and a fork would stop at its threads
    )
    return iter(
        DataLoader(
            _Chunks(make, count),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )


def _as_it_is(chunk: Chunk) -> Chunk:
    return chunk


@dataclass(frozen=True)
class Batch:
    """Encoded pictures of one size, with captions of one padded length.

    Attributes:
        grid: rows and columns of the tokens.
        tokens: patches of clean latents ``[B, N, p * p * C]``.
        sources: of what each picture continues where ``edited``; elsewhere the picture itself.
        edited: bool ``[B]``.
        ids, lengths: the captions, ``[B, P]`` and ``[B]``.
    """

    grid: tuple[int, int]
    tokens: Tensor
    sources: Tensor
    edited: Tensor
    ids: Tensor
    lengths: Tensor


class Pool:
    """Encoded pictures of one size on the device: a ring, of which the oldest are replaced."""

    def __init__(self, size: tuple[int, int], capacity: int, channels: int, device: torch.device) -> None:
        self.grid = grid(size)
        shape = (capacity, self.grid[0] * self.grid[1], channels)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.tokens = torch.empty(shape, dtype=dtype, device=device)
        self.sources = torch.empty(shape, dtype=dtype, device=device)
        self.edited = torch.zeros(capacity, dtype=torch.bool, device=device)
        self.ids = torch.zeros(capacity, MOST_WORDS, dtype=torch.int16, device=device)
        self.lengths = torch.zeros(capacity, dtype=torch.long, device=device)
        self._words = np.zeros(capacity, np.int64)
        self._rows: dict[int, np.ndarray] = {}
        self._next = 0

    @property
    def filled(self) -> int:
        return int((self._words > 0).sum())

    def add(self, chunk: Chunk, tokens: Tensor, sources: Tensor | None) -> None:
        """Takes a chunk whose pictures have been encoded: ``sources`` are those of ``chunk.source_rows``."""
        places = (np.arange(len(chunk.lengths)) + self._next) % len(self._words)
        self._next = int(places[-1] + 1) % len(self._words)
        at = _to(places, self.tokens.device)
        self.tokens[at] = tokens.to(self.tokens.dtype)
        self.sources[at] = tokens.to(self.tokens.dtype)
        self.edited[at] = False
        if sources is not None:
            at_sources = _to(places[chunk.source_rows], self.tokens.device)
            self.sources[at_sources] = sources.to(self.tokens.dtype)
            self.edited[at_sources] = True
        self.ids[at] = _to(chunk.ids, self.tokens.device)
        self.lengths[at] = _to(chunk.lengths, self.tokens.device)
        self._words[places] = chunk.words
        self._rows.clear()

    def words(self) -> dict[int, int]:
        """Padded lengths of the captions at hand, and how many of each."""
        counts = np.bincount(self._words // WORDS)
        return {place * WORDS: int(count) for place, count in enumerate(counts) if place and count}

    def draw(self, rng: np.random.Generator, count: int, words: int) -> Batch:
        """A batch, with captions of so many padded tokens."""
        if words not in self._rows:
            self._rows[words] = np.flatnonzero(self._words == words)
        at = _to(rng.choice(self._rows[words], count), self.tokens.device)
        return Batch(
            self.grid,
            self.tokens[at].float(),
            self.sources[at].float(),
            self.edited[at],
            self.ids[at, :words].long(),
            self.lengths[at],
        )


def _to(values: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
