from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hwaga import forecast
from hwaga.forecast import find_dtype
from hwaga.memory.device import multiplies_bfloat16

DTYPES = ("bfloat16", "float32")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    multiplies_bfloat16.cache_clear()
    yield
    multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "quick"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 clzero\n\nprocessor\t: 1\n", True),
        ("processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: fpu avx2 avx512f avx512_fp16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_which_cpus_are_quick_in_bfloat16(
    cpuinfo: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is quick


def test_an_unknown_cpu_is_not(tmp_path: Path) -> None:
    assert not multiplies_bfloat16(tmp_path / "missing")


def test_without_onednn_no_cpu_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t: avx512_bf16\n")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bfloat16(tmp_path / "cpuinfo")


@pytest.mark.parametrize("quick", [True, False])
def test_the_number_format_that_suits(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "multiplies_bfloat16", lambda: quick)
    assert find_dtype(None, DTYPES, "cpu") == (torch.bfloat16 if quick else torch.float32)
    assert find_dtype(None, DTYPES, "cuda") == torch.bfloat16
    for name in DTYPES:
        assert find_dtype(name, DTYPES, "cpu") == getattr(torch, name), "what is asked for is what it runs in"
