"""The judge: a small network that says what a picture shows. It learns from composed pictures, never from the model's."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.colours import COLOURS, DYES, WHITE
from training.compose import Arrangement, Layer, Textures, compose
from training.layouts import backgrounds_for, dyes
from training.optimizer import MuonAdam, stacked_parts
from training.pack import STYLES, Thing
from training.scenes import MOST_OBJECTS, NO_DYE, place
from training.session import Progress, Session, keep, resume

NAME = "judge"

SIDE = 128
"""Pixels of a side that it looks at; larger pictures are averaged down."""

CHANCES = (0.5, 0.25, 0.25)
"""Of each style."""

SHARES = {1: 0.5, 2: 0.17, 3: 0.17, 4: 0.16}
"""Of each number of objects in a batch."""

MEASURED = 1024


class Judge(nn.Module):
    """A convolutional network with a head for each question: which object, in what colour, how many.

    Its stages are those that ``benchmarks/following.py`` knows; ``judge_file`` writes the eight-bit copy that it reads.
    """

    def __init__(self, channels: tuple[int, ...], objects: int) -> None:
        super().__init__()
        first, *later = channels
        self.stem = Convolution(3, first, 5, 2)
        self.downs = nn.ModuleList(Convolution(a, b, 3, 2) for a, b in zip(channels, later, strict=False))
        self.residuals = nn.ModuleList(
            nn.Sequential(Convolution(width, width, 3, 1), nn.ReLU(), Convolution(width, width, 3, 1))
            for width in later
        )
        self.object_head = nn.Linear(channels[-1], objects)
        self.colour_head = nn.Linear(channels[-1], len(COLOURS))
        self.count_head = nn.Linear(channels[-1], MOST_OBJECTS)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, 3, 128, 128]`` in [-1, 1] to scores of objects, of colours, and of counts from one on."""
        x = self.stem(pictures).relu()
        for down, residual in zip(self.downs, self.residuals, strict=True):
            x = down(x).relu()
            x = (x + residual(x)).relu()
        x = x.mean((2, 3))
        return self.object_head(x), self.colour_head(x), self.count_head(x)


