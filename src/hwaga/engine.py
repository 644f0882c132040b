"""From a request to a picture: resolve → encode → denoise → decode."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hwaga.cards import ModelCard
from hwaga.errors import (
    CardError,
    CheckpointError,
    DeviceError,
    DeviceMemoryError,
    LoraError,
    ModelError,
    RequestError,
    SizeError,
)
from hwaga.families import find_family
from hwaga.families.family import Model, Progress
from hwaga.loras import LoraLibrary
from hwaga.memory.budget import process_memory
from hwaga.model_lookup import find_card
from hwaga.prompt import Library, compose
from hwaga.request import MAX_SEED, Composed, ImageRequest, LoraUse, MemoryUse, Result, Step, Timings
from hwaga.sampling.euler import euler
from hwaga.settings import Settings
from hwaga.weights.checkpoint import file_digest
from hwaga.weights.lora import LoraFile
from hwaga.weights.verified import Verified

FULL = "full"


@dataclass(frozen=True)
class _Lora:
    """A LoRA that a request asks for, found."""

    name: str
    weight: float
    file: Path
    digest: str


@dataclass(frozen=True)
class _Job:
    """A request with nothing left open."""

    request: ImageRequest
    token_ids: list[int]
    shape: tuple[int, int, int]
    schedule: Tensor
    loras: tuple[_Lora, ...]

    @property
    def seed(self) -> int:
        return cast(int, self.request.seed)


class Engine:
    """One model in memory, ready to make pictures. Text-to-image and image-to-image share every weight.

        with Engine.open("mini") as engine:
            engine.generate(ImageRequest("a red apple on a yellow background")).image.save("apple.png")

    A generation touches nothing of another but the count of the process's peak memory, so that streams may be interleaved.

    Attributes:
        card: what the model is.
        settings: where LoRAs and prompt packs lie.
        precision: how the large weights are kept: "full" as the dtype, or the name of fewer bits.
        device, dtype: where and in which number format the networks run.
    """

    def __init__(
        self,
        card: ModelCard,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        precision: str,
        settings: Settings,
    ) -> None:
        self.card = card
        self.settings = settings
        self.device = device
        self.dtype = dtype
        self.precision = precision
        self._model: Model | None = model

    @classmethod
    def open(
        cls,
        model: str | Path | ModelCard | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
    ) -> Engine:
        """Loads a model.

        Args:
            model: a model's name, a checkpoint folder, a card file or a card; the settings' model when left out.
            device: "cuda", "cuda:1", "mps", "cpu"; the settings' device, or the fastest present.
            dtype: "bfloat16" or "float32"; the settings' dtype, or bfloat16 on a GPU and float32 on the CPU.
            precision: "int8", "fp8" or "int4" to keep the large weights in fewer bits, "full" for the dtype; the settings'.
            progress: called with (bytes loaded, bytes in all) while weights are read.
            settings: read from the environment when left out.

        Raises:
            ModelError: the model is unknown, not there, or damaged.
            DeviceError: this machine has no such device, or the model does not run in that format.
        """
        settings = settings or Settings.read()
        card, chosen_device, chosen_dtype = choose(
            model or settings.model, device or settings.device, dtype or settings.dtype, settings
        )
        precision = precision or settings.precision
        offered = (FULL, *find_family(card.family).precisions)
        if precision not in offered:
            raise DeviceError(f"The precision must be one of {', '.join(offered)}, not {precision!r}.")
        card.check_present()
        marker = Verified.read(card.folder)
        if marker is not None and marker.missing:
            raise CheckpointError(
                f"{card.name} is only partly on this machine: {marker.missing[0]} is missing or damaged in {card.folder}. "
                f"`hwaga download {card.name}` fetches what is, or add --to with that folder."
            )
        with _memory_refused(chosen_device):
            opened = find_family(card.family).open(
                card.folder,
                files=card.files,
                device=chosen_device,
                dtype=chosen_dtype,
                lora_bytes=settings.lora_bytes,
                precision=None if precision == FULL else precision,
                progress=progress,
            )
        channels = opened.latent_shape(*card.default_size)[0]
        if card.preview is not None and len(card.preview) != channels + 1:
            raise CardError(f"{card.name} has {channels} latent channels, so preview needs {channels + 1} rows.")
        return cls(card, opened, chosen_device, chosen_dtype, precision, settings)

    def close(self) -> None:
        """Lets go of the weights. The engine makes no more pictures; a stream that is under way keeps them to its end."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(self, request: ImageRequest) -> Result:
        """Makes one picture. See ``stream`` for errors."""
        return self.generate_many([request])[0]

    def generate_many(self, requests: Sequence[ImageRequest]) -> list[Result]:
        """Makes several pictures as one packed batch: any sizes, prompts and numbers of steps beside each other."""
        *_, results = self.stream_many(requests)
        return cast("list[Result]", results)

    def stream(self, request: ImageRequest) -> Iterator[Step | Result]:
        """Makes one picture, a step at a time: yields a ``Step`` after each forward and the ``Result`` last.

        Closing the generator stops the work and frees what it held.

        Raises:
            RequestError: the model does not take the request, before any work is done.
            DeviceMemoryError: the device ran out of memory. The engine can be used on.
        """
        for event in self.stream_many([request]):
            yield event if isinstance(event, Step) else event[0]

    @torch.inference_mode()
    def stream_many(self, requests: Sequence[ImageRequest]) -> Iterator[Step | list[Result]]:
        """As ``stream``, for a packed batch; previews are of the first picture, and the list of results comes last."""
        model = self._opened()
        jobs = [self._resolve(model, request) for request in requests]
        if not jobs:
            raise RequestError("There is no request in the batch. Give at least one.")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with _memory_refused(self.device, model.forget):
            start = self._now()
            used = {job.loras: model.adapters([(lora.file, lora.weight) for lora in job.loras]) for job in jobs}
            adapters = [used[job.loras] for job in jobs]
            # Pictures that share a prompt and its LoRAs share its encoding.
            prompts = list(dict.fromkeys(zip((tuple(job.token_ids) for job in jobs), adapters, strict=True)))
            encoded_prompts = model.encode_prompts([ids for ids, _ in prompts], [own for _, own in prompts])
            conditionings = [
                encoded_prompts[prompts.index((tuple(job.token_ids), own))]
                for job, own in zip(jobs, adapters, strict=True)
            ]
            latents = [self._start(model, job) for job in jobs]
            encoded = self._now()

            shapes, schedules = [job.shape for job in jobs], [job.schedule for job in jobs]
            total, waited = max(len(schedule) for schedule in schedules) - 1, 0.0
            for state in euler(model.derivative(conditionings, shapes, schedules, adapters), latents, schedules):
                latents, shown = state.latents, [state.denoised[0]]
                left = time.perf_counter()
                try:
                    yield Step(state.index, total, state.sigmas[0], partial(self._preview, shown))
                finally:
                    shown.clear()  # a Step that is kept keeps no latents
                waited += time.perf_counter() - left
            denoised = self._now()

            images = [_to_image(model.decode_latents(latent)) for latent in latents]
            timings = Timings(encoded - start, denoised - encoded - waited, self._now() - denoised)
        yield [
            Result(
                image=image,
                seed=job.seed,
                request=job.request,
                model=self.card.name,
                weights=model.weights_digest,
                device=(self.device.type, str(self.dtype).removeprefix("torch.")),
                precision=self.precision,
                loras={lora.name: lora.digest for lora in job.loras},
                tokens=len(job.token_ids),
                timings=timings,
                memory=self._memory(),
            )
            for image, job in zip(images, jobs, strict=True)
        ]

    def resolve(self, request: ImageRequest) -> ImageRequest:
        """The request with every default filled in, checked against the model. A seed is drawn where none is set.

        Raises:
            RequestError: the model does not take it.
        """
        return self._resolve(self._opened(), request).request

    def _opened(self) -> Model:
        if self._model is None:
            raise RuntimeError("This engine is closed. Open another one.")
        return self._model

    @cached_property
    def _library(self) -> Library:
        return Library.load(self.settings.packs)

    def _resolve(self, model: Model, request: ImageRequest) -> _Job:
        limits = self.card.limits
        ceiling = min(limits.max_tokens, model.max_tokens)
        limit = request.max_tokens or min(limits.tokens, ceiling)
        if limit > ceiling:
            raise RequestError(f"max_tokens of {limit} is beyond {self.card.name}, which takes {ceiling} at most.")
        request = self._composed(model, request, limit)
        steps = request.steps or self.card.steps
        if steps > limits.max_steps:
            raise RequestError(f"{self.card.name} takes {limits.max_steps} steps at most, not {steps}.")
        strength = request.strength if request.image is not None else 1.0
        schedule = model.schedule(steps, strength, steps_scale=request.steps_scale and request.image is not None)
        if len(schedule) < 2 or schedule[0] <= 0:
            raise RequestError(f"A strength of {strength} leaves nothing to do. Raise it.")
        width, height = self._size(model, request)
        loras = LoraLibrary(self.settings.loras)
        found = [_find_lora(loras, lora, self.card) for lora in request.model_loras]
        resolved = request.replace(
            width=width,
            height=height,
            aspect=None,
            steps=steps,
            seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        )
        return _Job(
            request=resolved,
            token_ids=model.tokenize(request.model_prompt, limit),
            shape=model.latent_shape(width, height),
            schedule=schedule,
            loras=tuple(found),
        )

    def _composed(self, model: Model, request: ImageRequest, token_limit: int) -> ImageRequest:
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
            count_tokens=model.count_tokens,
            token_limit=token_limit,
        )
        sized = request.aspect is not None or request.width is not None or request.image is not None
        return request.replace(
            steps=request.steps or composition.steps,
            aspect=request.aspect if sized else composition.aspect,
            composed=Composed(
                composition.text, composition.loras, composition.style, composition.industry, composition.notes
            ),
        )

    def _size(self, model: Model, request: ImageRequest) -> tuple[int, int]:
        if request.aspect is not None:
            size = self.card.size_of(request.aspect)
        elif request.width is not None and request.height is not None:
            size = request.width, request.height
        elif request.source is not None:
            size = request.source.size_rounded(math.lcm(self.card.limits.multiple, model.size_multiple))
            try:
                self.card.check_size(*size)
            except SizeError:
                picture = request.source.image
                nearest = self.card.nearest_aspect(picture.width, picture.height)
                raise SizeError(
                    f"The picture is {picture.width}x{picture.height}, which {self.card.name} does not make, and no size was "
                    f"given. Give an aspect or a size, and the picture is fitted to it. Nearest shape: {nearest}."
                ) from None
        else:
            size = self.card.default_size
        self.card.check_size(*size)
        if size[0] % model.size_multiple or size[1] % model.size_multiple:
            raise SizeError(
                f"This checkpoint takes sides that are multiples of {model.size_multiple}, not {size[0]}x{size[1]}."
            )
        if max(size) > model.max_side:
            raise SizeError(
                f"This checkpoint has positions for sides of up to {model.max_side} pixels, not {max(size)}."
            )
        return size

    def _start(self, model: Model, job: _Job) -> Tensor:
        """Latents at the first sigma of the job's schedule."""
        request, sigma = job.request, job.schedule[0].item()
        # Noise comes from the CPU's generator, so that a seed means the same on every device and in every batch.
        generator = torch.Generator("cpu").manual_seed(job.seed)
        if request.source is None:
            return _noise(job.shape, generator).to(self.device)
        pixels = _to_pixels(request.source.fitted(cast(int, request.width), cast(int, request.height), request.fit))
        # The reference samples the encoder's posterior, and spends the seed's first numbers on it.
        posterior = _noise(job.shape, generator).to(self.device) if request.steps_scale else None
        latents = model.encode_pixels(pixels.to(self.device), posterior)
        return model.noised(latents, _noise(job.shape, generator).to(self.device), sigma)

    def _preview(self, shown: list[Tensor]) -> Image.Image | None:
        if not shown or self.card.preview is None:
            return None
        with torch.inference_mode():
            *rows, offset = torch.tensor(self.card.preview, device=shown[0].device).unbind()
            return _to_image(torch.einsum("chw,cr->rhw", shown[0], torch.stack(rows)) + offset[:, None, None])

    def _now(self) -> float:
        """Wall time once the device has caught up; only called between phases."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _memory(self) -> MemoryUse:
        process = process_memory()
        return MemoryUse(
            peak_vram=torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
            rss_anon=None if process is None else process.rss_anon,
            swap=None if process is None else process.swap,
        )


def choose(
    model: str | Path | ModelCard, device: str | None, dtype: str | None, settings: Settings
) -> tuple[ModelCard, torch.device, torch.dtype]:
    """What ``Engine.open`` would open, and where; nothing is loaded. See there for the arguments and errors."""
    card = model if isinstance(model, ModelCard) else find_card(model, settings.models)
    chosen = find_device(device)
    return card, chosen, _find_dtype(dtype, find_family(card.family).dtypes, chosen)


def check_lora(file: Path, cards: Sequence[ModelCard]) -> dict[str, str | None]:
    """Whether a file is a LoRA, and which models it fits. No weights of the models are read.

    Args:
        cards: of models that are on this machine.

    Returns:
        For each model's name, why the LoRA does not fit it, or None where it does.

    Raises:
        LoraError: it is no LoRA, damaged or of a kind that is not computed here.
    """
    LoraFile.read(file).check_values()
    fits: dict[str, str | None] = {}
    for card in cards:
        try:
            find_family(card.family).check_lora(card.folder, file, files=card.files)
            fits[card.name] = None
        except (LoraError, ModelError) as error:  # a model that is half there fits nothing yet
            fits[card.name] = str(error)
    return fits


def find_device(name: str | None) -> torch.device:
    """A device by name, or the fastest present.

    Raises:
        DeviceError: no such device on this machine; the ones there are listed.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    present = cuda + present
    if name is None:
        return torch.device(present[0])
    if name == "cuda" and cuda:
        return torch.device(cuda[0])
    if name not in present:
        raise DeviceError(f"There is no device {name!r} here. There is {', '.join(present)}.")
    return torch.device(name)


