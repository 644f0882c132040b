"""Z-Image as a model family: how its networks are opened and what they are to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.families.family import Progress
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.conversion import LAYOUTS, z_image_conversion
from hwaga.families.z_image.single_files import SHIFT, SingleFiles
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.tokenizer import PromptTokenizer
from hwaga.families.z_image.transformer import TOKEN_MULTIPLE, Pack, TransformerConfig, ZImageTransformer
from hwaga.sampling.euler import Derivative
from hwaga.sampling.schedule import drop_first, flow_match
from hwaga.weights.adapters import Adapters
from hwaga.weights.checkpoint import Blueprint, file_digest, read_config, weights_digest
from hwaga.weights.config import ConfigValues
from hwaga.weights.conversion import Conversion
from hwaga.weights.layouts import AUTOENCODER, Z_IMAGE_ORIGINAL, qwen3_encoder, z_image_transformer
from hwaga.weights.lora import LoraCache, LoraFile, LoraTarget, lora_targets
from hwaga.weights.quantize import PRECISIONS, quantizing
from hwaga.weights.recent import RecentlyUsed

IN_TRANSFORMER = r"(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention|feed_forward)\.\w+"
IN_TEXT_ENCODER = r"layers\.\d+\.(?:self_attn|mlp)\.\w+"
"""The linear layers that may be kept in fewer bits: nearly all weights. Embedders, modulation and the final layer are few, and
every token of every step passes through their errors."""


CAPTION_BYTES = 64 * 2**20
"""For prompts that may come again. At full size one of 120 tokens takes 0.6 MiB, and saves the text encoder's work."""


class ZImageModel:
    """The networks of a Z-Image checkpoint; see ``families.family.Model`` for the methods."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        text_encoder: Qwen3Encoder,
        transformer: ZImageTransformer,
        autoencoder: Autoencoder,
        shift: float,
        weights_digest: str,
        lora_bytes: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.shift = shift
        self.weights_digest = weights_digest
        self.loras = LoraCache(
            _lora_targets(text_encoder, transformer),
            device=transformer.device,
            dtype=transformer.dtype,
            limit=lora_bytes,
        )
        self.captions: RecentlyUsed[tuple[int, ...], Tensor] = RecentlyUsed(
            CAPTION_BYTES, lambda caption: caption.nbytes
        )
        self._reads = {module for module in text_encoder.modules() if isinstance(module, nn.Linear)}
        lens, patch = transformer.config.axes_lens, transformer.config.patch
        # A caption takes positions 1 to its padded length, and the image the one after.
        captions = (lens[0] - 2) // TOKEN_MULTIPLE * TOKEN_MULTIPLE
        self.max_tokens = min(captions, text_encoder.config.positions)
        self.size_multiple = patch * autoencoder.config.scale
        self.max_side = min(lens[1:]) * self.size_multiple

    def tokenize(self, prompt: str, limit: int) -> list[int]:
        return self.tokenizer.ids_within(prompt, limit)

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer.ids(prompt))

    def forget(self) -> None:
        self.loras.kept.clear()
        self.captions.clear()

    def adapters(self, loras: Sequence[tuple[Path, float]]) -> Adapters | None:
        return self.loras.adapters(loras)

    def encode_prompts(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapters | None]) -> list[Tensor]:
        captions = [self._caption(tuple(ids), own) for ids, own in zip(prompts, adapters, strict=True)]
        return [self.transformer.refine_caption(caption, own) for caption, own in zip(captions, adapters, strict=True)]

    def _caption(self, ids: tuple[int, ...], adapters: Adapters | None) -> Tensor:
        """The text encoder's output for a prompt, alone: packed with others it would round in another way, and a prompt that
        was met before would give other bytes than one that was not.
        """
        if adapters is not None and not self._reads.isdisjoint(adapters.by_linear):
            return cast(Tensor, self.text_encoder([ids], [adapters])[0])
        known = self.captions.get(ids)
        return self.captions.put(ids, self.text_encoder([ids])[0]) if known is None else known

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        scale = self.autoencoder.config.scale
        return self.transformer.config.in_channels, height // scale, width // scale

    def schedule(self, steps: int, strength: float, *, steps_scale: bool) -> Tensor:
        if steps_scale:
            return drop_first(flow_match(steps, self.shift), strength)
        return flow_match(steps, self.shift, strength)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return sigma * noise + (1.0 - sigma) * latents

    def derivative(
        self,
        conditionings: Sequence[Tensor],
        shapes: Sequence[tuple[int, int, int]],
        schedules: Sequence[Tensor],
        adapters: Sequence[Adapters | None],
    ) -> Derivative:
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
                sizes = [shapes[i][1:] for i in active]
                packed = active, self.transformer.pack(sizes, [len(caption) for caption in captions])
            own = [adapters[i] for i in active]
            row = [rows[key] for key in zip(own, sigmas, strict=True)]
            outputs = self.transformer(latents, captions, packed[1], modulation, row, own)
            return [-output.float() for output in outputs]

        return velocity

    def encode_pixels(self, pixels: Tensor, posterior_noise: Tensor | None) -> Tensor:
        noise = None if posterior_noise is None else posterior_noise[None]
        return self.autoencoder.encode(pixels[None], noise)[0]

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents[None])[0]


class ZImage:
    """The family; see ``families.family.Family``. float16 is left out: too narrow for this transformer's activations."""

    dtypes = ("bfloat16", "float32")
    precisions = tuple(PRECISIONS)
    layouts = LAYOUTS

    def open(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),
        device: torch.device,
        dtype: torch.dtype,
        lora_bytes: int,
        precision: str | None = None,
        progress: Progress | None = None,
    ) -> ZImageModel:
        found = SingleFiles.read(files) if files else None
        configs = _Configs.read(folder, found)
        shift = _shift(folder) if found is None else SHIFT
        tokenizer = PromptTokenizer(folder / "tokenizer")
        if found is None:
            text_encoder = Blueprint.read(
                lambda: Qwen3Encoder(configs.text_encoder),
                folder / "text_encoder",
                qwen3_encoder(configs.text_encoder.layers),
            )
            transformer = Blueprint.read(
                lambda: ZImageTransformer(configs.transformer),
                folder / "transformer",
                z_image_transformer(configs.transformer.patch),
            )
            autoencoder = Blueprint.read(lambda: Autoencoder(configs.autoencoder), folder / "vae", AUTOENCODER)
            digest = weights_digest([folder / part for part in ("text_encoder", "transformer", "vae")])
        else:
            text_encoder, transformer = found.text_encoder.blueprint(), found.transformer.blueprint()
            autoencoder = found.autoencoder.blueprint()
            digest = file_digest(found.files)
        total = text_encoder.stored_bytes + transformer.stored_bytes + autoencoder.stored_bytes
        loaded = 0
        kept = PRECISIONS[precision] if precision else None
        painter, reader = (quantizing(names, kept) if kept else None for names in (IN_TRANSFORMER, IN_TEXT_ENCODER))

        def advance(size: int) -> None:
            nonlocal loaded
            loaded += size
            if progress is not None:
                progress(loaded, total)

        return ZImageModel(
            tokenizer,
            text_encoder.load(device=device, dtype=dtype, replace=reader, progress=advance),
            transformer.load(device=device, dtype=dtype, replace=painter, progress=advance),
            autoencoder.load(device=device, dtype=dtype, progress=advance),
            shift,
            digest,
            lora_bytes,
        )

    def conversion(self, folder: Path, *, files: Sequence[Path] = (), precision: str | None, layout: str) -> Conversion:
        large = {"transformer": IN_TRANSFORMER, "text_encoder": IN_TEXT_ENCODER}
        return z_image_conversion(folder, files, precision=precision, layout=layout, quantised=large)

    def check_lora(self, folder: Path, lora: Path, *, files: Sequence[Path] = ()) -> None:
        configs = _Configs.read(folder, SingleFiles.read(files) if files else None)
        with torch.device("meta"):
            networks = Qwen3Encoder(configs.text_encoder), ZImageTransformer(configs.transformer)
        LoraFile.read(lora).match(_lora_targets(*networks))


