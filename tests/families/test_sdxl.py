"""SDXL in the engine: where its weights lie, pieces, previews, plans without files, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from placed import give, least, placement_of
from safetensors.torch import load_file, save_file
from sdxl_reference import random_sdxl

from hwaga import CardError, CheckpointError, Engine, ImageRequest, ModelError, RequestError, Result, Step
from hwaga.families import find_family
from hwaga.families.family import Picture
from hwaga.families.sdxl import memory_use
from hwaga.families.sdxl.model import SdxlModel
from hwaga.families.sdxl.networks import unet_unit
from hwaga.forecast import forecast
from hwaga.image_file import encode_result, read_settings
from hwaga.kernels import attention
from hwaga.model_lookup import find_card
from hwaga.settings import Settings

REQUESTS = [
    ImageRequest("a red apple", negative="fog", width=64, height=48, seed=1, steps=3),
    ImageRequest("a blue bird", width=48, height=64, seed=2, steps=2, sampler="dpmpp_2m_karras"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, device="cpu", dtype="float32") as opened:
        yield opened


@pytest.fixture
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are small, and so is the room that tests give them."""
    monkeypatch.setattr(memory_use, "SLACK", 2**20)
    monkeypatch.setattr(memory_use, "KERNELS", 0)


def model_of(engine: Engine) -> SdxlModel:
    return cast(SdxlModel, placement_of(engine).model)


def pictures(engine: Engine, requests: list[ImageRequest]) -> list[bytes]:
    model_of(engine).forget()
    return [result.image.tobytes() for result in engine.generate_many(requests)]


def test_pictures_do_not_depend_on_where_weights_lie(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, no_slack: None
) -> None:
    whole = pictures(engine, REQUESTS)
    floor = least(monkeypatch, engine, REQUESTS)
    with monkeypatch.context() as patch:
        give(patch, floor)
        assert pictures(engine, REQUESTS) == whole
        plan = engine.plan
    assert plan is not None
    assert {part.name: part.mode for part in plan.parts} == {
        "text_encoder": "streamed", "denoiser": "streamed", "vae": "turn",
    }  # fmt: skip
    assert not plan.part("denoiser").stays
    # Two pictures of different sizes go through the denoiser one after the other, for as many steps as the longer takes.
    blocks = sum(block.nbytes for block in model_of(engine).parts["denoiser"][1])
    assert plan.part("denoiser").moved_bytes == blocks * 3 * 2


