"""Telling what a file of weights holds by the names in its header."""

from __future__ import annotations

from pathlib import Path

import pytest
from single_files import Header, write_header

from hwaga.errors import CheckpointError
from hwaga.weights.single_file import find_parts

TRANSFORMER: Header = {"cap_pad_token": ("BF16", (1, 8)), "layers.0.w.weight": ("F8_E4M3", (4, 8))}
ENCODER: Header = {
    "model.layers.0.self_attn.q_norm.weight": ("F16", (4,)),
    "model.embed_tokens.weight": ("F32", (9, 4)),
    "lm_head.weight": ("F32", (9, 4)),
}
AUTOENCODER: Header = {"decoder.conv_in.weight": ("F32", (8, 2, 3, 3)), "encoder.conv_in.bias": ("F32", (8,))}


def write(folder: Path, *headers: Header) -> list[Path]:
    return [write_header(folder / f"{place}", header) for place, header in enumerate(headers)]


def below(prefix: str, header: Header) -> Header:
    return {f"{prefix}{name}": entry for name, entry in header.items()}


def refusal(files: list[Path]) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_parts(files)
    return str(caught.value)


def test_three_files_in_any_order(tmp_path: Path) -> None:
    files = write(tmp_path, AUTOENCODER, TRANSFORMER, ENCODER)
    for order in (files, files[::-1]):
        parts = find_parts(order)
        assert {kind: part.file for kind, part in parts.items()} == {
            "autoencoder": files[0], "transformer": files[1], "text encoder": files[2]
        }  # fmt: skip
        assert {part.prefix for part in parts.values()} == {""}
        assert sorted(parts["text encoder"].names) == sorted(ENCODER)
    assert {tensor.name: (tensor.shape, tensor.nbytes) for tensor in parts["transformer"].tensors} == {
        "cap_pad_token": ((1, 8), 16), "layers.0.w.weight": ((4, 8), 32)
    }  # fmt: skip


@pytest.mark.parametrize(
    "prefixes",
    [
        ("model.diffusion_model.", "text_encoders.qwen3_4b.transformer.", "vae."),
        ("", "te.", "vae."),
        ("a.", "a.b.", ""),
    ],
)
def test_one_file_with_prefixes(prefixes: tuple[str, str, str], tmp_path: Path) -> None:
    headers = dict(zip(prefixes, (TRANSFORMER, ENCODER, AUTOENCODER), strict=True))
    together = {name: entry for prefix, header in headers.items() for name, entry in below(prefix, header).items()}
    parts = find_parts(write(tmp_path, together))
    for kind, (prefix, header) in zip(("transformer", "text encoder", "autoencoder"), headers.items(), strict=True):
        assert parts[kind].prefix == prefix
        assert sorted(parts[kind].names) == sorted(header)


