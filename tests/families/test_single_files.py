"""Z-Image from ComfyUI's files: the weights and pictures are those of diffusers' layout, whatever the files are called."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from single_files import (
    PUBLISHED,
    StateDict,
    below,
    causal_lm,
    header_of,
    ldm_autoencoder,
    original_transformer,
    published_checkpoint,
    state_dict,
    write_header,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from hwaga import ImageRequest
from hwaga.engine import Engine, check_lora
from hwaga.errors import CheckpointError, HwagaError
from hwaga.families.z_image.autoencoder import AutoencoderConfig
from hwaga.families.z_image.family import ZImageModel
from hwaga.families.z_image.single_files import SingleFiles
from hwaga.families.z_image.text_encoder import TextEncoderConfig
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.model_lookup import find_card
from hwaga.weights.checkpoint import file_digest, read_config

Networks = dict[str, StateDict]

REQUEST = ImageRequest("a red apple on a yellow background", seed=3, steps=2, width=256, height=256)


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_checkpoint(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def theirs(diffusers_folder: Path) -> Networks:
    """The networks under diffusers' names."""
    return {name: state_dict(diffusers_folder / name) for name in ("transformer", "text_encoder", "vae")}


@pytest.fixture(scope="module")
def comfy(theirs: Networks) -> Networks:
    """The networks under ComfyUI's names."""
    return {
        "transformer": original_transformer(theirs["transformer"]),
        "text_encoder": causal_lm(theirs["text_encoder"]),
        "vae": ldm_autoencoder(theirs["vae"]),
    }


@pytest.fixture
def folder(tmp_path: Path, diffusers_folder: Path) -> Path:
    """An empty model with a tokenizer."""
    shutil.copytree(diffusers_folder / "tokenizer", tmp_path / "model" / "tokenizer")
    return tmp_path / "model"


def write(folder: Path, networks: Networks) -> Path:
    """One file a network, under names that say nothing."""
    for place, tensors in enumerate(networks.values()):
        save_file(tensors, folder / f"{place}.safetensors")
    return folder


def weights(folder: Path, dtype: str = "float32") -> StateDict:
    with Engine.open(folder, device="cpu", dtype=dtype) as engine:
        model = cast(ZImageModel, engine._opened().model)
        networks = {"text": model.text_encoder, "transformer": model.transformer, "vae": model.autoencoder}
        found = {
            f"{part}.{name}": tensor for part, net in networks.items() for name, tensor in net.state_dict().items()
        }
        table = model.text_encoder.embed_tokens  # which stays in its file
        rows = table(range(len(table.weight)), torch.device("cpu"), model.dtype)
        return {**found, "text.embed_tokens.weight": rows}


def assert_equal(ours: StateDict, expected: StateDict) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Engine.open(folder, device="cpu")
    return str(caught.value)


# What is right


def test_diffusers_converters_read_our_files(theirs: Networks, comfy: Networks) -> None:
    """The files that these tests write are what diffusers takes for an original checkpoint."""
    converted = convert_z_image_transformer_checkpoint_to_diffusers(
        below("model.diffusion_model.", comfy["transformer"] | {"norm_final.weight": torch.ones(256)})
    )
    assert_equal(converted, theirs["transformer"])
    assert_equal(convert_ldm_vae_checkpoint(comfy["vae"], PUBLISHED.vae), theirs["vae"])


def _aio(networks: Networks) -> Networks:
    together = below("model.diffusion_model.", networks["transformer"])
    together |= below("text_encoders.qwen3_4b.transformer.", networks["text_encoder"]) | below("vae.", networks["vae"])
    return {"all": together | {"text_encoders.qwen3_4b.logit_scale": torch.tensor(4.6)}}


def _with(network: str, change: Callable[[StateDict], StateDict]) -> Callable[[Networks], Networks]:
    return lambda networks: networks | {network: change(networks[network])}


def _without(pattern: str) -> Callable[[StateDict], StateDict]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


