"""The phases of a training, in the order that they need one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from training.phases import autoencoder, judge, loras, pieces, text_encoder, transformer
from training.recipe import Phase
from training.session import Progress, Session

PHASES = (autoencoder.NAME, pieces.NAME, judge.NAME, text_encoder.NAME, transformer.NAME, "loras")

Train = Callable[[Session, float | None], None]


def train_phases(wanted: Sequence[str], seconds: float | None, session: Session) -> None:
    """Trains those phases that are not finished, for so long altogether. A single LoRA may be named too, as ``lora-STYLE``.

    A slice that ends in the middle of a phase leaves all that is needed to go on with it.
    """
    session.prepare()
    started = time.monotonic()
    for group, name, phase, train in _steps(session):
        while (group in wanted or name in wanted) and not _finished(session, name, phase):
            left = None if seconds is None else session.agreed(seconds - (time.monotonic() - started))
            if left is not None and left < LEAST:
                return
            session.forget(*_trained_on(session, name))
            # Trying convolutions is slow for each new shape: worth it where one shape comes thousands of times.
            torch.backends.cudnn.benchmark = name in (autoencoder.NAME, pieces.NAME, judge.NAME)
            train(session, left)


def _steps(session: Session) -> Iterator[tuple[str, str, Phase, Train]]:
    """Groups of phases, their names in ``progress.json``, and what trains them; the LoRAs are one after the other."""
    recipe = session.recipe
    yield autoencoder.NAME, autoencoder.NAME, recipe.autoencoder.phase, autoencoder.train
    yield pieces.NAME, pieces.NAME, recipe.autoencoder.pieces, pieces.train
    yield judge.NAME, judge.NAME, recipe.judge.phase, judge.train
    yield text_encoder.NAME, text_encoder.NAME, recipe.text_encoder.phase, text_encoder.train
    yield transformer.NAME, transformer.NAME, recipe.transformer.phase, transformer.train
    for style in recipe.loras.styles:
        yield "loras", loras.name_of(style), recipe.loras.phase, partial(loras.train, style)


def _trained_on(session: Session, name: str) -> list[str]:
    """Phases that are worth nothing once this one goes on."""
    if name == transformer.NAME:
        return [loras.name_of(style) for style in session.recipe.loras.styles]
    return [pieces.NAME] if name == autoencoder.NAME else []


LEAST = 10.0
"""Seconds that a phase is begun or gone on with for at least: less goes by while graphs are compiled."""


def _finished(session: Session, name: str, phase: Phase) -> bool:
    """As the first process sees it, once it has written all that the others will read."""
    return bool(session.agreed(float(session.rank == 0 and Progress(session, name, phase, None).finished)))
