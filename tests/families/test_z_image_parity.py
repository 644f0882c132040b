"""Z-Image against diffusers 0.42 in float32: every network by itself, then whole pictures.

Over small random checkpoints of odd sizes, and over the bundled model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from PIL import Image, ImageDraw
from reference import (
    CONFIGS,
    MINI,
    SIZES,
    image_to_image,
    random_checkpoint,
    randomise,
    reference_embedding,
    reference_pipeline,
)
from torch import Tensor

from hwaga import ImageRequest
from hwaga.engine import Engine
from hwaga.families.z_image.family import ZImageModel
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.checkpoint import Blueprint, read_config
from hwaga.weights.layouts import z_image_transformer

NETWORK_BOUND = 1e-5
"""Largest difference of one network's output, as a share of the largest value. Measured: 1e-6."""

PIXEL_BOUND = 5e-5
"""Largest difference of pixels in [0, 1] made from text. Measured: 4e-6."""

PIXEL_BOUND_FROM_IMAGE = 2e-4
"""The same for pictures made from pictures. Measured: 6e-5, and the reference's own: it hands its autoencoder the picture
channels last, which sends the CPU's convolutions down a path that is up to 6e-4 off float64, where ours is 5e-5 off."""

PROMPTS = [
    "a",
    "a red apple on a yellow background",
    "파란 배경의 고양이",
    "四只猫 🐈‍⬛ and\n\ttwo  dogs",
    "김이 나는 떡볶이 한 그릇, 나무 식탁 위, 따뜻한 조명, a shop window in the rain behind it, photographed from above",
    "word " * 60,
]


@dataclass(frozen=True)
class Pair:
    """One checkpoint opened by Hwaga and by the reference."""

    name: str
    folder: Path
    engine: Engine
    reference: ZImagePipeline
    sizes: list[tuple[int, int]]

    @property
    def model(self) -> ZImageModel:
        return cast(ZImageModel, self.engine._opened().model)


