"""What the transformer learns: where samples go from any noise level, also those that began as another picture."""

from __future__ import annotations

import numpy as np
import torch
from training.batches import Batch, Chunk, Pool
from training.compose import Arrangement
from training.phases.transformer import KEPT, LEAST_START, NoiseLevels, noised
from training.recipe import Recipe


def _batch(count: int = 64) -> Batch:
    torch.manual_seed(0)
    tokens, sources = torch.randn(2, count, 16, 64)
    edited = torch.arange(count) % 2 == 0
    sources = torch.where(edited[:, None, None], sources, tokens)
    ids = torch.zeros(count, 32, dtype=torch.long)
    return Batch((4, 4), tokens, sources, edited, ids, torch.full((count,), 9))


def test_every_way_leads_to_the_picture() -> None:
    batch = _batch()
    sigmas, starts = NoiseLevels(Recipe.load("tiny"), torch.device("cpu"), 0.3).draw(batch)
    sample = noised(batch, sigmas, starts)
    arrived = sample.tokens + sigmas[:, None, None] * sample.velocity
    kept = batch.edited & (starts < LEAST_START)
    assert 0 < kept.sum() < batch.edited.sum()
    torch.testing.assert_close(arrived[~kept], batch.tokens[~kept], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(arrived[kept], batch.sources[kept], atol=1e-4, rtol=1e-4)


def test_an_edit_starts_as_image_to_image_does() -> None:
    batch = _batch()
    starts = torch.full((64,), 0.6)
    torch.manual_seed(1)
    sample = noised(batch, starts, starts)
    torch.manual_seed(1)
    noise = torch.randn_like(batch.tokens)
    begun = 0.4 * batch.sources + 0.6 * noise
    torch.testing.assert_close(sample.tokens[batch.edited], begun[batch.edited])


def test_noise_levels_keep_within_where_samples_can_be() -> None:
    batch = _batch(4096)
    recipe = Recipe.load("tiny")
    sigmas, starts = NoiseLevels(recipe, torch.device("cpu"), 0.3).draw(batch)
    assert sigmas.min() > 0
    assert sigmas.max() <= 1
    edited = batch.edited
    assert (sigmas <= starts)[edited].all()
    low = starts[edited] < LEAST_START
    share, lowest, highest = KEPT
    assert abs(low.float().mean() - share) < 0.05
    assert lowest <= starts[edited][low].min() < starts[edited][low].max() <= highest
    own = torch.tensor([1.0, 0.9545455, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3])
    visited = torch.isclose(sigmas[~edited, None], own, atol=1e-5).any(1).float().mean()
    assert 0.25 < visited < 0.36


def _chunk(first: int, lengths: list[int], sources: list[int]) -> Chunk:
    count = len(lengths)
    ids = np.zeros((count, 256), np.int16)
    ids[:, 0] = np.arange(first, first + count)
    arrangement = Arrangement((), np.zeros((count, 2, 3), np.float32))
    return Chunk(
        0,
        arrangement,
        None,
        np.array(sources, np.int64),
        ids,
        np.array(lengths),
        np.zeros((count, 4), np.int64),
        np.zeros((count, 4), np.float32),
    )


def test_a_pool_keeps_pictures_and_captions_together_and_forgets_the_oldest() -> None:
    pool = Pool((64, 64), 6, 64, torch.device("cpu"))
    for first, sources in ((0, []), (4, [1]), (8, [])):
        tokens = torch.arange(first, first + 4).float()[:, None, None].expand(-1, 16, 64)
        chunk = _chunk(first, [9, 40, 9, 9], sources)
        pool.add(chunk, tokens, tokens[sources] + 100 if sources else None)
    assert pool.filled == 6
    assert pool.words() == {32: 5, 64: 1} or pool.words() == {32: 4, 64: 2}
    batch = pool.draw(np.random.default_rng(0), 64, 32)
    assert batch.ids.shape == (64, 32)
    seen = batch.tokens[:, 0, 0]
    torch.testing.assert_close(seen, batch.ids[:, 0].float())
    assert seen.min() >= 6
    assert torch.equal(batch.sources, batch.tokens)  # the only edited one has a long caption or is gone
    assert set(batch.lengths.tolist()) == {9}