LAYOUTS: dict[str, Callable[[Networks], Networks]] = {
    "as ComfyUI has them": lambda networks: networks,
    "with a prefix": _with("transformer", lambda tensors: below("model.diffusion_model.", tensors)),
    "all in one": _aio,
    "with a language-model head": _with(
        "text_encoder", lambda tensors: tensors | {"lm_head.weight": torch.zeros(5120, 64)}
    ),
    "without the last layer": _with("text_encoder", _without(r"layers\.3\.|model\.norm\.")),
    "a bare encoder": _with(
        "text_encoder", lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    ),
    "an unused norm": _with("transformer", lambda tensors: tensors | {"norm_final.weight": torch.ones(256)}),
    "in another order": lambda networks: dict(reversed(networks.items())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights(layout: str, comfy: Networks, diffusers_folder: Path, folder: Path) -> None:
    assert_equal(weights(write(folder, LAYOUTS[layout](comfy))), weights(diffusers_folder))


def test_diffusers_names_without_configurations(theirs: Networks, diffusers_folder: Path, folder: Path) -> None:
    assert_equal(weights(write(folder, theirs)), weights(diffusers_folder))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_formats(stored: torch.dtype, comfy: Networks, folder: Path) -> None:
    """Half formats are read exactly: each weight is the stored one."""
    rounded = {part: {name: tensor.to(stored) for name, tensor in net.items()} for part, net in comfy.items()}
    exact = {part: {name: tensor.float() for name, tensor in net.items()} for part, net in rounded.items()}
    expected = weights(write(folder, exact))
    assert_equal(weights(write(folder, rounded)), expected)


def test_the_same_picture(comfy: Networks, diffusers_folder: Path, folder: Path) -> None:
    with Engine.open(diffusers_folder, device="cpu") as engine:
        expected = engine.generate(REQUEST)
    with Engine.open(write(folder, comfy), device="cpu") as engine:
        result = engine.generate(REQUEST)
        assert (engine.card.name, engine.card.family) == ("model", "z_image")
    assert result.image.tobytes() == expected.image.tobytes()
    assert len(result.image.getcolors(2**16) or []) > 1000, "the picture is flat"
    assert result.weights == file_digest([folder / f"{place}.safetensors" for place in (1, 0, 2)])


def test_comfyui_folders_and_cards(comfy: Networks, folder: Path) -> None:
    """Files in ComfyUI's folders, files that a card names, and one file as the model."""
    files = {"transformer": "diffusion_models/a", "text_encoder": "text_encoders/b.sft", "vae": "vae/c.safetensors"}
    for part, name in files.items():
        (folder / name).parent.mkdir()
        save_file(comfy[part], folder / name)
    (folder / "notes.txt").write_text("no weights")
    found = find_card(folder, folder)
    assert found.present
    assert found.files == tuple(folder / name for name in files.values())
    expected = weights(folder)

    text = (Path(__file__).parents[2] / "src/hwaga/assets/cards/z-image-turbo.toml").read_text()
    card = folder / "card.toml"
    card.write_text(f"files = {json.dumps(list(files.values()))}\n" + text[: text.index("[download]")])
    assert_equal(weights(card), expected)
    (folder / "vae" / "c.safetensors").unlink()
    assert not find_card(folder, folder).present
    assert f"is made of {folder / 'vae' / 'c.safetensors'}, which is not there" in refusal(folder)

    save_file(_aio(comfy)["all"], folder / "whole.safetensors")
    assert find_card(folder / "whole.safetensors", folder).name == "whole"
    assert_equal(weights(folder / "whole.safetensors"), expected)


# Scaled fp8


def _fp8(tensors: StateDict, *, scaled: bool, marked: bool) -> tuple[StateDict, StateDict]:
    """A file in 8 bits, and the values that it stands for."""
    stored: StateDict = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)} if marked else {}
    values: StateDict = {}
    for place, (name, tensor) in enumerate(tensors.items()):
        stored[name] = values[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight"):
            scale = tensor.abs().max() / (300 + place) if scaled else torch.tensor(1.0)
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            values[name] = stored[name].float() * scale
            if scaled:
                stored[f"{name.removesuffix('weight')}scale_weight"] = scale if place % 2 else scale[None]
                stored[f"{name.removesuffix('weight')}scale_input"] = torch.tensor(7.0)
    return stored, values


@pytest.mark.parametrize("network", ["transformer", "text_encoder"])
@pytest.mark.parametrize(("scaled", "marked"), [(True, True), (True, False), (False, False)])
def test_fp8(network: str, scaled: bool, marked: bool, comfy: Networks, folder: Path) -> None:
    """Each weight is its 8 bits times its scale, in float32 and rounded once to bfloat16."""
    stored, values = _fp8(comfy[network], scaled=scaled, marked=marked)
    assert max((values[name] - tensor).abs().max().item() for name, tensor in comfy[network].items()) > 0.001
    write(folder, comfy | {network: values})
    expected = {dtype: weights(folder, dtype) for dtype in ("float32", "bfloat16")}
    write(folder, comfy | {network: stored})
    for dtype, tensors in expected.items():
        assert_equal(weights(folder, dtype), tensors)


def test_fp8_below_a_prefix(comfy: Networks, folder: Path) -> None:
    stored, values = _fp8(comfy["transformer"], scaled=True, marked=True)
    expected = weights(write(folder, comfy | {"transformer": values}))
    prefixed = below("model.diffusion_model.", stored)
    assert_equal(weights(write(folder, comfy | {"transformer": prefixed})), expected)


SCALE = "layers.1.attention.qkv.scale_weight"


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        (SCALE, None, "has no scale for layers.1.attention.qkv.weight"),
        (SCALE, torch.tensor(float("nan")), "layers.1.attention.qkv.weight holds NaN"),
        ("layers.0.feed_forward.w1.comfy_quant", torch.ones(9, dtype=torch.uint8), "w1.comfy_quant as U8"),
        ("layers.0.feed_forward.w1.weight_scale", torch.ones(()), "holds layers.0.feed_forward.w1.weight_scale"),
    ],
)
def test_wrong_fp8(name: str, tensor: Tensor | None, says: str, comfy: Networks, folder: Path) -> None:
    stored, _ = _fp8(comfy["transformer"], scaled=True, marked=True)
    stored.pop(name, None)
    if tensor is not None:
        stored[name] = tensor
    assert says in refusal(write(folder, comfy | {"transformer": stored}))