@pytest.fixture(scope="module", params=[*CONFIGS, "mini"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    name = request.param
    folder = MINI if name == "mini" else random_checkpoint(tmp_path_factory.mktemp(name), name)
    sizes = SIZES.get(name, [(256, 256), (336, 192)])
    with Engine.open(folder, device="cpu", dtype="float32") as engine:
        yield Pair(name, folder, engine, reference_pipeline(folder), sizes)


@pytest.fixture
def decoded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the engine decodes, in [0, 1] and not yet rounded to 8 bits, in order."""
    pictures: list[Tensor] = []
    decode = pair.model.decode_latents

    def recorded(latents: Tensor, tile: int | None) -> Tensor:
        pixels = decode(latents, tile)
        pictures.append((pixels / 2 + 0.5).clamp(0, 1))
        return pixels

    monkeypatch.setattr(pair.model, "decode_latents", recorded)
    return pictures


def _source_picture(size: tuple[int, int]) -> Image.Image:
    width, height = size
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 3, width // 2, height // 1.5), fill=(200, 30, 40))
    return image


def _assert_near(ours: Tensor, theirs: Tensor, bound: float, what: str) -> None:
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    difference = (ours - theirs).abs().max().item()
    assert difference <= bound, f"{what}: largest difference {difference:.2e}, allowed {bound:.2e}"


def _eight_bit(pixels: Tensor) -> np.ndarray:
    return (pixels.permute(1, 2, 0).numpy() * 255).round().astype(int)


@torch.inference_mode()
def test_text_embeddings(pair: Pair) -> None:
    ids = [pair.model.tokenize(prompt, 512) for prompt in PROMPTS]
    assert {len(i) > 32 for i in ids} == {True, False}
    place = torch.device("cpu"), torch.float32
    together = pair.model.text_encoder(ids, [None] * len(ids), *place)
    for prompt, prompt_ids, beside in zip(PROMPTS, ids, together, strict=True):
        theirs = reference_embedding(pair.reference, prompt)
        bound = NETWORK_BOUND * theirs.abs().max().item()
        _assert_near(beside, theirs, bound, prompt[:9])
        assert torch.equal(beside, pair.model.text_encoder([prompt_ids], [None], *place)[0]), (
            "others make no difference"
        )


def _reference_forward(pair: Pair, latent: Tensor, time: float, caption: Tensor) -> Tensor:
    output = pair.reference.transformer([latent[:, None]], torch.tensor([time]), [caption], return_dict=False)
    return cast(Tensor, output[0][0][:, 0])


def _our_forward(model: ZImageModel, latents: list[Tensor], times: list[float], captions: list[Tensor]) -> list[Tensor]:
    refined = model.transformer.refine_captions(captions, [None] * len(captions))
    pack = model.transformer.pack([latent.shape[1:] for latent in latents], [len(caption) for caption in refined])
    distinct = sorted(set(times))
    modulation = model.transformer.modulate(torch.tensor(distinct))
    return model.transformer(latents, refined, pack, modulation, [distinct.index(time) for time in times])


def _inputs(model: ZImageModel, h: int, w: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * h + 10 * w + tokens)
    config = model.transformer.config
    latent = torch.randn(config.in_channels, h, w, generator=generator)
    return latent, torch.randn(tokens, config.caption_dim, generator=generator)


# h, w, caption tokens, time; h * w / 4 is a multiple of 32 in some.
FORWARDS = [
    (16, 16, 32, 0.0),
    (16, 16, 33, 0.999),
    (2, 2, 1, 0.5),
    (6, 40, 64, 0.25),
    (32, 18, 17, 0.7305),
    (14, 10, 63, 1.0),
]


@torch.inference_mode()
@pytest.mark.parametrize(("h", "w", "tokens", "time"), FORWARDS)
def test_transformer_forward(pair: Pair, h: int, w: int, tokens: int, time: float) -> None:
    latent, caption = _inputs(pair.model, h, w, tokens)
    theirs = _reference_forward(pair, latent, time, caption)
    assert theirs.std() > 0.05
    ours = _our_forward(pair.model, [latent], [time], [caption])[0]
    _assert_near(ours, theirs, NETWORK_BOUND * theirs.abs().max().item(), "forward")


@torch.inference_mode()
def test_caption_lengths(pair: Pair) -> None:
    for tokens in range(1, 65) if pair.name == "deep" else (1, 2, 31, 32, 33, 47, 63, 64):
        latent, caption = _inputs(pair.model, 4, 6, tokens)
        theirs = _reference_forward(pair, latent, 0.4, caption)
        ours = _our_forward(pair.model, [latent], [0.4], [caption])[0]
        _assert_near(ours, theirs, NETWORK_BOUND * theirs.abs().max().item(), f"{tokens} tokens")


@torch.inference_mode()
def test_last_positions(pair: Pair) -> None:
    """The longest caption and the longest sides that the engine lets through still have positions."""
    model = pair.model
    longest = model.max_side // model.autoencoder.config.scale
    for h, w, tokens in ((2, 2, model.max_tokens), (2, longest, 3), (longest, 2, 3)):
        latent, caption = _inputs(model, h, w, tokens)
        theirs = _reference_forward(pair, latent, 0.6, caption)
        ours = _our_forward(model, [latent], [0.6], [caption])[0]
        _assert_near(ours, theirs, NETWORK_BOUND * theirs.abs().max().item(), f"{h}x{w}, {tokens}")
    lens = model.transformer.config.axes_lens
    assert model.max_tokens + 32 + 1 >= lens[0], "longer captions would have positions too"
    assert longest == 2 * min(lens[1:])


@torch.inference_mode()
def test_packed_forward(pair: Pair) -> None:
    """A pack of different sizes, caption lengths and times gives what each gives alone."""
    inputs = [_inputs(pair.model, h, w, tokens) for h, w, tokens, _ in FORWARDS]
    latents, captions = [latent for latent, _ in inputs], [caption for _, caption in inputs]
    for times in ([time for *_, time in FORWARDS], [0.5] * len(FORWARDS)):
        packed = _our_forward(pair.model, latents, times, captions)
        for ours, latent, time, caption in zip(packed, latents, times, captions, strict=True):
            theirs = _reference_forward(pair, latent, time, caption)
            _assert_near(ours, theirs, NETWORK_BOUND * theirs.abs().max().item(), "packed forward")


@torch.inference_mode()
@pytest.mark.parametrize("patch", [1, 4])
def test_other_patch_sizes(tmp_path: Path, patch: int) -> None:
    """The reference's pipelines know patches of 2 only; its transformer knows others."""
    reference = ZImageTransformer2DModel(all_patch_size=(patch,), **CONFIGS["deep"].transformer)
    randomise(reference, torch.Generator().manual_seed(patch))
    reference.save_pretrained(tmp_path)
    config = TransformerConfig.from_json(read_config(tmp_path))
    blueprint = Blueprint.read(lambda: ZImageTransformer(config), tmp_path, z_image_transformer(patch))
    ours = blueprint.load(device=torch.device("cpu"), dtype=torch.float32)
    latent, caption = torch.randn(8, 12, 20), torch.randn(9, 32)
    theirs = reference([latent[:, None]], torch.tensor([0.3]), [caption], patch_size=patch, return_dict=False)[0][0][
        :, 0
    ]
    (refined,) = ours.refine_captions([caption], [None])
    pack = ours.pack([(12, 20)], [len(refined)])
    output = ours([latent], [refined], pack, ours.modulate(torch.tensor([0.3])), [0])[0]
    _assert_near(output, theirs, NETWORK_BOUND * theirs.abs().max().item(), "forward")


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (96, 32)], ids=["square", "wide"])
def test_encode(pair: Pair, size: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.asarray(_source_picture(size), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    config = pair.reference.vae.config
    posterior = pair.reference.vae.encode(pixels[None]).latent_dist
    mean = ((posterior.mode() - config.shift_factor) * config.scaling_factor)[0]
    bound = NETWORK_BOUND * mean.abs().max().item()
    assert mean.std() > 0.05
    _assert_near(pair.model.encode_pixels(pixels, None), mean, bound, "mean")

    sampled = posterior.sample(torch.Generator().manual_seed(5))
    sample = ((sampled - config.shift_factor) * config.scaling_factor)[0]
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(5))
    bound = NETWORK_BOUND * sample.abs().max().item()
    assert (sample - mean).abs().max() > 100 * bound
    _assert_near(pair.model.encode_pixels(pixels, noise), sample, bound, "sample")


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (4, 14)], ids=["square", "wide"])
def test_decode(pair: Pair, size: tuple[int, int]) -> None:
    config = pair.reference.vae.config
    latents = torch.randn(config.latent_channels, *size, generator=torch.Generator().manual_seed(6))
    theirs = pair.reference.vae.decode((latents / config.scaling_factor + config.shift_factor)[None]).sample[0]
    bound = NETWORK_BOUND * theirs.abs().max().item()
    _assert_near(pair.model.decode_latents(latents), theirs, bound, "pixels")


