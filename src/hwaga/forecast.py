"""What would be opened, where, and how it would use memory: plans without an engine, and without weights.

The sizes come from the headers of a model's files, or from its family where the files are not on this machine. The device is
one of this machine, or an NVIDIA GPU that is only thought of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from hwaga.cards import ModelCard
from hwaga.errors import DeviceError, DoesNotFitError
from hwaga.families import find_family
from hwaga.families.family import Model, Picture
from hwaga.kernels.operations import why_not_fused
from hwaga.memory.budget import budget, cap_for, host_memory, process_memory, rounded
from hwaga.memory.device import device_memory, find_device, multiplies_bfloat16
from hwaga.memory.plan import Budget, Plan
from hwaga.memory.planner import plan
from hwaga.memory.sharing import Holding, holding_of
from hwaga.model_lookup import card_of
from hwaga.request import ImageRequest
from hwaga.resolve import size_of, steps_of
from hwaga.room import Caps
from hwaga.settings import Settings
from hwaga.weights.verified import Verified

FULL = "full"
AUTO = "auto"

NUMBER_FORMATS = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}
"""Short names of formats, by which many call whole weights."""

SIDES = (2048, 1536, 1280, 768, 512, 384, 256)
"""Of squares that are offered where a picture does not fit, beside the card's shapes."""

IMAGINED = "cuda"
"""The kind of GPU that is thought of."""

INSTEAD = {
    "cpu": "Close what else uses memory, or keep weights in fewer bits with --precision int8.",
    "mps": "Close what else uses memory, keep weights in fewer bits with --precision int8, or use the CPU.",
    "cuda": "Give more memory with --vram, keep weights in fewer bits with --precision int8, or use the CPU.",
}
"""What to do where not even one small picture fits, by kind of device."""


@dataclass(frozen=True)
class Forecast:
    """A plan, and what it is for.

    Attributes:
        device: as torch names it; "cuda" for a GPU that is thought of.
        imagined: that GPU is thought of.
        dtype: number format of the networks.
        precision: how the large weights are kept.
        present: the sizes were read from the model's files, and are not those that its family has published.
        pictures, steps: of the batch.
        holding: the weights, as they lie under the plan.
    """

    card: ModelCard
    device: str
    imagined: bool
    dtype: str
    precision: str
    present: bool
    pictures: tuple[Picture, ...]
    steps: int
    caps: Caps
    plan: Plan
    holding: Holding

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "model": self.card.name,
            "device": self.device,
            "imagined": self.imagined,
            "dtype": self.dtype,
            "precision": self.precision,
            "present": self.present,
            "pictures": [asdict(picture) for picture in self.pictures],
            "steps": self.steps,
            "vram_cap_bytes": self.caps.vram,
            "ram_cap_bytes": self.caps.ram,
            **self.plan.to_json(),
        }


def forecast(
    model: str | Path | ModelCard | None = None,
    request: ImageRequest | None = None,
    *,
    number: int = 1,
    source: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    vram: int | str | None = None,
    ram: int | str | None = None,
    settings: Settings | None = None,
) -> Forecast:
    """The plan that an engine would make, from the same arguments as those of ``Engine.open``.

    Args:
        request: its size, steps and guidance count; the model's defaults where left out. Its prompt is taken to be as long as
            is usual.
        number: so many pictures of that size, in one batch.
        source: they start from a picture.
        vram: where this machine has no GPU and no device is asked for, the size of an NVIDIA GPU to plan for. ``ram`` is then
            the whole memory of its host.

    Raises:
        DoesNotFitError: there is no plan. What would fit is in its message.
        ModelError: the model is unknown or damaged.
        DeviceError: this machine has no such device, or the model does not run in that format.
        RequestError: the model does not take the size, the steps or the guidance.
    """
    settings = settings or Settings.read()
    caps = Caps.of(vram, ram, settings)
    if vram and device is None and find_device(None).type == "cpu":
        card, place = card_of(model, settings), None
        chosen = find_dtype(dtype or settings.dtype, find_family(card.family).dtypes, IMAGINED)
    else:
        card, place, chosen = choose(model, device or settings.device, dtype or settings.dtype, settings)
    with ExitStack() as opened:

        @cache
        def model_kept(way: str) -> Model:
            return opened.enter_context(closing(_headers(card, _like(place), chosen, way)))

        def planned(way: str, wanted: Sequence[Picture], count: int) -> Plan | None:
            try:
                return plan(model_kept(way).demand(wanted, count, 0), there)
            except DoesNotFitError:
                return None

        ways = precisions(card, precision or settings.precision, chosen)
        first = model_kept(ways[0])
        there = _there(place, caps)
        size, steps = card.default_size, card.steps
        if request is not None:
            card.check_guidance(request)
            size, steps = size_of(request, card, first), steps_of(request, card)
        guided = card.is_guided(None if request is None else request.guidance)
        pictures = (Picture(*size, card.limits.tokens, source, guided),) * number
        tried = itertools.product(first_pictures(card), ways)
        way = next((way for picture, way in tried if planned(way, [picture], card.steps)), ways[-1])
        wanted = model_kept(way).demand(pictures, steps, 0)
        try:
            made = plan(wanted, there)
        except DoesNotFitError as error:
            smaller = what_would_fit(card, pictures, lambda fewer: planned(way, fewer, steps) is not None)
            others = (other for other in find_family(card.family).precisions if other != way)
            fewer_bits = next((f"With --precision {other} this would fit." for other in others
                               if planned(other, pictures, steps)), None)  # fmt: skip
            advice = [text for text in (smaller, fewer_bits) if text is not None]
            if place is None:
                advice.append(f"A GPU of {cap_for(error.needed) / 2**30:.2f} GiB would do.")
            elif not advice:
                advice.append(INSTEAD[place.type])
            raise DoesNotFitError(" ".join([str(error), *advice]), needed=error.needed) from None
    return Forecast(
        card=card,
        device=str(place or IMAGINED),
        imagined=place is None,
        dtype=str(chosen).removeprefix("torch."),
        precision=way,
        present=_is_whole(card),
        pictures=pictures,
        steps=steps,
        caps=caps,
        plan=made,
        holding=holding_of(card.name, wanted.parts, made),
    )