# What is refused


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": torch.ones(2, 2)}, "a.safetensors is a LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, "a.safetensors holds a transformer of the Flux"),
        (b"GGUF\x03\0\0\0 and so on", "a.safetensors is damaged: it ends within"),
        (b"PK\x03\x04 and so on", "a.safetensors is a pickle"),
        (b"<html>404</html>", "truncated or no safetensors file"),
    ],
    ids=["LoRA", "Flux", "GGUF", "pickle", "page"],
)
def test_other_files(content: StateDict | bytes, says: str, comfy: Networks, folder: Path) -> None:
    """They are named where a network is missing, whether the file or its folder is the model, and are no matter beside it."""
    path = folder / "a.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
    assert says in refusal(folder)
    assert says in refusal(path)
    write(folder, {"text_encoder": comfy["text_encoder"], "vae": comfy["vae"]})
    message = refusal(folder)
    assert "No transformer was found in 0.safetensors, 1.safetensors, a.safetensors" in message
    assert says in message
    weights(write(folder, comfy))


def test_damage_is_named(comfy: Networks, folder: Path) -> None:
    """As strictly as in diffusers' layout."""

    def says(network: str, change: Callable[[StateDict], StateDict]) -> str:
        return refusal(write(folder, comfy | {network: change(dict(comfy[network]))}))

    assert "lacks layers.1.attention.qkv.weight" in says("transformer", _without(r"layers\.1\.attention\.qkv"))
    assert "lacks layers.0.mlp.up_proj.weight" in says("text_encoder", _without(r"layers\.0\.mlp\.up_proj"))
    assert "lacks decoder.up.2.block.1.conv1.bias" in says("vae", _without(r"decoder\.up\.2\.block\.1\.conv1\.bias"))
    left_over = {"siglip_embedder.0.weight": torch.ones(3)}
    assert "holds siglip_embedder.0.weight" in says("transformer", lambda tensors: tensors | left_over)
    misshapen = {"decoder.mid.attn_1.q.weight": torch.ones(96, 96)}
    assert "decoder.mid.attn_1.q.weight is [96, 96] and should be [96, 96, 1, 1]" in says(
        "vae", lambda tensors: tensors | misshapen
    )
    misshapen = {"layers.2.attention.q_norm.weight": torch.ones(64)}
    assert "should be [128]" in says("transformer", lambda tensors: tensors | misshapen)