@dataclass(frozen=True)
class _Configs:
    """The sizes of a checkpoint's networks, known to fit one another."""

    text_encoder: TextEncoderConfig
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig

    @classmethod
    def read(cls, folder: Path, found: SingleFiles | None) -> _Configs:
        if found is None:
            text_encoder = TextEncoderConfig.from_json(read_config(folder / "text_encoder"))
            transformer = TransformerConfig.from_json(read_config(folder / "transformer"))
            autoencoder = AutoencoderConfig.from_json(read_config(folder / "vae"))
        else:
            text_encoder, transformer = found.text_encoder.config, found.transformer.config
            autoencoder = found.autoencoder.config
        if text_encoder.hidden != transformer.caption_dim:
            raise CheckpointError(
                f"{folder}: the text encoder is {text_encoder.hidden} wide and the transformer reads "
                f"{transformer.caption_dim}. They belong to different checkpoints."
            )
        if autoencoder.latent_channels != transformer.in_channels:
            raise CheckpointError(
                f"{folder}: the autoencoder has {autoencoder.latent_channels} latent channels and the "
                f"transformer {transformer.in_channels}. They belong to different checkpoints."
            )
        return cls(text_encoder, transformer, autoencoder)


def _lora_targets(text_encoder: Qwen3Encoder, transformer: ZImageTransformer) -> dict[str, LoraTarget]:
    last = text_encoder.config.layers - 1
    return lora_targets(
        [
            (transformer, (z_image_transformer(transformer.config.patch), Z_IMAGE_ORIGINAL)),
            (text_encoder, (qwen3_encoder(text_encoder.config.layers),)),
        ],
        unused={f"layers_{last}_self_attn_": "layers_0_self_attn_", f"layers_{last}_mlp_": "layers_0_mlp_"},
    )


def _shift(folder: Path) -> float:
    """The shift of the schedule that the checkpoint was trained for."""
    values = read_config(folder / "scheduler", "scheduler_config.json")
    read = ConfigValues(values, "scheduler/scheduler_config.json")
    scheduler = read.text("_class_name")
    if scheduler != "FlowMatchEulerDiscreteScheduler":
        raise CheckpointError(f"{folder / 'scheduler'} asks for {scheduler}; Z-Image is sampled by flow matching.")
    unusual = [
        name
        for name in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                     "invert_sigmas", "stochastic_sampling", "shift_terminal")
        if values.get(name)
    ]  # fmt: skip
    if unusual:
        raise CheckpointError(f"{folder / 'scheduler'} sets {', '.join(unusual)}, which is not built here.")
    return read.positive("shift", 1.0)
