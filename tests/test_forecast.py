from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hwaga.engine import Engine
from hwaga.errors import CheckpointError, DeviceError, DoesNotFitError, RequestError, SettingsError, SizeError
from hwaga.forecast import forecast
from hwaga.memory.plan import Budget
from hwaga.model_lookup import find_card
from hwaga.placement import Placement
from hwaga.request import ImageRequest
from hwaga.settings import Settings

GIB = 2**30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path))


def test_it_says_what_an_engine_plans(settings: Settings) -> None:
    said = forecast("mini", device="cpu", settings=settings)
    with Engine.open("mini", device="cpu", settings=settings) as engine:
        assert engine.plan is not None
        assert (said.plan.parts, said.plan.phases) == (engine.plan.parts, engine.plan.phases)
        assert (said.precision, said.dtype, said.present) == (
            engine.precision,
            str(engine.dtype).removeprefix("torch."),
            True,
        )


def test_an_absent_model_has_its_published_sizes(settings: Settings) -> None:
    said = forecast("z-image-turbo", vram="22.5 GiB", ram="16 GiB", settings=settings)
    weights = sum(part.stays_bytes for part in said.plan.parts)
    parameters = sum(part.parameters for part in said.card.parts.values())
    embedding = 151936 * 2560  # whose rows are read when they are asked for
    assert weights / 2 == pytest.approx(parameters - embedding, rel=0.001)
    assert not said.present
    assert said.imagined


def test_quantized_parts_are_told(settings: Settings) -> None:
    said = forecast("z-image-turbo", vram="12 GiB", ram="16 GiB", precision="int8", settings=settings)
    assert {part.name: part.quantized for part in said.plan.parts} == {
        "text_encoder": True, "refiner": True, "denoiser": True, "vae": False,
    }  # fmt: skip


def needed_card(error: DoesNotFitError) -> str:
    found = re.search(r"A GPU of ([\d.]+) GiB would do", str(error))
    assert found is not None, error
    return found[1]


def test_what_does_not_fit_is_refused_with_what_would(settings: Settings) -> None:
    request = ImageRequest("a fox", width=1536, height=1536)
    with pytest.raises(DoesNotFitError, match=r"One picture of (\d+)x(\d+).* would fit\.") as error:
        forecast("z-image-turbo", request, vram="2.5 GiB", ram="16 GiB", settings=settings)
    named = re.search(r"One picture of (\d+)x(\d+)", str(error.value))
    assert named is not None
    smaller = ImageRequest("a fox", width=int(named[1]), height=int(named[2]))
    forecast("z-image-turbo", smaller, vram="2.5 GiB", ram="16 GiB", settings=settings)
    enough = needed_card(error.value)
    forecast("z-image-turbo", request, vram=f"{enough} GiB", ram="16 GiB", settings=settings)
    less = f"{float(enough) - 0.08:.2f} GiB"
    with pytest.raises(DoesNotFitError):
        forecast("z-image-turbo", request, vram=less, ram="16 GiB", settings=settings)


def test_fewer_pictures_are_offered_first(settings: Settings) -> None:
    with pytest.raises(DoesNotFitError, match=r"(\d+) of these pictures at a time would fit") as error:
        forecast("z-image-turbo", number=9, vram="6 GiB", ram="16 GiB", settings=settings)
    count = int(str(error.value).split(" of these")[0].split()[-1])
    forecast("z-image-turbo", number=count, vram="6 GiB", ram="16 GiB", settings=settings)
    with pytest.raises(DoesNotFitError):
        forecast("z-image-turbo", number=count + 1, vram="6 GiB", ram="16 GiB", settings=settings)


def test_a_precision_that_would_fit_is_offered(settings: Settings) -> None:
    square = ImageRequest("a fox", width=1024, height=1024)
    with pytest.raises(DoesNotFitError, match="With --precision fp8 this would fit"):
        forecast("z-image-turbo", square, vram="2.4 GiB", ram="16 GiB", precision="full", settings=settings)
    said = forecast("z-image-turbo", square, vram="2.4 GiB", ram="16 GiB", precision="fp8", settings=settings)
    assert said.precision == "fp8"


def test_the_hosts_memory_can_be_too_small(settings: Settings) -> None:
    with pytest.raises(DoesNotFitError, match=r"of the machine's own memory, and there are 0\.50"):
        forecast("z-image-turbo", vram="8 GiB", ram="0.5 GiB", settings=settings)


def test_without_memory_for_anything_the_card_that_would_do_is_named(settings: Settings) -> None:
    with pytest.raises(DoesNotFitError) as error:
        forecast("z-image-turbo", vram="1 GiB", ram="16 GiB", settings=settings)
    forecast("z-image-turbo", vram=f"{needed_card(error.value)} GiB", ram="16 GiB", settings=settings)


