"""LoRAs of every spelling against diffusers and peft, as pictures in float32 over a small random checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import lora_files
import pytest
import torch
from diffusers import ZImagePipeline
from lora_files import READ_BY_REFERENCE, SPELLINGS, deltas_of, fused, loha, lokr, merge, random_factors, save
from reference import random_checkpoint, reference_pipeline
from torch import Tensor

from hwaga import Engine, ImageRequest, Settings
from hwaga.families.z_image.family import ZImageModel

BOUND = 2e-4
"""Largest difference of pixels in [0, 1]. Measured: 6e-6."""

EFFECT = 0.05
"""A LoRA changes some pixel by more than this, or the comparison says nothing."""

REQUEST = ImageRequest("a red apple on a yellow background", width=256, height=288, steps=3, seed=5)

Draw = Callable[..., Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("deep"), "deep")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ZImagePipeline:
    return reference_pipeline(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    settings = Settings(data_dir=str(tmp_path_factory.mktemp("data")))
    settings.loras.mkdir()
    with Engine.open(checkpoint, device="cpu", dtype="float32", settings=settings) as opened:
        yield opened


@pytest.fixture
def ours(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws with LoRAs; gives pixels in [0, 1], not rounded to 8 bits."""
    model = cast(ZImageModel, engine._opened().model)
    decode, pictures = model.decode_latents, list[Tensor]()

    def recorded(latents: Tensor, tile: int | None) -> Tensor:
        pictures.append((decode(latents, tile) / 2 + 0.5).clamp(0, 1))
        return pictures[-1] * 2 - 1

    monkeypatch.setattr(model, "decode_latents", recorded)

    def draw(*loras: str) -> Tensor:
        engine.generate(REQUEST.replace(loras=loras))
        return pictures.pop()

    return draw


def theirs(pipeline: ZImagePipeline) -> Tensor:
    pixels = pipeline(
        REQUEST.prompt, width=REQUEST.width, height=REQUEST.height, num_inference_steps=REQUEST.steps, guidance_scale=0.0,
        generator=torch.Generator().manual_seed(cast(int, REQUEST.seed)), output_type="pt",
    ).images[0]  # fmt: skip
    return cast(Tensor, pixels)


def merged(pipeline: ZImagePipeline, *parts: tuple[str, dict[str, Tensor], float]) -> Tensor:
    """The reference's picture with deltas added to copies of its networks."""
    networks = {name: copy.deepcopy(getattr(pipeline, name)) for name in {part[0] for part in parts}}
    for name, deltas, weight in parts:
        merge(networks[name], deltas, weight)
    other = ZImagePipeline(**{**pipeline.components, **networks})
    other.set_progress_bar_config(disable=True)
    return theirs(other)


def loaded(pipeline: ZImagePipeline, files: Sequence[tuple[Path, float]]) -> Tensor:
    """The reference's picture with files that it loads itself."""
    try:
        for place, (path, _) in enumerate(files):
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{place}")
        pipeline.set_adapters([f"a{place}" for place in range(len(files))], [weight for _, weight in files])
        return theirs(pipeline)
    finally:
        pipeline.unload_lora_weights()


def assert_near(drawn: Tensor, wanted: Tensor, without: Tensor) -> None:
    assert (without - wanted).abs().max() > EFFECT
    difference = (drawn - wanted).abs().max().item()
    assert difference <= BOUND, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling: str, engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    factors = random_factors(reference.transformer, 1)
    path = save(engine.settings.loras / f"{spelling.replace(' ', '-')}.safetensors", SPELLINGS[spelling](factors))
    without = ours()
    drawn = ours(path.stem)
    if spelling in READ_BY_REFERENCE:
        assert_near(drawn, loaded(reference, [(path, 1.0)]), without)
    assert_near(drawn, merged(reference, ("transformer", deltas_of(factors), 1.0)), without)
    assert torch.equal(ours(), without), "the base weights are as they were"


