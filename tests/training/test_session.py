"""Slices: a phase goes on where it stopped, in one process or several."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from training.optimizer import MuonAdam, stacked_parts
from training.recipe import Phase, Recipe
from training.session import Progress, Session, in_processes, keep, resume

PHASE = Phase(seconds=10, batch=1, rate=1.0, matrix_rate=2.0, warmup=10, decay=0.5)


def _session(run: Path) -> Session:
    run.mkdir(exist_ok=True)
    return Session(Recipe.load("tiny"), run, run, torch.device("cpu"))


class Clock:
    """A second goes by each time that somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


def test_a_phase_takes_its_seconds_over_several_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.session.time.monotonic", Clock())
    session, slices = _session(tmp_path), 0
    while not (progress := Progress(session, "phase", PHASE, 4.0)).finished:
        shares = list(progress)
        assert shares == sorted(shares)
        slices += 1
        assert slices < 20
    assert slices >= 3
    assert Progress(session, "phase", PHASE, None).seconds >= 10


def test_a_finished_phase_goes_on_when_it_is_given_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.session.time.monotonic", Clock())
    session = _session(tmp_path)
    list(Progress(session, "phase", PHASE, None))
    assert Progress(session, "phase", PHASE, None).finished
    more = Progress(session, "phase", dataclasses.replace(PHASE, seconds=20), None)
    assert not more.finished
    assert 0.5 <= next(iter(more)) < 0.6


def test_a_phase_of_steps_ends_after_them(tmp_path: Path) -> None:
    progress = Progress(_session(tmp_path), "phase", dataclasses.replace(PHASE, steps=4), None)
    assert list(progress) == [0, 0.25, 0.5, 0.75]
    assert progress.finished


def _one_phase(run: Path, name: str) -> None:
    progress = Progress(_session(run), name, PHASE, None)
    for progress.steps in range(200):
        progress.save()


def test_phases_side_by_side_lose_nothing_of_each_other(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    mp.spawn(_named, args=(tmp_path, names), nprocs=len(names))
    for name in names:
        assert Progress(_session(tmp_path), name, PHASE, None).steps == 199


def _named(rank: int, run: Path, names: list[str]) -> None:
    _one_phase(run, names[rank])


def test_rates_rise_stay_and_fall(tmp_path: Path) -> None:
    progress = Progress(_session(tmp_path), "phase", PHASE, None)
    assert progress.rates(0.0) == (0.1, 0.2)
    progress.steps = 100
    assert progress.rates(0.4) == (1.0, 2.0)
    assert progress.rates(0.75) == (0.5, 1.0)
    assert progress.rates(1.0) == (0.01, 0.02)


@pytest.mark.parametrize("light", [False, True])
def test_a_phase_goes_on_from_its_state_or_from_what_was_carried(tmp_path: Path, light: bool) -> None:
    session = _session(tmp_path)

    def begin() -> tuple[nn.Linear, MuonAdam, Progress]:
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        optimizer = MuonAdam(layer.named_parameters(), stacked_parts, 0.5)
        progress = Progress(session, "phase", dataclasses.replace(PHASE, steps=8), None)
        resume(session, "phase", optimizer, progress)
        return layer, optimizer, progress

    layer, optimizer, progress = begin()
    for number, _ in enumerate(progress):
        layer(torch.randn(4, 8)).square().mean().backward()
        optimizer.step(1e-2, 1e-2)
        if number == 3:
            break
    progress.steps, progress.done = 4, 0.5
    progress.save()
    keep(session, "phase", optimizer, progress)
    if light:
        (tmp_path / "states" / "phase.safetensors").unlink()
    again, second, later = begin()
    assert later.steps == 4
    assert second.steps == (0 if light else 4)
    wanted = optimizer.averages if light else optimizer.masters
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], atol=4e-3 if light else 0.0, rtol=0)


def test_large_weights_are_saved_in_parts(tmp_path: Path) -> None:
    session = _session(tmp_path)
    weights = {f"w{i}": torch.full((3 * 2**20,), float(i)) for i in range(7)}
    session.save("net", weights)
    files = sorted(path.name for path in tmp_path.glob("net-*"))
    assert len(files) == 4
    found = session.load("net")
    assert {name: value[0].item() for name, value in found.items()} == {f"w{i}": i for i in range(7)}
    session.save("net", {"w0": weights["w0"]})
    assert set(session.load("net")) == {"w0"}


def test_what_was_not_trained_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run its phase first"):
        _session(tmp_path).load("transformer")


def _share(folder: Path, session: Session) -> None:
    layer = nn.Linear(2, 2)
    optimizer = MuonAdam(layer.named_parameters(), stacked_parts, 0.0)
    layer.weight.grad = torch.full((2, 2), float(session.rank + 1))
    session.share_gradients([optimizer])
    agreed = session.agreed(7.0 + session.rank)
    torch.save((layer.weight.grad, layer.bias.grad, agreed), folder / f"{session.rank}.pt")


def test_processes_share_gradients_and_agree(tmp_path: Path) -> None:
    session = _session(tmp_path / "run")
    in_processes(partial(_share, tmp_path), session, 2)
    for rank in range(2):
        weight, bias, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert (weight == 1.5).all()
        assert (bias == 0).all()
        assert agreed == 7.0
