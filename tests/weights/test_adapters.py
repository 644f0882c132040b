"""What adapters add, against the matrix that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hwaga.weights.adapters import MOST_JOINED, Adapters, Delta, Full, Kronecker, LayerAdapter, LowRank, adapted, plain


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def matrix(delta: Delta) -> Tensor:
    if isinstance(delta, LowRank):
        return delta.up @ delta.down
    return torch.kron(delta.left, delta.right) if isinstance(delta, Kronecker) else delta.weight


DELTAS: Sequence[Delta] = [
    LowRank(random(3, 12), random(6, 3)),
    LowRank(random(2, 12, seed=1), random(6, 2)),
    Kronecker(random(2, 3), random(3, 4)),
    Kronecker(random(1, 1), random(6, 12)),
    Kronecker(random(6, 12), random(1, 1)),
    Full(random(6, 12)),
]


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_deltas_on_some_rows(weight: float) -> None:
    linear = nn.Linear(12, 18)
    places = [slice(0, 6), slice(6, 12), slice(12, 18)] * 2
    adapter = LayerAdapter.of(zip(places, DELTAS, strict=True), 18)
    scaled = LayerAdapter.combined([(adapter, weight)])
    x = random(5, 12)
    wanted = linear.weight.detach().clone()
    for rows, delta in zip(places, DELTAS, strict=True):
        wanted[rows] += weight * matrix(delta)
    with torch.no_grad():
        out = adapted([Adapters({linear: scaled})], [5])(linear, x)
        torch.testing.assert_close(out, x @ wanted.T + linear.bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("places", [[(6, 12)], [(12, 18), (0, 6)], [(0, 6), (0, 18)], [(0, 18), (6, 12), (6, 12)]])
def test_rows_without_a_delta_and_rows_with_several(places: list[tuple[int, int]]) -> None:
    linear = nn.Linear(12, 18, bias=False)
    deltas = [
        (slice(*place), LowRank(random(2, 12, seed=k), random(place[1] - place[0], 2)))
        for k, place in enumerate(places)
    ]
    wanted = linear.weight.detach().clone()
    for rows, delta in deltas:
        wanted[rows] += matrix(delta)
    x = random(5, 12)
    with torch.no_grad():
        out = adapted([Adapters({linear: LayerAdapter.of(deltas, 18)})], [5])(linear, x)
    torch.testing.assert_close(out, x @ wanted.T, atol=1e-5, rtol=1e-5)


def test_each_run_gets_its_own_and_neighbours_are_computed_together() -> None:
    linear, other = nn.Linear(12, 6), nn.Linear(12, 6)
    calls = []

    class Counted(LayerAdapter):
        def write(self, out: Tensor, x: Tensor) -> None:
            calls.append(len(x))
            super().write(out, x)

    first, second = (Adapters({linear: Counted(delta, ())}) for delta in DELTAS[:2] if isinstance(delta, LowRank))
    x = random(10, 12)
    with torch.no_grad():
        call = adapted([None, first, first, second, None], [1, 2, 3, 3, 1])
        out, base = call(linear, x), linear(x)
        assert calls == [5, 3]
        torch.testing.assert_close(out[1:6] - base[1:6], x[1:6] @ matrix(DELTAS[0]).T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out[6:9] - base[6:9], x[6:9] @ matrix(DELTAS[1]).T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out[[0, 9]], base[[0, 9]])
        assert torch.equal(call(other, x), plain(other, x)), "a layer without an adapter"
    assert adapted([None, None], [3, 7]) is plain


def test_combining_keeps_the_parts_as_they_are() -> None:
    linear, other = nn.Linear(12, 6), nn.Linear(12, 6)
    first = Adapters({linear: LayerAdapter.of([(slice(0, 6), DELTAS[0])], 6)})
    second = Adapters(
        {
            linear: LayerAdapter.of([(slice(0, 6), DELTAS[1])], 6),
            other: LayerAdapter.of([(slice(0, 6), DELTAS[2])], 6),
        }
    )
    before = [tensor.clone() for tensor in first.by_layer[linear].tensors()]
    both = Adapters.combined([(first, 2.0), (second, 0.5)])
    x = random(4, 12)
    with torch.no_grad():
        out = adapted([both], [4])(linear, x) - linear(x)
        wanted = x @ (2 * matrix(DELTAS[0]) + 0.5 * matrix(DELTAS[1])).T
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert set(both.by_layer) == {linear, other}
    assert all(torch.equal(a, b) for a, b in zip(before, first.by_layer[linear].tensors(), strict=True))
    assert first.nbytes == 4 * (3 * 12 + 6 * 3)


def test_a_delta_of_a_large_rank_keeps_to_its_rows() -> None:
    linear = nn.Linear(600, 18, bias=False)
    large = LowRank(random(MOST_JOINED + 1, 600) / 600, random(6, MOST_JOINED + 1))
    adapter = LayerAdapter.of([(slice(6, 12), large)], 18)
    assert sum(tensor.numel() for tensor in adapter.tensors()) == (MOST_JOINED + 1) * (600 + 6)
    wanted = linear.weight.detach().clone()
    wanted[6:12] -= 0.5 * matrix(large)
    x = random(3, 600)
    with torch.no_grad():
        out = adapted([Adapters({linear: LayerAdapter.combined([(adapter, -0.5)])})], [3])(linear, x)
    torch.testing.assert_close(out, x @ wanted.T, atol=1e-4, rtol=1e-4)
