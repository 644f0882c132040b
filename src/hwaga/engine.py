"""From a request to a picture: resolve → plan → encode → denoise → decode."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
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
    DoesNotFitError,
    LoraError,
    ModelError,
    RequestError,
)
from hwaga.families import find_family
from hwaga.families.family import Course, Model, Progress
from hwaga.forecast import FULL, INSTEAD, choose, first_pictures, precisions, what_would_fit
from hwaga.memory.budget import process_memory
from hwaga.memory.device import peak_allocated, reset_peak
from hwaga.memory.plan import Plan
from hwaga.memory.trim import SPARE, trim_host_memory
from hwaga.placement import Attempt, Placement, Work
from hwaga.request import ImageRequest
from hwaga.resolve import Job, Resolver
from hwaga.result import MemoryUse, Result, Step, Timings
from hwaga.room import Caps, Room
from hwaga.sampling import RULES
from hwaga.sampling.walk import walk
from hwaga.settings import Settings
from hwaga.weights.lora import LoraFile
from hwaga.weights.verified import Verified


class Engine:
    """One model, ready to make pictures. Text-to-image and image-to-image share every weight.

        with Engine.open("mini") as engine:
            engine.generate(ImageRequest("a red apple on a yellow background")).image.save("apple.png")

    Weights lie where the plan of the last request wants them. Streams may be interleaved: whatever one of them needs is brought
    back. Of a generation, another one sees no more than the count of the process's peak memory.

    Attributes:
        card: what the model is.
        settings: where LoRAs and prompt packs lie.
        precision: how the large weights are kept: "full" as the dtype, or the name of fewer bits.
        device, dtype: where and in which number format the networks run.
    """

    def __init__(
        self, card: ModelCard, placement: Placement, dtype: torch.dtype, precision: str, settings: Settings
    ) -> None:
        self.card = card
        self.settings = settings
        self.device = placement.device
        self.dtype = dtype
        self.precision = precision
        self._placement: Placement | None = placement
        self._resolver = Resolver(card, placement.model, settings)

    @classmethod
    def open(
        cls,
        model: str | Path | ModelCard | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        vram: int | str | None = None,
        ram: int | str | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
        room: Room | None = None,
    ) -> Engine:
        """Plans where a model's weights go, and loads those that stay on the device.

        Args:
            model: a model's name, a checkpoint folder, a card file or a card; the settings' model when left out.
            device: "cuda", "cuda:1", "mps", "cpu"; the settings' device, or the fastest present.
            dtype: "bfloat16", "float32", and for some families "float16"; the settings' dtype, or what the family prefers on a
                GPU, and on the CPU bfloat16 where that multiplies it, else float32.
            precision: "int8", "fp8" or "int4" to keep the large weights in fewer bits, "full" for the dtype ("bf16" where
                that is bfloat16); the settings'.
                "auto" is the dtype where that fits in any way, and else the best that does.
            vram, ram: most that this process may take of the GPU and of the host, as bytes or as "8 GiB"; the settings', or
                what is free.
            progress: called with (bytes loaded, bytes in all) while weights are read.
            settings: read from the environment when left out.
            room: the memory that it shares with other engines, in place of ``device``, ``vram`` and ``ram``; see ``Engines``.

        Raises:
            ModelError: the model is unknown, not there, or damaged.
            DeviceError: this machine has no such device, or the model does not run in that format.
            DoesNotFitError: not even one picture of the smallest size fits the memory.
            DeviceMemoryError: memory ran out while weights were brought in, which were planned to fit.
        """
        settings = settings or Settings.read()
        where = device or settings.device if room is None else str(room.device)
        card, chosen_device, chosen_dtype = choose(model, where, dtype or settings.dtype, settings)
        room = room or Room(chosen_device, Caps.of(vram, ram, settings))
        ways = precisions(card, precision or settings.precision, chosen_dtype)
        card.check_present()
        marker = Verified.read(card.folder)
        if marker is not None and marker.missing:
            raise CheckpointError(
                f"{card.name} is only partly on this machine: {marker.missing[0]} is missing or damaged in {card.folder}. "
                f"`hwaga download {card.address}` fetches what is, or add --to with that folder."
            )
        attempts = list(itertools.product(first_pictures(card), ways))
        for picture, way in attempts:
            opened = find_family(card.family).open(
                card.folder,
                files=card.files,
                device=chosen_device,
                dtype=chosen_dtype,
                lora_bytes=settings.lora_bytes,
                precision=None if way == FULL else way,
            )
            placement = Placement(card.name, opened, room)
            with ExitStack() as undo:
                undo.callback(placement.close)
                _check_card(card, opened)
                try:
                    placement.settle(Work([picture], card.steps), progress)
                except DoesNotFitError as error:
                    if (picture, way) == attempts[-1]:
                        advice = INSTEAD[chosen_device.type]
                        raise DoesNotFitError(f"{error} {advice}", needed=error.needed) from None
                    continue
                undo.pop_all()
            opened.ready()
            trim_host_memory()
            return cls(card, placement, chosen_dtype, way, settings)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Lets go of the weights. The engine makes no more pictures; a stream that is under way can still end."""
        placement, self._placement = self._placement, None
        if placement is not None:
            placement.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def plan(self) -> Plan | None:
        """Where weights lie, as the last request wanted it; None once the engine is closed."""
        return None if self._placement is None else self._placement.plan

    @property
    def away_bytes(self) -> int:
        """Of the weights that stay by its plan, those that have left the device for another engine's, or wait to be loaded."""
        placement = self._placement
        return 0 if placement is None or placement.plan is None else placement.residency.missing_bytes(placement.plan)

    @property
    def held_bytes(self) -> int:
        """Weights that are on the device now."""
        return 0 if self._placement is None else self._placement.residency.device_bytes

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
            RequestError: the model does not take the request, or it fits no memory, before any work is done.
            DeviceMemoryError: the device ran out of memory. The engine can be used on.
        """
        # Closed by name: a generator that is only dropped may live on as long as a traceback that saw it.
        with closing(cast("Generator[Step | list[Result]]", self.stream_many([request]))) as events:
            for event in events:
                yield event if isinstance(event, Step) else event[0]

    def stream_many(self, requests: Sequence[ImageRequest]) -> Iterator[Step | list[Result]]:
        """As ``stream``, for a packed batch: a step is one of each picture that is not done; the list of results comes last."""
        try:
            yield from self._drawn(requests)
        finally:
            trim_host_memory(SPARE)

    @torch.inference_mode()
    def _drawn(self, requests: Sequence[ImageRequest]) -> Iterator[Step | list[Result]]:
        placement = self._opened()
        model = placement.model
        jobs = [self._resolver.resolve(request) for request in requests]
        if not jobs:
            raise RequestError("There is no request in the batch. Give at least one.")
        reset_peak(self.device)
        start = self._now()
        attempt = self._fit(placement, jobs)
        with ExitStack() as in_use:
            used = {
                job.loras: attempt(partial(model.adapters, [(lora.file, lora.weight) for lora in job.loras]))
                for job in jobs
            }
            adapters = [used[job.loras] for job in jobs]
            # Pictures that share a prompt and its LoRAs share its encoding.
            texts = [
                (tokens, own) for job, own in zip(jobs, adapters, strict=True) for tokens in (job.tokens, job.negative)
            ]
            prompts = list(dict.fromkeys(text for text in texts if text[0] is not None))
            encoded = attempt(partial(model.encode_prompts, [text for text, _ in prompts], [own for _, own in prompts]))
            conditionings = dict(zip(prompts, encoded, strict=True))
            latents = [attempt(partial(self._start, model, job, attempt)) for job in jobs]
            began = self._now()

            courses = [
                Course(
                    conditioning=conditionings[job.tokens, own],
                    shape=job.shape,
                    schedule=job.schedule,
                    adapters=own,
                    negative=None if job.negative is None else conditionings[job.negative, own],
                    guidance=job.request.guidance or 1.0,
                    sampler=job.sampler,
                )
                for job, own in zip(jobs, adapters, strict=True)
            ]
            schedules, rules = [job.schedule for job in jobs], [RULES[job.sampler]() for job in jobs]
            derivative = attempt(lambda: in_use.enter_context(model.denoising(courses)))
            totals, waited = tuple(len(schedule) - 1 for schedule in schedules), 0.0
            for state in walk(lambda *at: attempt(partial(derivative, *at)), latents, schedules, rules):
                latents, shown = state.latents, list(state.denoised)
                left = time.perf_counter()
                try:
                    yield Step(state.index, max(totals), state.sigmas[0], totals, partial(self._preview, shown))
                finally:
                    shown.clear()  # a Step that is kept keeps no latents
                waited += time.perf_counter() - left
        denoised = self._now()

        with ExitStack() as in_use:
            attempt(lambda: in_use.enter_context(model.decoding()))
            images = [attempt(partial(self._picture, model, latent, attempt)) for latent in latents]
        timings = Timings(began - start, denoised - began - waited, self._now() - denoised)
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
                tokens=len(job.tokens),
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
        self._opened()
        return self._resolver.resolve(request).request

    def at_once(self, requests: Sequence[ImageRequest]) -> int:
        """How many of the first of some requests are better made as one batch than one by one, for want of memory; at least 1.

        Raises:
            RequestError: the model does not take one of them.
        """
        placement, jobs = self._opened(), [self._resolver.resolve(request) for request in requests]
        return placement.at_once(_work(jobs))

    def _opened(self) -> Placement:
        if self._placement is None:
            raise RuntimeError("This engine is closed. Open another one.")
        return self._placement

    def _fit(self, placement: Placement, jobs: Sequence[Job]) -> Attempt:
        """Brings weights to where the jobs' plan wants them."""
        work = _work(jobs)
        try:
            return placement.fit(work)
        except DoesNotFitError as error:
            smaller = what_would_fit(
                self.card, work.pictures, lambda fewer: placement.would_fit(replace(work, pictures=fewer))
            )
            raise DoesNotFitError(f"{error} {smaller or INSTEAD[self.device.type]}", needed=error.needed) from None

    def _start(self, model: Model, job: Job, attempt: Attempt) -> Tensor:
        """Latents at the first sigma of the job's schedule."""
        request, sigma = job.request, job.schedule[0].item()
        # Noise comes from the CPU's generator, so that a seed means the same on every device and in every batch.
        generator = torch.Generator("cpu").manual_seed(job.seed)
        alone = request.strength == 1 and not request.steps_scale  # nothing is left of the picture then
        if request.source is None or alone:
            return model.begin(_noise(job.shape, generator).to(self.device), sigma, job.sampler)
        pixels = _to_pixels(request.source.fitted(cast(int, request.width), cast(int, request.height), request.fit))
        # The reference samples the encoder's posterior, and spends the seed's first numbers on it.
        posterior = _noise(job.shape, generator).to(self.device) if request.steps_scale else None
        latents = model.encode_pixels(pixels.to(self.device), posterior, attempt.tile("source"))
        return model.noised(latents, _noise(job.shape, generator).to(self.device), sigma)

    def _picture(self, model: Model, latents: Tensor, attempt: Attempt) -> Image.Image:
        return _to_image(model.decode_latents(latents, attempt.tile("decode")))

    def _preview(self, shown: list[Tensor], picture: int) -> Image.Image | None:
        if not shown or self.card.preview is None:
            return None
        with torch.inference_mode():
            *rows, offset = torch.tensor(self.card.preview, device=shown[picture].device).unbind()
            return _to_image(torch.einsum("chw,cr->rhw", shown[picture], torch.stack(rows)) + offset[:, None, None])

    def _now(self) -> float:
        """Wall time once the device has caught up; only called between phases."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _memory(self) -> MemoryUse:
        process = process_memory()
        return MemoryUse(
            peak_vram=peak_allocated(self.device),
            rss_anon=None if process is None else process.rss_anon,
            swap=None if process is None else process.swap,
        )


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


def _work(jobs: Sequence[Job]) -> Work:
    loras = {tuple((lora.file, lora.weight) for lora in job.loras) for job in jobs}
    return Work([job.picture for job in jobs], max(len(job.schedule) for job in jobs) - 1, loras)


def _check_card(card: ModelCard, model: Model) -> None:
    """Refuses a card that says of a model what that is not. Raises CardError."""
    if card.guidance is not None and not model.guided:
        raise CardError(f"{card.name} is of the family {card.family}, which has no guidance. Take it off its card.")
    if unknown := [sampler for sampler in card.samplers if sampler not in model.samplers]:
        raise CardError(f"{card.name} is not drawn with {', '.join(unknown)}. Take samplers off its card.")
    channels = model.latent_shape(*card.default_size)[0]
    if card.preview is not None and len(card.preview) != channels + 1:
        raise CardError(f"{card.name} has {channels} latent channels, so preview needs {channels + 1} rows.")


def _noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _to_pixels(image: Image.Image) -> Tensor:
    """Float32 ``[3, H, W]`` in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return (2 * pixels - 1).permute(2, 0, 1)


def _to_image(pixels: Tensor) -> Image.Image:
    values = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())
