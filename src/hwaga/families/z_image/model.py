"""A Z-Image checkpoint: its networks, whose weights come and go, and what they are to the engine."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from hwaga.families.family import Course, Picture
from hwaga.families.streaming_model import StreamingModel
from hwaga.families.z_image.autoencoder import Autoencoder
from hwaga.families.z_image.memory_use import Networks, factors, phases
from hwaga.families.z_image.positions import TOKEN_MULTIPLE
from hwaga.families.z_image.text_encoder import Qwen3Encoder
from hwaga.families.z_image.tokenizer import PromptTokenizer
from hwaga.families.z_image.transformer import Pack, ZImageTransformer
from hwaga.kernels.attention import scores_alive
from hwaga.kernels.operations import multiplies_codes, why_not_fused
from hwaga.memory.demand import Phase
from hwaga.sampling.schedule import drop_first, flow_match
from hwaga.sampling.walk import Derivative
from hwaga.weights.adapters import Adapters
from hwaga.weights.checkpoint import Blueprint
from hwaga.weights.layouts import Z_IMAGE_ORIGINAL, qwen3_encoder, z_image_transformer
from hwaga.weights.lora import LoraTarget, lora_targets
from hwaga.weights.quantize import Precision
from hwaga.weights.reader import Reader
from hwaga.weights.unit import Unit

IN_TRANSFORMER = r"(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention|feed_forward)\.\w+"
IN_TEXT_ENCODER = r"layers\.\d+\.(?:self_attn|mlp)\.\w+"
"""The linear layers that may be kept in fewer bits: nearly all weights. Embedders, modulation and the final layer are few, and
every token of every step passes through their errors."""


class ZImageModel(StreamingModel[PromptTokenizer, tuple[int, ...], Tensor]):
    """The networks of a Z-Image checkpoint; see ``families.family.Model`` for the methods."""

    guided = False  # Turbo has guidance distilled into it
    samplers = ("euler",)

    def __init__(
        self,
        tokenizer: PromptTokenizer | None,
        text_encoder: Blueprint[Qwen3Encoder],
        transformer: Blueprint[ZImageTransformer],
        autoencoder: Blueprint[Autoencoder],
        networks: Networks,
        *,
        shift: float,
        weights_digest: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision | None,
        lora_bytes: int,
    ) -> None:
        reader = Reader(device)
        reader.hold({file for blueprint in (text_encoder, transformer, autoencoder) for file in blueprint.files})
        text_encoder.keep_stored(IN_TEXT_ENCODER, precision)
        transformer.keep_stored(IN_TRANSFORMER, precision)
        if precision is not None:
            text_encoder.quantize(IN_TEXT_ENCODER, precision)
            transformer.quantize(IN_TRANSFORMER, precision)
        if _codes_pay(device, dtype):
            # Not the text encoder: a few channels of its activations are so large that a row of 8 bits loses the others.
            transformer.multiply_codes(IN_TRANSFORMER)
        if text_encoder.sources["embed_tokens.weight"]:
            text_encoder.connect("embed_tokens", reader)
        layers = text_encoder.units(dtype, _text_unit_of)
        norms = layers.pop("", Unit(text_encoder.network, [], dtype))
        blocks = transformer.units(dtype, _unit_of)
        whole = autoencoder.units(dtype)
        config = networks.transformer
        self.networks = networks
        self.shift = shift
        self.text_encoder = text_encoder.network.eval()
        self.transformer = transformer.network.eval()
        self.autoencoder = autoencoder.network.eval()
        self._imagined = device.type == "meta"
        self._compiling: Future[None] | None = None
        self._compiled = device.type != "cuda"
        refined = [f"context_refiner.{i}" for i in range(config.refiner_layers)]
        denoised = [f"noise_refiner.{i}" for i in range(config.refiner_layers)]
        denoised += [f"layers.{i}" for i in range(config.layers)]
        super().__init__(
            tokenizer,
            reader,
            {
                "text_encoder": (norms, list(layers.values())),
                "refiner": (blocks["cap_embedder"], [blocks[name] for name in refined]),
                "denoiser": (blocks[""], [blocks[name] for name in denoised]),
                "vae": (whole[""], []),
            },
            encoders=[self.text_encoder],
            lora_targets=lora_targets_of(self.text_encoder, self.transformer),
            lora_bytes=lora_bytes,
            weights_digest=weights_digest,
            device=device,
            dtype=dtype,
        )
        lens, patch = config.axes_lens, config.patch
        # A caption takes positions 1 to its padded length, and the image the one after.
        captions = (lens[0] - 2) // TOKEN_MULTIPLE * TOKEN_MULTIPLE
        self.max_tokens = min(captions, networks.text_encoder.positions)
        self.size_multiple = patch * networks.autoencoder.scale
        self.max_side = min(lens[1:]) * self.size_multiple

    def _phases(
        self, pictures: Sequence[Picture], steps: int, filling: int, writing: Mapping[str, int]
    ) -> tuple[Phase, ...]:
        fused = self._imagined or why_not_fused(self.device) is None
        coded = any(getattr(module, "takes_codes", False) for module in self.transformer.modules())
        return phases(
            self.networks,
            pictures,
            steps,
            self.dtype.itemsize,
            filling,
            writing,
            scores_alive(self.device, self.dtype),
            factors(self.networks, self.dtype.itemsize, fused=fused, coded=coded),
        )

    def _compile_ahead(self, device: torch.device, dtype: torch.dtype) -> None:
        """Has the operations of the networks compiled while weights are read, so that the first picture need not wait. Where
        that fails, for want of memory say, they are compiled when they are needed, where errors are handled.
        """
        with torch.cuda.device(device), torch.inference_mode():
            self.transformer.try_operations(device, dtype)
            self.text_encoder.try_operations(device, dtype)
            self.autoencoder.try_operations(device, dtype)

    def bring(self, unit: Unit, memory: Tensor, progress: Callable[[int], None] | None = None) -> None:
        if not self._compiled:  # not before there is a plan: it would count what compiling takes meanwhile
            self._compiled = True
            self._compiling = _started(partial(self._compile_ahead, self.device, self.dtype))
        super().bring(unit, memory, progress)

    def ready(self) -> None:
        compiling, self._compiling = self._compiling, None
        error = None if compiling is None else compiling.exception()
        if error is not None:
            warnings.warn(f"Operations were not compiled ahead: {error}", RuntimeWarning, stacklevel=2)

    def tokenize(self, prompt: str, limit: int) -> tuple[int, ...]:
        return tuple(self.tokenizer.ids_within(prompt, limit))

    def length(self, tokens: tuple[int, ...]) -> int:
        return len(tokens)

    def encode_prompts(self, prompts: Sequence[tuple[int, ...]], adapters: Sequence[Adapters | None]) -> list[Tensor]:
        self.ready()
        captions = self._captions(prompts, adapters)
        with self.on_device("refiner", 1):
            return self.transformer.refine_captions(captions, adapters)

    def _read(self, prompts: Sequence[tuple[int, ...]], adapters: Sequence[Adapters | None]) -> list[Tensor]:
        with self.on_device("text_encoder", 1):
            read: list[Tensor] = self.text_encoder(prompts, adapters, self.device, self.dtype)
        return read

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        scale = self.autoencoder.config.scale
        return self.transformer.config.in_channels, height // scale, width // scale

    def schedule(self, steps: int, strength: float, *, steps_scale: bool, sampler: str) -> Tensor:  # noqa: ARG002
        if steps_scale:
            return drop_first(flow_match(steps, self.shift), strength)
        return flow_match(steps, self.shift, strength)

    def begin(self, noise: Tensor, sigma: float, sampler: str) -> Tensor:  # noqa: ARG002
        return noise

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return sigma * noise + (1.0 - sigma) * latents

    @contextmanager
    def denoising(self, courses: Sequence[Course]) -> Iterator[Derivative]:
        with self.on_device("denoiser", max(len(course.schedule) for course in courses) - 1):
            yield self._derivative(courses)

    def _derivative(self, courses: Sequence[Course]) -> Derivative:
        conditionings: list[Tensor] = [course.conditioning for course in courses]
        schedules = [course.schedule for course in courses]
        adapters: list[Adapters | None] = [course.adapters for course in courses]
        # A row of the modulation for each noise level of each set of LoRAs.
        rows: dict[tuple[Adapters | None, float], int] = {}
        for own in dict.fromkeys(adapters):
            sigmas = [schedule[:-1] for schedule, theirs in zip(schedules, adapters, strict=True) if theirs is own]
            for sigma in torch.cat(sigmas).unique(sorted=True).tolist():
                rows[own, sigma] = len(rows)
        # Time as the reference computes it, in float32: thousandths, counted from noise to picture.
        times = (1000 - torch.tensor([sigma for _, sigma in rows], dtype=torch.float32, device="cpu") * 1000) / 1000
        modulation = self.transformer.modulate(times.to(self.transformer.device), [own for own, _ in rows])
        packed: tuple[Sequence[int], Pack] | None = None

        def velocity(latents: Sequence[Tensor], sigmas: Sequence[float], active: Sequence[int]) -> list[Tensor]:
            nonlocal packed
            captions = [conditionings[i] for i in active]
            if packed is None or packed[0] != active:  # once, and again whenever a picture with fewer steps has left
                sizes = [courses[i].shape[1:] for i in active]
                packed = active, self.transformer.pack(sizes, [len(caption) for caption in captions])
            own = [adapters[i] for i in active]
            row = [rows[key] for key in zip(own, sigmas, strict=True)]
            outputs = self.transformer(latents, captions, packed[1], modulation, row, own)
            return [-output.float() for output in outputs]

        return velocity

    def encode_pixels(self, pixels: Tensor, posterior_noise: Tensor | None, tile: int | None = None) -> Tensor:
        noise = None if posterior_noise is None else posterior_noise[None]
        with self.on_device("vae", 1):
            return self.autoencoder.encode(pixels[None], noise, tile)[0]

    def decode_latents(self, latents: Tensor, tile: int | None = None) -> Tensor:
        with self.on_device("vae", 1):
            return self.autoencoder.decode(latents[None], tile)[0]


def _unit_of(name: str) -> str:
    """The unit of a transformer's weight. A block's norms and the modulation that scales them become factors of all steps at
    once, and a norm is taken by the block before its own, so that these weights, few as they are, are not the blocks'.
    """
    block = re.match(r"(?:noise_refiner|context_refiner|layers)\.\d+(?=\.(?:attention|feed_forward)\.)", name)
    if block is not None:
        return block[0]
    return "cap_embedder" if name.startswith(("cap_", "context_refiner.")) else ""


def _text_unit_of(name: str) -> str:
    """The same for the text encoder."""
    layer = re.match(r"layers\.\d+(?=\.(?:self_attn|mlp)\.)", name)
    return layer[0] if layer is not None else ""


def _codes_pay(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fp8 weights are multiplied with activations in fp8. Not in a model of float32, which was asked for to be exact,
    nor where a pass of its own would make the codes.
    """
    if dtype != torch.bfloat16:
        return False
    # Sizes alone, on the meta device, are those of a GPU that is thought of: it has what a GPU may have.
    return device.type == "meta" or (multiplies_codes(device) and why_not_fused(device) is None)


def _started(work: Callable[[], None]) -> Future[None]:
    """Work that has begun in a thread of its own; the thread ends with it."""
    threads = ThreadPoolExecutor(1, "compiling")
    future = threads.submit(work)
    threads.shutdown(wait=False)
    return future


def lora_targets_of(text_encoder: Qwen3Encoder, transformer: ZImageTransformer) -> dict[str, LoraTarget]:
    """Where LoRAs may go, by the names that they use."""
    last = text_encoder.config.layers - 1
    return lora_targets(
        [
            (transformer, (z_image_transformer(transformer.config.patch), Z_IMAGE_ORIGINAL)),
            (text_encoder, (qwen3_encoder(text_encoder.config.layers),)),
        ],
        unused={f"layers_{last}_self_attn_": "layers_0_self_attn_", f"layers_{last}_mlp_": "layers_0_mlp_"},
    )