def test_scales_belong_to_their_weights(tmp_path: Path) -> None:
    scaled = {
        **TRANSFORMER,
        "layers.0.w.scale_weight": ("F32", (1,)),
        "layers.0.w.scale_input": ("F32", ()),
        "scaled_fp8": ("F8_E4M3", (2,)),
    }
    part = find_parts(write(tmp_path, below("model.", scaled), ENCODER, AUTOENCODER))["transformer"]
    assert {tensor.name: tensor.scale and tensor.scale.name for tensor in part.tensors} == {
        "model.cap_pad_token": None,
        "model.layers.0.w.weight": "model.layers.0.w.scale_weight",
    }


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"scaled_fp8": ("F8_E4M3", (0,))}, "0 is marked as scaled fp8 and has no scale for x.layers.0.w.weight"),
        ({"layers.0.w.scale_weight": ("F32", (4,))}, "scale_weight is [4] of F32 and should be one number"),
        ({"layers.0.w.scale_weight": ("I32", ())}, "scale_weight is [] of I32"),
        ({"cap_pad_token.scale_weight": ("F32", ())}, "holds x.cap_pad_token.scale_weight, and no weight in F8_E4M3"),
        ({"layers.9.w.scale_weight": ("F32", ())}, "holds x.layers.9.w.scale_weight, and no weight in F8_E4M3"),
        ({"layers.1.w.weight": ("F8_E5M2", (4, 8))}, "stores x.layers.1.w.weight as F8_E5M2; only F32, F16, BF16, F8"),
        ({"layers.1.w.comfy_quant": ("U8", (9,))}, "stores x.layers.1.w.comfy_quant as U8"),
        ({"layers.1.w.weight": ("I8", (4, 8))}, "stores x.layers.1.w.weight as I8"),
    ],
)
def test_wrong_scales_and_formats(added: Header, says: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, below("x.", {**TRANSFORMER, **added}), ENCODER, AUTOENCODER))
    assert message.startswith("No transformer was found in 0, 1, 2. ")
    assert says in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "diffusion_model.layers.0.attention.to_q.lora_A.weight",
            "0 is a LoRA, not a model. Add it with `hwaga lora add 0`",
        ),
        ("lora_unet_layers_0_attention_to_q.alpha", "is a LoRA"),
        ("layers.0.attention.to_q.lora.down.weight", "is a LoRA"),
        ("layers.0.attention.qkv.lokr_w1", "is a LoRA"),
        ("layers.0.attention.qkv.hada_w1_a", "is a LoRA"),
        ("cap_embedder.0.weight", "holds a Lumina 2 transformer, which is no part of Z-Image"),
        ("control_layers.0.attention.to_q.weight", "holds a ControlNet"),
        (
            "model.diffusion_model.double_blocks.0.img_mod.lin.weight",
            "holds a transformer of the Flux or HunyuanVideo family",
        ),
        ("model.diffusion_model.joint_blocks.0.x_block.weight", "holds a Stable Diffusion 3 transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "holds a Stable Diffusion U-Net"),
        ("down_blocks.0.resnets.0.conv1.weight", "holds a Stable Diffusion U-Net"),
        ("transformer_blocks.0.img_mod.1.weight", "holds a diffusion transformer of another family"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "holds a CLIP or T5 text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "holds a CLIP or T5 text encoder"),
        ("model.embed_tokens.weight", "holds a language model other than Qwen3"),
        ("something", "holds 1 tensors, among them something, and no network that is known here"),
    ],
)
def test_other_models_are_named(name: str, says: str, tmp_path: Path) -> None:
    assert says in refusal(write(tmp_path, {name: ("F32", (2,))}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF\x03\0\0\0 and so on", "file is a GGUF file, and Hwaga reads safetensors only"),
        (b"PK\x03\x04 and so on", "file is a pickle, which can run code"),
        (b"\x80\x02}q\x00.", "file is a pickle, which can run code"),
        (b"<html>404</html>", "truncated or no safetensors file"),
        (b"", "truncated or no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds 0 tensors, none at all"),
    ],
)
def test_other_formats_are_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert says in refusal([tmp_path / "file"])


def test_no_file_at_all(tmp_path: Path) -> None:
    assert "truncated or no safetensors file" in refusal([tmp_path / "gone", tmp_path])


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, ENCODER)) == "No transformer and no autoencoder was found in 0."


def test_networks_twice(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, AUTOENCODER, TRANSFORMER, ENCODER, below("vae.", AUTOENCODER)))
    assert f"One autoencoder is in {tmp_path / '0'} and one in {tmp_path / '3'}. Keep one" in message
    twice = {**TRANSFORMER, **below("model_ema.", TRANSFORMER)}
    assert "0 holds several networks that no prefix tells apart" in refusal(write(tmp_path, twice))
    assert "several networks that no prefix" in refusal(write(tmp_path, {**TRANSFORMER, **AUTOENCODER}))


def test_a_whole_model_of_another_family_is_named(tmp_path: Path) -> None:
    header = {
        **below("first_stage_model.", AUTOENCODER),
        "model.diffusion_model.input_blocks.0.0.weight": ("F16", (4,)),
    }
    assert "0 holds a Stable Diffusion U-Net, which is no part of Z-Image" in refusal(write(tmp_path, header))


def test_tensors_of_no_network(tmp_path: Path) -> None:
    header = below("model.", TRANSFORMER)
    message = refusal(write(tmp_path, {**header, "ema.decay": ("F32", ())}))
    assert "0 holds ema.decay, which belongs to none of its networks (transformer)" in message
    find_parts(write(tmp_path, {**header, "text_encoders.qwen3_4b.logit_scale": ("F32", ())}, ENCODER, AUTOENCODER))