def _find_dtype(name: str | None, offered: Sequence[str], device: torch.device) -> torch.dtype:
    if name is None:
        name = "float32" if device.type == "cpu" else "bfloat16"
    name = {"fp32": "float32", "bf16": "bfloat16"}.get(name, name)
    if name not in offered:
        raise DeviceError(f"The number format must be one of {', '.join(offered)}, not {name!r}.")
    return cast(torch.dtype, getattr(torch, name))


def _find_lora(library: LoraLibrary, lora: LoraUse, card: ModelCard) -> _Lora:
    file = library.find(lora.name, card)
    try:
        return _Lora(lora.name, lora.weight, file, file_digest([file]))
    except OSError as error:
        raise LoraError(f"The LoRA {file} cannot be read: {error.strerror}.") from error


@contextmanager
def _memory_refused(device: torch.device, forget: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Says what torch's out-of-memory errors mean, and gives what is kept or hoarded back to the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        forget()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        raise DeviceMemoryError(
            f"{device} ran out of memory: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free now. Close what else uses the "
            "GPU, make the picture smaller or fewer at a time, or use the CPU."
        ) from error


def _noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _to_pixels(image: Image.Image) -> Tensor:
    """Float32 ``[3, H, W]`` in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return (2 * pixels - 1).permute(2, 0, 1)


def _to_image(pixels: Tensor) -> Image.Image:
    values = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())