def test_text_to_image(pair: Pair, decoded: list[Tensor]) -> None:
    """Eight steps, alone and in one pack, before and after rounding to 8 bits."""
    requests = [
        ImageRequest(prompt, width=width, height=height, seed=seed, steps=8)
        for (width, height), prompt, seed in zip(
            [pair.sizes[0], *pair.sizes], [PROMPTS[1], PROMPTS[4], PROMPTS[2]], [3, 3, 2**32 - 1], strict=True
        )
    ]
    theirs = []
    for request in requests:
        generator = torch.Generator().manual_seed(cast(int, request.seed))
        output = pair.reference(
            request.prompt, width=request.width, height=request.height, num_inference_steps=8, guidance_scale=0.0,
            generator=generator, output_type="pt",
        )  # fmt: skip
        theirs.append(output.images[0])
    assert min(picture.std().item() for picture in theirs) > 0.02, "the reference's pictures are flat"
    assert (theirs[0] - theirs[1]).abs().max() > 0.02, "the prompt makes no difference"

    results = [*pair.engine.generate_many(requests), pair.engine.generate(requests[2])]
    how = ["packed"] * 3 + ["alone"]
    for result, ours, picture, kind in zip(results, decoded, [*theirs, theirs[2]], how, strict=True):
        _assert_near(ours, picture, PIXEL_BOUND, kind)
        assert np.abs(np.asarray(result.image).astype(int) - _eight_bit(picture)).max() <= 1


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_image_to_image(pair: Pair, strength: float, decoded: list[Tensor]) -> None:
    """As the reference does it: the strength drops steps, and the seed's first numbers sample the encoder's posterior."""
    width, height = pair.sizes[1]
    source = _source_picture((width, height))
    theirs = (
        image_to_image(pair.reference)(
            PROMPTS[2], image=source, strength=strength, num_inference_steps=8, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(11), output_type="pt",
        )
        .images[0]
    )  # fmt: skip
    assert theirs.std() > 0.02, "the reference's picture is flat"
    result = pair.engine.generate(
        ImageRequest(PROMPTS[2], image=source, strength=strength, steps=8, seed=11, steps_scale=True)
    )
    _assert_near(decoded[0], theirs, PIXEL_BOUND_FROM_IMAGE, "image to image")
    assert np.abs(np.asarray(result.image).astype(int) - _eight_bit(theirs)).max() <= 1


def test_bfloat16() -> None:
    """The bundled model in bfloat16 makes the pictures that it makes in float32."""
    requests = [
        ImageRequest("a red apple on a yellow background", seed=1),
        ImageRequest("파란 배경의 고양이", seed=2, aspect="16:9"),
        ImageRequest("two pink hearts, a bell and a slice of pizza on a white background", seed=4, aspect="3:4"),
    ]
    with Engine.open("mini", dtype="float32", device="cpu") as engine:
        exact = [np.asarray(engine.generate(request).image).astype(float) for request in requests]
    with Engine.open("mini", dtype="bfloat16", device="cpu") as engine:
        rounded = [np.asarray(engine.generate(request).image).astype(float) for request in requests]
    errors = [float(((a - b) ** 2).mean()) for a, b in zip(exact, rounded, strict=True)]
    assert min(errors) > 0, "bfloat16 was not used"
    ratios = [10 * np.log10(255**2 / error) for error in errors]
    assert min(ratios) >= 35, [f"{ratio:.1f} dB" for ratio in ratios]
