"""An SDXL checkpoint: its networks, whose weights come and go, and what they are to the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwaga.families.family import Course, Picture
from hwaga.families.sdxl.attention import QuickAttention
from hwaga.families.sdxl.autoencoder import Autoencoder, autoencoder_dtype
from hwaga.families.sdxl.captions import Caption, Encoders, Prompt
from hwaga.families.sdxl.denoiser import Denoiser
from hwaga.families.sdxl.lora import adapted_network, sdxl_lora_targets
from hwaga.families.sdxl.memory_use import phases, shape_of
from hwaga.families.sdxl.networks import Networks, clip_order, clip_unit, unet_order, unet_unit
from hwaga.families.sdxl.noise import KARRAS, Prediction, level
from hwaga.families.sdxl.words import CONTENT, PromptTokenizer
from hwaga.kernels.attention import SCORES_ALIVE, keeps_scores
from hwaga.memory.plan import Demand, PartSize
from hwaga.sampling.trained_noise import keep_last
from hwaga.sampling.walk import Derivative
from hwaga.weights.adapters import Adapters
from hwaga.weights.checkpoint import Blueprint
from hwaga.weights.lora import LoraCache
from hwaga.weights.quantize import Precision
from hwaga.weights.reader import CHUNK, THREADS, Reader
from hwaga.weights.recent import RecentlyUsed
from hwaga.weights.unit import Unit

IN_UNET = r".*\.transformer_blocks\.\d+\.(?:attn\d\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))"
"""The linear layers that may be kept in fewer bits: those of the transformer blocks, four fifths of all weights."""

CAPTION_BYTES = 64 * 2**20
"""For prompts that may come again. At full size one of 75 tokens takes 0.6 MiB."""

MAX_TOKENS = 3000
"""Of a prompt: forty windows. There are positions for any number of windows, but they come to nothing long before."""

MAX_SIDE = 8192
"""Nothing in the networks ends at a size; this is beyond any that they were trained on."""

OnDevice = Callable[[str, int], AbstractContextManager[None]]


class SdxlModel:
    """The networks of an SDXL checkpoint; see ``families.family.Model`` for the methods."""

    guided = True
    samplers = ("euler", KARRAS)
    max_tokens = MAX_TOKENS
    max_side = MAX_SIDE

    def __init__(
        self,
        tokenizer: PromptTokenizer | None,
        text_encoder: Blueprint[nn.Module],
        text_encoder_2: Blueprint[nn.Module],
        unet: Blueprint[nn.Module],
        vae: Blueprint[nn.Module],
        networks: Networks,
        prediction: Prediction,
        *,
        zeros: bool,
        weights_digest: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision | None,
        lora_bytes: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.networks = networks
        self.prediction = prediction
        self.zeros = zeros
        self.weights_digest = weights_digest
        self.device = device
        self.dtype = dtype
        self.reader = Reader(device)
        self.reader.hold({file for each in (text_encoder, text_encoder_2, unet, vae) for file in each.files})
        self.on_device: OnDevice = _already_there
        if precision is not None:
            unet.quantize(IN_UNET, precision)
        # Both encoders are one part, since each prompt goes through both.
        pair = {"1": text_encoder, "2": text_encoder_2}
        both = Blueprint(
            nn.ModuleDict({which: each.network for which, each in pair.items()}),
            {f"{which}.{name}": pieces for which, each in pair.items() for name, pieces in each.sources.items()},
        )
        layers = both.units(dtype, clip_unit)
        blocks = unet.units(dtype, unet_unit)
        vae_dtype = autoencoder_dtype(dtype, device, overflows=networks.overflows)
        self.text_encoder: Any = text_encoder.network.eval()
        self.text_encoder_2: Any = text_encoder_2.network.eval()
        self.unet: Any = unet.network.eval()
        self.vae: Any = vae.network.eval()
        attending: tuple[Any, ...] = (self.unet, self.vae)
        for network in attending:
            network.set_attn_processor(QuickAttention())
        self._keeps_scores = any(keeps_scores(device, each) for each in (dtype, vae_dtype))
        self.autoencoder = Autoencoder(self.vae, vae_dtype, networks.scale, networks.scaling)
        self.parts: dict[str, tuple[Unit, Sequence[Unit]]] = {
            "text_encoder": (layers[""], [layers[name] for name in sorted(filter(None, layers), key=clip_order)]),
            "denoiser": (blocks[""], [blocks[name] for name in sorted(filter(None, blocks), key=unet_order)]),
            "vae": (vae.units(vae_dtype)[""], list[Unit]()),
        }
        self.captions: RecentlyUsed[Prompt, Caption] = RecentlyUsed(CAPTION_BYTES, lambda caption: caption.nbytes)
        self.loras = LoraCache(
            sdxl_lora_targets(self.unet, self.text_encoder, self.text_encoder_2),
            device=device,
            dtype=dtype,
            limit=lora_bytes,
        )
        self._reads = {*self.text_encoder.modules(), *self.text_encoder_2.modules()}
        self.size_multiple = networks.scale

    @property
    def kept_bytes(self) -> int:
        return self.loras.kept.nbytes + self.captions.nbytes

    def new_bytes(self, loras: Sequence[tuple[Path, float]]) -> int:
        return self.loras.new_bytes(loras)

    def demand(self, pictures: Sequence[Picture], steps: int, kept: int) -> Demand:
        sizes = [
            PartSize(
                name,
                rest.nbytes,
                tuple(block.nbytes for block in blocks),
                each_step=name == "denoiser",
                filling=max(unit.filling_bytes for unit in (rest, *blocks)),
                quantized=any(unit.quantized for unit in (rest, *blocks)),
            )
            for name, (rest, blocks) in self.parts.items()
        ]
        stages = phases(
            self.networks,
            pictures,
            self.dtype.itemsize,
            self.autoencoder.dtype.itemsize,
            max(size.filling for size in sizes),
            {name: max(unit.writing_bytes for unit in (rest, *blocks)) for name, (rest, blocks) in self.parts.items()},
            SCORES_ALIVE if self._keeps_scores else 0,
        )
        # Pictures of different shapes go through the denoiser one after the other, each time past all of its weights.
        passes = steps * len({shape_of(picture) for picture in pictures})
        # The picture on its way to the file, and the one it starts from; and the ring that weights are read through.
        host = sum(16 * picture.width * picture.height for picture in pictures) + CHUNK * THREADS
        return Demand(tuple(sizes), stages, passes, kept, host)

    def bring(self, unit: Unit, memory: Tensor, progress: Callable[[int], None] | None = None) -> None:
        unit.bring(memory, self.reader, progress)

    def close(self) -> None:
        self.forget()
        self.reader.close()

    @property
    def tokenizer(self) -> PromptTokenizer:
        assert self._tokenizer is not None, "an outline reads no prompts"
        return self._tokenizer

    def tokenize(self, prompt: str, limit: int) -> Prompt:
        if not prompt:
            return Prompt(prompt, 0)
        tokens = len(self.tokenizer.ids_within(prompt, limit))
        return Prompt(prompt, tokens, len(self.tokenizer.windows(prompt)[0].ids))

    def length(self, tokens: Prompt) -> int:
        return tokens.windows * CONTENT

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer.ids(prompt))

    def ready(self) -> None:
        """Nothing is prepared."""

    def forget(self) -> None:
        self.captions.clear()
        self.loras.kept.clear()

    def adapters(self, loras: Sequence[tuple[Path, float]]) -> Adapters | None:
        return self.loras.adapters(loras)

    def encode_prompts(self, prompts: Sequence[Prompt], adapters: Sequence[Adapters | None]) -> list[Caption]:
        found: dict[int, Caption] = {}
        for i, (prompt, own) in enumerate(zip(prompts, adapters, strict=True)):
            known = None if self._is_read_with(own) else self.captions.get(prompt)
            if known is not None:
                found[i] = known
        unknown = [i for i in range(len(prompts)) if i not in found]
        if unknown:
            encoders = Encoders(
                self.text_encoder, self.text_encoder_2, self.tokenizer, adapted_network, self.device, self.zeros
            )
            # Adapters that change nothing here are no reason to read a prompt twice.
            used = [adapters[i] if self._is_read_with(adapters[i]) else None for i in unknown]
            reading = encoders.plan([prompts[i].text for i in unknown], used)
            with self.on_device("text_encoder", reading.passes):
                read = encoders.read(reading)
            for i, caption in zip(unknown, read, strict=True):
                if not self._is_read_with(adapters[i]):
                    self.captions.put(prompts[i], caption)
                found[i] = caption
        return [found[i] for i in range(len(prompts))]

    def _is_read_with(self, adapters: Adapters | None) -> bool:
        """Whether adapters change what the text encoders make of a prompt."""
        return adapters is not None and not self._reads.isdisjoint(adapters.by_layer)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        scale = self.networks.scale
        return self.networks.latent_channels, height // scale, width // scale

    def schedule(self, steps: int, strength: float, *, steps_scale: bool, sampler: str) -> Tensor:
        noise = self.prediction.noise
        levels = noise.karras if sampler == KARRAS else noise.even
        if steps_scale:
            return keep_last(levels(steps), strength)
        return levels(steps, level(strength) if strength < 1 else None)

    def begin(self, noise: Tensor, sigma: float, sampler: str) -> Tensor:
        return noise * self.prediction.first_length(sigma, sampler)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return latents + sigma * noise

    @contextmanager
    def denoising(self, courses: Sequence[Course]) -> Iterator[Derivative]:
        denoiser = Denoiser(
            self.unet, courses, self.prediction, scale=self.networks.scale, dtype=self.dtype, adapting=adapted_network
        )
        with self.on_device("denoiser", denoiser.passes):
            yield denoiser

    def encode_pixels(self, pixels: Tensor, posterior_noise: Tensor | None, tile: int | None = None) -> Tensor:
        with self.on_device("vae", 1):
            return self.autoencoder.encode(pixels, posterior_noise, tile)

    def decoding(self) -> AbstractContextManager[None]:
        return self.on_device("vae", 1)

    def decode_latents(self, latents: Tensor, tile: int | None = None) -> Tensor:
        with self.on_device("vae", 1):
            return self.autoencoder.decode(latents, tile)


def _already_there(_part: str, _passes: int) -> AbstractContextManager[None]:
    return nullcontext()
