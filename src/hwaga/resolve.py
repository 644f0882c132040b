"""From a request to a job: every default filled in, everything checked against the model, nothing computed yet."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import Tensor

from hwaga.cards import ModelCard
from hwaga.errors import LoraError, RequestError, SizeError
from hwaga.families.family import Model, Picture, Tokens
from hwaga.loras import LoraLibrary
from hwaga.prompt import Library, compose
from hwaga.request import MAX_SEED, SAMPLERS, Composed, ImageRequest, LoraUse
from hwaga.settings import Settings
from hwaga.weights.checkpoint import file_digest


@dataclass(frozen=True)
class FoundLora:
    """A LoRA that a request asks for, found."""

    name: str
    weight: float
    file: Path
    digest: str


@dataclass(frozen=True)
class Job:
    """A request with nothing left open.

    Attributes:
        tokens: of the prompt.
        negative: the same of the negative prompt, of a picture that is drawn with guidance; None without.
        length: of the longer one, as the model runs on it.
        shape: of the latents.
    """

    request: ImageRequest
    tokens: Tokens
    negative: Tokens | None
    length: int
    shape: tuple[int, int, int]
    schedule: Tensor
    loras: tuple[FoundLora, ...]

    @property
    def seed(self) -> int:
        return cast(int, self.request.seed)

    @property
    def sampler(self) -> str:
        return self.request.sampler or SAMPLERS[0]

    @property
    def picture(self) -> Picture:
        """What it asks of memory."""
        request, guided = self.request, self.negative is not None
        width, height = cast(int, request.width), cast(int, request.height)
        return Picture(width, height, self.length, request.source is not None, guided)


class Resolver:
    """Resolves requests for one model.

    Args:
        model: what knows the checkpoint's own limits.
        settings: where LoRAs and prompt packs lie.
    """

    def __init__(self, card: ModelCard, model: Model, settings: Settings) -> None:
        self.card = card
        self.model = model
        self.settings = settings

    @cached_property
    def _library(self) -> Library:
        return Library.load(self.settings.packs)

    def resolve(self, request: ImageRequest) -> Job:
        """Raises RequestError where the model does not take the request."""
        model = self.model
        limits = self.card.limits
        ceiling = min(limits.max_tokens, model.max_tokens)
        limit = request.max_tokens or min(limits.tokens, ceiling)
        if limit > ceiling:
            raise RequestError(f"max_tokens of {limit} is beyond {self.card.name}, which takes {ceiling} at most.")
        self.card.check_guidance(request)
        request = self._composed(request, limit)
        steps = steps_of(request, self.card)
        strength = request.strength if request.image is not None else 1.0
        guidance = self.card.guidance if request.guidance is None else request.guidance
        sampler = request.sampler or next(iter(self.card.samplers), None)
        schedule = model.schedule(
            steps,
            strength,
            steps_scale=request.steps_scale and request.image is not None,
            sampler=sampler or SAMPLERS[0],
        )
        # Below the least noise that a model was trained on, a list of levels stays at one of them.
        stays = strength < 1 and bool((schedule.diff() >= 0).any())
        if len(schedule) < 2 or schedule[0] <= 0 or stays:
            raise RequestError(f"A strength of {strength} leaves nothing to do. Raise it.")
        width, height = size_of(request, self.card, model)
        loras = LoraLibrary(self.settings.loras)
        found = [_find_lora(loras, lora, self.card) for lora in request.model_loras]
        resolved = request.replace(
            width=width,
            height=height,
            aspect=None,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        )
        tokens = model.tokenize(request.model_prompt, limit)
        guided = self.card.is_guided(guidance)
        negative = model.tokenize(request.model_negative or "", limit) if guided else None
        return Job(
            request=resolved,
            tokens=tokens,
            negative=negative,
            length=max(model.length(each) for each in (tokens, negative) if each is not None),
            shape=model.latent_shape(width, height),
            schedule=schedule,
            loras=tuple(found),
        )

    def _composed(self, request: ImageRequest, token_limit: int) -> ImageRequest:
        """The request with what the packs make of its words."""
        if not request.composes:
            return request
        composition = compose(
            request.prompt,
            family=self.card.family,
            library=self._library,
            card=self.card,
            style=request.style,
            industry=request.industry,
            avoid=request.avoid,
            use=request.use,
            style_fallback=request.style_fallback,
            guidance=request.guidance,
            count_tokens=self.model.count_tokens,
            token_limit=token_limit,
        )
        sized = request.aspect is not None or request.width is not None or request.image is not None
        return request.replace(
            steps=request.steps or composition.steps,
            aspect=request.aspect if sized else composition.aspect,
            composed=Composed(
                composition.text,
                composition.loras,
                composition.style,
                composition.industry,
                composition.notes,
                composition.negative,
            ),
        )


def _find_lora(library: LoraLibrary, lora: LoraUse, card: ModelCard) -> FoundLora:
    file = library.find(lora.name, card)
    try:
        return FoundLora(lora.name, lora.weight, file, file_digest([file]))
    except OSError as error:
        raise LoraError(f"The LoRA {file} cannot be read: {error.strerror}.") from error


def steps_of(request: ImageRequest, card: ModelCard) -> int:
    """How many steps a request comes to. Raises RequestError where the model does not take them."""
    steps = request.steps or card.steps
    if steps > card.limits.max_steps:
        raise RequestError(f"{card.name} takes {card.limits.max_steps} steps at most, not {steps}.")
    return steps


def size_of(request: ImageRequest, card: ModelCard, model: Model) -> tuple[int, int]:
    """Width and height that a request comes to. Raises SizeError where the model does not take them."""
    if request.aspect is not None:
        size = card.size_of(request.aspect)
    elif request.width is not None and request.height is not None:
        size = request.width, request.height
    elif request.source is not None:
        size = request.source.size_rounded(math.lcm(card.limits.multiple, model.size_multiple))
        try:
            card.check_size(*size)
        except SizeError:
            picture = request.source.image
            nearest = card.nearest_aspect(picture.width, picture.height)
            raise SizeError(
                f"The picture is {picture.width}x{picture.height}, which {card.name} does not make, and no size was "
                f"given. Give an aspect or a size, and the picture is fitted to it. Nearest shape: {nearest}."
            ) from None
    else:
        size = card.default_size
    card.check_size(*size)
    if size[0] % model.size_multiple or size[1] % model.size_multiple:
        raise SizeError(
            f"This checkpoint takes sides that are multiples of {model.size_multiple}, not {size[0]}x{size[1]}."
        )
    if max(size) > model.max_side:
        raise SizeError(f"This checkpoint has positions for sides of up to {model.max_side} pixels, not {max(size)}.")
    return size
