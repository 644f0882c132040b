"""What goes into a generation and what comes out of it: frozen, and checked when made.

What needs the model to decide (default size and steps, the model's limits, the number of tokens) is checked by the engine
before any work begins; what can be wrong on its own is refused here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from hwaga.errors import PromptError, RequestError, SizeError
from hwaga.source_image import SourceImage

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad", "stretch"]

MAX_SEED = 2**32 - 1
"""Largest seed. torch and the reference seed their CPU generator with 32 bits: larger seeds would repeat smaller ones."""


@dataclass(frozen=True)
class ImageRequest:
    """One picture to make.

    Attributes:
        prompt: what to draw, in natural language.
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

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise PromptError(f"The prompt must be text, not {type(self.prompt).__name__}.")
        if not self.prompt.strip():
            raise PromptError("The prompt is empty. Say what the picture should show.")
        try:
            self.prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The prompt has a lone surrogate at character {error.start}, which is not text. Send it as UTF-8."
            ) from error
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

    @property
    def source(self) -> SourceImage | None:
        """The picture to start from, as it was read when the request was made."""
        return cast("SourceImage | None", self.image)

    def replace(self, **changes: Any) -> ImageRequest:
        """A copy with some fields changed, checked again."""
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
            elif value is not None:
                values[item.name] = value
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
        return cls(**{**values, "image": image})


@dataclass(frozen=True)
class Step:
    """One forward of the denoiser is done.

    Attributes:
        index: forwards done so far, from 1.
        total: forwards that this generation takes.
        sigma: noise level now, from nearly 1 down to 0.
    """

    index: int
    total: int
    sigma: float
    _preview: Callable[[], Image | None] = field(repr=False, compare=False)

    @property
    def preview(self) -> Image | None:
        """A small picture of what is emerging (an eighth of each side), or None where the model's card has no
        preview factors. It is computed when asked for, and only while the generation waits at this step.
        """
        return self._preview()


@dataclass(frozen=True)
class Timings:
    """Seconds of wall time by phase, without what the consumer of a stream took between steps.

    In a packed batch the phases are shared, so each picture reports the whole.
    """

    encode: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        return self.encode + self.denoise + self.decode


@dataclass(frozen=True)
class MemoryUse:
    """Memory of this process at the end of a generation, in bytes.

    Attributes:
        peak_vram: most device memory that the process had allocated during the generation; None on the CPU.
        rss_anon: resident anonymous memory (what the kernel could only free by swapping); None where /proc has none.
        swap: memory of this process in swap; None where /proc has none.
    """

    peak_vram: int | None
    rss_anon: int | None
    swap: int | None


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        image: the picture, RGB.
        seed: the seed that made it.
        request: the request with every default filled in: made again, it gives this picture.
        model: name of the model's card.
        weights: tells the checkpoint from others of that name.
        device: device type and number format that it was made with, such as ("cpu", "float32").
        tokens: tokens of the prompt, chat template included.
        timings: seconds by phase.
        memory: memory of the process.
    """

    image: Image
    seed: int
    request: ImageRequest
    model: str
    weights: str
    device: tuple[str, str]
    tokens: int
    timings: Timings
    memory: MemoryUse


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