def what_would_fit(
    card: ModelCard, pictures: Sequence[Picture], fits: Callable[[Sequence[Picture]], bool]
) -> str | None:
    """What could be asked for instead of a batch that does not fit, for messages; None where nothing smaller would fit."""
    for fewer in range(len(pictures) - 1, 0, -1):
        if fits(pictures[:fewer]):
            return f"{fewer} of these pictures at a time would fit."
    sizes = [(f"{width}x{height} ({name})", width, height) for name, (width, height) in card.aspects.items()]
    if not card.limits.listed_sizes_only:
        sizes += [(f"{side}x{side}", side, side) for side in SIDES if _takes(card, side)]
    for size, width, height in sorted(sizes, key=lambda each: each[1] * each[2], reverse=True):
        smaller = replace(pictures[0], width=width, height=height)
        if width * height < pictures[0].width * pictures[0].height and fits([smaller]):
            return f"One picture of {size} would fit."
    return None


def choose(
    model: str | Path | ModelCard | None, device: str | None, dtype: str | None, settings: Settings
) -> tuple[ModelCard, torch.device, torch.dtype]:
    """What ``Engine.open`` would open, and where; nothing is loaded. See there for the arguments and errors."""
    card = card_of(model, settings)
    chosen = find_device(device)
    return card, chosen, find_dtype(dtype, find_family(card.family).dtypes, chosen.type)


def precisions(card: ModelCard, precision: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The ways to keep weights that ``Engine.open`` tries, in order.

    Args:
        precision: or the name of a number format, long or short, which is "full" where the networks run in it.
        dtype: that they run in.

    Raises:
        DeviceError: no such precision.
    """
    family = find_family(card.family)
    offered = (AUTO, FULL, *family.precisions)
    named, opened = NUMBER_FORMATS.get(precision, precision), str(dtype).removeprefix("torch.")
    if named in family.dtypes:
        if named != opened:
            raise DeviceError(
                f"{precision} is whole weights in {named}, and {card.name} is opened in {opened} here. "
                f"Give --dtype {named} (HWAGA_DTYPE), or the precision {FULL}."
            )
        return (FULL,)
    if precision not in offered:
        own = family.dtypes[0]
        here = "" if own == opened else f" ({opened} as it is opened here)"
        raise DeviceError(
            f"The precision must be one of {', '.join(offered)}, not {precision!r}: {FULL} is whole weights, in "
            f"{card.name}'s own 16-bit format, {own}{here}."
        )
    return (FULL, *family.sound_precisions) if precision == AUTO else (precision,)


def first_pictures(card: ModelCard) -> list[Picture]:
    """What a model is planned for before there is a request, from as long a prompt as is usual: the default size, and where
    that does not fit, the smallest that it takes.
    """
    sizes = [card.default_size]
    if not card.limits.listed_sizes_only:
        side = -(-card.limits.min_side // card.limits.multiple) * card.limits.multiple
        sizes.append((side, side))
    return [Picture(*size, card.limits.tokens, guided=card.is_guided(None)) for size in sizes]


def _takes(card: ModelCard, side: int) -> bool:
    limits = card.limits
    fits = limits.min_side <= side <= limits.max_side and side * side <= limits.max_pixels
    return fits and side % limits.multiple == 0


def find_dtype(name: str | None, offered: Sequence[str], device: str) -> torch.dtype:
    """A number format by name, or what suits a device.

    Raises:
        DeviceError: the model does not run in it.
    """
    if name is None:
        on_cpu = "bfloat16" if multiplies_bfloat16() else "float32"
        name = on_cpu if device == "cpu" else offered[0]
    name = NUMBER_FORMATS.get(name, name)
    if name not in offered:
        raise DeviceError(f"The number format must be one of {', '.join(offered)}, not {name!r}.")
    return cast(torch.dtype, getattr(torch, name))


def _is_whole(card: ModelCard) -> bool:
    """Whether all of a model's files are on this machine, as far as is known without reading them."""
    marker = Verified.read(card.folder) if card.present else None
    return card.present and (marker is None or not marker.missing)


def _like(place: torch.device | None) -> torch.device:
    """Where a model lies that is only asked for its sizes: a GPU's are those of the meta device if operations are fused on it,
    as they are on one that is thought of, and those of the CPU if they are not.
    """
    return torch.device("meta" if place is None or why_not_fused(place) is None else "cpu")


def _headers(card: ModelCard, device: torch.device, dtype: torch.dtype, way: str) -> Model:
    """A model that can say what it would ask of memory."""
    family, precision = find_family(card.family), None if way == FULL else way
    if not _is_whole(card):
        return family.outline(device=device, dtype=dtype, precision=precision)
    return family.open(card.folder, files=card.files, device=device, dtype=dtype, lora_bytes=0, precision=precision)


def _there(place: torch.device | None, caps: Caps) -> Budget:
    """What an engine could take, on a device or on one that is thought of."""
    if place is None:
        host = host_memory() if caps.ram is None else None
        return rounded(budget(IMAGINED, None, host, None, vram=caps.vram, ram=caps.ram))
    memory = device_memory(place)
    return rounded(budget(place.type, memory, host_memory(), process_memory(), vram=caps.vram, ram=caps.ram))
