"""From a request to a picture: resolve → encode → denoise → decode."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hwaga.cards import ModelCard, find_card
from hwaga.errors import CheckpointError, DeviceError, RequestError, SizeError
from hwaga.families import find_family
from hwaga.families.family import Model, Progress
from hwaga.memory.budget import process_memory
from hwaga.request import ImageRequest, MemoryUse, Result, Step, Timings
from hwaga.sampling.euler import EulerStep, euler
from hwaga.settings import Settings

MAX_DRAWN_SEED = 2**32
"""Seeds that are drawn stay below this, so that people can read them out."""


@dataclass(frozen=True)
class _Job:
    """A request with nothing left open."""

    request: ImageRequest
    token_ids: list[int]
    shape: tuple[int, int, int]
    schedule: Tensor

    @property
    def seed(self) -> int:
        return cast(int, self.request.seed)


class Engine:
    """One model in memory, ready to make pictures. Text-to-image and image-to-image share every weight.

        with Engine.open("mini") as engine:
            engine.generate(ImageRequest("a red apple on a yellow background")).image.save("apple.png")

    A generation touches nothing of another, so that streams may be interleaved.

    Attributes:
        card: what the model is.
        device, dtype: where and in which number format the networks run.
    """

    def __init__(self, card: ModelCard, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self.card = card
        self.device = device
        self.dtype = dtype
        self._model: Model | None = model

    @classmethod
    def open(
        cls,
        model: str | Path | ModelCard | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
    ) -> Engine:
        """Loads a model.

        Args:
            model: a model's name, a checkpoint folder, a card file or a card; the settings' model when left out.
            device: "cuda", "cuda:1", "mps", "cpu"; the settings' device, or the fastest present.
            dtype: "bfloat16" or "float32"; the settings' dtype, or bfloat16 on a GPU and float32 on the CPU.
            progress: called with (bytes loaded, bytes in all) while weights are read.
            settings: read from the environment when left out.

        Raises:
            ModelError: the model is unknown, not there, or damaged.
            DeviceError: this machine has no such device, or the model does not run in that format.
        """
        settings = settings or Settings.read()
        card = model if isinstance(model, ModelCard) else find_card(model or settings.model, settings.models)
        family = find_family(card.family)
        chosen_device = find_device(device or settings.device)
        chosen_dtype = _find_dtype(dtype or settings.dtype, family.dtypes, chosen_device)
        if not card.present:
            raise CheckpointError(
                f"{card.name} is not on this machine: {card.folder} holds no model. "
                f"Fetch {card.source} into that folder, or give the folder that holds it as the model."
            )
        return cls(
            card,
            family.open(card.folder, device=chosen_device, dtype=chosen_dtype, progress=progress),
            chosen_device,
            chosen_dtype,
        )

    def close(self) -> None:
        """Frees the weights. The engine makes no more pictures."""
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
        start = self._now()

        conditionings = model.encode_prompts([job.token_ids for job in jobs])
        latents = [self._start(model, job) for job in jobs]
        encoded = self._now()

        shapes, schedules = [job.shape for job in jobs], [job.schedule for job in jobs]
        total = max(len(schedule) for schedule in schedules) - 1
        moment: list[EulerStep] = []  # what a preview is made from, while the generation waits for its consumer
        try:
            for state in euler(model.derivative(conditionings, shapes, schedules), latents, schedules):
                latents, moment[:] = state.latents, [state]
                yield Step(state.index, total, state.sigmas[0], lambda: self._preview(moment))
        finally:
            moment.clear()
        denoised = self._now()

        images = [_to_image(model.decode_latents(latent)) for latent in latents]
        timings = Timings(encoded - start, denoised - encoded, self._now() - denoised)
        yield [
            Result(
                image=image,
                seed=job.seed,
                request=job.request,
                model=self.card.name,
                device=(self.device.type, str(self.dtype).removeprefix("torch.")),
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

    def _resolve(self, model: Model, request: ImageRequest) -> _Job:
        width, height = self._size(model, request)
        limits = self.card.limits
        ceiling = min(limits.max_tokens, model.max_tokens)
        limit = request.max_tokens or min(limits.tokens, ceiling)
        if limit > ceiling:
            raise RequestError(f"max_tokens of {limit} is beyond {self.card.name}, which takes {ceiling} at most.")
        steps = request.steps or self.card.steps
        strength = request.strength if request.image is not None else 1.0
        resolved = request.replace(
            width=width,
            height=height,
            aspect=None,
            steps=steps,
            seed=secrets.randbelow(MAX_DRAWN_SEED) if request.seed is None else request.seed,
        )
        return _Job(
            request=resolved,
            token_ids=model.tokenize(request.prompt, limit),
            shape=model.latent_shape(width, height),
            schedule=model.schedule(steps, strength, steps_scale=request.steps_scale and request.image is not None),
        )

    def _size(self, model: Model, request: ImageRequest) -> tuple[int, int]:
        if request.aspect is not None:
            size = self.card.size_of(request.aspect)
        elif request.width is not None and request.height is not None:
            size = request.width, request.height
        elif request.source is not None:
            size = request.source.size_rounded(self.card.limits.multiple)
            try:
                self.card.check_size(*size)
            except SizeError as error:
                picture = request.source.image
                raise SizeError(
                    f"The picture is {picture.width}x{picture.height} and no size was given. {error} "
                    "Give an aspect or a size, and the picture is fitted to it."
                ) from None
        else:
            size = self.card.default_size
        self.card.check_size(*size)
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

    def _preview(self, moment: list[EulerStep]) -> Image.Image | None:
        if not moment or self.card.preview is None:
            return None
        with torch.inference_mode():
            latent = moment[0].denoised[0]
            *rows, offset = torch.tensor(self.card.preview, device=latent.device).unbind()
            return _to_image(torch.einsum("chw,cr->rhw", latent, torch.stack(rows)) + offset[:, None, None])

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


def _noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _to_pixels(image: Image.Image) -> Tensor:
    """Float32 ``[3, H, W]`` in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return (2 * pixels - 1).permute(2, 0, 1)


def _to_image(pixels: Tensor) -> Image.Image:
    values = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())
