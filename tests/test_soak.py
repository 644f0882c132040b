"""A short soak: what ``benchmarks/soak.py`` does for hours, and that it would see what grows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from placed import MIB, give, least, open_small, placement_of

from hwaga import Engine, ImageRequest, Settings

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


@pytest.fixture(scope="module")
def sdxl(soak: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, tuple[str, ...]]]:
    """An SDXL with random weights, as the script writes it, and LoRAs for it in the spellings of kohya and diffusers."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("soak")
    settings = Settings(data_dir=str(folder))
    card, loras = soak.write_random(folder, settings, "sdxl", tiny=True, device="cpu")
    for name in ("gpu_sdxl", "gpu_full", "report"):
        sys.modules.pop(name, None)
    card = replace(card, aspects={"1:1": (64, 64), "3:2": (96, 64)})
    with Engine.open(card, device="cpu", settings=settings) as opened:
        yield opened, loras


@pytest.mark.parametrize("tight", [False, True], ids=["resident", "streamed"])
def test_mixed_pictures_with_guidance(
    tight: bool, soak: ModuleType, sdxl: tuple[Engine, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, loras = sdxl
    mix = list(soak.requests(engine, 24, loras, 1))
    if tight:
        monkeypatch.setattr("hwaga.families.sdxl.memory_use.SLACK", MIB)
        monkeypatch.setattr("hwaga.families.sdxl.memory_use.KERNELS", 0)
        taken = [request for end, request in mix if end != "refused"]
        give(monkeypatch, max(least(monkeypatch, engine, [request]) for request in taken), MIB)
    asked = {(bool(each.negative), each.guidance, each.image is not None, bool(each.loras)) for _, each in mix}
    assert {each[:2] for each in asked} >= {(True, None), (False, None), (False, 1.0), (True, 7.5)}
    assert len({each[2:] for each in asked}) == 4, "both modes, with LoRAs and without"
    seen = soak.soak(engine, 24, loras, steps=1)
    assert seen.counts == {"made": 22, "cancelled": 1, "refused": 1}
    assert soak.failures(seen.figures(), timed=False) == []
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
