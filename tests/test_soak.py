"""A short soak: what ``benchmarks/soak.py`` does for hours, and that it would see what grows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from placed import MIB, give, least, open_small, placement_of

from hwaga import Engine, ImageRequest

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import soak

        yield soak
        sys.modules.pop("soak")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_small() as opened:
        yield opened


@pytest.mark.parametrize("tight", [False, True], ids=["resident", "streamed"])
def test_mixed_pictures(tight: bool, soak: ModuleType, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if tight:
        request = ImageRequest("a red apple", style="anime", width=64, height=64)
        give(monkeypatch, least(monkeypatch, engine, [request]) + 20 * MIB, 20 * MIB)
    seen = soak.soak(engine, 24, steps=1)
    assert seen.counts == {"made": 22, "cancelled": 1, "refused": 1}
    figures = seen.figures()
    assert figures["device_drift_bytes"] == 0
    assert soak.failures(figures, timed=False) == []
    assert engine.plan is not None
    assert (engine.plan.part("denoiser").mode == "streamed") is tight


def test_growth_would_be_seen(soak: ModuleType, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    decode = type(placement_of(engine).model).decode_latents

    def leak(self: object, latents: torch.Tensor, tile: int | None) -> torch.Tensor:
        kept.append(torch.zeros(3))
        return decode(self, latents, tile)

    monkeypatch.setattr(type(placement_of(engine).model), "decode_latents", leak)
    figures = soak.soak(engine, 24, steps=1).figures()
    assert figures["device_drift_bytes"] > 0
    assert "bytes stayed on the device" in soak.failures(figures, timed=False)[0]
    grown = {**figures, "device_drift_bytes": 0, "host_drift_mib": 65.0, "swap_bytes": 4096, "last_to_first": 1.2}
    assert len(soak.failures(grown)) == 3
    assert soak.failures({**grown, "host_drift_mib": 63.0, "swap_bytes": 0, "last_to_first": 1.1}) == []
