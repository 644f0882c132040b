"""Key maps against the state dicts of diffusers and transformers at full size, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import (
    AUTOENCODER,
    Z_IMAGE_ORIGINAL,
    Layout,
    ldm_autoencoder,
    llama_cpp_qwen3,
    qwen3_encoder,
    z_image_transformer,
)

QWEN3_4B = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
FLUX_AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network of the reference, ours of the same configuration, and how many weights are left aside."""

    reference: Callable[[], nn.Module]
    ours: Callable[[nn.Module], nn.Module]
    layout: Layout
    unused: Callable[[str], bool] = lambda name: False


def _last_layer_or_head(name: str) -> bool:
    name = name.removeprefix("model.")
    return name.startswith(("layers.35.", "lm_head.")) or name == "norm.weight"


def _our_transformer(reference: nn.Module) -> nn.Module:
    return ZImageTransformer(TransformerConfig.from_json(dict(reference.config)))  # type: ignore[arg-type]


def _our_text_encoder(reference: nn.Module) -> nn.Module:
    return Qwen3Encoder(TextEncoderConfig.from_json(reference.config.to_dict()))  # type: ignore[operator, union-attr]


def _our_autoencoder(reference: nn.Module) -> nn.Module:
    return Autoencoder(AutoencoderConfig.from_json(dict(reference.config)))  # type: ignore[arg-type]


CASES = {
    "transformer": Case(ZImageTransformer2DModel, _our_transformer, z_image_transformer(2)),
    "transformer without q and k norms": Case(
        lambda: ZImageTransformer2DModel(qk_norm=False), _our_transformer, z_image_transformer(2)
    ),
    "transformer of patch 4": Case(
        lambda: ZImageTransformer2DModel(all_patch_size=(4,)), _our_transformer, z_image_transformer(4)
    ),
    "text encoder": Case(
        lambda: Qwen3Model(Qwen3Config(**QWEN3_4B)), _our_text_encoder, qwen3_encoder(36), _last_layer_or_head
    ),
    "text encoder with biases": Case(
        lambda: Qwen3Model(Qwen3Config(**QWEN3_4B, attention_bias=True)),
        _our_text_encoder,
        qwen3_encoder(36),
        _last_layer_or_head,
    ),
    "causal language model": Case(
        lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)), _our_text_encoder, qwen3_encoder(36), _last_layer_or_head
    ),
    "autoencoder": Case(lambda: AutoencoderKL(**FLUX_AUTOENCODER), _our_autoencoder, AUTOENCODER),
    "autoencoder with every option": Case(
        lambda: AutoencoderKL(**FLUX_AUTOENCODER | {"use_quant_conv": True, "use_post_quant_conv": True}),
        _our_autoencoder,
        AUTOENCODER,
    ),
}


def _networks(name: str) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        reference = CASES[name].reference()
        return reference, CASES[name].ours(reference)


def _places(network: nn.Module) -> dict[tuple[str, int], tuple[int, ...]]:
    """Every place of every weight, and the shape that belongs there."""
    modules = dict(network.named_modules())
    places = {}
    for name, parameter in network.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        rows = owner.outs if isinstance(owner, FusedLinear) else (parameter.shape[:1] or (1,))
        for place, count in enumerate(rows):
            places[name, place] = (count, *parameter.shape[1:])
    return places


@pytest.mark.parametrize("name", CASES)
def test_one_to_one(name: str) -> None:
    reference, ours = _networks(name)
    case, places = CASES[name], _places(ours)
    filled = {}
    for key, tensor in reference.state_dict().items():
        target = case.layout.target(key)
        assert (target is None) == case.unused(key), key
        if target is not None:
            assert target not in filled, f"{key} and {filled[target]} go to the same place"
            filled[target] = key
            assert places.get(target) == tuple(tensor.shape), key
            assert case.layout.sources(target[0])[target[1]] == key.removeprefix("model."), (
                "named otherwise in messages"
            )
    assert filled.keys() == places.keys()


@pytest.mark.parametrize("name", CASES)
def test_as_many_parameters(name: str) -> None:
    reference, ours = _networks(name)
    theirs = {key: tensor.numel() for key, tensor in reference.state_dict().items()}
    used = sum(count for key, count in theirs.items() if not CASES[name].unused(key))
    assert sum(parameter.numel() for parameter in ours.parameters()) == used


def test_published_sizes() -> None:
    reference, ours = _networks("transformer")
    assert sum(parameter.numel() for parameter in reference.parameters()) == 6_154_908_736
    assert sum(parameter.numel() for parameter in ours.parameters()) == 6_154_908_736
    reference, _ = _networks("text encoder")
    assert sum(parameter.numel() for parameter in reference.parameters()) == 4_022_468_096
    reference, _ = _networks("autoencoder")
    assert sum(parameter.numel() for parameter in reference.parameters()) == 83_819_683


