"""The engine from request to result. The bundled model where a picture must be one, a random one where anything will do."""

from __future__ import annotations

import gc
import io
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from reference import MINI, random_checkpoint
from torch import Tensor

from hwaga import (
    CardError,
    CheckpointError,
    DeviceError,
    Engine,
    ImageRequest,
    LoraError,
    ModelCard,
    PromptError,
    PromptTooLongError,
    RequestError,
    Result,
    Settings,
    SizeError,
    SourceImageError,
    Step,
    UnknownModelError,
)
from hwaga.card_styles import Style
from hwaga.families.z_image.family import ZImageModel

CARD = """
name = "tiny"
family = "z_image"
title = "Random weights, for tests"
license = "none"
source = "none"
steps = 3
preview = [
    [0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.1, 0.1, 0.0],
    [0.0, 0.1, 0.1], [0.1, 0.0, 0.1], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [0.0, 0.1, 0.2],
]

[aspects]
"1:1" = [64, 64]
"2:1" = [128, 64]

[limits]
multiple = 32
min_side = 32
max_side = 256
max_pixels = 32768
max_steps = 20
tokens = 512
max_tokens = 960

[parts.vae]
parameters = 1
"""
"""The card of the checkpoint "deep": eight latent channels, a sixteenth of the picture's sides."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a card, whose pictures have sides of multiples of 32."""
    return random_checkpoint(tmp_path_factory.mktemp("deep"), "deep")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A checkpoint without a card, with positions for 128 tokens and 768 pixels."""
    with Engine.open(random_checkpoint(tmp_path_factory.mktemp("narrow"), "narrow"), device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny_folder(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(deep, tmp_path_factory.mktemp("tiny") / "tiny")
    (folder / "card.toml").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Engine]:
    """The quickest engine: a picture takes some milliseconds."""
    with Engine.open(tiny_folder, device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def mini() -> Iterator[Engine]:
    with Engine.open("mini", device="cpu") as engine:
        yield engine


def model_of(engine: Engine) -> ZImageModel:
    return cast(ZImageModel, engine._opened().model)


def pixels(result: Result | Image.Image) -> np.ndarray:
    return np.asarray(result.image if isinstance(result, Result) else result).astype(int)


def picture(width: int, height: int) -> Image.Image:
    """Something to start from: a gradient with a red disc off its middle."""
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([across, down, (across + down) / 2], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 8, height // 8, width // 2, height // 2), fill=(220, 20, 30))
    return image


@dataclass
class Watch:
    """What the denoiser of an engine is given, without keeping it alive."""

    latents: list[weakref.ref[Tensor]]
    inference: set[bool]
    first: list[list[Tensor]]
    batches: list[int]
    keep_first: bool = True


@pytest.fixture
def watch(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch([], set(), [], [])
    derivative = model_of(tiny)._derivative

    def watched(*arguments: Any) -> Callable[..., Sequence[Tensor]]:
        velocity = derivative(*arguments)
        begun = False

        def call(latents: Sequence[Tensor], *others: Any) -> Sequence[Tensor]:
            nonlocal begun
            seen.batches.append(len(latents))
            seen.inference.add(torch.is_inference_mode_enabled())
            seen.latents += [weakref.ref(latent) for latent in latents]
            if not begun and seen.keep_first:
                seen.first.append([latent.clone() for latent in latents])
            begun = True
            outputs = velocity(latents, *others)
            seen.latents += [weakref.ref(output) for output in outputs]
            return outputs

        return call

    monkeypatch.setattr(model_of(tiny), "_derivative", watched)
    return seen


# The same request gives the same picture


def test_the_same_request_twice_gives_the_same_bytes(mini: Engine) -> None:
    request = ImageRequest("a red apple on a yellow background", seed=7)
    first, second = mini.generate(request), mini.generate(request)
    assert first.image.tobytes() == second.image.tobytes()
    assert pixels(first).std() > 20, "the picture is flat"


def test_another_engine_gives_the_same_bytes(tiny: Engine, tiny_folder: Path) -> None:
    request = ImageRequest("a", seed=1, image=picture(64, 64))
    with Engine.open(tiny_folder, device="cpu") as other:
        assert other.generate(request).image.tobytes() == tiny.generate(request).image.tobytes()


def test_a_resolved_request_makes_the_picture_again(tiny: Engine) -> None:
    for request in (ImageRequest("a"), ImageRequest("a", aspect="2:1"), ImageRequest("a", image=picture(100, 70))):
        result = tiny.generate(request)
        again = tiny.generate(result.request)
        assert again.image.tobytes() == result.image.tobytes()
        assert again.request == result.request


def test_four_pictures_in_one_batch(mini: Engine) -> None:
    """Mixed sizes, prompts, steps and kinds."""
    requests = [
        ImageRequest("a red apple on a yellow background", seed=3, steps=5),
        ImageRequest("파란 배경의 고양이", seed=4, aspect="9:16", steps=2),
        ImageRequest(
            "a green tree with a bell, two hearts and a slice of pizza beside it " * 3, seed=5, aspect="4:3", steps=4
        ),
        ImageRequest("a dog", seed=6, image=picture(336, 192), strength=0.7, steps=3),
    ]
    together = mini.generate_many(requests)
    for request, packed in zip(requests, together, strict=True):
        alone = mini.generate(request)
        assert packed.image.size == alone.image.size
        assert packed.request == alone.request
        difference = np.abs(pixels(packed) - pixels(alone))
        assert (difference <= 1).mean() >= 0.999
        assert difference.max() <= 8


def test_equal_requests_in_one_batch(tiny: Engine) -> None:
    results = tiny.generate_many([ImageRequest("a", seed=1)] * 3)
    assert len({result.image.tobytes() for result in results}) == 1


def test_noise_depends_on_seed_and_size_only(tiny: Engine, watch: Watch) -> None:
    wide, square = ImageRequest("a", seed=9, aspect="2:1"), ImageRequest("b" * 50, seed=9, steps=1)
    tiny.generate(wide)
    tiny.generate_many([square, ImageRequest("c", seed=10), wide])
    ((alone,), (short, other, packed)) = watch.first
    assert torch.equal(alone, packed)
    for latent, seed in ((alone, 9), (short, 9), (other, 10)):
        assert torch.equal(latent, torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)))


def test_global_random_state_is_neither_read_nor_changed(tiny: Engine) -> None:
    request = ImageRequest("a", seed=1, image=picture(64, 64), steps_scale=True)
    torch.manual_seed(1)
    first = tiny.generate(request)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = tiny.generate(request)
    tiny.generate(ImageRequest("a"))
    assert torch.equal(state, torch.get_rng_state())
    assert first.image.tobytes() == second.image.tobytes()


def test_seeds(tiny: Engine) -> None:
    # torch's generator on the CPU, and so the reference, tells seeds apart by their lower 32 bits.
    seeds = [0, 1, 2**31, 2**32 - 2]
    results = [tiny.generate(ImageRequest("a", seed=seed)) for seed in seeds]
    assert len({result.image.tobytes() for result in results}) == len(seeds)
    assert [result.seed for result in results] == seeds
    many = tiny.generate_many(ImageRequest("a", seed=2**32 - 3).variations(3))
    assert [result.seed for result in many] == [2**32 - 3, 2**32 - 2, 2**32 - 1]
    assert np.abs(pixels(many[1]) - pixels(results[3])).max() <= 1


def test_drawn_seeds(tiny: Engine) -> None:
    results = [*tiny.generate_many([ImageRequest("a")] * 4), tiny.generate(ImageRequest("a"))]
    seeds = {result.seed for result in results}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(result.request.seed == result.seed for result in results)


def test_prompts_make_a_difference(mini: Engine) -> None:
    one, other = (mini.generate(ImageRequest(p, seed=1, steps=2)) for p in ("a red apple", "파란 고양이"))
    assert np.abs(pixels(one) - pixels(other)).mean() > 5


# What comes back


def test_result(tiny: Engine) -> None:
    request = ImageRequest("고양이 a", seed=5, aspect="2:1")
    result = tiny.generate(request)
    assert (result.image.mode, result.image.size) == ("RGB", (128, 64))
    assert result.seed == 5
    assert result.request == ImageRequest("고양이 a", seed=5, width=128, height=64, steps=3)
    assert result.model == "tiny"
    assert result.weights == model_of(tiny).weights_digest
    assert result.device == ("cpu", "float32")
    assert result.tokens == len(model_of(tiny).tokenizer.ids("고양이 a"))
    assert min(result.timings.encode, result.timings.denoise, result.timings.decode) > 0
    assert result.timings.total == sum((result.timings.encode, result.timings.denoise, result.timings.decode))
    assert result.memory.peak_vram is None
    if Path("/proc/self/status").exists():
        assert cast(int, result.memory.rss_anon) > 10 * 2**20
        assert cast(int, result.memory.swap) >= 0


def test_defaults_come_from_the_card(tiny: Engine) -> None:
    resolved = tiny.resolve(ImageRequest("a"))
    assert (resolved.width, resolved.height, resolved.steps, resolved.aspect) == (64, 64, 3, None)
    assert resolved.seed is not None
    assert tiny.resolve(resolved) == resolved


def test_stream(tiny: Engine) -> None:
    request = ImageRequest("a", seed=2, steps=5)
    *steps, result = tiny.stream(request)
    assert isinstance(result, Result)
    assert all(isinstance(step, Step) for step in steps)
    assert [(step.index, step.total) for step in cast("list[Step]", steps)] == [(k, 5) for k in range(1, 6)]
    sigmas = [step.sigma for step in cast("list[Step]", steps)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert 0 < sigmas[0] < 1
    assert sigmas[-1] == 0
    assert result.image.tobytes() == tiny.generate(request).image.tobytes()


def test_stream_of_many(tiny: Engine, watch: Watch) -> None:
    requests = [ImageRequest("a", seed=1, steps=2), ImageRequest("b", seed=2, steps=4, aspect="2:1")]
    *steps, results = tiny.stream_many(requests)
    assert [(step.index, step.total) for step in cast("list[Step]", steps)] == [(k, 4) for k in range(1, 5)]
    assert watch.batches == [2, 2, 1, 1], "a finished picture is no longer denoised"
    assert [result.image.size for result in cast("list[Result]", results)] == [(64, 64), (128, 64)]


def test_previews(mini: Engine) -> None:
    events = mini.stream(ImageRequest("a red apple on a yellow background", seed=7, steps=4, aspect="16:9"))
    *previews, result = [event.preview if isinstance(event, Step) else event for event in events]
    small = cast(Result, result).image.resize((42, 24), Image.Resampling.BOX)
    distances = []
    for preview in cast("list[Image.Image]", previews):
        assert (preview.mode, preview.size) == ("RGB", (42, 24))
        distances.append(np.abs(pixels(preview) - pixels(small)).mean())
    assert distances[-1] < 20, "the last preview is not what came out"
    assert distances[-1] < distances[0]


def test_a_preview_is_of_its_own_step_or_none(tiny: Engine) -> None:
    events = tiny.stream(ImageRequest("a", seed=1, steps=3))
    first = cast(Step, next(events))
    preview = cast(Image.Image, first.preview)
    assert preview.size == (4, 4)
    assert cast(Image.Image, first.preview).tobytes() == preview.tobytes()
    second = cast(Step, next(events))
    assert cast(Image.Image, second.preview).tobytes() != preview.tobytes()
    assert first.preview is None, "the generation is past this step"
    events.close()
    assert second.preview is None


def test_no_preview_without_factors(narrow: Engine) -> None:
    events = narrow.stream(ImageRequest("a", width=256, height=256, steps=1))
    assert cast(Step, next(events)).preview is None
    events.close()


def test_preview_factors_must_fit_the_model(tiny: Engine) -> None:
    card = replace(tiny.card, preview=((0.1, 0.1, 0.1),) * 4)
    with pytest.raises(CardError, match="preview"):
        Engine.open(card, device="cpu")


# Image to image


def test_steps_are_those_asked_for_at_any_strength(tiny: Engine, watch: Watch) -> None:
    for strength in (1e-6, 0.1, 0.6, 1.0):
        watch.batches.clear()
        *steps, _ = tiny.stream(ImageRequest("a", image=picture(64, 64), strength=strength, steps=4))
        assert len(steps) == len(watch.batches) == 4


@pytest.mark.parametrize(
    ("strength", "forwards"), [(0.1, 1), (0.125, 1), (0.2, 2), (0.3, 3), (0.5, 4), (0.6, 5), (1.0, 8)]
)
def test_steps_scale_with_the_strength_on_demand(tiny: Engine, watch: Watch, strength: float, forwards: int) -> None:
    request = ImageRequest("a", image=picture(64, 64), strength=strength, steps=8, steps_scale=True)
    *steps, result = tiny.stream(request)
    assert len(steps) == len(watch.batches) == forwards
    assert all(step.total == forwards for step in cast("list[Step]", steps))
    assert cast(Result, result).request.steps == 8


def test_steps_scale_never_skips_every_step(tiny: Engine, watch: Watch) -> None:
    request = ImageRequest("a", image=picture(64, 64), strength=1e-20, steps=8, steps_scale=True)
    with pytest.raises(RequestError, match="strength"):
        tiny.generate(request)
    assert watch.batches == []


def test_steps_scale_means_nothing_without_a_picture(tiny: Engine) -> None:
    plain = ImageRequest("a", seed=1)
    scaled = ImageRequest("a", seed=1, steps_scale=True, strength=0.3)
    assert tiny.generate(scaled).image.tobytes() == tiny.generate(plain).image.tobytes()


def test_strength_one_is_text_to_image(tiny: Engine, mini: Engine) -> None:
    for engine, size in ((tiny, (128, 64)), (mini, (336, 192))):
        source = ImageRequest("a red apple", image=picture(*size), strength=1.0, seed=8, steps=2)
        from_image = engine.generate(source)
        from_text = engine.generate(ImageRequest("a red apple", seed=8, steps=2, width=size[0], height=size[1]))
        assert from_image.image.tobytes() == from_text.image.tobytes()


def test_distance_grows_with_the_strength(mini: Engine) -> None:
    source = mini.generate(ImageRequest("a red apple on a yellow background", seed=1)).image
    strengths = (0.05, 0.4, 0.7, 1.0)
    requests = [ImageRequest("파란 배경의 고양이", image=source, strength=s, seed=2, steps=4) for s in strengths]
    distances = [np.abs(pixels(result) - pixels(source)).mean() for result in mini.generate_many(requests)]
    assert distances == sorted(distances), distances
    assert distances[0] < 6, "a low strength stays close to the picture"
    assert distances[-1] > 4 * distances[0]


def test_strength_is_continuous(mini: Engine) -> None:
    """Nearby strengths give nearby pictures and not the same one, also where the reference would drop a step."""
    source = picture(256, 256)
    low, high = (
        mini.generate(ImageRequest("a dog", image=source, strength=s, seed=2, steps=4)) for s in (0.7499, 0.7501)
    )
    difference = np.abs(pixels(low) - pixels(high))
    assert difference.max() > 0
    assert difference.mean() < 0.5


def test_the_source_decides_the_size_unless_one_is_given(tiny: Engine) -> None:
    image = picture(100, 70)
    assert tiny.generate(ImageRequest("a", image=image)).image.size == (96, 64)
    assert tiny.generate(ImageRequest("a", image=image, aspect="1:1")).image.size == (64, 64)
    assert tiny.generate(ImageRequest("a", image=image, width=128, height=96)).image.size == (128, 96)
    with pytest.raises(SizeError, match=r"The picture is 700x500,.* and no size was given"):
        tiny.generate(ImageRequest("a", image=picture(700, 500)))


def test_how_a_source_is_fitted(tiny: Engine) -> None:
    image = picture(128, 64)
    made = {
        fit: tiny.generate(ImageRequest("a", image=image, aspect="1:1", fit=fit, seed=1, strength=0.2))
        for fit in ("crop", "pad", "stretch")
    }
    assert len({result.image.tobytes() for result in made.values()}) == 3
    square = tiny.generate(ImageRequest("a", image=image.crop((32, 0, 96, 64)), seed=1, strength=0.2))
    assert made["crop"].image.tobytes() == square.image.tobytes()


def _file(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_a_source_is_taken_upright_and_over_white(tiny: Engine, tmp_path: Path) -> None:
    def made(image: Any) -> bytes:
        return tiny.generate(ImageRequest("a", image=image, seed=1, strength=0.3)).image.tobytes()

    upright = picture(64, 96)
    expected = made(upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    assert made(_file(lying, exif=exif)) == expected
    (tmp_path / "lying.png").write_bytes(_file(lying, exif=exif))
    assert made(tmp_path / "lying.png") == expected
    assert made(str(tmp_path / "lying.png")) == expected

    hole = upright.convert("RGBA")
    hole.putalpha(Image.new("L", upright.size, 255))
    hole.paste((255, 0, 0, 0), (0, 0, 40, 40))
    white = upright.copy()
    white.paste((255, 255, 255), (0, 0, 40, 40))
    assert made(hole) == made(_file(hole)) == made(white) != expected

    grey = upright.convert("L")
    palette = upright.convert("P", palette=Image.Palette.ADAPTIVE)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert made(deep) == made(grey) == made(grey.convert("RGB"))
    assert made(_file(palette)) == made(palette.convert("RGB"))


# Leaving early


def live_tensors() -> int:
    gc.collect()
    return sum(1 for item in gc.get_objects() if type(item) is Tensor)


REQUESTS = [
    ImageRequest("a", seed=1, steps=4),
    ImageRequest("b", seed=2, steps=3, aspect="2:1"),
    ImageRequest("c", seed=3, steps=4, image=picture(64, 64)),
]


@pytest.mark.parametrize("taken", [1, 2, 3, 4, 5])
def test_closing_frees_everything_at_once(tiny: Engine, watch: Watch, taken: int) -> None:
    watch.keep_first = False
    tiny.generate_many(REQUESTS)  # tables that are kept for good are made here
    before = live_tensors()
    watch.latents.clear()
    kept = []
    events = tiny.stream_many(REQUESTS)
    gc.disable()  # at once: not when the collector comes by
    try:
        for _ in range(taken):
            kept.append(next(events))
        if taken < 4:
            assert any(latent() is not None for latent in watch.latents)
        events.close()
        assert [latent() for latent in watch.latents] == [None] * len(watch.latents)
    finally:
        gc.enable()
    assert live_tensors() == before, "steps and results hold on to tensors"
    assert len(kept) == taken
    assert len(watch.latents) >= 2 * min(taken, 4)


def test_a_stream_of_one_frees_everything_at_once(tiny: Engine, watch: Watch) -> None:
    watch.keep_first = False
    events = tiny.stream(REQUESTS[0])
    kept = [next(events), next(events)]
    gc.disable()
    try:
        events.close()
        assert [latent() for latent in watch.latents] == [None] * len(watch.latents)
    finally:
        gc.enable()
    assert all(step.preview is None for step in cast("list[Step]", kept))
    assert list(events) == []


def test_a_stream_that_is_dropped_frees_everything_at_once(tiny: Engine, watch: Watch) -> None:
    watch.keep_first = False
    gc.disable()
    try:
        for _ in tiny.stream(REQUESTS[1]):
            break
        assert [latent() for latent in watch.latents] == [None] * len(watch.latents)
    finally:
        gc.enable()


def test_a_step_passed_does_not_keep_its_latents(tiny: Engine, watch: Watch) -> None:
    """Twenty steps that a consumer collects take no more memory than one."""
    watch.keep_first = False
    kept, alive = [], []
    for event in tiny.stream(ImageRequest("a", seed=1, steps=20)):
        kept.append(event)
        alive.append(sum(latent() is not None for latent in watch.latents))
    assert len(kept) == 21
    assert max(alive) <= alive[1] + 1
    assert alive[-1] == 0


def test_an_error_in_the_middle_leaves_the_engine_usable(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny.generate(REQUESTS[0]).image.tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(model_of(tiny).transformer, "forward", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.generate(REQUESTS[0])
    assert not torch.is_inference_mode_enabled()
    assert tiny.generate(REQUESTS[0]).image.tobytes() == expected


def _modes() -> tuple[bool, bool]:
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def test_the_callers_modes_are_left_alone(tiny: Engine, watch: Watch) -> None:
    assert _modes() == (False, True)
    for event in tiny.stream(REQUESTS[0]):
        assert _modes() == (False, True)
        if isinstance(event, Step):
            assert event.preview is not None
            assert _modes() == (False, True)
            weight = torch.ones(2, requires_grad=True)
            (weight * 3).sum().backward()
            assert weight.grad is not None
    events = tiny.stream(REQUESTS[0])
    next(events)
    events.close()
    assert _modes() == (False, True)

    with torch.no_grad():
        for _ in tiny.stream(REQUESTS[0]):
            assert _modes() == (False, False)
    assert _modes() == (False, True)

    events = tiny.stream(REQUESTS[0])
    next(events)
    with torch.no_grad():
        next(events)
        assert _modes() == (False, False)
    next(events)
    assert _modes() == (False, True)
    events.close()
    assert watch.inference == {True}


def test_the_callers_defaults_are_not_used(tiny: Engine) -> None:
    expected = [result.image.tobytes() for result in tiny.generate_many(REQUESTS)]
    with torch.device("meta"):
        assert [result.image.tobytes() for result in tiny.generate_many(REQUESTS)] == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert [result.image.tobytes() for result in tiny.generate_many(REQUESTS)] == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_interleaved_streams(tiny: Engine) -> None:
    expected = [tiny.generate(request).image.tobytes() for request in REQUESTS]
    streams = [tiny.stream(request) for request in REQUESTS]
    results: dict[int, bytes] = {}
    closed = tiny.stream(ImageRequest("d", seed=4))
    next(closed)
    while len(results) < len(streams):
        for i, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Step):
                assert event.preview is not None
            elif event is not None:
                results[i] = event.image.tobytes()
        closed.close()
    assert [results[i] for i in range(len(streams))] == expected


# Styles and LoRAs


STYLED = [
    ImageRequest("a red apple on a yellow background", style=style, seed=7, steps=4)
    for style in ("realistic", "semi_realistic", "anime")
]


def test_styles_in_one_batch_and_one_by_one_leave_the_base_as_it_was(mini: Engine) -> None:
    plain = ImageRequest("a red apple on a yellow background", seed=7, steps=4)
    before = mini.generate(plain)
    alone = [mini.generate(request) for request in STYLED]
    together = mini.generate_many([*STYLED, plain])
    after = mini.generate(plain)
    assert before.image.tobytes() == after.image.tobytes() == alone[0].image.tobytes()
    assert [list(result.loras) for result in alone] == [[], ["line"], ["flat"]]
    for one, same in zip([*alone, before], together, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(same.image, int)).max() <= 2
    realistic, line, flat = (np.asarray(result.image, float) for result in alone)
    assert min(np.abs(realistic - line).mean(), np.abs(realistic - flat).mean(), np.abs(line - flat).mean()) > 5
    assert flat[120:150, 100:150].std(axis=(0, 1)).max() < 12, "the flat style is flat"
    dark = (line.max(axis=2) < 60).mean()
    assert dark > 0.02 > (realistic.max(axis=2) < 60).mean(), "the line style draws dark lines"


def test_a_style_and_its_lora_by_name_are_the_same(mini: Engine) -> None:
    styled = STYLED[2].replace(steps=1)
    by_style = mini.generate(styled)
    by_name = mini.generate(ImageRequest(styled.prompt, loras=["flat"], seed=7, steps=1))
    assert by_style.image.tobytes() == by_name.image.tobytes()
    assert by_style.loras == by_name.loras
    weaker = mini.generate(styled.replace(loras=["flat:0.4"]))
    assert weaker.image.tobytes() != by_style.image.tobytes()
    without = mini.generate(styled.replace(loras=["flat:0"]))
    assert without.image.tobytes() == mini.generate(STYLED[0].replace(steps=1)).image.tobytes()


def test_what_was_composed_is_in_the_request(mini: Engine) -> None:
    asked = ImageRequest("웹툰 같은 케이크", style="auto", industry="auto", use="story", seed=1, steps=1)
    resolved = mini.resolve(asked)
    assert resolved.composed is not None
    assert (resolved.composed.style, resolved.composed.industry) == ("anime", "bakery")
    assert (resolved.width, resolved.height) == (192, 336), "the use chose the shape"
    assert mini.resolve(asked.replace(aspect="4:3")).width == 288, "unless one was given"
    assert any("웹툰" in note for note in resolved.composed.notes)
    assert resolved.prompt == asked.prompt
    assert mini.generate(resolved).image.tobytes() == mini.generate(asked).image.tobytes()


def test_a_style_s_own_steps(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(tiny.card, styles={"house": Style({"en": "House"}, None, steps=2)})
    monkeypatch.setattr(tiny._resolver, "card", card)
    assert tiny.resolve(ImageRequest("a cat", style="house")).steps == 2
    assert tiny.resolve(ImageRequest("a cat", style="house", steps=5)).steps == 5
    assert tiny.resolve(ImageRequest("a cat")).steps == tiny.card.steps == 3
    assert len(list(tiny.stream(ImageRequest("a cat", style="house")))) == 3, "two steps and the result"


def test_a_composed_request_needs_no_pack(mini: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = mini.resolve(STYLED[2])
    expected = mini.generate(resolved).image.tobytes()

    def gone(*arguments: Any, **others: Any) -> None:
        pytest.fail("the packs were asked")

    monkeypatch.setattr("hwaga.resolve.compose", gone)
    assert mini.generate(resolved).image.tobytes() == expected


def test_the_packs_wording_reaches_a_model_that_reads_it(tiny: Engine) -> None:
    resolved = tiny.resolve(ImageRequest("라떼 한 잔", style="watercolor", industry="cafe", avoid=["text"]))
    assert resolved.model_prompt.startswith("라떼 한 잔. ")
    assert "watercolour" in resolved.model_prompt
    assert resolved.model_prompt.endswith("free of lettering.")
    result = tiny.generate(resolved)
    assert result.tokens > 60
    assert (
        tiny.generate(ImageRequest(resolved.model_prompt, seed=result.seed)).image.tobytes() == result.image.tobytes()
    )


def test_a_prompt_that_was_met_before_needs_no_encoder(mini: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = model_of(mini), list[int]()
    encode = model.text_encoder.forward

    def counted(prompts: Sequence[Sequence[int]], *others: Any) -> list[Tensor]:
        read.append(len(prompts))
        return encode(prompts, *others)

    monkeypatch.setattr(model.text_encoder, "forward", counted)
    model.forget()
    apple, fox = ImageRequest("a red apple", seed=1, steps=1), ImageRequest("a fox", seed=1, steps=1)
    first = mini.generate(apple).image.tobytes()
    assert read == [1]
    assert mini.generate(apple).image.tobytes() == first
    mini.generate(apple.replace(style="anime", seed=2))
    mini.generate_many([apple, fox, apple.replace(seed=3)])
    assert read == [1, 1], "the fox is new, and styles share the words"
    model.forget()
    mini.generate_many([fox, apple])
    assert read == [1, 1, 2]
    assert mini.generate(apple).image.tobytes() == first, "whatever it was first met beside"


def test_loras_take_no_memory_but_their_own(mini: Engine) -> None:
    cache = cast(ZImageModel, mini._opened().model).loras.kept
    for request in STYLED:
        mini.generate(request)
    held = cache.nbytes
    assert 0 < held < 32 * 2**20
    for request in STYLED * 2:
        mini.generate(request)
    assert cache.nbytes == held


# Refusals: before any work is done


@pytest.fixture
def idle(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that must not get to work."""

    def work(*arguments: Any) -> None:
        pytest.fail("work was begun")

    for name in ("encode_prompts", "encode_pixels", "denoising", "decode_latents", "bring"):
        monkeypatch.setattr(model_of(tiny), name, work)
    return tiny


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"loras": ["nothing"]}, "There is no LoRA 'nothing'"),
        ({"style": "anme"}, "Did you mean anime"),
        ({"industry": "spaceport"}, "There is no industry 'spaceport'"),
        ({"use": "stamp"}, "stamp"),
        ({"avoid": [" "]}, "nothing to avoid"),
    ],
)
def test_words_that_mean_nothing(idle: Engine, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        idle.generate(ImageRequest("a cat", **asked))


def test_a_lora_of_another_model(idle: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Settings(data_dir=str(tmp_path))
    monkeypatch.setattr(idle._resolver, "settings", own)
    own.loras.mkdir()
    shutil.copy(MINI / "loras/flat.safetensors", own.loras / "flat.safetensors")
    with pytest.raises(LoraError, match=r"flat.safetensors was made for another model: .* and the layer is 64 x 64"):
        idle.generate(ImageRequest("a cat", loras=["flat"]))


SOURCE = picture(64, 64)

REFUSED: list[tuple[dict[str, Any], type[RequestError], str]] = [
    ({"prompt": ""}, PromptError, "empty"),
    ({"prompt": " \n\t\u3000"}, PromptError, "empty"),
    ({"prompt": 3}, PromptError, "text"),
    ({"prompt": "a\ud800b"}, PromptError, "surrogate at character 1"),
    ({"prompt": "고양이 " * 600}, PromptTooLongError, "limit is 512"),
    ({"prompt": "a b c d", "max_tokens": 10}, PromptTooLongError, "limit is 10"),
    ({"prompt": "word " * 990, "max_tokens": 960}, PromptTooLongError, "limit is 960"),
    ({"max_tokens": 961}, RequestError, "max_tokens of 961 is beyond tiny, which takes 960"),
    ({"max_tokens": 0}, RequestError, "max_tokens"),
    ({"width": 64}, SizeError, "together"),
    ({"height": 64}, SizeError, "together"),
    ({"width": 64, "height": 72}, SizeError, "multiples of 32"),
    ({"width": 0, "height": 64}, SizeError, "width must be positive"),
    ({"width": 64, "height": -64}, SizeError, "height must be positive"),
    ({"width": 64.0, "height": 64}, SizeError, "whole number"),
    ({"width": True, "height": 64}, SizeError, "whole number"),
    ({"width": 288, "height": 64}, SizeError, "too large"),
    ({"width": 256, "height": 160}, SizeError, "too large"),
    ({"width": 10**30, "height": 10**30}, SizeError, "too large|multiples"),
    ({"aspect": "3:4"}, SizeError, "no aspect '3:4'. It has 1:1, 2:1"),
    ({"aspect": "1:1", "width": 64, "height": 64}, SizeError, "either"),
    ({"aspect": 1}, SizeError, "name of a shape"),
    ({"steps": 21}, RequestError, "tiny takes 20 steps at most, not 21"),
    ({"steps": 10**30}, RequestError, "tiny takes 20 steps at most"),
    *[({"steps": steps}, RequestError, "steps") for steps in (0, -1, 1.5, "8", True)],
    *[({"seed": seed}, RequestError, "seed") for seed in (-1, 2**32, 1.0, "1", True)],
    *[
        ({"image": SOURCE, "strength": strength}, RequestError, "strength")
        for strength in (0, 0.0, -0.1, 1.0001, float("nan"), float("inf"), "0.5", None, True)
    ],
    ({"image": SOURCE, "strength": 1e-300}, RequestError, "strength of 1e-300 leaves nothing to do"),
    ({"image": SOURCE, "steps_scale": 1}, RequestError, "steps_scale must be true or false"),
    ({"image": SOURCE, "fit": "cover"}, RequestError, "crop, pad, stretch"),
    ({"negative": "fog"}, RequestError, "tiny draws without guidance"),
    ({"guidance": 5.0}, RequestError, "Leave guidance out; what the picture should not show goes into avoid"),
    ({"sampler": "euler"}, RequestError, "tiny is not drawn with the sampler euler"),
    ({"image": "no/such/file.png"}, SourceImageError, "file.png"),
    ({"image": b"not a picture"}, SourceImageError, "PNG, JPEG or WebP"),
    ({"image": picture(600, 64)}, SizeError, "600x64,.* and no size was given"),
]


@pytest.mark.parametrize(("values", "error", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_before_any_work(idle: Engine, values: dict[str, Any], error: type[RequestError], says: str) -> None:
    with pytest.raises(error, match=says):
        idle.generate_many([ImageRequest("a"), ImageRequest(**{"prompt": "a", **values})])


def test_an_empty_batch(idle: Engine) -> None:
    with pytest.raises(RequestError, match="no request"):
        idle.generate_many([])


def test_a_prompt_at_the_limit(tiny: Engine) -> None:
    prompt = "word " * 300
    tokens = len(model_of(tiny).tokenizer.ids(prompt))
    assert 512 < tokens < 960
    assert tiny.generate(ImageRequest(prompt, max_tokens=tokens, steps=1)).tokens == tokens
    with pytest.raises(PromptTooLongError) as caught:
        tiny.generate(ImageRequest(prompt, max_tokens=tokens - 1, steps=1))
    assert (caught.value.tokens, caught.value.limit) == (tokens, tokens - 1)
    assert prompt.startswith(caught.value.kept)


def test_limits_of_the_checkpoint_below_those_of_the_card(narrow: Engine) -> None:
    with pytest.raises(PromptTooLongError, match="limit is 128"):
        narrow.generate(ImageRequest("word " * 150, width=256, height=256))
    with pytest.raises(RequestError, match=r"max_tokens of 200 is beyond .*, which takes 128"):
        narrow.generate(ImageRequest("a", width=256, height=256, max_tokens=200))
    with pytest.raises(SizeError, match="up to 768 pixels, not 784"):
        narrow.generate(ImageRequest("a", width=784, height=256))
    assert narrow.generate(ImageRequest("a", width=768, height=256, steps=1)).image.size == (768, 256)


def test_a_multiple_of_the_checkpoint_beyond_that_of_the_card(deep: Path) -> None:
    """Its card says 16, its networks need 32."""
    with Engine.open(deep, device="cpu") as engine:
        assert engine.generate(ImageRequest("a", width=288, height=256, steps=1)).image.size == (288, 256)
        for width, height in ((272, 256), (256, 272), (272, 272)):
            with pytest.raises(SizeError, match="multiples of 32"):
                engine.generate(ImageRequest("a", width=width, height=height, steps=1))
        result = engine.generate(ImageRequest("a", image=picture(300, 270), steps=1))
        assert result.image.size == (288, 256)


# Opening and closing


def test_open_by_name_folder_card_and_settings(tiny: Engine, tiny_folder: Path) -> None:
    request = ImageRequest("a", seed=1)
    expected = tiny.generate(request).image.tobytes()
    for model in (str(tiny_folder), tiny_folder / "card.toml", tiny.card, ModelCard.read(tiny_folder / "card.toml")):
        with Engine.open(model, device="cpu") as engine:
            assert engine.card.name == "tiny"
            assert engine.generate(request).image.tobytes() == expected
    with Engine.open(device="cpu", settings=Settings(model=str(tiny_folder), dtype="float32")) as engine:
        assert engine.generate(request).image.tobytes() == expected


def test_a_folder_is_as_good_as_the_name(mini: Engine) -> None:
    with Engine.open(MINI, device="cpu") as engine:
        assert engine.card == mini.card
        assert model_of(engine).weights_digest == model_of(mini).weights_digest


def test_checkpoints_are_told_apart(tiny: Engine, narrow: Engine, mini: Engine) -> None:
    assert len({model_of(engine).weights_digest for engine in (tiny, narrow, mini)}) == 3


@pytest.mark.parametrize("dtype", ["float32", "fp32", "bfloat16", "bf16"])
def test_number_formats(tiny_folder: Path, dtype: str) -> None:
    expected = torch.bfloat16 if dtype in ("bfloat16", "bf16") else torch.float32
    with Engine.open(tiny_folder, device="cpu", dtype=dtype) as engine:
        assert engine.dtype == expected
        model = model_of(engine)
        networks = (model.text_encoder, model.transformer, model.autoencoder)
        assert {p.dtype for network in networks for p in network.parameters() if not p.is_meta} == {expected}
        result = engine.generate(ImageRequest("a", seed=1))
        assert result.device == ("cpu", str(expected).removeprefix("torch."))
        assert pixels(result).std() > 5


def test_progress_of_opening(tiny_folder: Path) -> None:
    told: list[tuple[int, int]] = []
    with Engine.open(tiny_folder, device="cpu", progress=lambda done, total: told.append((done, total))):
        pass
    done = [loaded for loaded, _ in told]
    assert done == sorted(set(done))
    assert {total for _, total in told} == {done[-1]}
    assert done[0] > 0


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"model": "minni"}, UnknownModelError, "Did you mean mini"),
        ({"model": "/no/such/folder"}, UnknownModelError, "/no/such/folder"),
        ({"model": "."}, CheckpointError, "model_index.json"),
        (
            {"model": "z-image-turbo"},
            CheckpointError,
            "`hwaga download z-image-turbo` fetches Tongyi-MAI/Z-Image-Turbo",
        ),
        ({"device": "tpu"}, DeviceError, "no device 'tpu' here. There is .*cpu"),
        ({"device": "cuda:99"}, DeviceError, "no device 'cuda:99'"),
        ({"dtype": "float16"}, DeviceError, "bfloat16, float32, not 'float16'"),
        ({"dtype": "int8"}, DeviceError, "not 'int8'"),
    ],
    ids=str,
)
def test_what_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], error: type[Exception], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        Engine.open(**{"model": "mini", "device": "cpu", **values}, settings=Settings(data_dir=str(tmp_path)))


