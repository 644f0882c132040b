"""Attention in pieces, for devices whose kernels write the scores out."""

from __future__ import annotations

import pytest
import torch

from hwaga.kernels import attention as attention_module
from hwaga.kernels.attention import attend, attention, keeps_scores


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_pieces_make_the_whole(causal: bool, kv_heads: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 40, 16, generator=generator)
    k, v = (torch.randn(2, kv_heads, 40, 16, generator=generator) for _ in range(2))
    whole = attend(q, k, v, causal=causal)
    asked = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(piece: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
        asked.append(piece.shape[2])
        return real(piece, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(attention_module, "keeps_scores", lambda device, dtype: True)
    monkeypatch.setattr(attention_module, "SCORES", rows * 2 * 4 * 40 * 4)
    torch.testing.assert_close(attend(q, k, v, causal=causal), whole, atol=1e-6, rtol=1e-5)
    assert max(asked) == min(rows, 40)
    assert sum(asked) == 40


def test_runs_of_a_pack_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(50, 3, 8, generator=generator) for _ in range(3))
    whole = attention(q, k, v, (20, 30), causal=True)
    monkeypatch.setattr(attention_module, "keeps_scores", lambda device, dtype: True)
    monkeypatch.setattr(attention_module, "SCORES", 5000)
    torch.testing.assert_close(attention(q, k, v, (20, 30), causal=True), whole, atol=1e-6, rtol=1e-5)


def test_where_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_scores.cache_clear()
    assert not keeps_scores(torch.device("cpu"), torch.float32)
    assert keeps_scores(torch.device("mps"), torch.bfloat16)
    for capability, dtype, kept in (((7, 5), torch.bfloat16, True), ((7, 5), torch.float32, False),
                                    ((8, 9), torch.bfloat16, False)):  # fmt: skip
        keeps_scores.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert keeps_scores(torch.device("cuda"), dtype) is kept
    keeps_scores.cache_clear()
