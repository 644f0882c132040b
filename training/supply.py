"""Composed and encoded pictures for the transformer, refreshed while batches are drawn from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwaga.families.z_image.autoencoder import Autoencoder
from hwaga.families.z_image.positions import TOKEN_MULTIPLE
from training.batches import WITHOUT_CAPTION, WORDS, Batch, Chunk, Pool, Writer, written
from training.batches import grid as grid_of
from training.compose import compose
from training.networks import LATENT_CHANNELS, PATCH, patchify
from training.recipe import Sizes
from training.session import Session

CHUNK = 256

SHORT = 64
"""Captions of at most so many tokens run through compiled blocks."""

FIRST = 8192
"""Pictures that a pool has to hold before the first step, over all sizes."""


class Supply:
    """Composed, encoded pictures, a pool for each size, refreshed as batches are drawn."""

    def __init__(
        self, session: Session, coder: Autoencoder, style: str, seed: str, *, reuse: float, capacity: int, edits: float,
        empty: float = WITHOUT_CAPTION,
    ) -> None:  # fmt: skip
        recipe, cuda = session.recipe, session.device.type == "cuda"
        things = session.things
        self.recipe, self.reuse, self.coder = recipe, reuse, coder
        self.chunk = CHUNK if cuda else 8
        self.textures = session.textures(style)
        shares, sizes = recipe.sizes.shares, recipe.sizes.all
        self.pools = [
            Pool(size, max(int(capacity * share), 2 * self.chunk), LATENT_CHANNELS * PATCH**2, session.device)
            for size, share in zip(sizes, shares, strict=True)
        ]
        self._shares = np.array(shares)
        self._rng = np.random.default_rng(list(seed.encode()))
        self._owed = 0.0

        def writer(worker: int) -> Writer:
            return Writer(things, recipe, session.tokenizer, f"{seed} {worker}", edits=edits, empty=empty)

        self._chunks = written(writer, self.chunk, recipe.workers if cuda else 0)
        first = writer(999)
        for place in range(len(sizes)):  # every size has something to draw from the first step on
            self.add(first.chunk(self.chunk, place))
        while sum(pool.filled for pool in self.pools) < min(FIRST if cuda else 0, capacity // 2):
            self.add(next(self._chunks))

    @torch.no_grad()
    def add(self, chunk: Chunk) -> None:
        width, height = self.recipe.sizes.all[chunk.size]
        tokens = self._encoded(compose(self.textures, chunk.target, width, height))
        sources = None
        if chunk.source is not None:
            sources = self._encoded(compose(self.textures, chunk.source, width, height))
        self.pools[chunk.size].add(chunk, tokens, sources)

    def _encoded(self, pictures: Tensor) -> Tensor:
        shape = (len(pictures), LATENT_CHANNELS, pictures.shape[2] // 8, pictures.shape[3] // 8)
        found = []
        for part, noise in zip(pictures.split(128), torch.randn(shape, device=pictures.device).split(128), strict=True):
            found.append(patchify(self.coder.encode(part.contiguous(memory_format=torch.channels_last), noise)))
        return torch.cat(found)

    def draw(self, count: int) -> Batch:
        """A batch of any size; ``count`` is for the smallest number of tokens, larger pictures come in smaller batches."""
        self._owed += count / self.reuse
        while self._owed >= self.chunk:
            self._owed -= self.chunk
            self.add(next(self._chunks))
        pool = self.pools[int(self._rng.choice(len(self.pools), p=self._shares / self._shares.sum()))]
        words = pool.words()
        chosen = int(self._rng.choice(list(words), p=np.array(list(words.values())) / sum(words.values())))
        return pool.draw(self._rng, self.count(pool, count, chosen), chosen)

    def count(self, pool: Pool, count: int, words: int) -> int:
        """Pictures of a batch: as many as come to the tokens of ``count`` small pictures with short captions."""
        return batch_size(self.recipe.sizes, pool.grid, count, words)

    def one_of_each(self, count: int) -> list[Batch]:
        """Batches of every shape that runs compiled: compilation is then over before time is taken."""
        seen: dict[tuple[int, int], Batch] = {}
        for pool in self.pools:
            for words in pool.words():
                if words <= SHORT and (padded(pool.grid), words) not in seen:
                    seen[padded(pool.grid), words] = pool.draw(self._rng, self.count(pool, count, words), words)
        return list(seen.values())


def padded(grid: tuple[int, int]) -> int:
    """Image tokens of a picture with their padding."""
    return -(-grid[0] * grid[1] // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def batch_size(sizes: Sizes, grid: tuple[int, int], count: int, words: int) -> int:
    """Pictures of a batch: as many as come to the tokens of ``count`` of the smallest pictures with short captions."""
    least = min(padded(grid_of(size)) for size in sizes.all)
    share = (least + WORDS) / (padded(grid) + words)
    whole = count if share > 0.8 else int(count * share)
    return max(whole // 8 * 8, min(whole, 8), 1)


def blank_batches(sizes: Sizes, count: int, device: torch.device) -> list[Batch]:
    """Batches of nothing, of every shape that ``Supply.one_of_each`` gives."""
    found = {}
    for grid in map(grid_of, sizes.all):
        for words in range(WORDS, SHORT + 1, WORDS):
            pictures = batch_size(sizes, grid, count, words)
            tokens = torch.zeros(pictures, grid[0] * grid[1], LATENT_CHANNELS * PATCH**2, device=device)
            found.setdefault((padded(grid), words), Batch(
                grid, tokens, tokens, torch.zeros(pictures, dtype=torch.bool, device=device),
                torch.zeros(pictures, words, dtype=torch.long, device=device),
                torch.full((pictures,), words, device=device),
            ))  # fmt: skip
    return list(found.values())