def test_two_with_weights(engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    first, second = (random_factors(reference.transformer, seed) for seed in (2, 3))
    folder = engine.settings.loras
    files = [save(folder / "first.safetensors", SPELLINGS["diffusers"](first)),
             save(folder / "second.safetensors", SPELLINGS["ai-toolkit"](second))]  # fmt: skip
    drawn = ours("first:0.7", "second:-0.4")
    assert_near(drawn, loaded(reference, list(zip(files, (0.7, -0.4), strict=True))), ours("first"))
    assert torch.equal(ours("first:0.7", "second:0"), ours("first:0.7"))


def test_original_names_and_a_fused_product(engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    tensors, seen = fused(random_factors(reference.transformer, 4))
    save(engine.settings.loras / "fused.safetensors", tensors)
    assert_near(ours("fused"), merged(reference, ("transformer", deltas_of(seen), 1.0)), ours())


@pytest.mark.parametrize(
    "prefix", ["text_encoder.", "text_encoder.model.", "lora_te_model_", "text_encoders.qwen3_4b.transformer.model."]
)
def test_text_encoder(prefix: str, engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    encoder, painter = random_factors(reference.text_encoder, 5), random_factors(reference.transformer, 6)
    # All layers, as trainers write them, also the last one, which the conditioning does not pass through.
    spelt = {prefix + (n.replace(".", "_") if prefix.endswith("_") else n): pair for n, pair in encoder.items()}
    save(
        engine.settings.loras / "both.safetensors",
        lora_files._peft("")(spelt) | lora_files._peft("transformer.")(painter),
    )
    wanted = merged(reference, ("text_encoder", deltas_of(encoder), 0.5), ("transformer", deltas_of(painter), 0.5))
    assert_near(ours("both:0.5"), wanted, ours())


def test_lokr(engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    path = save(engine.settings.loras / "lokr.safetensors", lokr(reference.transformer, 7))
    assert_near(ours("lokr"), loaded(reference, [(path, 1.0)]), ours())


@pytest.mark.parametrize("rank", [2, 16])
def test_loha(rank: int, engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    tensors = loha(reference.transformer, 8, rank)
    save(engine.settings.loras / f"loha{rank}.safetensors", tensors)
    deltas = {}
    for name in random_factors(reference.transformer, 0):
        a1, b1, a2, b2 = (
            tensors[f"lycoris_{name.replace('.', '_')}.hada_{part}"].double()
            for part in ("w1_a", "w1_b", "w2_a", "w2_b")
        )
        deltas[name] = (a1 @ b1) * (a2 @ b2) / 2
    assert_near(ours(f"loha{rank}:0.3"), merged(reference, ("transformer", deltas, 0.3)), ours())


def test_alphas_that_peft_notes(engine: Engine, reference: ZImagePipeline, ours: Draw) -> None:
    factors = random_factors(reference.transformer, 9, skip="context")
    config = {
        "r": lora_files.RANK, "lora_alpha": 2, "alpha_pattern": {"layers.0.attention.to_q": 8, "to_v": 1}, "rank_pattern": {},
        "target_modules": list(factors), "use_rslora": True, "peft_type": "LORA",
    }  # fmt: skip
    path = save(engine.settings.loras / "noted.safetensors", SPELLINGS["diffusers"](factors),
                {f"transformer.{key}": value for key, value in config.items()})  # fmt: skip
    assert_near(ours("noted"), loaded(reference, [(path, 1.0)]), ours())


def test_each_picture_of_a_batch_with_its_own(engine: Engine, reference: ZImagePipeline) -> None:
    for seed in (10, 11):
        tensors = SPELLINGS["kohya"](random_factors(reference.transformer, seed))
        save(engine.settings.loras / f"own{seed}.safetensors", tensors)
    requests = [
        REQUEST.replace(loras=loras, width=width, steps=steps, prompt=prompt)
        for loras, width, steps, prompt in [
            (["own10"], 256, 3, "a cat"), ([], 288, 2, "a cat"), (["own11:0.5"], 256, 3, "a cat"),
            (["own10"], 256, 2, "a dog"), (["own11", "own10:0.3"], 288, 3, "a cat"),
        ]
    ]  # fmt: skip
    together = engine.generate_many(requests)
    for request, result in zip(requests, together, strict=True):
        alone = engine.generate(request)
        assert result.loras == alone.loras
        worst = max(abs(a - b) for a, b in zip(result.image.tobytes(), alone.image.tobytes(), strict=True))
        assert worst <= 1, f"{request.loras}: {worst} of 255"