def test_a_card_that_is_too_small_for_the_default_size_draws_smaller_ones(settings: Settings) -> None:
    def said(side: int) -> str:
        request = ImageRequest("a fox", width=side, height=side)
        return forecast("z-image-turbo", request, vram="2.2 GiB", ram="16 GiB", settings=settings).precision

    with pytest.raises(DoesNotFitError, match=r"One picture of (\d+)x\1 would fit") as error:
        said(1024)
    named = re.search(r"One picture of (\d+)x", str(error.value))
    assert named is not None
    assert said(int(named[1])) in ("full", "int8")


def test_an_engine_opens_for_small_pictures_where_the_default_size_does_not_fit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = find_card("mini", settings.models)
    card = replace(mini, limits=replace(mini.limits, listed_sizes_only=False, min_side=64))

    def given(device_bytes: int) -> None:
        monkeypatch.setattr(Placement, "budget", lambda _: Budget("cpu", device_bytes))

    given(0)
    with pytest.raises(DoesNotFitError, match="--precision int8") as error:
        Engine.open(card, device="cpu", precision="full", settings=settings)
    given(error.value.needed)
    with Engine.open(card, device="cpu", precision="full", settings=settings) as engine:
        small = engine.generate(ImageRequest("a fox", width=64, height=64, steps=1, seed=1))
        assert small.image.size == (64, 64)
        with pytest.raises(DoesNotFitError, match="This needs"):
            engine.generate(ImageRequest("a fox", steps=1))


def test_a_device_that_is_asked_for_is_planned_for(settings: Settings) -> None:
    said = forecast("mini", device="cpu", vram="8 GiB", settings=settings)
    assert (said.device, said.imagined, said.plan.peak_vram_bytes) == ("cpu", False, 0)


def test_a_cap_of_the_settings_makes_no_gpu(settings: Settings) -> None:
    assert forecast("mini", settings=replace(settings, vram="8 GiB", device="cpu")).device == "cpu"


def test_locked_memory_keeps_to_the_hosts(settings: Settings) -> None:
    said = forecast("z-image-turbo", vram="6 GiB", ram="6 GiB", settings=settings)
    assert 0 < said.plan.pinned_bytes <= said.plan.budget.pinned_bytes < 3 * GIB
    assert said.plan.peak_ram_bytes < 6 * GIB


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"precision": "int3"}, DeviceError),
        ({"dtype": "float16"}, DeviceError),
        ({"device": "cuda:77"}, DeviceError),
        ({"vram": "lots"}, SettingsError),
        ({"request": ImageRequest("a fox", aspect="7:1")}, SizeError),
        ({"request": ImageRequest("a fox", width=1000, height=1000)}, SizeError),
        ({"request": ImageRequest("a fox", steps=9999)}, RequestError),
        ({"request": ImageRequest("a fox", guidance=4)}, RequestError),
    ],
)
def test_what_no_engine_takes_is_refused(
    options: dict[str, object], error: type[Exception], settings: Settings
) -> None:
    with pytest.raises(error):
        forecast("z-image-turbo", settings=settings, **options)  # type: ignore[arg-type]


def test_a_damaged_model_is_refused(settings: Settings, tmp_path: Path) -> None:
    card = find_card("z-image-turbo", settings.models)
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError):
        forecast(replace(card, folder=folder), settings=settings)


def test_whole_weights_go_by_the_name_of_their_format(settings: Settings) -> None:
    for name in ("bf16", "bfloat16"):
        named = forecast("z-image-turbo", vram="24 GiB", ram="16 GiB", precision=name, settings=settings)
        assert (named.precision, named.dtype) == ("full", "bfloat16")
        with pytest.raises(
            DeviceError, match=rf"{name} is whole weights in bfloat16.*opened in float32.*--dtype bfloat16"
        ):
            forecast("z-image-turbo", vram="24 GiB", ram="16 GiB", precision=name, dtype="float32", settings=settings)


@pytest.mark.parametrize("name", ["fp16", "float16", "f16"])
def test_a_16_bit_format_that_is_not_the_models_own(settings: Settings, name: str) -> None:
    expected = (
        rf"one of auto, full, int8, fp8, int4, not '{name}': full is whole weights, in z-image-turbo's own 16-bit format, "
        "bfloat16"
    )
    with pytest.raises(DeviceError, match=rf"{expected}\.$"):
        forecast("z-image-turbo", vram="24 GiB", ram="16 GiB", precision=name, settings=settings)
    with pytest.raises(DeviceError, match=rf"{expected} \(float32 as it is opened here\)\.$"):
        forecast("z-image-turbo", vram="24 GiB", ram="16 GiB", precision=name, dtype="f32", settings=settings)


@pytest.mark.parametrize("name", ["fp16", "float16", "f16", "full"])
def test_a_16_bit_format_that_is_the_models_own(settings: Settings, name: str) -> None:
    pytest.importorskip("diffusers")
    said = forecast("sdxl", vram="24 GiB", ram="16 GiB", precision=name, settings=settings)
    assert (said.precision, said.dtype) == ("full", "float16")
