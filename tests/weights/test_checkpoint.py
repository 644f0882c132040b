"""Reading weights: what is right is read exactly, and whatever is wrong is refused by name."""

from __future__ import annotations

import copy
import json
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import random_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from hwaga.errors import CheckpointError, HwagaError
from hwaga.families.z_image.family import ZImage
from hwaga.weights.checkpoint import Blueprint, read_config, weight_files, weights_digest
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import Layout

CPU = torch.device("cpu")
FORMATS = [torch.float32, torch.float16, torch.bfloat16]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = FusedLinear(6, (8, 4, 4), bias=True)
        self.norm = nn.Parameter(torch.ones(3))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.out = nn.Linear(6, 2)


LAYOUT = Layout(
    strip=("model.",),
    renames=((".norm.weight", ".norm"),),
    stacks={".qkv.": (".to_q.", ".to_k.", ".to_v.")},
    unused=("layers.2.*", "head.weight"),
)


def toy_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (10, 6), "out.weight": (2, 6), "out.bias": (2,)}
    for layer in range(3):  # the last one is not used
        for piece, rows in (("to_q", 8), ("to_k", 4), ("to_v", 4)):
            shapes[f"layers.{layer}.{piece}.weight"] = (rows, 6)
            shapes[f"layers.{layer}.{piece}.bias"] = (rows,)
        shapes[f"layers.{layer}.norm.weight"] = (3,)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def save(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def save_shards(folder: Path, *shards: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(dict(shard), folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read(folder: Path) -> Blueprint[Toy]:
    return Blueprint.read(Toy, folder, LAYOUT)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Toy:
    return read(folder).load(device=CPU, dtype=dtype)


def refusal(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """The message that a folder is refused with. It always says where."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, dtype)
    message = str(caught.value)
    assert folder.name in message or any(path.name in message for path in folder.iterdir())
    return message


# What is right


@pytest.mark.parametrize("stored", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_conversions(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    tensors = toy_tensors(stored)
    network = load(save(tmp_path / "toy", {f"model.{name}": tensor for name, tensor in tensors.items()}), dtype)
    loaded = network.state_dict()
    expected = {
        "embed.weight": tensors["embed.weight"],
        "out.weight": tensors["out.weight"],
        "out.bias": tensors["out.bias"],
    }
    for layer in range(2):
        expected[f"layers.{layer}.norm"] = tensors[f"layers.{layer}.norm.weight"]
        for kind in ("weight", "bias"):
            pieces = [tensors[f"layers.{layer}.{piece}.{kind}"] for piece in ("to_q", "to_k", "to_v")]
            expected[f"layers.{layer}.qkv.{kind}"] = torch.cat(pieces)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor.to(dtype)), name
    assert not network.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    tensors = toy_tensors()
    names = list(tensors)
    # Pieces of one stack fall into different shards.
    shards = [{name: tensors[name] for name in names[i::3]} for i in range(3)]
    single, sharded = read(save(tmp_path / "single", tensors)), read(save_shards(tmp_path / "sharded", *shards))
    assert single.stored_bytes == sharded.stored_bytes
    one, three = (blueprint.load(device=CPU, dtype=torch.float32).state_dict() for blueprint in (single, sharded))
    assert one.keys() == three.keys()
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_progress_reaches_the_stored_bytes(tmp_path: Path, stored: torch.dtype) -> None:
    tensors = toy_tensors(stored)
    blueprint = read(save(tmp_path / "toy", tensors))
    used = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith("layers.2."))
    assert blueprint.stored_bytes == used
    told: list[int] = []
    network = blueprint.load(device=CPU, dtype=torch.float32, progress=told.append)
    assert sum(told) == used
    assert len(told) == len(list(network.parameters()))
    assert min(told) > 0


def test_digest_tells_checkpoints_apart(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "one", {"a": torch.zeros(900_000)}, {"b": torch.zeros(3)})
    digest = weights_digest([folder])
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert weights_digest([shutil.copytree(folder, tmp_path / "two")]) == digest
    assert weights_digest([folder, folder]) != digest
    for file in weight_files(folder):
        whole = file.read_bytes()
        for position in (0, 60, -1):
            content = bytearray(whole)
            content[position] ^= 1
            file.write_bytes(content)
            assert weights_digest([folder]) != digest, (file.name, position)
        file.write_bytes(whole)
    assert weights_digest([folder]) == digest


# What is wrong with the folder


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere"):
        weight_files(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"no folder .*file"):
        weight_files(tmp_path / "file")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}.* no \.safetensors file"):
        weight_files(tmp_path)


@pytest.mark.parametrize("missing", [[1], [0, 2], [0, 1, 2]], ids=str)
def test_missing_shards_are_named(tmp_path: Path, missing: list[int]) -> None:
    tensors = toy_tensors()
    folder = save_shards(tmp_path / "toy", *({name: tensors[name] for name in list(tensors)[i::3]} for i in range(3)))
    files = weight_files(folder)
    for i in missing:
        files[i].unlink()
    message = refusal(folder)
    assert "of 3 shards" in message
    for i, file in enumerate(files):
        assert (file.name in message) == (i in missing)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_pickles_are_refused(tmp_path: Path, suffix: str) -> None:
    torch.save(toy_tensors(), tmp_path / f"pytorch_model{suffix}")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\{suffix}, a pickle.*safetensors only"):
        weight_files(tmp_path)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "toy", toy_tensors())
    torch.save(toy_tensors(), folder / "pytorch_model.bin")
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]


def test_variants_count_where_there_are_no_others(tmp_path: Path) -> None:
    """As repositories on the hub have them: float16 beside float32, whole or in shards."""

    def names() -> list[str]:
        return [path.name for path in weight_files(tmp_path)]

    save_file(toy_tensors(), tmp_path / "model.fp16.safetensors")
    assert names() == ["model.fp16.safetensors"]
    save_file(toy_tensors(), tmp_path / "model.safetensors")
    assert names() == ["model.safetensors"]
    (tmp_path / "model.fp16.safetensors").unlink()
    shards = ["unet-00001-of-00002.fp16.safetensors", "unet.fp16-00002-of-00002.safetensors"]
    for shard in shards:
        save_file({shard: torch.ones(1)}, tmp_path / shard)
    index = tmp_path / "unet.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {shard: shard for shard in shards}}))
    assert names() == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert names() == shards
    index.unlink()
    with pytest.raises(CheckpointError, match="several sets of weights"):
        names()


def test_several_sets_of_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "two", toy_tensors())
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    message = refusal(folder)
    assert "model.safetensors" in message
    assert "other.safetensors" in message

    folder = save_shards(tmp_path / "indexes", toy_tensors())
    shutil.copy(folder / "model.safetensors.index.json", folder / "other.safetensors.index.json")
    message = refusal(folder)
    assert "model.safetensors.index.json" in message
    assert "other.safetensors.index.json" in message


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "./model.safetensors", "..", ".", ""]
)
def test_an_index_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    save(tmp_path, toy_tensors())
    folder = save(tmp_path / "toy" / "sub", toy_tensors()).parent
    index = {"weight_map": dict.fromkeys(toy_tensors(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"weight_map": 3}', '{"weight_map": []}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": null}}', "\ufeff{}", '{"weight_map": {"a": "b\\u0000"}}'],
)  # fmt: skip
def test_wrong_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}"):
        read(tmp_path)


# What is wrong with a file


def test_truncated_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "toy", toy_tensors())
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (header,) = struct.unpack_from("<Q", content)
    for length in (0, 1, 7, 8, 9, header // 2, header + 7, header + 8, header + 9, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        message = refusal(folder)
        assert "model.safetensors is truncated" in message, length
        assert "Fetch it again" in message
    file.write_bytes(content + b"\0")
    assert "model.safetensors" in refusal(folder)
    file.write_bytes(content)
    load(folder)


def test_a_file_cut_off_after_it_was_matched(tmp_path: Path) -> None:
    folder = save(tmp_path / "toy", toy_tensors())
    blueprint = read(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file ends early"):
        blueprint.load(device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x80\x02}q\x00.", b"\0" * 4096, b"\xff" * 64])
def test_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    assert "no safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["embed.weight", "layers.1.norm.weight", "layers.0.to_q.weight", "layers.1.to_k.bias", "layers.0.to_v.weight"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    for dtype in FORMATS:
        tensors = toy_tensors(dtype)
        tensors[name].view(-1)[-1] = value
        message = refusal(save(tmp_path / "toy", tensors), torch.float32)
        assert f"{name} holds NaN or infinity" in message
        assert "model.safetensors" in message


def test_weights_too_large_for_the_format_are_named(tmp_path: Path) -> None:
    tensors = toy_tensors()
    tensors["layers.1.to_k.weight"][0, 0] = 3.4e38
    folder = save(tmp_path / "toy", tensors)
    load(folder, torch.float32)
    message = refusal(folder, torch.bfloat16)
    assert "layers.1.to_k.weight" in message
    assert "too large for bfloat16" in message


def test_a_nan_in_a_weight_that_is_not_needed_is_no_matter(tmp_path: Path) -> None:
    tensors = toy_tensors()
    tensors["layers.2.norm.weight"][0] = float("nan")
    load(save(tmp_path / "toy", tensors))


UNREADABLE = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool, torch.int64, torch.float64]


@pytest.mark.parametrize("dtype", UNREADABLE, ids=str)
def test_other_number_formats_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = toy_tensors()
    tensors["layers.0.to_k.weight"] = tensors["layers.0.to_k.weight"].to(dtype)
    message = refusal(save(tmp_path / "toy", tensors))
    assert "layers.0.to_k.weight" in message
    spelt = {"torch.bool": "BOOL", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}
    assert spelt.get(str(dtype), str(dtype)[6].upper() + re.sub(r"\D", "", str(dtype)[6:])) in message


# What file and network do not agree on


@pytest.mark.parametrize(
    "name",
    [
        "embed.weight",
        "out.bias",
        "layers.1.norm.weight",
        "layers.0.to_q.weight",
        "layers.0.to_k.weight",
        "layers.1.to_v.bias",
    ],
)
def test_missing_key_is_named(tmp_path: Path, name: str) -> None:
    tensors = toy_tensors()
    del tensors[name]
    message = refusal(save(tmp_path / "toy", tensors))
    assert f"lacks {name}." in message


def test_many_missing_keys_are_counted(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in toy_tensors().items() if not name.startswith("layers.1.")}
    message = refusal(save(tmp_path / "toy", tensors))
    assert "and 3 more" in message


@pytest.mark.parametrize(
    "name",
    ["extra", "embed.bias", "layers.3.norm.weight", "layers.0.to_q.lora_A", "layers.0.qkv.weight", "layers.0.norm"],
)
def test_left_over_key_is_named(tmp_path: Path, name: str) -> None:
    tensors = toy_tensors() | {name: torch.zeros(3)}
    message = refusal(save(tmp_path / "toy", tensors))
    assert name in message


def test_the_same_key_with_and_without_prefix_is_left_over(tmp_path: Path) -> None:
    tensors = toy_tensors() | {"model.out.bias": torch.zeros(2)}
    assert "out.bias" in refusal(save(tmp_path / "toy", tensors))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed.weight", (10, 7)),
        ("embed.weight", (6, 10)),
        ("out.bias", (2, 1)),
        ("out.bias", (1,)),
        ("out.bias", ()),
        ("layers.0.to_q.weight", (4, 6)),
        ("layers.1.to_v.weight", (8, 6)),
        ("layers.1.norm.weight", (4,)),
    ],
)
def test_wrong_shape_is_named_with_both_shapes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = toy_tensors()
    right = list(tensors[name].shape)
    tensors[name] = torch.zeros(shape)
    message = refusal(save(tmp_path / "toy", tensors))
    assert f"{name} is {list(shape)} and should be {right}" in message


def test_pieces_in_swapped_places_are_misshapen(tmp_path: Path) -> None:
    """As many rows in all do not make up for pieces of the wrong size."""
    tensors = toy_tensors()
    tensors["layers.0.to_q.weight"], tensors["layers.0.to_k.weight"] = (
        tensors["layers.0.to_k.weight"],
        tensors["layers.0.to_q.weight"],
    )
    message = refusal(save(tmp_path / "toy", tensors))
    assert "layers.0.to_q.weight is [4, 6] and should be [8, 6]" in message
    assert "layers.0.to_k.weight is [8, 6] and should be [4, 6]" in message


def test_a_key_in_two_shards_is_named(tmp_path: Path) -> None:
    tensors = toy_tensors()
    message = refusal(save_shards(tmp_path / "toy", tensors, {"out.bias": tensors["out.bias"]}))
    assert "out.bias" in message
    assert "model-00001-of-00002.safetensors" in message
    assert "model-00002-of-00002.safetensors" in message


# Damage of any kind


@pytest.fixture(scope="module")
def file_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (save(tmp_path_factory.mktemp("whole"), toy_tensors()) / "model.safetensors").read_bytes()


def _opens_or_refuses(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    try:
        load(folder)
    except HwagaError as error:
        message = str(error)
    else:
        return
    assert "model.safetensors" in message or folder.name in message


SHARED_FOLDER = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED_FOLDER
@given(data=st.data())
def test_any_bytes_in_the_header(tmp_path: Path, file_content: bytes, data: st.DataObject) -> None:
    (header,) = struct.unpack_from("<Q", file_content)
    content = bytearray(file_content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header + 7))] = data.draw(st.integers(0, 255))
    _opens_or_refuses(tmp_path, bytes(content))


@SHARED_FOLDER
@given(data=st.data())
def test_any_values_in_the_header(tmp_path: Path, file_content: bytes, data: st.DataObject) -> None:
    (length,) = struct.unpack_from("<Q", file_content)
    header = json.loads(file_content[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    number = st.one_of(st.integers(-3, 100), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
    values: dict[str, st.SearchStrategy[Any]] = {
        "dtype": st.sampled_from(["F16", "F64", "BF16", "I8", "F8_E4M3", "F4", "X", "", 3, None]),
        "shape": st.one_of(st.lists(number, max_size=4), st.none(), st.just("6")),
        "data_offsets": st.one_of(st.lists(number, max_size=3), st.none()),
    }
    key = data.draw(st.sampled_from(sorted(values)))
    header[name][key] = data.draw(values[key])
    encoded = json.dumps(header).encode()
    _opens_or_refuses(tmp_path, struct.pack("<Q", len(encoded)) + encoded + file_content[8 + length :])


# Configurations


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_wrong_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}.*config\.json"):
        read_config(tmp_path)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"no .*{tmp_path.name}.*config\.json"):
        read_config(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("deep"), "deep")


@pytest.fixture
def editable(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy whose configurations may be changed."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def open_family(folder: Path) -> object:
    return ZImage().open(folder, device=CPU, dtype=torch.float32, lora_bytes=0)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("transformer", {"cap_feat_dim": 48}, "text encoder is 32 wide and the transformer reads 48"),
        ("transformer", {"in_channels": 4}, "8 latent channels and the transformer 4"),
        ("transformer", {"n_heads": 3}, "64 channels over 3 heads"),
        ("transformer", {"axes_dims": [8, 12, 8]}, "rotary axes"),
        ("transformer", {"siglip_feat_dim": 16}, "Omni"),
        ("transformer", {"all_patch_size": [2, 4]}, "one patch size"),
        ("transformer", {"all_f_patch_size": [2]}, "single frames"),
        ("transformer", {"n_layers": 2}, "lacks layers.1."),
        ("transformer", {"qk_norm": False}, "norm_q.weight"),
        ("text_encoder", {"model_type": "t5"}, "'t5'"),
        ("text_encoder", {"hidden_act": "gelu"}, "'gelu'"),
        ("text_encoder", {"use_sliding_window": True}, "sliding-window"),
        ("text_encoder", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn'"),
        ("text_encoder", {"attention_bias": True}, "q_proj.bias"),
        ("vae", {"latent_channels": 4}, "4 latent channels and the transformer 8"),
        ("vae", {"act_fn": "relu"}, "autoencoder"),
        ("vae", {"in_channels": 4}, "RGB"),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 5}, "AttnDownEncoderBlock2D"),
        ("vae", {"use_quant_conv": True}, "quant_conv.weight"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ("scheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("scheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("scheduler", {"shift": -1}, "shift"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_contradictions(editable: Path, part: str, changes: dict[str, Any], says: str) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(editable / part / name, lambda values: values.update(changes))
    with pytest.raises(CheckpointError) as caught:
        open_family(editable)
    assert says in str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae", "scheduler", "tokenizer"])
def test_missing_parts_are_named(editable: Path, part: str) -> None:
    shutil.rmtree(editable / part)
    with pytest.raises(CheckpointError, match=rf"{editable.name}/{part}"):
        open_family(editable)


def test_damaged_tokenizer(editable: Path) -> None:
    (editable / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        open_family(editable)


READ_VALUES = {
    "transformer": [
        "dim", "n_layers", "n_refiner_layers", "n_heads", "norm_eps", "qk_norm", "in_channels", "all_patch_size",
        "all_f_patch_size", "cap_feat_dim", "rope_theta", "t_scale", "axes_dims", "axes_lens",
    ],
    "text_encoder": [
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    ],
    "vae": [
        "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor",
        "down_block_types", "up_block_types",
    ],
    "scheduler": ["_class_name", "shift"],
}  # fmt: skip

ABSENT = object()
NONSENSE = [ABSENT, None, "x", -1, 0, 1.5, float("nan"), [], [0], ["x"], {}, {"rope_theta": None}]
# Values that mean something, or that stand for the library's own default.
SENSIBLE = {
    ("transformer", "norm_eps"): [0, 1.5],
    ("transformer", "rope_theta"): [1.5],
    ("transformer", "t_scale"): [1.5, -1, 0],
    ("text_encoder", "rms_norm_eps"): [0, 1.5],
    ("text_encoder", "num_key_value_heads"): [ABSENT, None],
    ("text_encoder", "head_dim"): [ABSENT, None],
    ("vae", "scaling_factor"): [1.5, -1],
    ("scheduler", "shift"): [ABSENT, None, 1.5],
}


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in READ_VALUES.items() for key in keys])
def test_nonsense_in_a_configuration(editable: Path, part: str, key: str) -> None:
    """Whatever stands in a configuration, opening refuses it as a checkpoint that is wrong: no other exception, no network
    that fails later.
    """
    path = editable / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    whole = json.loads(path.read_text())
    wrong = []
    for value in NONSENSE:
        if any(value is sense or (value == sense and sense is not ABSENT) for sense in SENSIBLE.get((part, key), ())):
            continue
        values = copy.deepcopy(whole)
        if value is ABSENT:
            del values[key]
        else:
            values[key] = value
        path.write_text(json.dumps(values))
        shown = "absent" if value is ABSENT else repr(value)
        try:
            open_family(editable)
        except HwagaError:
            continue
        except Exception as error:  # noqa: BLE001 - every other exception is what is looked for
            wrong.append(f"{shown}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{shown}: opened")
    assert not wrong, f"{part}/{key} " + "; ".join(wrong)
