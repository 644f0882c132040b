"""SDXL from one file: weights, sizes and pictures are those of diffusers' layout. Other models are refused by what they are."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sdxl_parts import (
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    VAE,
    published_tokenizer,
    sdxl_networks,
    sdxl_pipeline,
    single_file,
)
from single_files import header_of, write_header
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hwaga import ImageRequest, Settings
from hwaga.engine import Engine, check_lora
from hwaga.errors import CheckpointError, HwagaError, ModelError, StyleError
from hwaga.families.sdxl.networks import FOLDERS
from hwaga.families.sdxl.published import PUBLISHED_NETWORKS
from hwaga.families.sdxl.single_files import SingleFile
from hwaga.model_lookup import find_card

CPU = torch.device("cpu")

StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return sdxl_networks()


@pytest.fixture(scope="module")
def tensors(networks: dict[str, nn.Module]) -> StateDict:
    return single_file(networks)


@pytest.fixture(scope="module")
def file(tensors: StateDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(tensors, path)
    return path


def refusal(path: Path) -> str:
    def read() -> None:
        found = SingleFile.read(path)
        for name in FOLDERS:
            found.blueprint(name)

    with pytest.raises(CheckpointError) as caught:
        read()
    return str(caught.value)


# What is right


def test_diffusers_converters_read_our_files(networks: dict[str, nn.Module], tensors: StateDict) -> None:
    """The files that these tests write are what diffusers takes for an original checkpoint."""
    unet, vae, encoder = networks["unet"], networks["vae"], networks["text_encoder_2"]
    converted = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), unet.config),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), vae.config),
        "text_encoder_2": convert_open_clip_checkpoint(encoder, dict(tensors), "conditioner.embedders.1.model."),
    }
    for name, found in converted.items():
        expected = networks[name].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def assert_same_weights(
    found: SingleFile, networks: Mapping[str, nn.Module], dtype: torch.dtype = torch.float32
) -> None:
    for name in FOLDERS:
        read = dict(found.blueprint(name).load(device=CPU, dtype=dtype).named_parameters())
        expected = dict(networks[name].named_parameters())
        assert read.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(read[key], tensor.to(dtype)), f"{name} {key}"


def test_the_same_weights_and_configurations(file: Path, networks: dict[str, nn.Module]) -> None:
    found = SingleFile.read(file)
    assert_same_weights(found, networks)
    for name, wanted in (
        ("unet", UNET),
        ("vae", VAE),
        ("text_encoder", TEXT_ENCODER),
        ("text_encoder_2", TEXT_ENCODER_2),
    ):
        config = getattr(found.networks, name)
        for key, value in wanted.items():
            if key != "sample_size":  # which nothing is made of
                own = config[key]
                assert (tuple(own) if isinstance(own, list) else own) == value, f"{name} {key}"
    assert found.scheduler["prediction_type"] == "epsilon"


def _rename(theirs: str, ours: str) -> Callable[[StateDict], StateDict]:
    return lambda tensors: {name.replace(theirs, ours): tensor for name, tensor in tensors.items()}


def _with(**others: Tensor) -> Callable[[StateDict], StateDict]:
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in others.items()}


def _turned(tensors: StateDict) -> StateDict:
    key = "conditioner.embedders.1.model.text_projection"
    others = {name: tensor for name, tensor in tensors.items() if name != key}
    return others | {f"{key}.weight": tensors[key].t().contiguous()}


VARIANTS: dict[str, Callable[[StateDict], StateDict]] = {
    "what training leaves behind": _with(
        model_ema__decay=torch.ones(()), denoiser__sigmas=torch.ones(1000), betas=torch.ones(3), alphas_cumprod=torch.ones(3),
        conditioner__embedders__0__transformer__text_model__embeddings__position_ids=torch.arange(77)[None],
    ),
    "the projection as transformers keeps it": _turned,
    "without the outer name": _rename("0.transformer.text_model.", "0.transformer."),
    "in another order": lambda tensors: dict(reversed(tensors.items())),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, tensors: StateDict, networks: dict[str, nn.Module], tmp_path: Path) -> None:
    save_file(VARIANTS[variant](tensors), tmp_path / "a.safetensors")
    assert_same_weights(SingleFile.read(tmp_path / "a.safetensors"), networks)


def test_formats(tensors: StateDict, networks: dict[str, nn.Module], tmp_path: Path) -> None:
    """Half formats are read exactly, and 8 bits with their scales as ComfyUI writes them."""
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    rounded = {name: nn.Module.half(network) for name, network in sdxl_networks().items()}
    assert_same_weights(SingleFile.read(tmp_path / "half.safetensors"), rounded)
    prefix, stored = "model.diffusion_model.", dict(tensors)
    stored[f"{prefix}scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    name = f"{prefix}middle_block.1.transformer_blocks.0.attn1.to_q"
    for key, tensor in tensors.items():
        if key.startswith(prefix) and key.endswith(".weight") and tensor.ndim == 2:
            stored[key] = (tensor * 100).to(torch.float8_e4m3fn)
            stored[key.replace(".weight", ".scale_weight")] = torch.tensor(0.01)
    save_file(stored, tmp_path / "fp8.safetensors")
    unet = SingleFile.read(tmp_path / "fp8.safetensors").blueprint("unet").load(device=CPU, dtype=torch.float32)
    read = unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    assert torch.equal(read, stored[f"{name}.weight"].float() * torch.tensor(0.01))


@pytest.mark.parametrize(("markers", "zero"), [(["v_pred"], False), (["v_pred", "ztsnr"], True)])
def test_velocity(markers: list[str], zero: bool, tensors: StateDict, tmp_path: Path) -> None:
    save_file(tensors | {marker: torch.empty(0) for marker in markers}, tmp_path / "v.safetensors")
    scheduler = SingleFile.read(tmp_path / "v.safetensors").scheduler
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", zero)


REQUEST = ImageRequest("a (red:1.2) apple, " * 30, negative="blurry", width=256, height=256, steps=1, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in diffusers' layout that knows CLIP's words, and the same as one file."""
    place = tmp_path_factory.mktemp("both")
    networks = sdxl_networks(vocabulary=49408)
    pipeline = sdxl_pipeline(networks)
    pipeline.tokenizer, pipeline.tokenizer_2 = (published_tokenizer(pad) for pad in ("<|endoftext|>", "!"))
    pipeline.save_pretrained(place / "diffusers")
    save_file(single_file(networks), place / "file.safetensors")
    return place


