"""Attention in pieces, for devices whose kernels write the scores out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hwaga.kernels import attention as attention_module
from hwaga.kernels.attention import attend, attention, keeps_scores, quickest, taking


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


def test_threads_that_choose_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees all ways, and is alone with the one that it tries."""
    inside, most, tried = [0], [0], list[SDPBackend]()

    @contextmanager
    def only(way: SDPBackend) -> Iterator[None]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        tried.append(way)
        time.sleep(0.01)
        yield
        inside[0] -= 1

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, end: Event) -> float:
            return {SDPBackend.CUDNN_ATTENTION: 2.0, SDPBackend.FLASH_ATTENTION: 1.0}.get(tried[-1], 3.0)

    monkeypatch.setattr(attention_module, "taking", only)
    monkeypatch.setattr(attention_module, "TRIAL_TOKENS", 16)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    chosen = list[SDPBackend | None]()
    quickest.cache_clear()
    threads = [
        threading.Thread(
            target=lambda d=dim: chosen.append(quickest(torch.device("cpu"), torch.float32, d, True, False, False))
        )
        for dim in (8, 16, 24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quickest.cache_clear()
    assert most == [1]
    assert chosen == [SDPBackend.FLASH_ATTENTION] * 3
    assert sorted(tried, key=str) == sorted(attention_module.CANDIDATES * 3, key=str)


def switched_on() -> set[SDPBackend]:
    return {way for way, (is_on, _) in attention_module._SWITCHES.items() if is_on()}


@pytest.mark.parametrize("way", list(attention_module._SWITCHES))
def test_a_way_is_taken_as_torch_itself_would(way: SDPBackend) -> None:
    with sdpa_kernel(way):
        expected = switched_on()
    before = switched_on()
    with taking(way):
        assert switched_on() == expected == {way}
    assert switched_on() == before
    with sdpa_kernel(SDPBackend.MATH):
        with pytest.raises(ZeroDivisionError), taking(way):
            raise ZeroDivisionError
        assert switched_on() == {SDPBackend.MATH}


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
