"""The phases of a training, in the order that they need one another."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from training.phases import autoencoder, judge, loras, text_encoder, transformer
from training.session import Session

_TRAIN = {
    autoencoder.NAME: autoencoder.train,
    judge.NAME: judge.train,
    text_encoder.NAME: text_encoder.train,
    transformer.NAME: transformer.train,
    "loras": loras.train,
}

PHASES = tuple(_TRAIN)


def train_phases(wanted: Sequence[str], seconds: float | None, session: Session) -> None:
    """Trains those phases that are not finished, for so long altogether.

    A slice that ends in the middle of a phase leaves all that is needed to go on with it.
    """
    if session.device.type == "cuda":
        _prepare_cuda()
    started = time.monotonic()
    for name, train in _TRAIN.items():
        if name not in wanted:
            continue
        left = None if seconds is None else seconds - (time.monotonic() - started)
        if left is not None and session.agreed(left) < LEAST:
            return
        while not _finished(session, name):
            left = None if seconds is None else seconds - (time.monotonic() - started)
            if left is not None and session.agreed(left) < LEAST:
                return
            train(session, left)


LEAST = 10.0
"""Seconds that a phase is begun or gone on with for at least: less goes by while graphs are compiled."""


def _finished(session: Session, name: str) -> bool:
    path = session.run / "progress.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    names = [loras.name_of(style) for style in session.recipe.loras.styles] if name == "loras" else [name]
    finished = all(table.get(each, {}).get("done", 0.0) >= 1.0 for each in names)
    return bool(session.agreed(float(finished)))


def _prepare_cuda() -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64
