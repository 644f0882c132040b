"""SDXL against diffusers' pipelines in float32, over small random checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from sdxl_reference import SCHEDULER, random_sdxl, sdxl_image_to_image, sdxl_pipeline
from torch import Tensor, nn

from hwaga import Engine, ImageRequest, Settings
from hwaga.families.sdxl.model import SdxlModel
from hwaga.families.sdxl.noise import Prediction

PIXEL_BOUND = 5e-4
"""Largest difference of pixels in [0, 1]. Measured: 2e-5."""

PROMPT = "a red apple, on a wooden table by the window"
LONG = ", ".join(["a market street at dusk", "paper lanterns", "wet cobblestones", "steam from a noodle stall"] * 5)
SIZE = (64, 48)


@dataclass(frozen=True)
class Pair:
    """One checkpoint opened by Hwaga and by the reference."""

    folder: Path
    engine: Engine
    reference: StableDiffusionXLPipeline

    @property
    def model(self) -> SdxlModel:
        return cast(SdxlModel, self.engine._opened().model)


def opened(folder: Path) -> Pair:
    settings = Settings(data_dir=str(folder.parent))
    settings.loras.mkdir()
    return Pair(folder, Engine.open(folder, device="cpu", dtype="float32", settings=settings), sdxl_pipeline(folder))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    found = opened(random_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"))
    with found.engine:
        yield found


def ours(pair: Pair, *requests: ImageRequest) -> list[Tensor]:
    """What the engine makes of requests as one batch, in [0, 1] and not yet rounded to 8 bits."""
    pictures: list[Tensor] = []
    decode = pair.model.decode_latents

    def recorded(latents: Tensor, tile: int | None = None) -> Tensor:
        pixels = decode(latents, tile)
        pictures.append((pixels / 2 + 0.5).clamp(0, 1))
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.model, "decode_latents", recorded)
        pair.engine.generate_many(list(requests))
    return pictures


def theirs(pair: Pair, prompt: str = PROMPT, *, seed: int = 3, size: tuple[int, int] = SIZE, **options: Any) -> Tensor:
    width, height = size
    output = pair.reference(
        prompt, width=width, height=height, generator=torch.Generator().manual_seed(seed), output_type="pt",
        **{"num_inference_steps": 6, "guidance_scale": 5.0, **options},
    )  # fmt: skip
    return cast(Tensor, output.images[0])


def asked(prompt: str = PROMPT, *, seed: int = 3, size: tuple[int, int] = SIZE, **options: Any) -> ImageRequest:
    return ImageRequest(prompt, width=size[0], height=size[1], seed=seed, **{"steps": 6, **options})


def check(made: Tensor, wanted: Tensor, what: str = "") -> None:
    assert made.shape == wanted.shape
    assert wanted.std() > 0.02, "the reference's picture is flat"
    assert ((wanted <= 0) | (wanted >= 1)).float().mean() < 0.2, "the reference's picture is clipped"
    difference = (made - wanted).abs().max().item()
    assert difference <= PIXEL_BOUND, f"{what}: largest difference {difference:.2e}"


def test_text_to_image(pair: Pair) -> None:
    """With guidance and without, with a negative prompt and without, and what was asked for makes a difference."""
    pictures = {
        "plain": theirs(pair),
        "negative": theirs(pair, negative_prompt="fog, rain"),
        "stronger": theirs(pair, guidance_scale=9.0),
        "unguided": theirs(pair, guidance_scale=1.0),
    }
    made = ours(
        pair,
        asked(),
        asked(negative="fog, rain"),
        asked(guidance=9),
        asked(guidance=1),
    )
    for picture, (name, wanted) in zip(made, pictures.items(), strict=True):
        check(picture, wanted, name)
        assert name == "plain" or (wanted - pictures["plain"]).abs().max() > 0.01, name


@pytest.mark.parametrize("steps", [2, 16])
def test_karras(pair: Pair, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(pair.reference.scheduler.config, use_karras_sigmas=True)
    other = Pair(
        pair.folder, pair.engine, StableDiffusionXLPipeline(**{**pair.reference.components, "scheduler": scheduler})
    )
    other.reference.set_progress_bar_config(disable=True)
    wanted = theirs(other, num_inference_steps=steps)
    check(ours(pair, asked(steps=steps, sampler="dpmpp_2m_karras"))[0], wanted)
    assert (ours(pair, asked(steps=steps))[0] - wanted).abs().max() > 0.01, "the samplers come to the same"


def source() -> Image.Image:
    width, height = SIZE
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([across, down, (across + down) / 2], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((8, 8, 32, 32), fill=(220, 20, 30))
    return image


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_karras"])
@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
def test_image_to_image(pair: Pair, strength: float, sampler: str) -> None:
    """As the reference does it: the strength drops steps, and the seed's first numbers sample the encoder's posterior."""
    pipeline = sdxl_image_to_image(pair.reference)
    if sampler != "euler":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    wanted = pipeline(
        PROMPT, image=source(), strength=strength, num_inference_steps=6, guidance_scale=5.0, negative_prompt="fog",
        generator=torch.Generator().manual_seed(11), output_type="pt",
    ).images[0]  # fmt: skip
    request = ImageRequest(
        PROMPT, negative="fog", image=source(), strength=strength, steps=6, seed=11, steps_scale=True, sampler=sampler
    )
    check(ours(pair, request)[0], wanted)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace", "beta_schedule": "linear"},
    ],
    ids=str,
)
def test_schedulers(pair: Pair, scheduler: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kind = type(pair.reference.scheduler)
        patch.setattr(pair.reference, "scheduler", kind(**{**SCHEDULER, **scheduler}))
        pair.reference.scheduler.save_pretrained(tmp_path / "scheduler")
        patch.setattr(pair.model, "prediction", Prediction.read(tmp_path))
        check(ours(pair, asked())[0], theirs(pair))


def test_batches(pair: Pair) -> None:
    """Prompts, sizes, steps, samplers and guidance beside each other give what each gives alone."""
    requests = [
        asked(),
        asked("a blue bird", seed=4, negative="fog"),
        asked("a blue bird", seed=5, size=(48, 64), guidance=3),
        asked("a fox", seed=6, steps=3, guidance=1),
        asked(LONG, seed=7, sampler="dpmpp_2m_karras"),
        asked("a fox", seed=8, image=source(), strength=0.5, sampler="dpmpp_2m_karras"),
    ]
    for picture, request in zip(ours(pair, *requests), requests, strict=True):
        (alone,) = ours(pair, request)
        difference = (picture - alone).abs().max().item()
        assert difference <= 2e-5, f"{request.prompt[:20]}: {difference:.2e}"
    check(ours(pair, *requests)[0], theirs(pair))
    check(ours(pair, *requests)[1], theirs(pair, "a blue bird", seed=4, negative_prompt="fog"))


def test_long_prompts(pair: Pair) -> None:
    """Each window is read by itself, and windows are joined; a shorter negative prompt is filled up with empty ones."""

    def embedded(prompt: str) -> tuple[list[Tensor], Tensor]:
        first, second = pair.model.tokenizer.windows(prompt)
        with torch.no_grad():
            one = pair.reference.text_encoder(torch.tensor(first.ids), output_hidden_states=True)
            two = pair.reference.text_encoder_2(torch.tensor(second.ids), output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        return list(states), two.text_embeds[:1]

    (windows, pooled), (unwanted, unwanted_pooled), (empty, _) = (embedded(text) for text in (LONG, "fog", ""))
    assert len(windows) > 2
    wanted = theirs(
        pair, cast(str, None), prompt_embeds=torch.cat(windows)[None], pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.cat([*unwanted, *empty * (len(windows) - 1)])[None],
        negative_pooled_prompt_embeds=unwanted_pooled,
    )  # fmt: skip
    check(ours(pair, asked(LONG, negative="fog"))[0], wanted)


def test_weights(pair: Pair) -> None:
    """A weight of 1 is none, other weights change the picture, and brackets are not read as words."""
    plain, one, more, escaped = ours(
        pair,
        asked(),
        asked(f"({PROMPT}:1.0)"),
        asked(PROMPT.replace("red", "(red:1.4)")),
        asked(PROMPT.replace("red", "\\(red\\)")),
    )
    assert (one - plain).abs().max() < 1e-5
    assert (more - plain).abs().max() > 1e-3
    assert (escaped - more).abs().max() > 1e-3
    check(escaped, theirs(pair, PROMPT.replace("red", "(red)")))


def write_lora(path: Path, pair: Pair, seed: int) -> Path:
    """As kohya writes it, over the linear layers and convolutions of the U-Net's blocks and of both encoders."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    networks = {"unet": pair.reference.unet, "te1": pair.reference.text_encoder, "te2": pair.reference.text_encoder_2}
    for which, network in networks.items():
        for name, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not re.search(r"attentions|resnets|self_attn|mlp", name):
                continue
            out, *inner = layer.weight.shape
            words = name if which == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            stem = f"lora_{which}_{words.replace('.', '_')}"
            down = torch.randn(4, *inner, generator=generator) / layer.weight[0].numel() ** 0.5
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.lora_up.weight"] = 0.4 * torch.randn(out, 4, *[1] * len(inner[1:]), generator=generator)
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def test_loras(pair: Pair) -> None:
    """One in both encoders and the U-Net, beside pictures without it and with another; the base is as it was after."""
    one = write_lora(pair.folder.parent / "loras/one.safetensors", pair, 1)
    write_lora(pair.folder.parent / "loras/two.safetensors", pair, 2)
    plain = theirs(pair, negative_prompt="fog")
    pair.reference.load_lora_weights(one.parent, weight_name=one.name, adapter_name="one")
    pair.reference.set_adapters(["one"], [0.7])
    wanted = theirs(pair, negative_prompt="fog")
    pair.reference.unload_lora_weights()
    assert (wanted - plain).abs().max() > 0.02, "the LoRA makes no difference"
    request = asked(negative="fog")
    batch = [request, request.replace(loras=["one:0.7"]), request.replace(loras=["two"]), request]
    made = ours(pair, *batch)
    check(made[0], plain, "beside")
    check(made[1], wanted, "with a LoRA")
    check(made[3], plain, "beside")
    check(ours(pair, request.replace(loras=["one:0.7"]))[0], wanted, "alone")
    assert (made[2] - made[1]).abs().max() > 0.02
    assert torch.equal(ours(pair, request)[0], ours(pair, request)[0])
    check(ours(pair, request)[0], plain, "after")


def test_an_empty_negative_prompt_that_is_read(tmp_path: Path) -> None:
    """Some checkpoints read no negative prompt as an empty text, and not as zeros."""
    other = opened(random_sdxl(tmp_path / "reads", force_zeros=False))
    with other.engine:
        check(ours(other, asked())[0], theirs(other))
        other.reference.register_to_config(force_zeros_for_empty_prompt=True)
        assert (ours(other, asked())[0] - theirs(other)).abs().max() > 1e-3