def test_a_fetched_model_is_found_below_the_data_folder(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "models" / "z-image-turbo")
    (tmp_path / "models" / "z-image-turbo" / "card.toml").unlink()
    with Engine.open("z-image-turbo", device="cpu", settings=Settings(data_dir=str(tmp_path))) as engine:
        assert engine.card.name == "z-image-turbo"
        assert engine.card.default_size == (1024, 1024)


def test_a_closed_engine(tiny_folder: Path) -> None:
    with Engine.open(tiny_folder, device="cpu") as engine:
        weights = [weakref.ref(p) for p in model_of(engine).transformer.parameters()]
        assert all(weight() is not None for weight in weights)
    gc.collect()
    assert all(weight() is None for weight in weights), "weights outlive the engine"
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(ImageRequest("a"))
    with pytest.raises(RuntimeError, match="closed"):
        engine.resolve(ImageRequest("a"))
    engine.close()


def test_an_error_inside_closes_too(tiny_folder: Path) -> None:
    with pytest.raises(KeyError), Engine.open(tiny_folder, device="cpu") as engine:
        raise KeyError
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(ImageRequest("a"))


def test_what_could_not_be_prepared_is_told_once(tiny: Engine) -> None:
    model: Any = tiny._opened().model
    failed: Future[None] = Future()
    failed.set_exception(OSError("no room for what was compiled"))
    model._compiling = failed
    with pytest.warns(RuntimeWarning, match="no room"):
        first = tiny.generate(ImageRequest("a", seed=1, steps=1))
    assert tiny.generate(ImageRequest("a", seed=1, steps=1)).image.tobytes() == first.image.tobytes()
