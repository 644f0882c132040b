"""An SDXL checkpoint: its networks, whose weights come and go, and what they are to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from hwaga.families.streaming_model import StreamingModel
from hwaga.kernels.attention import SCORES_ALIVE, keeps_scores
from hwaga.memory.demand import Phase
from hwaga.sampling.trained_noise import keep_last
from hwaga.sampling.walk import Derivative
from hwaga.weights.adapters import Adapters
from hwaga.weights.checkpoint import Blueprint
from hwaga.weights.quantize import Precision
from hwaga.weights.reader import Reader

IN_UNET = r".*\.transformer_blocks\.\d+\.(?:attn\d\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))"
"""The linear layers that may be kept in fewer bits: those of the transformer blocks, four fifths of all weights."""

MAX_TOKENS = 3000
"""Of a prompt: forty windows. There are positions for any number of windows, but they come to nothing long before."""

MAX_SIDE = 8192
"""Nothing in the networks ends at a size; this is beyond any that they were trained on."""


class SdxlModel(StreamingModel[PromptTokenizer, Prompt, Caption]):
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
        reader = Reader(device)
        reader.hold({file for each in (text_encoder, text_encoder_2, unet, vae) for file in each.files})
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
        self.networks = networks
        self.prediction = prediction
        self.zeros = zeros
        self.text_encoder: Any = text_encoder.network.eval()
        self.text_encoder_2: Any = text_encoder_2.network.eval()
        self.unet: Any = unet.network.eval()
        self.vae: Any = vae.network.eval()
        attending: tuple[Any, ...] = (self.unet, self.vae)
        for network in attending:
            network.set_attn_processor(QuickAttention())
        self._keeps_scores = any(keeps_scores(device, each) for each in (dtype, vae_dtype))
        self.autoencoder = Autoencoder(self.vae, vae_dtype, networks.scale, networks.scaling)
        self.size_multiple = networks.scale
        super().__init__(
            tokenizer,
            reader,
            {
                "text_encoder": (layers[""], [layers[name] for name in sorted(filter(None, layers), key=clip_order)]),
                "denoiser": (blocks[""], [blocks[name] for name in sorted(filter(None, blocks), key=unet_order)]),
                "vae": (vae.units(vae_dtype)[""], []),
            },
            encoders=[self.text_encoder, self.text_encoder_2],
            lora_targets=sdxl_lora_targets(self.unet, self.text_encoder, self.text_encoder_2),
            lora_bytes=lora_bytes,
            weights_digest=weights_digest,
            device=device,
            dtype=dtype,
        )

    def _phases(
        self,
        pictures: Sequence[Picture],
        steps: int,  # noqa: ARG002
        filling: int,
        writing: Mapping[str, int],
    ) -> tuple[Phase, ...]:
        return phases(
            self.networks,
            pictures,
            self.dtype.itemsize,
            self.autoencoder.dtype.itemsize,
            filling,
            writing,
            SCORES_ALIVE if self._keeps_scores else 0,
        )

    def _passes(self, pictures: Sequence[Picture], steps: int) -> int:
        # Pictures of different shapes go through the denoiser one after the other, each time past all of its weights.
        return steps * len({shape_of(picture) for picture in pictures})

    def tokenize(self, prompt: str, limit: int) -> Prompt:
        if not prompt:
            return Prompt(prompt, 0)
        tokens = len(self.tokenizer.ids_within(prompt, limit))
        return Prompt(prompt, tokens, len(self.tokenizer.windows(prompt)[0].ids))

    def length(self, tokens: Prompt) -> int:
        return tokens.windows * CONTENT

    def encode_prompts(self, prompts: Sequence[Prompt], adapters: Sequence[Adapters | None]) -> list[Caption]:
        return self._captions(prompts, adapters)

    def _read(self, prompts: Sequence[Prompt], adapters: Sequence[Adapters | None]) -> list[Caption]:
        encoders = Encoders(
            self.text_encoder, self.text_encoder_2, self.tokenizer, adapted_network, self.device, self.zeros
        )
        reading = encoders.plan([prompt.text for prompt in prompts], adapters)
        with self.on_device("text_encoder", reading.passes):
            return encoders.read(reading)

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

    def decode_latents(self, latents: Tensor, tile: int | None = None) -> Tensor:
        with self.on_device("vae", 1):
            return self.autoencoder.decode(latents, tile)