def test_networks_that_do_not_fit(comfy: Networks, theirs: Networks, folder: Path) -> None:
    narrower = original_transformer(
        ZImageTransformer2DModel(**PUBLISHED.transformer | {"cap_feat_dim": 48}).state_dict()
    )
    assert "the text encoder is 64 wide and the transformer reads 48" in refusal(
        write(folder, comfy | {"transformer": narrower})
    )
    four = ldm_autoencoder(AutoencoderKL(**PUBLISHED.vae | {"latent_channels": 4}).state_dict())
    assert "the autoencoder has 4 latent channels and the transformer 16" in refusal(
        write(folder, comfy | {"vae": four})
    )


def test_tokenizer_is_required(comfy: Networks, folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    message = refusal(write(folder, comfy))
    assert str(folder / "tokenizer" / "tokenizer.json") in message
    assert "https://huggingface.co/Tongyi-MAI/Z-Image-Turbo/resolve/main/tokenizer/tokenizer.json" in message


def test_loras_are_matched_with_files(comfy: Networks, folder: Path) -> None:
    lora = folder.parent / "lora.safetensors"
    stem = "diffusion_model.layers.0.attention.out.lora"
    save_file({f"{stem}_A.weight": torch.ones(2, 256), f"{stem}_B.weight": torch.ones(256, 2)}, lora)
    card = find_card(write(folder, comfy), folder)
    assert check_lora(lora, [card]) == {"model": None}


# The published sizes, by headers alone


@pytest.fixture(scope="module")
def full_size() -> Networks:
    with torch.device("meta"):
        text = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, head_dim=128,
                num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=40960,
            )
        )  # fmt: skip
        return {
            "transformer": original_transformer(ZImageTransformer2DModel().state_dict()),
            "text_encoder": text.state_dict(),
            "vae": ldm_autoencoder(
                AutoencoderKL(**PUBLISHED.vae | {"block_out_channels": (128, 256, 512, 512)}).state_dict()
            ),
        }


@pytest.mark.parametrize("lacking", ["lm_head", r"layers\.35\.", r"lm_head|layers\.35\.|model\.norm"])
def test_published_sizes(lacking: str, full_size: Networks, tmp_path: Path) -> None:
    headers = {part: header_of(tensors) for part, tensors in full_size.items()}
    headers["text_encoder"] = header_of(_without(lacking)(full_size["text_encoder"]))
    found = SingleFiles.read([write_header(tmp_path / part, header) for part, header in headers.items()])
    assert found.transformer.config == TransformerConfig(
        dim=3840, layers=30, refiner_layers=2, heads=30, norm_eps=1e-5, qk_norm=True, in_channels=16, patch=2,
        caption_dim=2560, rope_theta=256.0, time_scale=1000.0, axes_dims=(32, 48, 48), axes_lens=(1536, 512, 512),
    )  # fmt: skip
    assert found.text_encoder.config == TextEncoderConfig(
        hidden=2560, intermediate=9728, layers=36, heads=32, kv_heads=8, head_dim=128, vocabulary=151936,
        norm_eps=1e-6, rope_theta=1e6, attention_bias=False, positions=40960,
    )  # fmt: skip
    assert found.autoencoder.config == AutoencoderConfig(
        channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, groups=32, scaling=0.3611, shift=0.1159,
        mid_attention=True, quant_conv=False, post_quant_conv=False,
    )  # fmt: skip
    for part, layout in (
        (found.transformer.part, found.transformer.layout),
        (found.autoencoder.part, found.autoencoder.layout),
    ):
        for name in part.names:
            our_name, place = layout.target(name) or ("", 0)
            assert layout.sources(our_name)[place] == name, "named otherwise in messages"
    assert found.transformer.blueprint().stored_bytes == 2 * 6_154_908_736
    assert found.text_encoder.blueprint().stored_bytes == 2 * 3_921_534_720
    assert found.autoencoder.blueprint().stored_bytes == 2 * 83_819_683


