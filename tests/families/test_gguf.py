"""Z-Image from GGUF files: the weights are what the blocks stand for, and stay in blocks in memory."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import save_file
from single_files import (
    StateDict,
    below,
    causal_lm,
    ldm_autoencoder,
    original_transformer,
    published_checkpoint,
    state_dict,
)
from torch import Tensor, nn

from hwaga import Engine, ImageRequest, Settings
from hwaga.errors import CheckpointError
from hwaga.families.z_image.model import IN_TEXT_ENCODER, IN_TRANSFORMER
from hwaga.families.z_image.single_files import SingleFiles
from hwaga.weights.gguf_file import read_gguf
from hwaga.weights.packed import PackedLinear
from hwaga.weights.quantize import PRECISIONS, QuantizedLinear
from hwaga.weights.reader import Reader
from hwaga.weights.unit import Unit

REQUEST = ImageRequest("a red apple on a yellow background", seed=3, steps=2, width=256, height=256)


def llama_names(tensors: StateDict) -> StateDict:
    """transformers' names to llama.cpp's, by its own table."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 4)
    return {table.get_name(name, try_suffixes=(".weight",)): tensor for name, tensor in causal_lm(tensors).items()}


def mixture(large: str, *, other: str = "Q8_0") -> object:
    """As llama.cpp mixes formats: what is large in ``large``, v in ``other``, what does not fit in blocks by 32 or halves."""

    def choose(name: str, tensor: Tensor) -> str:
        width = tensor.shape[-1]
        if tensor.ndim == 1 or tensor.numel() <= 1024:
            return "F32"
        kind = other if "attn_v" in name or "w2" in name else large
        for each in (kind, "Q8_0"):
            if width % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[each]][0] == 0:
                return each
        return "BF16"

    return choose


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_checkpoint(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def original(source: Path) -> dict[str, StateDict]:
    """The networks under the names that GGUF files have, the autoencoder under ComfyUI's."""
    return {
        "transformer": original_transformer(state_dict(source / "transformer")),
        "text_encoder": llama_names(state_dict(source / "text_encoder")),
        "vae": ldm_autoencoder(state_dict(source / "vae")),
    }


def write(
    folder: Path, source: Path, original: dict[str, StateDict], large: str, other: str = "Q8_0"
) -> tuple[Path, Path]:
    """A model in GGUF, and one in safetensors with the numbers that it stands for."""
    packed, plain = folder / "packed", folder / "plain"
    for place in (packed, plain):
        shutil.copytree(source / "tokenizer", place / "tokenizer")
        save_file(original["vae"], place / "ae.safetensors")
    choose = mixture(large, other=other)
    meant = write_gguf(packed / "0.gguf", original["transformer"], choose)
    save_file({name: tensor.contiguous() for name, tensor in meant.items()}, plain / "0.safetensors")
    meant = write_gguf(packed / "1.gguf", original["text_encoder"], choose, "qwen3", seed=1)
    back = {name: key for key, name in zip(state_dict(source / "text_encoder"), original["text_encoder"], strict=True)}
    save_file({back[name]: tensor for name, tensor in meant.items()}, plain / "1.safetensors")
    return packed, plain


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


def weights(
    folder: Path, dtype: torch.dtype, precision: str | None = None
) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """All weights as the networks see them, and the linear layers."""
    found = SingleFiles.read(files(folder))
    values, layers = {}, []
    for part, names in (("transformer", IN_TRANSFORMER), ("text_encoder", IN_TEXT_ENCODER)):
        blueprint = getattr(found, part).blueprint()
        kept = PRECISIONS[precision] if precision else None
        blueprint.keep_stored(names, kept)
        if kept is not None:
            blueprint.quantize(names, kept)
        network = blueprint.load(device=torch.device("cpu"), dtype=dtype) if part == "transformer" else None
        if network is None:
            units = blueprint.units(dtype)
            network = blueprint.network
            _fill(units[""])
        for name, module in network.named_modules():
            layers += [module] if isinstance(module, nn.Linear) else []
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.device.type != "meta":
                values[f"{part}.{name}.weight"] = weight
        values |= {
            f"{part}.{name}": value
            for name, value in network.named_parameters()
            if ".kept." not in name and value.device.type != "meta"
        }
    return values, layers


def _fill(unit: Unit) -> None:
    memory = torch.empty(unit.nbytes, dtype=torch.uint8)
    with closing(Reader(torch.device("cpu"))) as reader:
        unit.bring(memory, reader)
    unit.attach(unit.parameters(memory))


@pytest.mark.parametrize(
    ("large", "other"),
    [("Q8_0", "F16"), ("Q6_K", "Q8_0"), ("Q5_K", "Q6_K"), ("Q4_K", "Q6_K"), ("Q4_0", "Q5_1"), ("Q3_K", "Q5_K"),
     ("Q2_K", "Q3_K"), ("BF16", "F32"), ("F16", "F16")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weights_are_what_the_blocks_stand_for(
    large: str, other: str, dtype: torch.dtype, source: Path, original: dict[str, StateDict], tmp_path: Path
) -> None:
    packed, plain = write(tmp_path, source, original, large, other)
    ours, layers = weights(packed, dtype)
    expected, _ = weights(plain, dtype)
    assert ours.keys() == expected.keys()
    assert len(ours) > 90
    for name, tensor in expected.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name], tensor), name
    kept = [layer for layer in layers if isinstance(layer, PackedLinear)]
    assert (len(kept) > 20) == (large not in ("BF16", "F16"))
    assert all(part.dtype == torch.uint8 for layer in kept for part in layer.kept)
    if large == "Q8_0":
        mixed = [layer for layer in kept if len({entry.name for entry in layer.formats}) > 1]
        assert mixed, "no layer has pieces of several formats"


@pytest.mark.parametrize("device_dtype", ["float32", "bfloat16"])
def test_the_same_picture(device_dtype: str, source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    packed, plain = write(tmp_path, source, original, "Q8_0", "Q4_0")
    pictures = []
    for folder in (packed, plain):
        with Engine.open(folder, device="cpu", dtype=device_dtype) as engine:
            pictures.append(engine.generate(REQUEST).image)
    assert len(pictures[0].getcolors(2**16) or []) > 1000, "the picture is flat"
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_other_writers(source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    """A prefix, pad tokens without their axis of length 1, another order, no metadata of use."""
    packed, plain = write(tmp_path, source, original, "Q8_0")
    tensors = {
        name: tensor[0] if name.endswith("pad_token") else tensor
        for name, tensor in reversed(original["transformer"].items())
    }
    write_gguf(packed / "0.gguf", below("model.diffusion_model.", tensors), mixture("Q8_0"), "anything")
    ours, expected = weights(packed, torch.float32)[0], weights(plain, torch.float32)[0]
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_another_precision_is_made_of_the_blocks(source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    packed, plain = write(tmp_path, source, original, "Q8_0", "Q4_0")
    ours, layers = weights(packed, torch.bfloat16, "int8")
    expected, _ = weights(plain, torch.bfloat16, "int8")
    assert not any(isinstance(layer, PackedLinear) for layer in layers)
    assert sum(isinstance(layer, QuantizedLinear) for layer in layers) > 20
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_scales_that_are_no_numbers(source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    packed, _ = write(tmp_path, source, original, "Q8_0")
    place = read_gguf(packed / "0.gguf").tensors["layers.1.feed_forward.w1.weight"].offset
    data = bytearray((packed / "0.gguf").read_bytes())
    data[place : place + 2] = b"\x00\x7e"
    (packed / "0.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"layers\.1\.feed_forward\.w1\.weight holds NaN"):
        weights(packed, torch.float32)


def test_what_is_missing_is_named(source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    packed, _ = write(tmp_path, source, original, "Q8_0")
    cut = {name: tensor for name, tensor in original["text_encoder"].items() if name != "blk.1.ffn_up.weight"}
    write_gguf(packed / "1.gguf", cut, mixture("Q8_0"), "qwen3")
    with pytest.raises(CheckpointError, match=r"lacks blk\.1\.ffn_up\.weight"):
        Engine.open(packed, device="cpu")


def test_loras_run_beside_the_blocks(source: Path, original: dict[str, StateDict], tmp_path: Path) -> None:
    packed, plain = write(tmp_path, source, original, "Q8_0", "Q4_0")
    chosen = Settings(data_dir=str(tmp_path / "data"), dtype="float32")
    chosen.loras.mkdir(parents=True)
    generator = torch.Generator().manual_seed(5)
    pairs = {"attention.to_k": (256, 256), "feed_forward.w2": (256, 682)}
    lora = {}
    for layer, (rows, width) in pairs.items():
        name = f"diffusion_model.layers.1.{layer}"
        width = original["transformer"][f"layers.1.{layer}.weight"].shape[1] if "w2" in layer else width
        lora[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=generator)
        lora[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 50
    save_file(lora, chosen.loras / "mine.safetensors")
    pictures = []
    for folder, loras in ((packed, ["mine:0.8"]), (plain, ["mine:0.8"]), (plain, [])):
        with Engine.open(folder, device="cpu", settings=chosen) as engine:
            pictures.append(engine.generate(replace(REQUEST, loras=loras)).image.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]