@pytest.mark.parametrize("layers", [2, 4, 36])
def test_only_the_last_layer_is_unused(layers: int) -> None:
    layout = qwen3_encoder(layers)
    for layer in range(layers + 12):
        for prefix in ("", "model."):
            target = layout.target(f"{prefix}layers.{layer}.mlp.down_proj.weight")
            expected = None if layer == layers - 1 else (f"layers.{layer}.mlp.down_proj.weight", 0)
            assert target == expected


def test_places_in_a_stack() -> None:
    layout = z_image_transformer(2)
    for place, piece in enumerate(("to_q", "to_k", "to_v")):
        target = layout.target(f"layers.3.attention.{piece}.weight")
        assert target == ("layers.3.attention.qkv.weight", place)
    assert layout.target("layers.3.feed_forward.w1.weight") == ("layers.3.feed_forward.w13.weight", 0)
    assert layout.target("layers.3.feed_forward.w3.weight") == ("layers.3.feed_forward.w13.weight", 1)
    assert layout.target("layers.3.feed_forward.w2.weight") == ("layers.3.feed_forward.w2.weight", 0)


def test_one_prefix_is_stripped() -> None:
    layout = Layout(strip=("model.", "transformer."))
    assert layout.target("model.a") == ("a", 0)
    assert layout.target("transformer.a") == ("a", 0)
    assert layout.target("model.transformer.a") == ("transformer.a", 0)
    assert layout.target("a.model.b") == ("a.model.b", 0)


# Files without configurations, at full size: what others make of their keys, and what we do


def test_every_key_of_comfyuis_transformer_goes_where_diffusers_puts_it() -> None:
    with torch.device("meta"):
        theirs = {name: tensor.shape for name, tensor in ZImageTransformer2DModel().state_dict().items()}
    original = original_names(theirs)
    assert sum("qkv" in name for name in original) == 34
    reached = {}
    for key, shape in original.items():
        converted = convert_z_image_transformer_checkpoint_to_diffusers({key: torch.empty(shape, device="meta")})
        ours, place = Z_IMAGE_ORIGINAL.target(key) or ("", -1)
        spelled = z_image_transformer(2).sources(ours)
        if len(Z_IMAGE_ORIGINAL.sources(ours)) > 1:  # the file has them apart, as diffusers does
            spelled = (spelled[place],)
        assert tuple(converted) == spelled, key
        assert Z_IMAGE_ORIGINAL.sources(ours)[place] == key
        reached |= {name: tensor.shape for name, tensor in converted.items()}
    assert reached == theirs
    assert Z_IMAGE_ORIGINAL.target("norm_final.weight") is None
    assert convert_z_image_transformer_checkpoint_to_diffusers({"norm_final.weight": torch.ones(1)}) == {}


def original_names(theirs: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """The keys of Comfy-Org's file, as diffusers undoes them: q, k and v are one, and these parts are called otherwise."""
    names = {}
    for name, shape in theirs.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        for diffusers, authors in (
            (".to_q.", ".qkv."), (".to_out.0.", ".out."), (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."),
            ("all_x_embedder.2-1.", "x_embedder."), ("all_final_layer.2-1.", "final_layer."),
        ):  # fmt: skip
            name = name.replace(diffusers, authors)
        names[name] = torch.Size((3 * shape[0], *shape[1:])) if ".qkv." in name else shape
    return names


def test_every_key_of_the_ldm_autoencoder_goes_where_diffusers_puts_it() -> None:
    """Values that say which tensor they are, through diffusers' converter and through the layout."""
    with torch.device("meta"):
        theirs = AutoencoderKL(**FLUX_AUTOENCODER).state_dict()
    layout = ldm_autoencoder(4)
    numbered = {}
    for number, (name, tensor) in enumerate(theirs.items()):
        shape = (*[1] * tensor.ndim, *((1, 1) if layout.is_pointwise(name) else ()))
        numbered[layout.sources(name)[0]] = torch.full(shape, float(number))
    assert len(numbered) == len(theirs)
    assert "encoder.down.0.block.0.norm1.weight" in numbered
    converted = convert_ldm_vae_checkpoint(dict(numbered), FLUX_AUTOENCODER)
    assert {name: int(tensor.flatten()[0]) for name, tensor in converted.items()} == {
        name: number for number, name in enumerate(theirs)
    }
    for key in numbered:
        ours, place = layout.target(key) or ("", -1)
        assert place == 0
        assert torch.equal(converted[ours].flatten(), numbered[key].flatten()), key


def test_every_key_of_llama_cpps_qwen3() -> None:
    """transformers' names to llama.cpp's by its own table, and from there to where transformers' names go."""
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)).state_dict()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 36)
    named = set()
    for key in theirs:
        name = table.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None
        named.add(name)
        assert llama_cpp_qwen3(36).target(name) == qwen3_encoder(36).target(key), key
        target = llama_cpp_qwen3(37).target(name)
        if target is not None and target[0] in ("embed_tokens.weight", "layers.3.mlp.gate_up_proj.weight"):
            assert llama_cpp_qwen3(36).sources(target[0])[target[1]] == name
    assert {"blk.35.attn_q_norm.weight", "output_norm.weight", "token_embd.weight"} < named
    assert llama_cpp_qwen3(36).target("rope_freqs.weight") is None
