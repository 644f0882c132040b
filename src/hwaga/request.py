"""What goes into a generation: frozen, and checked when made. What comes out of it is in ``result``.

What needs the model to decide (default size and steps, the model's limits, the number of tokens) is checked by the engine
before any work begins; what can be wrong on its own is refused here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from hwaga.errors import LoraError, PromptError, RequestError, SizeError, StyleError
from hwaga.source_image import SourceImage

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad", "stretch"]

MAX_LORAS = 16

SAMPLERS = ("euler", "dpmpp_2m_karras")
"""Ways to walk down the noise levels, for models that have a choice of them; each model's card lists its own."""

MAX_GUIDANCE = 30

MAX_SEED = 2**32 - 1
"""Largest seed. torch and the reference seed their CPU generator with 32 bits: larger seeds would repeat smaller ones."""


@dataclass(frozen=True)
class LoraUse:
    """A LoRA to draw with.

    Attributes:
        name: what it is called on the model's card or in the user's library; never a path.
        weight: 1 is as trained, 0 is without it; above 1 and below 0 work too.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise LoraError(f"A LoRA is asked for by its name, not by {self.name!r}.")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not -10 <= self.weight <= 10:
            raise LoraError(f"The weight of the LoRA {self.name} must be from -10 to 10, not {self.weight!r}.")
        object.__setattr__(self, "weight", float(self.weight))

    @classmethod
    def parse(cls, text: str) -> LoraUse:
        """Reads "NAME" or "NAME:WEIGHT"."""
        name, colon, number = text.partition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            raise LoraError(f"A LoRA is given as NAME or NAME:WEIGHT, as in flat:0.8, not {text!r}.") from None
        return cls(name, weight)


@dataclass(frozen=True)
class Composed:
    """What the prompt packs made of a request's words.

    Attributes:
        prompt: the text that the model is given.
        loras: what the style draws with.
        style, industry: what they came to, also where "auto" chose; None where there is none.
        notes: for people: what was chosen and why, what was left out.
        negative: what the picture should not show; None for a model that has no negative prompt, and where nothing is unwanted.
    """

    prompt: str
    loras: tuple[LoraUse, ...] = ()
    style: str | None = None
    industry: str | None = None
    notes: tuple[str, ...] = ()
    negative: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_negative(self.negative)
        names = all(name is None or isinstance(name, str) for name in (self.style, self.industry))
        loras = isinstance(self.loras, tuple) and all(isinstance(lora, LoraUse) for lora in self.loras)
        notes = isinstance(self.notes, tuple) and all(isinstance(note, str) for note in self.notes)
        if not (names and loras and notes):
            raise RequestError(f"A composed prompt's style, industry, LoRAs or notes are of a wrong form: {self!r}.")


@dataclass(frozen=True)
class ImageRequest:
    """One picture to make.

    With a style, an industry, a use or things to avoid, the packs' wording follows the prompt. What came of it is kept in
    ``composed``, and a request that carries it is drawn from it: the packs are not asked again, so that a picture can be made
    again after they have changed.

    Attributes:
        prompt: what to draw, in natural language.
        negative: what the picture should not show, for a model that is drawn with guidance. Other models take ``avoid``.
        guidance: how much the picture follows the prompts, 1 to 30; the model's default when left out. At 1 there is no
            negative prompt, and a step is one pass of the denoiser instead of two.
        sampler: one of ``SAMPLERS``, for a model that has a choice of them; its default when left out.
        style: a style by name, title or alias, or "auto".
        industry: a business, likewise.
        avoid: things not wanted, such as "text".
        use: where the picture will be shown: "feed", "story", "banner" or "poster". It chooses the shape, if nothing else does.
        style_fallback: go on without a style's LoRA that is not there.
        loras: LoRAs beside the style's, as ``LoraUse``, "NAME" or "NAME:WEIGHT". One that the style uses too counts here.
        width: pixels; with ``height`` and ``aspect`` left out, the model's default, or the source picture's own size.
        height: pixels; given together with ``width`` or not at all.
        aspect: a shape by name ("16:9"), looked up on the model's card; instead of width and height.
        steps: forwards of the denoiser; the model's default when left out.
        seed: 0 to 2**32 - 1; drawn at random when left out, and reported in the result.
        image: a picture to start from: a path, encoded bytes or a PIL image. It is read here and now.
        strength: in (0, 1]; the noise level that the source picture is taken to. 1 ignores the picture.
        fit: how a source picture of another shape meets the size: "crop", "pad" (white) or "stretch".
        steps_scale: image-to-image as the reference pipeline does it: ``strength`` drops the first steps of the
            full schedule, so that fewer forwards run and nearby strengths give the same picture.
        max_tokens: the prompt's limit in tokens, to raise it up to what the model's positions allow.

    Raises:
        RequestError: (or a subclass) for anything that no model could honour.
    """

    prompt: str
    _: dataclasses.KW_ONLY
    negative: str | None = None
    guidance: float | None = None
    sampler: str | None = None
    style: str | None = None
    industry: str | None = None
    avoid: Sequence[str] = ()
    use: str | None = None
    style_fallback: bool = False
    loras: Sequence[LoraUse | str] = ()
    width: int | None = None
    height: int | None = None
    aspect: str | None = None
    steps: int | None = None
    seed: int | None = None
    image: SourceImage | Image | bytes | str | PathLike[str] | None = None
    strength: float = 0.6
    fit: Fit = "crop"
    steps_scale: bool = False
    max_tokens: int | None = None
    composed: Composed | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_negative(self.negative)
        self._check_guidance()
        self._check_words()
        if (self.width is None) != (self.height is None):
            raise SizeError("Give width and height together, or neither.")
        if self.width is not None and self.aspect is not None:
            raise SizeError("Give either an aspect or a width and height, not both.")
        for name in ("width", "height"):
            side = getattr(self, name)
            if side is not None and not _is_int(side):
                raise SizeError(f"The {name} must be a whole number of pixels, not {side!r}.")
            if side is not None and side < 1:
                raise SizeError(f"The {name} must be positive, not {side}.")
        if self.aspect is not None and not isinstance(self.aspect, str):
            raise SizeError(f"The aspect must be the name of a shape, as in '16:9', not {self.aspect!r}.")
        if not isinstance(self.steps_scale, bool):
            raise RequestError(f"steps_scale must be true or false, not {self.steps_scale!r}.")
        for name in ("steps", "max_tokens"):
            count = getattr(self, name)
            if count is not None and (not _is_int(count) or count < 1):
                raise RequestError(f"{name} must be a whole number of at least 1, not {count!r}.")
        if self.seed is not None and (not _is_int(self.seed) or not 0 <= self.seed <= MAX_SEED):
            raise RequestError(f"The seed must be a whole number from 0 to {MAX_SEED}, not {self.seed!r}.")
        number = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength) or not 0 < self.strength <= 1:
            raise RequestError(
                f"The strength must be above 0 and at most 1, not {self.strength!r}. "
                "Low values stay close to the picture, 1 ignores it."
            )
        if self.fit not in get_args(Fit):
            raise RequestError(f"fit must be one of {', '.join(get_args(Fit))}, not {self.fit!r}.")
        if self.image is not None and not isinstance(self.image, SourceImage):
            object.__setattr__(self, "image", SourceImage.read(self.image))

    def _check_guidance(self) -> None:
        if self.guidance is not None:
            number = isinstance(self.guidance, int | float) and not isinstance(self.guidance, bool)
            if not number or not 1 <= self.guidance <= MAX_GUIDANCE:  # which NaN is not either
                raise RequestError(
                    f"The guidance must be from 1 to {MAX_GUIDANCE}, not {self.guidance!r}. 1 is none; 3 to 8 is usual."
                )
            object.__setattr__(self, "guidance", float(self.guidance))
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise RequestError(f"The sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}.")

    def _check_words(self) -> None:
        for name in ("style", "industry", "use"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise StyleError(f"The {name} must be a name, not {value!r}.")
        if not _is_list(self.avoid) or not all(isinstance(item, str) for item in self.avoid):
            raise RequestError(f"avoid must be a list of texts, not {self.avoid!r}.")
        if not isinstance(self.style_fallback, bool):
            raise RequestError(f"style_fallback must be true or false, not {self.style_fallback!r}.")
        if self.composed is not None and not isinstance(self.composed, Composed):
            raise RequestError(f"composed must be a Composed, not {self.composed!r}.")
        if not _is_list(self.loras):
            raise LoraError(f"loras must be a list, not {self.loras!r}.")
        loras = tuple(LoraUse.parse(lora) if isinstance(lora, str) else lora for lora in self.loras)
        if not all(isinstance(lora, LoraUse) for lora in loras):
            raise LoraError(f"A LoRA is given as NAME, NAME:WEIGHT or LoraUse, not as in {self.loras!r}.")
        if len({lora.name for lora in loras}) < len(loras) or len(loras) > MAX_LORAS:
            raise LoraError(f"Give each LoRA once, and {MAX_LORAS} at most.")
        object.__setattr__(self, "avoid", tuple(self.avoid))
        object.__setattr__(self, "loras", loras)

    @property
    def composes(self) -> bool:
        """Whether the packs are still to be asked about the prompt."""
        return self.composed is None and bool(self.style or self.industry or self.avoid or self.use)

    @property
    def model_prompt(self) -> str:
        """The text that the model is given; once the request is resolved."""
        return self.prompt if self.composed is None else self.composed.prompt

    @property
    def model_negative(self) -> str | None:
        """The negative prompt that the model is given, once the request is resolved: what was typed, then the packs' words."""
        composed = None if self.composed is None else self.composed.negative
        return ", ".join(text for text in (self.negative, composed) if text) or None

    @property
    def model_loras(self) -> tuple[LoraUse, ...]:
        """Every LoRA that the picture is drawn with; once the request is resolved."""
        own = cast("tuple[LoraUse, ...]", self.loras)
        names = {lora.name for lora in own}
        styles = () if self.composed is None else self.composed.loras
        return (*(lora for lora in styles if lora.name not in names), *own)

    @property
    def source(self) -> SourceImage | None:
        """The picture to start from, as it was read when the request was made."""
        return cast("SourceImage | None", self.image)

    def replace(self, **changes: Any) -> ImageRequest:
        """A copy with some fields changed, checked again. Other words are composed anew."""
        if changes.keys() & {"prompt", "style", "industry", "avoid", "use", "style_fallback"}:
            changes = {"composed": None, **changes}
        return dataclasses.replace(self, **changes)

    def variations(self, n: int) -> list[ImageRequest]:
        """``n`` requests alike but for the seed: seed, seed + 1, … The seed must be set when ``n`` is above 1.

        Raises:
            RequestError: no seed to count from, or seeds past the largest one.
        """
        if not _is_int(n) or n < 1:
            raise RequestError(f"The number of pictures must be at least 1, not {n!r}.")
        if n == 1:
            return [self]
        if self.seed is None:
            raise RequestError("Set a seed to make several pictures from: each next picture counts it up by one.")
        return [self.replace(seed=self.seed + k) for k in range(n)]

    def to_json(self) -> dict[str, Any]:
        """The request as JSON values, without fields that are left out. A source picture is named, not embedded."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, SourceImage):
                values["image"] = value.to_json()
            elif isinstance(value, Composed):
                composed = {"prompt": value.prompt, "loras": _uses(value.loras), "style": value.style,
                            "industry": value.industry, "notes": list(value.notes),
                            "negative": value.negative}  # fmt: skip
                values["composed"] = {name: part for name, part in composed.items() if part}
            elif item.name == "loras" and value:
                values["loras"] = _uses(value)
            elif item.name == "avoid" and value:
                values["avoid"] = list(value)
            elif value not in (None, ()):
                values[item.name] = value
        if not self.style_fallback:
            del values["style_fallback"]
        if self.source is None:
            for name in ("strength", "fit", "steps_scale"):
                del values[name]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], *, image: SourceImage | None = None) -> ImageRequest:
        """The request that ``to_json`` wrote. ``image`` stands in for the named source picture.

        Raises:
            RequestError: a field of a name that this version does not know, or a bad value.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise RequestError(
                f"The settings hold {', '.join(unknown)}, which this version does not know. Upgrade hwaga to use them."
            )
        if "prompt" not in values:
            raise PromptError("The settings hold no prompt.")
        values = {**values, "image": image}
        try:
            if "loras" in values:
                values["loras"] = _from_uses(values["loras"])
            if "composed" in values:
                composed = dict(values["composed"])
                composed["loras"] = _from_uses(composed.get("loras", ()))
                composed["notes"] = tuple(composed.get("notes", ()))
                values["composed"] = Composed(**composed)
        except (TypeError, ValueError, KeyError) as error:
            raise RequestError(f"The settings' LoRAs or composed prompt cannot be read: {error}.") from error
        return cls(**values)


def _uses(loras: tuple[LoraUse, ...]) -> list[dict[str, Any]]:
    return [{"name": lora.name, "weight": lora.weight} for lora in loras]


def _from_uses(values: Any) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(**value) for value in values)


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise PromptError(f"The prompt must be text, not {type(prompt).__name__}.")
    if not prompt.strip():
        raise PromptError("The prompt is empty. Say what the picture should show.")
    _check_encodes(prompt, "prompt")


def _check_negative(prompt: object) -> None:
    if prompt is None:
        return
    if not isinstance(prompt, str):
        raise PromptError(f"The negative prompt must be text, not {type(prompt).__name__}.")
    if not prompt.strip():
        raise PromptError("The negative prompt is empty. Leave it out.")
    _check_encodes(prompt, "negative prompt")


def _check_encodes(prompt: str, what: str) -> None:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The {what} has a lone surrogate at character {error.start}, which is not text. Send it as UTF-8."
        ) from error


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