class Convolution(nn.Module):
    """A convolution and its norm."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def examples(
    things: tuple[Thing, ...], count: int, objects: int, size: tuple[int, int], numbers: np.random.Generator
) -> tuple[Arrangement, np.ndarray, np.ndarray]:
    """Pictures of so many equal objects each, placed as scenes place them and a little wilder.

    Returns:
        The pictures, their objects ``[B]``, and the colours that the objects have, -1 where no name fits.
    """
    rng = random.Random(int(numbers.integers(2**62)))
    picked = numbers.integers(len(things), size=count)
    dyed = dyes(things, picked, numbers, 0.4)
    natural = np.array([thing.natural for thing in things])[picked]
    kinds = ["one", "one", "small", "large", "side"] if objects == 1 else ["count"]
    places = [place(rng, rng.choice(kinds), objects, *size) for _ in range(count)]
    layers = []
    for slot in range(objects):
        spots = np.array([(p[slot].x, p[slot].y, p[slot].size, p[slot].angle) for p in places], np.float32)
        spots[:, :2] += numbers.normal(0, 0.015, (count, 2))
        spots[:, 2] *= np.exp(numbers.normal(0, 0.05, count))
        layers.append(Layer(np.arange(count), picked, spots, dyed))
    palette = np.array([colour.rgb for colour in COLOURS], np.float32) / 255
    ends = backgrounds_for(len(things), picked[None], numbers)
    ends[numbers.random(count) < 0.2] = WHITE
    off = numbers.normal(0, 0.02, (count, 1, 3)).astype(np.float32)
    backgrounds = np.clip(palette[ends] + off, 0, 1).astype(np.float32)
    return Arrangement(tuple(layers), backgrounds), picked, np.where(dyed == NO_DYE, natural, dyed)


def train(session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.judge
    torch.manual_seed(session.recipe.seed + 1)
    things = session.things
    judge = Judge(recipe.channels, len(things)).to(session.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = MuonAdam(judge.named_parameters(), stacked_parts, 0.0)
    progress = Progress(session, NAME, recipe.phase, seconds)
    resume(session, NAME, optimizer, progress)
    if progress.steps:
        judge.load_state_dict(session.load(NAME))
    textures = {style: session.textures(style) for style in STYLES}
    numbers = np.random.default_rng([session.recipe.seed, 2, session.rank, progress.steps])
    size = session.recipe.sizes.standard[0]
    look = torch.compile(judge, dynamic=False) if session.compiles else judge

    for done in progress:
        pictures, *answers = mixed(things, textures, recipe.phase.batch, size, numbers)
        with torch.autocast(session.device.type, torch.bfloat16, enabled=session.device.type == "cuda"):
            scores = look(pictures.contiguous(memory_format=torch.channels_last))
        targets = [torch.from_numpy(values).to(session.device) for values in answers]
        loss = F.cross_entropy(scores[0].float(), targets[0], label_smoothing=0.05)
        named = (targets[1] >= 0).float()
        by_colour = F.cross_entropy(scores[1].float(), targets[1].clamp(min=0), reduction="none")
        loss = loss + 0.5 * (by_colour * named).sum() / named.sum().clamp(min=1)
        loss = loss + 0.3 * F.cross_entropy(scores[2].float(), targets[2])
        loss.backward()
        session.share_gradients([optimizer])
        optimizer.step(*progress.rates(done))
        if progress.steps % 100 == 0:
            right = (scores[0].argmax(1) == targets[0]).float().mean()
            session.log(NAME, step=progress.steps, done=done, loss=loss.detach(), right=right)
    keep(session, NAME, optimizer, progress)
    session.save(NAME, judge.state_dict())
    if progress.finished:
        session.log(NAME, **{style: accuracy(session, judge, textures[style], style) for style in STYLES})


def mixed(
    things: tuple[Thing, ...],
    textures: dict[str, Textures],
    count: int,
    size: tuple[int, int],
    numbers: np.random.Generator,
) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """About ``count`` pictures of one to four objects, with their objects, colours, and numbers less one.

    All numbers come in each batch: batch norms would tell batches of one number apart, and then one picture says nothing.
    """
    pictures, answers = [], []
    for objects, share in [*SHARES.items()] * 2:  # twice, so that no style is of one number alone
        style = STYLES[int(numbers.choice(len(STYLES), p=CHANCES))]
        arrangement, picked, colours = examples(things, max(round(count * share / 2), 1), objects, size, numbers)
        pictures.append(_roughened(compose(textures[style], arrangement, *size), numbers))
        answers.append((picked, colours, np.full_like(picked, objects - 1)))
    picked, colours, counts = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return torch.cat(pictures), picked, colours, counts


def load(session: Session) -> Judge:
    judge = Judge(session.recipe.judge.channels, len(session.things))
    judge.load_state_dict(session.load(NAME))
    return judge.to(session.device).eval()


@torch.no_grad()
def accuracy(session: Session, judge: Judge, textures: Textures, style: str) -> dict[str, float]:
    """How often it is right about composed pictures of its own kind that it has not seen."""
    judge.eval()
    numbers = np.random.default_rng([session.recipe.seed, 3, STYLES.index(style)])
    count = MEASURED if session.device.type == "cuda" else 32
    size = session.recipe.sizes.standard[0]
    arrangement, picked, colours = examples(session.things, count, 1, size, numbers)
    pictures = seen_by_judge(compose(textures, arrangement, *size))
    scores = [torch.cat(parts) for parts in zip(*(judge(part) for part in pictures.split(64)), strict=True)]
    target, colour = (torch.from_numpy(values).to(session.device) for values in (picked, colours))
    counted = []
    for objects in range(1, MOST_OBJECTS + 1):
        arrangement, _, _ = examples(session.things, count // 4, objects, size, numbers)
        seen = seen_by_judge(compose(textures, arrangement, *size))
        told = torch.cat([judge(part)[2].argmax(1) for part in seen.split(64)])
        counted.append((told == objects - 1).float().mean())
    five = (scores[0].topk(5, dim=1).indices == target[:, None]).any(1)
    named = colour >= 0
    return {
        "object_top_1": (scores[0].argmax(1) == target).float().mean().item(),
        "object_top_5": five.float().mean().item(),
        "colour": (chosen_colour(scores[1]) == colour)[named].float().mean().item(),
        "count": torch.stack(counted).mean().item(),
    }


def seen_by_judge(pictures: Tensor) -> Tensor:
    """Square pictures ``[B, 3, S, S]`` at the side that the judge looks at."""
    return F.adaptive_avg_pool2d(pictures, SIDE)


def chosen_colour(scores: Tensor) -> Tensor:
    """The likeliest of the colours that objects are dyed in."""
    allowed = torch.tensor(DYES, device=scores.device)
    return allowed[scores[:, allowed].argmax(1)]


def _roughened(pictures: Tensor, numbers: np.random.Generator) -> Tensor:
    """At the judge's size, at times a little soft or noisy: it shall not tell objects by what only a perfect picture has."""
    small = seen_by_judge(pictures)
    if numbers.random() < 0.3:
        small = F.interpolate(F.avg_pool2d(small, 2), size=SIDE, mode="bilinear")
    return small + torch.randn_like(small) * float(numbers.choice([0.0, 0.02, 0.06]))
