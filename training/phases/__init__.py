"""The phases of a training, in the order that they need one another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from training.phases import autoencoder, judge, loras, text_encoder, transformer
from training.session import Session

PHASES = (autoencoder.NAME, judge.NAME, text_encoder.NAME, transformer.NAME, "loras")

Train = Callable[[Session, float | None], None]


def train_phases(wanted: Sequence[str], seconds: float | None, session: Session) -> None:
    """Trains those phases that are not finished, for so long altogether. A single LoRA may be named too, as ``lora-STYLE``.

    A slice that ends in the middle of a phase leaves all that is needed to go on with it.
    """
    session.prepare()
    started = time.monotonic()
    for phase, name, train in _steps(session):
        while (phase in wanted or name in wanted) and not _finished(session, name):
            left = None if seconds is None else session.agreed(seconds - (time.monotonic() - started))
            if left is not None and left < LEAST:
                return
            train(session, left)


def _steps(session: Session) -> Iterator[tuple[str, str, Train]]:
    """Phases, their names in ``progress.json``, and what trains them; the LoRAs are one after the other."""
    yield autoencoder.NAME, autoencoder.NAME, autoencoder.train
    yield judge.NAME, judge.NAME, judge.train
    yield text_encoder.NAME, text_encoder.NAME, text_encoder.train
    yield transformer.NAME, transformer.NAME, transformer.train
    for style in session.recipe.loras.styles:
        yield "loras", loras.name_of(style), partial(loras.train, style)


LEAST = 10.0
"""Seconds that a phase is begun or gone on with for at least: less goes by while graphs are compiled."""


def _finished(session: Session, name: str) -> bool:
    """As the first process sees it, once it has written all that the others will read."""
    path = session.run / "progress.json"
    table = json.loads(path.read_text()) if session.rank == 0 and path.exists() else {}
    return bool(session.agreed(float(table.get(name, {}).get("done", 0.0) >= 1.0)))
