"""The text encoder first: what a caption says has to be known before it can be drawn.

Linear heads on the caption's last token (which has read all the others) name the objects and paint small thumbnails
of them, and tell the background, the dye, the number and the places. A transformer that starts with such captions
learns to draw in minutes; one that has to find the meaning of words through noise does not. The heads are then dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import MOST_WORDS, WORDS, Chunk, Writer, written
from training.colours import COLOURS
from training.compose import Textures
from training.networks import TrainedTextEncoder, text_encoder_config
from training.optimizer import MuonAdam, stacked_parts
from training.pack import BASE_STYLE
from training.scenes import MOST_OBJECTS
from training.session import Progress, Session, keep, resume

NAME = "text_encoder"

SLOTS = 2
"""Objects that captions tell apart."""

THUMBNAIL = 10
"""Pixels of a side."""

CHUNK = 512

RING = 400_000
"""Captions kept on the device; they are written more slowly than they are learnt from."""

LONG_EVERY = 8


@dataclass(frozen=True)
class Meanings:
    """What captions say, ``[B, …]`` each: objects (one past the last for none), dye (0 for none), count, four
    floats of place, six of background."""

    things: Tensor
    dyes: Tensor
    counts: Tensor
    places: Tensor
    backgrounds: Tensor


class Ring:
    """Captions and what they mean, on the device; the oldest are replaced."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.ids = torch.zeros(capacity, MOST_WORDS, dtype=torch.int16, device=device)
        self.lengths = torch.zeros(capacity, dtype=torch.long, device=device)
        self.numbers = torch.zeros(capacity, SLOTS + 2, dtype=torch.long, device=device)
        self.values = torch.zeros(capacity, 10, device=device)
        self._words = np.zeros(capacity, np.int64)
        self._next = 0

    def add(self, chunk: Chunk) -> None:
        places = (np.arange(len(chunk.lengths)) + self._next) % len(self._words)
        self._next = int(places[-1] + 1) % len(self._words)
        device = self.ids.device
        at = torch.from_numpy(places).to(device)
        self.ids[at] = torch.from_numpy(chunk.ids).to(device)
        self.lengths[at] = torch.from_numpy(chunk.lengths).to(device)
        self.numbers[at] = torch.from_numpy(chunk.named).to(device)
        backgrounds = chunk.target.backgrounds.reshape(len(places), 6) * 2 - 1
        self.values[at] = torch.from_numpy(np.concatenate([chunk.places, backgrounds], axis=1)).to(device)
        self._words[places] = chunk.words

    def rows(self, words: int) -> np.ndarray:
        return np.flatnonzero(self._words == words)

    def lengths_at_hand(self) -> list[int]:
        counts = np.bincount(self._words // WORDS)
        return [place * WORDS for place, count in enumerate(counts) if place and count]

    def draw(self, rows: np.ndarray, words: int) -> tuple[Tensor, Tensor, Meanings]:
        at = torch.from_numpy(rows).to(self.ids.device, non_blocking=True)
        numbers, values = self.numbers[at], self.values[at]
        meanings = Meanings(numbers[:, :SLOTS], numbers[:, SLOTS], numbers[:, SLOTS + 1], values[:, :4], values[:, 4:])
        return self.ids[at, :words].long(), self.lengths[at], meanings


class Heads(nn.Module):
    """Reads a caption's meaning off its last token."""

    def __init__(self, hidden: int, objects: int) -> None:
        super().__init__()
        self.widths = (
            *(objects + 1,) * SLOTS, *(3 * THUMBNAIL**2,) * SLOTS, len(COLOURS) + 1, MOST_OBJECTS, 4, 6
        )  # fmt: skip
        self.linear = nn.Linear(hidden, sum(self.widths))

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """``[B, P, hidden]``, and the tokens of each caption."""
        last = tokens[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        normed = F.rms_norm(last, last.shape[-1:], eps=1e-5)  # as the transformer's caption embedder will see it
        return tuple(self.linear(normed).float().split(self.widths, dim=1))


def train(session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.text_encoder
    torch.manual_seed(session.recipe.seed + 2)
    things = session.things
    encoder = TrainedTextEncoder(text_encoder_config(recipe)).to(session.device, session.dtype)
    heads = Heads(recipe.hidden, len(things)).to(session.device, session.dtype)
    named = [("encoder." + n, p) for n, p in encoder.named_parameters()]
    named += [("head." + n, p) for n, p in heads.named_parameters()]
    optimizer = MuonAdam(named, stacked_parts, recipe.phase.average)
    progress = Progress(session, NAME, recipe.phase, seconds)
    resume(session, NAME, optimizer, progress)
    thumbnails = _thumbnails(session.textures(BASE_STYLE))
    seed = f"{session.recipe.seed} {NAME} {session.rank} {progress.steps}"

    def writer(worker: int) -> Writer:
        return Writer(things, session.recipe, session.tokenizer, f"{seed} {worker}", empty=0.01)

    chunks = written(writer, CHUNK, session.recipe.workers if session.device.type == "cuda" else 0)
    cuda = session.device.type == "cuda"
    ring = Ring(RING if cuda else 4 * CHUNK, session.device)
    for _ in range(32 if cuda else 1):
        ring.add(next(chunks))
    numbers = np.random.default_rng([session.recipe.seed, 4, session.rank, progress.steps])

    for done in progress:
        ring.add(next(chunks))
        long = progress.steps % LONG_EVERY == LONG_EVERY - 1
        lengths_at_hand = ring.lengths_at_hand()
        words = int(numbers.choice(lengths_at_hand)) if long else lengths_at_hand[0]
        rows = ring.rows(words)
        # Long captions are few, and a batch of them is kept as large in tokens as one of short ones.
        count = max(recipe.phase.batch * WORDS // words, 1)
        ids, lengths, meanings = ring.draw(numbers.choice(rows, count), words)
        losses, right = _losses(heads(encoder(ids), lengths), meanings, thumbnails)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        session.share_gradients([optimizer])
        optimizer.step(*progress.rates(done))
        if progress.steps % 100 == 0:
            session.log(NAME, step=progress.steps, done=done, right=right, **{k: v.detach() for k, v in losses.items()})
    keep(session, NAME, optimizer, progress)


def load(session: Session) -> TrainedTextEncoder:
    """With the weights that this phase left."""
    encoder = TrainedTextEncoder(text_encoder_config(session.recipe.text_encoder))
    found = session.load(NAME)
    prefix = "encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)})
    return encoder.to(session.device, session.dtype)


def _losses(read: tuple[Tensor, ...], said: Meanings, thumbnails: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    objects, painted, rest = read[:SLOTS], read[SLOTS : 2 * SLOTS], read[2 * SLOTS :]
    named = [F.cross_entropy(scores, said.things[:, slot]) for slot, scores in enumerate(objects)]
    painted_ = [(p - thumbnails[said.things[:, slot]]).square().mean() for slot, p in enumerate(painted)]
    losses = {
        "objects": torch.stack(named).sum(),
        "thumbnails": 2 * torch.stack(painted_).sum(),
        "dyes": F.cross_entropy(rest[0], said.dyes),
        "counts": 0.5 * F.cross_entropy(rest[1], said.counts),
        "places": 10 * (rest[2] - said.places).square().mean(),
        "backgrounds": 3 * (rest[3] - said.backgrounds).square().mean(),
    }
    return losses, (objects[0].argmax(1) == said.things[:, 0]).float().mean()


@torch.no_grad()
def _thumbnails(textures: Textures) -> Tensor:
    """Of every object, and an empty one, ``[objects + 1, 3 * side²]``, each pixel with a mean of 0 and a deviation near 1."""
    small = torch.cat(
        [F.adaptive_avg_pool2d(part.float(), THUMBNAIL)[:, :3].flatten(1) for part in textures.full.split(128)]
    )
    small = (small - small.mean(0)) / small.std(0).clamp(min=0.05)
    return torch.cat([small, torch.zeros_like(small[:1])])
