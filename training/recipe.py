"""A recipe: every number that a training depends on, read from a TOML file beside this module."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

RECIPES = Path(__file__).parent / "recipes"

Read = TypeVar("Read")


@dataclass(frozen=True)
class Phase:
    """How long and how fast one network is trained.

    Attributes:
        seconds: of the whole phase, over all slices, without compilation; ignored where ``steps`` is set.
        steps: instead of seconds, for runs that must repeat exactly.
        batch: pictures or captions a step, on each GPU.
        rate: peak learning rate of Adam.
        matrix_rate: peak learning rate of Muon, which the weight matrices are trained with.
        warmup: steps that the rates rise over.
        decay: share of the phase, at its end, that they fall over.
        average: how much of the averaged weights stays, each step.
    """

    seconds: float
    batch: int
    rate: float
    matrix_rate: float
    steps: int = 0
    warmup: int = 100
    decay: float = 0.5
    average: float = 0.999


@dataclass(frozen=True)
class Sizes:
    """Sides of the pictures, ``[width, height]``, and how often each is drawn."""

    standard: tuple[tuple[int, int], ...]
    large: tuple[tuple[int, int], ...]
    square_share: float
    large_share: float

    @property
    def all(self) -> tuple[tuple[int, int], ...]:
        return (*self.standard, *self.large)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each of ``all``. The first of either list is the square."""
        shares: list[float] = []
        for sizes, whole in ((self.standard, 1 - self.large_share), (self.large, self.large_share)):
            rest = len(sizes) - 1
            square = self.square_share if rest else 1.0
            shares += [whole * square, *(whole * (1 - square) / rest for _ in range(rest))] if sizes else []
        return tuple(shares)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Sizes and losses of the autoencoder."""

    channels: tuple[int, ...]
    groups: int
    kl: float
    crop: int
    whole_share: float
    """Share of the phase, at its end, that sees whole pictures instead of crops."""
    phase: Phase
    pieces: Phase
    """The phase after it, in which latents stay what they are and pieces learn to look like the whole."""


@dataclass(frozen=True)
class TextEncoderRecipe:
    """Sizes of the text encoder; its own phase teaches it what captions mean before any picture is drawn."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    phase: Phase


@dataclass(frozen=True)
class TransformerRecipe:
    """Sizes of the transformer, and how its training draws noise levels.

    Attributes:
        encoder_rate: the text encoder's learning rates, as a share of the transformer's.
        own_sigmas: share of samples at just the noise levels that the sampler visits.
        guidance: how far the target is moved from what the model draws without a caption; 0.42 is a guidance scale of 1.7.
        guidance_from: share of the phase after which that begins.
        reuse: how often each composed picture is drawn from the pool on average.
        pool: composed pictures kept on each GPU.
        edits: share of samples that continue another picture, as image-to-image does.
    """

    dim: int
    layers: int
    refiners: int
    axes: tuple[int, int, int]
    encoder_rate: float
    own_sigmas: float
    guidance: float
    guidance_from: float
    reuse: float
    pool: int
    edits: float
    phase: Phase

    @property
    def heads(self) -> int:
        return self.dim // sum(self.axes)


@dataclass(frozen=True)
class LoraRecipe:
    """The style LoRAs: a picture style of the pack for each style of the model's card."""

    rank: int
    styles: tuple[str, ...]
    phase: Phase


@dataclass(frozen=True)
class JudgeRecipe:
    """The network that names what a picture shows."""

    channels: tuple[int, ...]
    phase: Phase


@dataclass(frozen=True)
class Recipe:
    """All of it. ``workers`` are processes that write captions, for each GPU."""

    seed: int
    workers: int
    sampler_steps: int
    shift: float
    sizes: Sizes
    autoencoder: AutoencoderRecipe
    judge: JudgeRecipe
    text_encoder: TextEncoderRecipe
    transformer: TransformerRecipe
    loras: LoraRecipe

    @classmethod
    def load(cls, name: str) -> Recipe:
        """Reads ``recipes/NAME.toml``, or the file of that path.

        Raises:
            ValueError: an entry is unknown or missing; it says where.
        """
        path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
        return _read(cls, tomllib.loads(path.read_text(encoding="utf-8")), path.name)


def _read(kind: type[Read], values: dict[str, Any], where: str) -> Read:
    assert dataclasses.is_dataclass(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := values.keys() - fields.keys():
        raise ValueError(f"{where}: unknown entries {', '.join(sorted(unknown))}.")
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := needed - values.keys():
        raise ValueError(f"{where}: missing entries {', '.join(sorted(missing))}.")
    read: dict[str, Any] = {}
    for name, value in values.items():
        part = _PARTS.get(str(fields[name].type))
        read[name] = _read(part, value, f"{where}, {name}") if part else _frozen(value)
    return kind(**read)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


_PARTS: dict[str, type[Any]] = {
    part.__name__: part
    for part in (Phase, Sizes, AutoencoderRecipe, TextEncoderRecipe, TransformerRecipe, LoraRecipe, JudgeRecipe)
}
