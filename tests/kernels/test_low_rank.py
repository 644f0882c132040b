"""The kernels of a low-rank product, run by Triton's interpreter. It cannot multiply bfloat16, so float16 stands in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("triton")

from hwaga.kernels import low_rank
from hwaga.weights import adapters
from hwaga.weights.adapters import Adapters, LinearAdapter, LowRank, adapted

CPU = torch.device("cpu")


def random(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / shape[-1] ** 0.5).to(dtype)


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 100),
    width=st.integers(1, 300),
    rank=st.integers(1, 70),
    tiles=st.lists(st.integers(1, 2), max_size=2),
    last=st.integers(1, 200),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_against_plain_products(
    tokens: int, width: int, rank: int, tiles: list[int], last: int, dtype: torch.dtype
) -> None:
    rows = [*(low_rank.TILE * count for count in tiles), last]
    x, down = random(tokens, width, dtype=dtype), random(rank * len(rows), width, dtype=dtype)
    up = random(sum(rows), rank, dtype=dtype)
    table = low_rank.first_ranks([(count, place * rank) for place, count in enumerate(rows)], CPU)
    assert table is not None
    wider = torch.full((tokens, sum(rows) + 3), 7.0, dtype=dtype)
    out = wider[:, : sum(rows)]
    low_rank.low_rank(x, down, up, table, out)
    inner = (x.float() @ down.float().T).to(dtype).float()
    wanted = [a @ b.float().T for a, b in zip(inner.split(rank, dim=1), up.split(rows), strict=True)]
    bound = 2e-5 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(out.float(), torch.cat(wanted, dim=1), atol=bound, rtol=bound)
    assert (wider[:, sum(rows) :] == 7).all(), "nothing beside the output is written"


def test_pieces_that_end_inside_a_tile() -> None:
    assert low_rank.first_ranks([(low_rank.TILE + 1, 0), (low_rank.TILE, 4)], CPU) is None


def test_an_adapter_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Tensor) -> None:
        calls.append(arguments)
        product(*arguments)

    product = low_rank.low_rank
    monkeypatch.setattr(low_rank, "low_rank", counted)
    linear = nn.Linear(48, 3 * 128, bias=True).half()
    pieces = [slice(0, 128), slice(128, 256), slice(256, 384)]
    deltas = [(rows, LowRank(random(4, 48), random(128, 4))) for rows in pieces]
    plain = LinearAdapter.of(deltas)
    monkeypatch.setattr(adapters, "_kernel", lambda device: low_rank)
    fused = LinearAdapter.of(deltas)
    gaps = LinearAdapter.of(deltas[1:])
    other = LinearAdapter.of([*deltas[:2], (pieces[2], LowRank(random(5, 48), random(128, 5)))])
    assert plain.product is gaps.product is other.product is None
    x = random(7, 48)
    with torch.no_grad():
        ours, wanted = (adapted([Adapters({linear: each})], [7])(linear, x) for each in (fused, plain))
    assert len(calls) == 1
    torch.testing.assert_close(ours, wanted, atol=2e-3, rtol=2e-3)
    assert fused.deltas(1.0)[1][1].shape == (128, 48)
    assert sum(tensor.nbytes for tensor in fused.tensors()) == sum(tensor.nbytes for tensor in plain.tensors())