def test_the_same_picture(folder: Path) -> None:
    pictures = []
    for model in (folder / "diffusers", folder / "file.safetensors"):
        with Engine.open(model, device="cpu", dtype="float32") as engine:
            pictures.append(engine.generate(REQUEST))
            assert engine.card.family == "sdxl"
    expected, result = pictures
    assert result.image.tobytes() == expected.image.tobytes()
    assert len(result.image.getcolors(2**16) or []) > 1000, "the picture is flat"
    assert result.tokens == expected.tokens > 77


def test_found_by_content(folder: Path, file: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    card = find_card(folder / "file.safetensors", models)
    assert (card.name, card.family, card.steps, card.present) == ("file", "sdxl", 40, True)
    place = tmp_path / "checkpoints"
    place.mkdir()
    shutil.copy(file, place / "one.sft")
    assert find_card(tmp_path / "checkpoints", models).family == "sdxl"
    write_header(place / "two.safetensors", OTHERS["SD 1.5"][0])
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints. Give the file of one, such as .*one\.sft"):
        find_card(place, models)
    with pytest.raises(CheckpointError, match=r"two\.safetensors is Stable Diffusion 1"):
        Engine.open(place / "two.safetensors", device="cpu")
    save_file({"cap_pad_token": torch.ones(1)}, place / "three.safetensors")
    assert find_card(place / "three.safetensors", models).family == "z_image"
    assert find_card(place, models).family == "z_image"


def test_styles_are_words_loras_or_checkpoints(folder: Path, tmp_path: Path) -> None:
    """As a file beside the model says. Another checkpoint is not opened on the side: the refusal leads to it."""
    shutil.copytree(folder / "diffusers", tmp_path / "xl")
    loras = tmp_path / "xl" / "loras"
    loras.mkdir()
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = {f"{stem}.lora_A.weight": torch.ones(1, 128), f"{stem}.lora_B.weight": torch.ones(128, 1)}
    save_file(layer, loras / "paint.safetensors")
    other = {
        name: tensor * 0.9 if "middle_block" in name else tensor
        for name, tensor in load_file(folder / "file.safetensors").items()
    }
    save_file(other, tmp_path / "xl" / "anime.safetensors")
    (tmp_path / "xl" / "styles.toml").write_text(
        """
        [styles.semi_realistic]
        title = { en = "Painterly" }
        lora = "loras/paint.safetensors"
        [styles.anime]
        title = { en = "Anime" }
        checkpoint = "anime.safetensors"
        steps = 2
        """
    )
    request = ImageRequest("a red apple", width=256, height=256, seed=3)
    made = {}
    with Engine.open(tmp_path / "xl", device="cpu", dtype="float32") as engine:
        for style in ("realistic", "semi_realistic"):
            made[style] = engine.generate(request.replace(style=style, steps=1))
        with pytest.raises(StyleError) as refused:
            engine.generate(request.replace(style="anime"))
        words = made["realistic"].request.composed
        assert words is not None
        plain = request.replace(steps=1, prompt=words.prompt, negative=words.negative)
        assert engine.generate(plain).image.tobytes() == made["realistic"].image.tobytes(), "words alone"
        assert list(made["semi_realistic"].loras) == ["paint"]
        lora = made["semi_realistic"].request.composed
        assert lora is not None
        bare = request.replace(steps=1, prompt=lora.prompt, negative=lora.negative)
        assert engine.generate(bare).image.tobytes() != made["semi_realistic"].image.tobytes()
    remedy = re.search(r"--model (\S+),", str(refused.value))
    assert remedy is not None
    with Engine.open(remedy[1], device="cpu", dtype="float32") as engine:
        assert (engine.card.name, engine.card.steps) == ("xl:anime", 2)
        drawn = engine.generate(request.replace(style="anime"))
        assert drawn.request.composed is not None
        assert "cel shading" in drawn.request.composed.prompt
        assert not drawn.loras
    with Engine.open(tmp_path / "xl" / "anime.safetensors", device="cpu", dtype="float32") as engine:
        again = request.replace(steps=2, prompt=drawn.request.composed.prompt, negative=drawn.request.composed.negative)
        assert engine.generate(again).image.tobytes() == drawn.image.tobytes(), "by that checkpoint"


def test_loras_are_matched_and_drawn_with(folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    stem = "lora_unet_input_blocks_1_0_out_layers_3"
    down, up = torch.randn(2, 64, 3, 3, generator=generator), torch.full((64, 2, 1, 1), 0.2)
    lora = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    encoder = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    words = {
        f"{encoder}.lora_down.weight": 3 * torch.randn(2, 64, generator=generator),
        f"{encoder}.lora_up.weight": torch.ones(96, 2),
    }
    own = Settings(data_dir=str(tmp_path))
    own.loras.mkdir()
    for name, tensors in {"shapes": lora, "words": words, "both": lora | words}.items():
        save_file(tensors, own.loras / f"{name}.safetensors")
    files = [find_card(folder / name, tmp_path) for name in ("file.safetensors", "diffusers")]
    assert check_lora(own.loras / "both.safetensors", files) == {"file": None, "diffusers": None}
    request = REQUEST.replace(prompt="a red apple")
    with Engine.open(files[0], device="cpu", dtype="float32", settings=own) as engine:
        drawn = [engine.generate(request.replace(loras=loras)).image for loras in ([], ["shapes"], ["words"])]
        batch = engine.generate_many([request.replace(loras=loras) for loras in ([], ["both"], ["words"])])
    pixels = [torch.tensor(list(image.tobytes())) for image in (*drawn, *(result.image for result in batch))]
    apart = [[(one - other).abs().max().item() for other in pixels] for one in pixels]
    assert apart[3][0] <= 1 >= apart[5][2], "in a batch as alone"
    assert min(apart[0][1], apart[0][2], apart[1][2], apart[4][0], apart[4][1], apart[4][2]) > 5, "each of them is seen"


def test_told_without_the_packages(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file is can be said where diffusers and transformers are absent; its networks cannot be built."""
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d_condition", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = SingleFile.read(file)
    assert found.networks.unet["block_out_channels"] == [64, 64, 128]
    for name in ("unet", "text_encoder"):
        with pytest.raises(ModelError, match=r"pip install '\.\[sdxl\]'"):
            found.blueprint(name)
    assert "is Stable Diffusion 2" in refusal(write_header(tmp_path / "a", OTHERS["SD 2"][0]))


# The published sizes, by names and shapes alone


@pytest.fixture(scope="module")
def full_size() -> dict[str, nn.Module]:
    published = PUBLISHED_NETWORKS
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(dict(published.unet)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**published.text_encoder)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**published.text_encoder_2)),
            "vae": AutoencoderKL.from_config(dict(published.vae)),
        }


def test_published_sizes(full_size: dict[str, nn.Module], tmp_path: Path) -> None:
    tensors = single_file(full_size)
    converted = convert_ldm_unet_checkpoint(dict(tensors), full_size["unet"].config)
    assert converted.keys() == full_size["unet"].state_dict().keys()
    assert (
        convert_ldm_vae_checkpoint(dict(tensors), full_size["vae"].config).keys()
        == full_size["vae"].state_dict().keys()
    )
    # What the published file is known by: diffusers tells models apart by these.
    assert "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias" in tensors
    assert "model.diffusion_model.output_blocks.8.0.skip_connection.weight" in tensors
    assert len([name for name in tensors if name.startswith("model.diffusion_model.")]) == 1680
    found = SingleFile.read(write_header(tmp_path / "xl", header_of(tensors)))
    assert found.networks.text_encoder == PUBLISHED_NETWORKS.text_encoder
    assert found.networks.text_encoder_2 == PUBLISHED_NETWORKS.text_encoder_2
    assert found.networks.unet == PUBLISHED_NETWORKS.unet
    assert found.networks.vae == PUBLISHED_NETWORKS.vae
    sizes = {name: found.blueprint(name).stored_bytes // 2 for name in FOLDERS}
    assert sizes == {
        "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863,
    }  # fmt: skip


# What is refused


Header = dict[str, tuple[str, tuple[int, ...]]]


def _unet(context: int, channels: int = 4) -> Header:
    return {
        "model.diffusion_model.input_blocks.0.0.weight": ("F16", (320, channels, 3, 3)),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": ("F16", (640, context)),
    }


SD1 = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": ("F16", (49408, 768))}
SD2 = {"cond_stage_model.model.token_embedding.weight": ("F16", (49408, 1024))}
SDXL = {"conditioner.embedders.1.model.token_embedding.weight": ("F16", (49408, 1280))}
REFINER = {"conditioner.embedders.0.model.token_embedding.weight": ("F16", (49408, 1280))}

OTHERS: dict[str, tuple[Header, str]] = {
    "SD 1.5": (_unet(768) | SD1, "is Stable Diffusion 1. It is no SDXL"),
    "SD 2": (_unet(1024) | SD2, "is Stable Diffusion 2. It is no SDXL"),
    "refiner": (_unet(1280) | REFINER, "is SDXL's refiner, which only finishes pictures"),
    "inpainting": (_unet(2048, 9) | SDXL, r"paints parts of pictures anew (inpainting), and takes 9 channels"),
    "SD 1.5 inpainting": (_unet(768, 9) | SD1, "paints parts of pictures anew (inpainting)"),
    "instructions": (_unet(2048, 8) | SDXL, "edits pictures by instruction"),
    "Flux": (
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ("BF16", (9, 3))},
        "Flux or HunyuanVideo family",
    ),
    "SD 3": (
        {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ("BF16", (9, 3))},
        "is Stable Diffusion 3",
    ),
    "U-Net alone": (_unet(2048), "is the U-Net of SDXL alone. Give a file with the text encoders"),
    "another U-Net alone": (_unet(768), "is the U-Net of Stable Diffusion 1 alone"),
    "diffusers": ({"down_blocks.0.resnets.0.conv1.weight": ("F16", (8, 8, 3, 3))}, "under diffusers' names"),
    "autoencoder": ({"decoder.conv_in.weight": ("F16", (8, 4, 3, 3))}, "is an autoencoder alone"),
    "encoder": (
        {"text_model.embeddings.position_embedding.weight": ("F16", (77, 768))},
        "is a CLIP text encoder alone",
    ),
    "LoRA": ({"lora_unet_conv_in.lora_down.weight": ("F16", (2, 2))}, "is a LoRA, not a model"),
    "EDM": (_unet(2048) | SDXL | {"edm_mean": ("F32", (4,))}, "it is sampled as EDM"),
    "nothing known": ({"a": ("F16", (2,))}, "holds 1 tensors, among them a, and is no SDXL"),
    "nothing": ({}, "holds 0 tensors, none at all, and is no SDXL"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_named(kind: str, tmp_path: Path) -> None:
    header, says = OTHERS[kind]
    assert says in refusal(write_header(tmp_path / "a.safetensors", header))


def test_pickles_and_pages(tmp_path: Path) -> None:
    for content, says in ((b"PK\x03\x04 and so on", "is a pickle"), (b"<html>", "truncated or no safetensors file")):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert says in refusal(tmp_path / "a.safetensors")


UNET_PREFIX, CLIP_PREFIX = "model.diffusion_model.", "conditioner.embedders.1.model."


@pytest.mark.parametrize(
    ("without", "added", "says"),
    [
        ("first_stage_model.", {}, "is an SDXL without its vae"),
        ("conditioner.embedders.0.", {}, "is an SDXL without its text_encoder"),
        (f"{UNET_PREFIX}middle_block.0.in_layers.2.weight", {}, "lacks middle_block.0.in_layers.2.weight"),
        (f"{CLIP_PREFIX}transformer.resblocks.1.attn.in_proj_weight", {}, "lacks transformer.resblocks.1.attn.in_proj_weight"),
        (f"{CLIP_PREFIX}transformer.resblocks.1.", {}, "lacks layers between those that it has"),
        (f"{CLIP_PREFIX}text_projection", {}, "lacks conditioner.embedders.1.model.text_projection"),
        ("first_stage_model.quant_conv.bias", {}, "lacks quant_conv.bias"),
        (f"{UNET_PREFIX}input_blocks.8.", {}, "has 8 input blocks: it is a smaller model"),
        ("none", {f"{UNET_PREFIX}zero_conv.weight": (1,)}, f"holds {UNET_PREFIX}zero_conv.weight"),
        ("none", {"siglip.weight": (1,)}, "holds siglip.weight, which is no part of an SDXL"),
        ("none", {f"{CLIP_PREFIX}transformer.resblocks.0.attn.in_proj_bias": (4,)}, "should hold 3 weights"),
        ("none", {f"{CLIP_PREFIX}transformer.resblocks.0.attn.in_proj_bias": (3,)}, "is [1] and should be [128]"),
        ("none", {f"{CLIP_PREFIX}text_projection": (64, 128)}, "text_projection is [64, 128] and should be [128, 128]"),
        ("none", {f"{CLIP_PREFIX}token_embedding.weight": (9, 100)}, "which makes no heads of 64 channels"),
        ("none", {f"{UNET_PREFIX}label_emb.0.0.weight": (256, 300)}, "They belong to different checkpoints"),
    ],
)  # fmt: skip
def test_damage_is_named(
    without: str, added: dict[str, tuple[int, ...]], says: str, tensors: StateDict, tmp_path: Path
) -> None:
    header = {name: entry for name, entry in header_of(tensors).items() if not name.startswith(without)}
    header |= {name: ("BF16", shape) for name, shape in added.items()}
    assert says in refusal(write_header(tmp_path / "a.safetensors", header))


# Damaged headers


SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)


@SHARED_FOLDER
@given(data=st.data())
def test_any_header_is_read_or_refused(data: st.DataObject, tensors: StateDict, tmp_path: Path) -> None:
    header = header_of(tensors)
    signs = [name for name in header if re.search(r"embedding|to_k|_proj|conv_in|0\.0\.|projection|conv1", name)]
    for name in data.draw(st.lists(st.sampled_from(signs or list(header)), min_size=1, max_size=4)):
        match data.draw(st.sampled_from(["gone", "shape", "moved"])):
            case "gone":
                header.pop(name, None)
            case "shape":
                header[name] = ("BF16", tuple(data.draw(st.lists(st.integers(0, 300), max_size=5))))
            case "moved":
                header[name.replace("0", str(data.draw(st.integers(1, 10**9))), 1)] = header.pop(name, ("BF16", (1,)))
    with suppress(HwagaError):
        found = SingleFile.read(write_header(tmp_path / "a.safetensors", header))
        found.blueprint(data.draw(st.sampled_from(FOLDERS)))