def test_a_published_text_encoder_that_lacks_more(full_size: Networks, tmp_path: Path) -> None:
    """The number of layers is known, so that a shorter file is not taken for a whole smaller one."""
    headers = {part: header_of(tensors) for part, tensors in full_size.items()}
    headers["text_encoder"] = header_of(_without(r"layers\.3[45]\.")(full_size["text_encoder"]))
    found = SingleFiles.read([write_header(tmp_path / part, header) for part, header in headers.items()])
    with pytest.raises(CheckpointError, match=r"lacks layers\.34\."):
        found.text_encoder.blueprint()


def test_small_configurations(diffusers_folder: Path, comfy: Networks, folder: Path) -> None:
    found = SingleFiles.read(find_card(write(folder, comfy), folder).files)
    assert found.transformer.config == TransformerConfig.from_json(read_config(diffusers_folder / "transformer"))
    assert found.autoencoder.config == AutoencoderConfig.from_json(read_config(diffusers_folder / "vae"))


# Damaged headers


SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def _reads_or_refuses(files: list[Path]) -> None:
    with suppress(HwagaError):
        found = SingleFiles.read(files)
        for blueprint in (found.text_encoder.blueprint, found.transformer.blueprint, found.autoencoder.blueprint):
            blueprint()


@pytest.fixture(scope="module")
def whole_header(comfy: Networks) -> dict[str, tuple[str, tuple[int, ...]]]:
    return header_of(_aio(comfy)["all"])


@SHARED_FOLDER
@given(data=st.data())
def test_any_names_formats_and_shapes(
    tmp_path: Path, whole_header: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    """Valid files of anything: what is refused is refused on purpose."""
    header = dict(whole_header)
    names = list(header)
    heads = (
        "x_embedder",
        "cap_embedder",
        "embed_tokens",
        "layers.0.self_attn",
        "decoder.conv_in",
        "pad_token",
        "down.0",
    )
    telling = [name for name in names if any(head in name for head in heads)]
    sizes = st.sampled_from([0, 1, 2, 3, 31, 64, 100, 128, 512, 2560])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(telling) | st.sampled_from(names))
        entry = header.pop(name, ("F32", ()))
        what = data.draw(st.sampled_from(["gone", "renamed", "format", "shape"]))
        if what == "renamed":
            header[data.draw(st.sampled_from(telling).map(lambda n: n + "x") | st.text(max_size=20))] = entry
        elif what == "format":
            header[name] = (data.draw(st.sampled_from(["F8_E4M3", "F8_E5M2", "U8", "I32", "F16"])), entry[1])
        elif what == "shape":
            shapes = st.lists(sizes, max_size=4).filter(lambda shape: math.prod(shape) < 10**9)
            header[name] = (entry[0], tuple(data.draw(shapes)))
    _reads_or_refuses([write_header(tmp_path / "file", header)])


@SHARED_FOLDER
@given(data=st.data())
def test_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    header = {"decoder.conv_in.weight": ("BF16", (96, 16, 3, 3)), "decoder.conv_in.bias": ("F8_E4M3", (96,))}
    content = bytearray(write_header(tmp_path / "good", header).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    _reads_or_refuses([path])