def test_plans_count_prompts_that_go_in_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch, no_slack: None) -> None:
    """Pictures go together where latents and windows are alike. A window may end early, so that tokens do not tell them."""
    model = model_of(engine)
    early = next(
        text
        for text in ("a " * before + "a, " + "a " * after for before in range(58, 74) for after in (85, 88))
        if model.tokenize(text, 300).windows > -(-len(model.tokenize(text, 300)) // 75)
    )
    assert model.tokenize(early, 300).windows == 3
    short = ImageRequest("a", width=64, height=48, seed=1, steps=2)
    requests = [
        short, short.replace(prompt=early), short.replace(prompt="b", negative=early), short.replace(prompt="a " * 100),
    ]  # fmt: skip
    floor = least(monkeypatch, engine, requests)
    ran: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    with monkeypatch.context() as patch:
        give(patch, floor)
        pictures(engine, requests)
        plan = engine.plan
    hook.remove()
    assert plan is not None
    blocks = sum(block.nbytes for block in model.parts["denoiser"][1])
    assert plan.part("denoiser").moved_bytes == blocks * len(ran)
    assert len(ran) == 2 * 3, "one window, three of two pictures, and two"


def test_a_prompt_is_read_alike_beside_others(engine: Engine) -> None:
    """To the bit, since it is kept: a picture would differ by what was asked for before it otherwise."""
    model = model_of(engine)
    texts = ["a red apple", "a (blue:1.3) bird", "fog, " * 60, ""]
    prompts = [model.tokenize(text, 300) for text in texts]
    with torch.inference_mode():
        model.forget()
        together = model.encode_prompts(prompts, [None] * 4)
        for prompt, beside in zip(prompts, together, strict=True):
            model.forget()
            (alone,) = model.encode_prompts([prompt], [None])
            assert torch.equal(alone.embeddings, beside.embeddings)
            assert torch.equal(alone.pooled, beside.pooled)
            assert torch.equal(alone.filler, beside.filler)
    assert len(together[2].embeddings) > 77
    assert not together[3].embeddings.any()


def test_blocks_are_listed_in_the_order_that_they_run_in(engine: Engine) -> None:
    model, ran = model_of(engine), list[Any]()
    for name in ("text_encoder", "denoiser"):
        ran.clear()
        hooks = [
            block.module.register_forward_pre_hook(lambda module, _: ran.append(module))
            for block in model.parts[name][1]
        ]
        model.forget()
        engine.generate(ImageRequest("a", width=64, height=64, seed=1, steps=1))
        assert ran == [block.module for block in model.parts[name][1]], name
        for hook in hooks:
            hook.remove()
    names = {unet_unit(name) for name, _ in model.unet.named_parameters()}
    assert len(names) == len(model.parts["denoiser"][1]) + 1, "and one for the rest"


def test_pieces_of_pictures_are_near_the_whole(engine: Engine) -> None:
    model, generator = model_of(engine), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        latents = torch.randn(4, 32, 24, generator=generator)
        whole = model.decode_latents(latents)
        pieces = model.decode_latents(latents, 64)
        assert pieces.shape == whole.shape == (3, 128, 96)
        assert 0 < (pieces - whole).abs().mean() < 0.2 * whole.std()
        encoded = model.encode_pixels(whole.clamp(-1, 1), None)
        in_pieces = model.encode_pixels(whole.clamp(-1, 1), None, 64)
        assert encoded.shape == in_pieces.shape == latents.shape
        assert 0 < (in_pieces - encoded).abs().mean() < 0.2 * encoded.std()


def test_large_pictures_in_little_room(engine: Engine, monkeypatch: pytest.MonkeyPatch, no_slack: None) -> None:
    request = ImageRequest("a", width=384, height=256, seed=1, steps=1)
    with monkeypatch.context() as patch:
        give(patch, least(patch, engine, [request]))
        assert engine.generate(request).image.size == (384, 256)
        assert engine.plan is not None
        assert engine.plan.tile("decode") == 256


def test_attention_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices that write scores out, for the U-Net and the autoencoder alike; the plan counts them."""
    model = model_of(engine)
    whole = np.asarray(engine.generate(REQUESTS[0]).image, int)
    asked: list[int] = []

    def kept(*_: object) -> bool:
        asked.append(1)
        return True

    monkeypatch.setattr(attention, "keeps_scores", kept)
    monkeypatch.setattr("hwaga.families.sdxl.attention.keeps_scores", kept)
    monkeypatch.setattr(attention, "SCORES", 2**12)
    assert np.abs(np.asarray(engine.generate(REQUESTS[0]).image, int) - whole).max() <= 1
    assert asked
    picture = [Picture(64, 64, 10)]
    plain = {phase.name: phase.work[0].nbytes for phase in model.demand(picture, 3, 0).phases}
    monkeypatch.setattr(model, "_keeps_scores", True)
    scored = {phase.name: phase.work[0].nbytes for phase in model.demand(picture, 3, 0).phases}
    grown = {name for name, nbytes in scored.items() if nbytes == plain[name] + attention.SCORES_ALIVE}
    assert grown == {"denoise", "decode"}


def test_steps_have_previews(engine: Engine) -> None:
    events = list(engine.stream(REQUESTS[0]))
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0].sigma > steps[1].sigma > steps[2].sigma == 0
    shown = []
    for event in engine.stream(REQUESTS[0]):
        if isinstance(event, Step):
            assert event.preview is not None
            assert event.preview.size == (16, 12)
            shown.append(np.asarray(event.preview).std())
    assert min(shown) > 1


def test_what_made_a_picture_makes_it_again(engine: Engine, tmp_path: Path) -> None:
    result = engine.generate(ImageRequest("a red (apple:1.2)", negative="fog", aspect="4:3", steps=2))
    assert (result.request.guidance, result.request.sampler) == (5.0, "euler"), "the card's"
    (tmp_path / "a.png").write_bytes(encode_result(result, "png"))
    settings = read_settings(tmp_path / "a.png")
    assert {"negative": "fog", "guidance": 5.0, "sampler": "euler"}.items() <= settings["request"].items()
    again = engine.generate(ImageRequest.from_json(settings["request"]))
    assert encode_result(again, "png") == (tmp_path / "a.png").read_bytes()
    assert Image.open(tmp_path / "a.png").info["parameters"].split("\n")[1] == "Negative prompt: fog"


def test_what_is_unwanted_reaches_the_negative_prompt(engine: Engine) -> None:
    resolved = engine.resolve(ImageRequest("a cat", negative="fog", avoid=["text"]))
    assert resolved.composed is not None
    assert resolved.composed.negative
    assert resolved.model_negative == f"fog, {resolved.composed.negative}"
    assert resolved.model_prompt == "a cat"
    alone = engine.resolve(ImageRequest("a cat", avoid=["text"], guidance=1))
    assert alone.composed is not None
    assert (alone.model_negative, alone.model_prompt) == (None, "a cat")
    assert alone.composed.notes == (f"Left out: {resolved.composed.negative} (no negative prompt at guidance 1).",)
    with pytest.raises(RequestError, match=r"no negative prompt\. Leave negative out, or ask"):
        engine.resolve(ImageRequest("a cat", negative="fog", guidance=1))


def test_strength_names_the_share_of_noise(engine: Engine) -> None:
    model = model_of(engine)
    for sampler in model.samplers:
        schedule = model.schedule(30, 0.6, steps_scale=False, sampler=sampler)
        assert len(schedule) == 31
        assert schedule[0].item() == pytest.approx(1.5, rel=1e-3), "0.6 of noise to 0.4 of the picture"
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    drawn = ImageRequest("a", image=image, seed=3, steps=3)
    near, far, ignored = (
        np.asarray(result.image, float)
        for result in engine.generate_many([drawn.replace(strength=share) for share in (0.1, 0.7, 1)])
    )
    alone = np.asarray(engine.generate(ImageRequest("a", width=64, height=48, seed=3, steps=3)).image, float)
    assert np.abs(near - far).mean() > 1
    assert (ignored == alone).all(), "a strength of 1 ignores the picture"


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_karras"])
def test_a_strength_below_the_least_noise(engine: Engine, sampler: str) -> None:
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    request = ImageRequest("a", image=image, seed=3, steps=4, sampler=sampler)
    for strength in (0.001, 0.028):
        with pytest.raises(RequestError, match=rf"strength of {strength} leaves nothing to do\. Raise it"):
            engine.generate(request.replace(strength=strength))
    near = np.asarray(engine.generate(request.replace(strength=0.029)).image, int)
    further = np.asarray(engine.generate(request.replace(strength=0.4)).image, int)
    assert (near != further).any()


def test_number_formats(folder: Path) -> None:
    made = {}
    for dtype in ("float32", "bfloat16", "float16"):
        with Engine.open(folder, device="cpu", dtype=dtype) as opened:
            made[dtype] = np.asarray(opened.generate(REQUESTS[0]).image, float)
            vae = next(iter(model_of(opened).vae.parameters())).dtype
            # float16 is too narrow for SDXL's own autoencoder.
            assert vae == (torch.bfloat16 if dtype == "float16" else getattr(torch, dtype))
    assert 0 < np.abs(made["float16"] - made["float32"]).mean() < 2
    assert 0 < np.abs(made["bfloat16"] - made["float32"]).mean() < 4


def test_an_autoencoder_made_for_float16(tmp_path: Path) -> None:
    folder = random_sdxl(tmp_path / "fixed", dtype=torch.float16, force_upcast=False)
    with Engine.open(folder, device="cpu", dtype="float16") as opened:
        assert {parameter.dtype for parameter in model_of(opened).vae.parameters()} == {torch.float16}
        assert np.asarray(opened.generate(REQUESTS[0]).image).std() > 5


def test_fewer_bits(folder: Path, engine: Engine) -> None:
    whole = np.asarray(engine.generate(REQUESTS[0]).image, float)
    for precision, most in (("int8", 2.0), ("fp8", 8.0)):
        with Engine.open(folder, device="cpu", dtype="float32", precision=precision) as opened:
            assert sum(block.quantized for block in model_of(opened).parts["denoiser"][1]) == 17, "transformer blocks"
            difference = np.abs(np.asarray(opened.generate(REQUESTS[0]).image, float) - whole).mean()
        assert 0 < difference < most, precision
    assert find_family("sdxl").sound_precisions == (), "none is chosen unasked"


def test_a_plan_without_files() -> None:
    made = forecast("sdxl", vram="8 GiB", ram="16 GiB", dtype="float16", settings=Settings(data_dir="/nowhere"))
    assert not made.present
    assert made.pictures[0].guided
    assert made.plan.peak_vram_bytes <= 8 * 2**30
    card = find_card("sdxl", Path("/nowhere"))
    model = cast(SdxlModel, find_family("sdxl").outline(device=torch.device("meta"), dtype=torch.float16))
    found = {name: sum(parameter.numel() for parameter in getattr(model, name).parameters()) for name in card.parts}
    assert found == {name: part.parameters for name, part in card.parts.items()}
    model.close()


def edited(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def without(path: Path, ending: str) -> None:
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}
    assert len(kept) == len(tensors) - 1
    save_file(kept, path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no scheduler": (lambda at: (at / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json"),
    "no unet": (lambda at: shutil.rmtree(at / "unet"), "unet"),
    "no second tokenizer": (lambda at: shutil.rmtree(at / "tokenizer_2"), "tokenizer_2"),
    "a weight less": (
        lambda at: without(at / "unet/diffusion_pytorch_model.safetensors", "conv_in.weight"), "lacks conv_in.weight"),
    "a weight of the encoder less": (
        lambda at: without(at / "text_encoder/model.safetensors", "final_layer_norm.weight"), "lacks .*final_layer"),
    "other widths": (lambda at: edited(at / "unet/config.json", cross_attention_dim=48), "cross_attention_dim is 48"),
    "no sizes": (lambda at: edited(at / "unet/config.json", addition_embed_type=None), "not told the size"),
    "inpainting": (lambda at: edited(at / "unet/config.json", in_channels=9), "Inpainting"),
    "blocks of another kind": (
        lambda at: edited(at / "unet/config.json", down_block_types=["AttnDownBlock2D"] * 3), "AttnDownBlock2D"),
    "a refined U-Net": (lambda at: edited(at / "unet/config.json", time_cond_proj_dim=256), "time_cond_proj_dim"),
    "means": (lambda at: edited(at / "vae/config.json", latents_mean=[1, 2, 3, 4]), "latents_mean"),
    "a scale of text": (lambda at: edited(at / "vae/config.json", scaling_factor="a"), "scaling_factor must be"),
    "channels of text": (lambda at: edited(at / "unet/config.json", norm_num_groups="x"), "describes no network"),
    "flow matching": (
        lambda at: edited(at / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        "sampled by its noise levels"),
    "another prediction": (
        lambda at: edited(at / "scheduler/scheduler_config.json", prediction_type="sample"), "prediction_type sample"),
    "betas beyond 1": (lambda at: edited(at / "scheduler/scheduler_config.json", beta_end=2.0), "between 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints(folder: Path, tmp_path: Path, name: str) -> None:
    breaking, says = BROKEN[name]
    broken = shutil.copytree(folder, tmp_path / "broken")
    breaking(broken)
    with pytest.raises(CheckpointError, match=says):
        Engine.open(broken, device="cpu")


def test_names_of_the_published_files(folder: Path, engine: Engine, tmp_path: Path) -> None:
    """transformers 4 wrote another prefix, a table of positions that is no weight, and other words in configurations."""
    older = shutil.copytree(folder, tmp_path / "older")
    path = older / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    for name in ("text_encoder", "text_encoder_2"):
        edited(
            older / name / "config.json", _name_or_path="somewhere/else", torch_dtype="float16", dropout=0.0, dtype=None,
            transformers_version="4.32.0.dev0", initializer_factor=1.0, bos_token_id=0, pad_token_id=1,
        )  # fmt: skip
    with Engine.open(older, device="cpu", dtype="float32") as opened:
        assert pictures(opened, REQUESTS[:1]) == pictures(engine, REQUESTS[:1])


@pytest.mark.parametrize("module", ["diffusers.models.unets.unet_2d_condition", "transformers"])
def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=r"pip install '\.\[sdxl\]'"):
        Engine.open(folder, device="cpu")
    with pytest.raises(ModelError, match=r"pip install '\.\[sdxl\]'"):
        forecast("sdxl", vram="8 GiB", ram="16 GiB", settings=Settings(data_dir="/nowhere"))


def test_a_folder_without_a_card(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "card.toml").unlink()
    card = find_card(bare, tmp_path)
    assert (card.family, card.steps, card.guidance, card.samplers) == ("sdxl", 40, 5.0, ("euler", "dpmpp_2m_karras"))
    assert card.default_size == (1024, 1024)
    assert card.preview is not None


def test_cards_that_say_what_is_not(folder: Path) -> None:
    card = replace(find_card("mini", Path("/nowhere")), guidance=3.0)
    with pytest.raises(CardError, match="no guidance"):
        Engine.open(card, device="cpu")
    card = replace(find_card("mini", Path("/nowhere")), samplers=("dpmpp_2m_karras",))
    with pytest.raises(CardError, match="Take samplers off"):
        Engine.open(card, device="cpu")
    card = replace(find_card(folder, folder), samplers=("euler",))
    with Engine.open(card, device="cpu") as opened, pytest.raises(RequestError, match="It has euler"):
        opened.generate(ImageRequest("a", sampler="dpmpp_2m_karras"))


def test_checkpoints_are_not_converted(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not converted"):
        find_family("sdxl").conversion(folder, precision="int8", layout="diffusers")


def test_a_cancelled_picture_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch, no_slack: None) -> None:
    whole = pictures(engine, REQUESTS[:1])
    give(monkeypatch, least(monkeypatch, engine, REQUESTS[:1]))
    stream = engine.stream(REQUESTS[0])
    assert isinstance(next(stream), Step)
    stream.close()  # type: ignore[attr-defined]
    assert all(not block.attached for block in model_of(engine).parts["denoiser"][1])
    (again,) = engine.generate_many(REQUESTS[:1])
    assert isinstance(again, Result)
    assert again.image.tobytes() == whole[0]
