"""SDXL's LoRAs of every spelling beside the weights, against diffusers and peft, by what small random networks put out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from lora_files import RANK, save
from sdxl_parts import sdxl_networks, sdxl_pipeline, token_ids, unet_inputs
from torch import Tensor, nn

from hwaga.errors import LoraError
from hwaga.families.sdxl.lora import adapted_network, resolutions_with_attention, sdxl_lora_targets
from hwaga.weights.adapters import Adapters
from hwaga.weights.layouts import ldm_unet
from hwaga.weights.lora import LoraCache, LoraFile, LoraTarget

CPU = torch.device("cpu")

BOUND = 1e-5
"""Largest difference of outputs, which are near 1."""

EFFECT = 0.05
"""A LoRA changes some output by more than this, or the comparison says nothing."""

PARTS = ("unet", "text_encoder", "text_encoder_2")

Networks = dict[str, nn.Module]
Factors = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""By part and the layer's name there, less "text_model.": ``down`` and ``up`` in the layer's axes, alpha being the rank."""


@pytest.fixture(scope="module")
def networks() -> Networks:
    return {name: network for name, network in sdxl_networks().items() if name in PARTS}


@pytest.fixture(scope="module")
def without(networks: Networks) -> dict[str, Tensor]:
    return outputs(networks)


@pytest.fixture(scope="module")
def targets(networks: Networks) -> dict[str, LoraTarget]:
    return sdxl_lora_targets(*networks.values())


def random_factors(networks: Networks, seed: int, skip: str = "nothing") -> Factors:
    """For every linear layer and convolution."""
    generator = torch.Generator().manual_seed(seed)
    factors: Factors = {}
    for part, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not re.search(skip, name):
                out, *inner = layer.weight.shape
                down = torch.randn(RANK, *inner, generator=generator) / layer.weight[0].numel() ** 0.5
                up = 0.5 * torch.randn(out, RANK, *[1] * len(inner[1:]), generator=generator) / RANK**0.5
                factors[part, name.removeprefix("text_model.")] = down, up
    return factors


def deltas(factors: Factors) -> dict[tuple[str, str], Tensor]:
    return {key: (up.flatten(1).double() @ down.flatten(1).double()) for key, (down, up) in factors.items()}


def layer_of(networks: Networks, part: str, name: str) -> nn.Module:
    prefix = "text_model." if part != "unet" and "text_model" in dict(networks[part].named_children()) else ""
    return networks[part].get_submodule(name if name == "text_projection" else prefix + name)


def hook_count(networks: Networks) -> int:
    """transformers has some of its own."""
    return sum(len(module._forward_hooks) for network in networks.values() for module in network.modules())


def merged(networks: Networks, added: Mapping[tuple[str, str], Tensor], weight: float = 1.0) -> Networks:
    """Copies of the networks with deltas added to their weights."""
    copies = copy.deepcopy(networks)
    with torch.no_grad():
        for (part, name), delta in added.items():
            layer = layer_of(copies, part, name)
            assert isinstance(layer.weight, nn.Parameter)
            layer.weight += (weight * delta).to(layer.weight).view(layer.weight.shape)
    return copies


@torch.no_grad()
def outputs(networks: Networks, rows: int = 1) -> dict[str, Tensor]:
    found = {"unet": networks["unet"](**unet_inputs(rows)).sample}
    for part in ("text_encoder", "text_encoder_2"):
        made = networks[part](token_ids(rows), output_hidden_states=True)
        found[part] = made.hidden_states[-2]
        found[f"{part} pooled"] = made[0] if part == "text_encoder_2" else made.pooler_output
    return found


def adapted_outputs(networks: Networks, sets: Sequence[Adapters | None]) -> dict[str, Tensor]:
    with ExitStack() as within:
        for network in networks.values():
            within.enter_context(adapted_network(network, sets))
        return outputs(networks, len(sets))


def assert_near(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], without: Mapping[str, Tensor]) -> None:
    assert max((without[name] - tensor).abs().max().item() for name, tensor in wanted.items()) > EFFECT
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= BOUND * max(1, tensor.abs().max().item()), name


def loaded(networks: Networks, files: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """What the reference's networks put out with files that it loads itself."""
    pipeline = sdxl_pipeline({**copy.deepcopy(networks), "vae": None})
    for place, (path, _) in enumerate(files):
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{place}")
    pipeline.set_adapters([f"a{place}" for place in range(len(files))], [weight for _, weight in files])
    return outputs({part: getattr(pipeline, part) for part in PARTS})


# Spellings: the file that holds some factors


def _dotted(down: str, up: str, *, te: str = "{part}.text_model.") -> Callable[[Factors, Networks], dict[str, Tensor]]:
    def spell(factors: Factors, networks: Networks) -> dict[str, Tensor]:
        tensors = {}
        for (part, name), (a, b) in factors.items():
            prefix = "unet." if part == "unet" else te.format(part=part)
            if name == "text_projection":
                prefix = prefix.removesuffix("text_model.")
            tensors[prefix + name + down], tensors[prefix + name + up] = a, b
        return tensors

    return spell


def _kohya(unet: Callable[[str, Networks], str]) -> Callable[[Factors, Networks], dict[str, Tensor]]:
    """With an alpha of half the rank, made up for by ``up``."""

    def spell(factors: Factors, networks: Networks) -> dict[str, Tensor]:
        tensors = {}
        for (part, name), (down, up) in factors.items():
            if part == "unet":
                stem = "lora_unet_" + unet(name, networks).replace(".", "_")
            else:
                middle = "" if name == "text_projection" else "text_model_"
                stem = f"lora_te{1 + (part == 'text_encoder_2')}_{middle}{name.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, 2 * up
            tensors[f"{stem}.alpha"] = torch.tensor(RANK / 2)
        return tensors

    return spell


def _ldm(name: str, networks: Networks) -> str:
    layout = ldm_unet(resolutions_with_attention(networks["unet"]))
    return layout.sources(f"{name}.weight")[0].removesuffix(".weight")


def _processors(factors: Factors, networks: Networks) -> dict[str, Tensor]:
    tensors = {}
    for (part, name), (down, up) in factors.items():
        stem = re.sub(r"(attn[12])\.(to_[qkv]|to_out)(\.0)?$", r"\1.processor.\2_lora", f"{part}.{name}")
        stem = re.sub(r"self_attn\.([qkv]|out)_proj$", r"self_attn.to_\1_lora", stem).replace(
            "encoder.encoder", "encoder.text_model.encoder"
        )
        stem = stem.replace("encoder_2.encoder", "encoder_2.text_model.encoder")
        assert stem.endswith("_lora")
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = down, up
    return tensors


def _comfyui(factors: Factors, networks: Networks) -> dict[str, Tensor]:
    tensors = {}
    for (part, name), pair in factors.items():
        clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}.get(part)
        stem = (
            f"text_encoders.{clip}.transformer.text_model.{name}" if clip else f"diffusion_model.{_ldm(name, networks)}"
        )
        stem = stem.replace("text_model.text_projection", "text_projection")
        for side, tensor in zip(("A", "B"), pair, strict=True):
            tensors[f"{stem}.lora_{side}.weight"] = tensor
    return tensors


ATTENTION = r"^(?!.*(attn[12]\.to_|self_attn))"
KOHYA = r"conv_in|conv_out|_embedding|text_projection"

SPELLINGS: dict[str, tuple[Callable[[Factors, Networks], dict[str, Tensor]], str, bool]] = {
    "diffusers": (_dotted(".lora_A.weight", ".lora_B.weight"), "nothing", True),
    "diffusers without text_model": (_dotted(".lora_A.weight", ".lora_B.weight", te="{part}."), "nothing", False),
    "peft": (_dotted(".lora_A.default.weight", ".lora_B.default.weight"), "nothing", False),
    "older diffusers": (_dotted(".lora.down.weight", ".lora.up.weight"), "nothing", False),
    "linear layers": (
        _dotted(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        r"^conv|\.conv|samplers",
        False,
    ),
    "processors": (_processors, ATTENTION, True),
    "kohya": (_kohya(lambda name, _: name), KOHYA, True),
    "kohya, whole": (_kohya(lambda name, _: name), "nothing", False),
    "kohya, latent diffusion's names": (_kohya(_ldm), KOHYA, True),
    "kohya, latent diffusion's names, whole": (_kohya(_ldm), "nothing", False),
    "ComfyUI": (_comfyui, "nothing", False),
}
"""How factors are written, which layers are left out, and whether diffusers 0.42 reads such a file whole."""


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling: str, networks: Networks, targets: dict[str, LoraTarget], tmp_path: Path) -> None:
    """Each finds every layer, with the very numbers."""
    write, skip, _ = SPELLINGS[spelling]
    factors = random_factors(networks, 1, skip)
    adapters = LoraFile.read(save(tmp_path / "lora.safetensors", write(factors, networks))).load(
        targets, CPU, torch.float32
    )
    assert len(adapters.by_layer) == len(factors) > 60
    for (part, name), (down, up) in factors.items():
        adapter = adapters.by_layer[layer_of(networks, part, name)]
        assert not adapter.others
        assert adapter.joined is not None
        assert torch.equal(adapter.joined.down, down.flatten(1))
        assert torch.equal(adapter.joined.up, up.flatten(1))


@pytest.mark.parametrize("spelling", [name for name, (_, _, read) in SPELLINGS.items() if read])
def test_as_the_reference_loads_it(
    spelling: str, networks: Networks, targets: dict[str, LoraTarget], without: dict[str, Tensor], tmp_path: Path
) -> None:
    write, skip, _ = SPELLINGS[spelling]
    path = save(tmp_path / "lora.safetensors", write(random_factors(networks, 2, skip), networks))
    found = adapted_outputs(networks, [LoraFile.read(path).load(targets, CPU, torch.float32)])
    assert_near(found, loaded(networks, [(path, 1.0)]), without)


def test_every_layer_and_nothing_left_behind(
    networks: Networks, targets: dict[str, LoraTarget], without: dict[str, Tensor], tmp_path: Path
) -> None:
    factors = random_factors(networks, 3)
    file = LoraFile.read(save(tmp_path / "lora.safetensors", SPELLINGS["ComfyUI"][0](factors, networks)))
    hooks = hook_count(networks)
    found = adapted_outputs(networks, [file.load(targets, CPU, torch.float32)])
    assert_near(found, outputs(merged(networks, deltas(factors))), without)
    again = outputs(networks)
    assert all(torch.equal(again[name], tensor) for name, tensor in without.items()), (
        "the base weights are as they were"
    )
    with (
        pytest.raises(AssertionError, match="2 rows for 1 sets"),
        adapted_network(networks["text_encoder"], [file.load(targets, CPU, torch.float32)]),
    ):
        networks["text_encoder"](token_ids(2))
    assert hook_count(networks) == hooks


def test_each_row_with_its_own(
    networks: Networks, targets: dict[str, LoraTarget], without: dict[str, Tensor], tmp_path: Path
) -> None:
    """Rows of a batch with LoRAs of their own, several at their weights, or none; beside each other as alone."""
    files = [
        save(tmp_path / f"{seed}.safetensors", SPELLINGS["kohya"][0](random_factors(networks, seed, KOHYA), networks))
        for seed in (4, 5)
    ]
    cache = LoraCache(targets, device=CPU, dtype=torch.float32, limit=2**30)
    one, both = cache.adapters([(files[0], 0.7)]), cache.adapters([(files[0], 1.0), (files[1], -0.4)])
    sets = [one, one, None, both]
    together = adapted_outputs(networks, sets)
    plain = outputs(networks, 4)
    for row, (own, like) in enumerate(((0.7, 0.0), (0.7, 0.0), (0.0, 0.0), (1.0, -0.4))):
        first, second = (deltas(random_factors(networks, seed, KOHYA)) for seed in (4, 5))
        added = {key: own * delta + like * second[key] for key, delta in first.items()}
        wanted = outputs(merged(networks, added), 4)
        for name, tensor in wanted.items():
            assert (together[name][row] - tensor[row]).abs().max() <= BOUND * max(1, tensor.abs().max().item())
            assert own == 0 or (plain[name][row] - tensor[row]).abs().max() > EFFECT
            assert own != 0 or torch.equal(together[name][row], plain[name][row])
    theirs = loaded(networks, list(zip(files, (1.0, -0.4), strict=True)))
    assert_near(adapted_outputs(networks, [both]), theirs, without)


def _loha(networks: Networks, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    tensors, added = {}, {}
    for name, layer in networks["unet"].named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            out, width = layer.weight.shape[0], layer.weight[0].numel()
            a1, a2 = (torch.randn(out, 2, generator=generator) / 2**0.5 for _ in range(2))
            b1, b2 = (torch.randn(2, width, generator=generator) / width**0.25 for _ in range(2))
            stem = f"lycoris_{name.replace('.', '_')}"
            for role, tensor in {"w1_a": a1, "w1_b": b1, "w2_a": a2, "w2_b": b2}.items():
                tensors[f"{stem}.hada_{role}"] = tensor
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
            added["unet", name] = (a1.double() @ b1.double()) * (a2.double() @ b2.double()) / 2
    return tensors, added


def _lokr(networks: Networks, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Convolutions with the second factor as a convolution's weight, or of low rank, by turns."""
    tensors, added = {}, {}
    layers = [(n, m) for n, m in networks["unet"].named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for place, (name, layer) in enumerate(layers):
        out, width, *kernel = layer.weight.shape
        left = torch.randn(4, 2, generator=generator) / 2**0.5
        right = torch.randn(out // 4, width // 2, *kernel, generator=generator) / (layer.weight[0].numel() / 2) ** 0.5
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{stem}.lokr_w1"] = left
        if place % 2:
            a = torch.randn(out // 4, 2, generator=generator)
            b = torch.randn(2, right[0].numel(), generator=generator) / right[0].numel() ** 0.5
            tensors |= {f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b, f"{stem}.alpha": torch.tensor(1.0)}
            right = (a @ b / 2).view(right.shape)
        else:
            tensors[f"{stem}.lokr_w2"] = right
        whole = torch.kron(left.view(4, 2, *[1] * len(kernel)), right)
        added["unet", name] = whole.double().flatten(1)
    return tensors, added


@pytest.mark.parametrize("kind", [_loha, _lokr])
def test_lycoris(
    kind: Callable[..., tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]],
    networks: Networks, targets: dict[str, LoraTarget], without: dict[str, Tensor], tmp_path: Path,
) -> None:  # fmt: skip
    skip = {"conv_in", "conv_out"}  # of 4 channels, which these do not divide
    tensors, added = kind(networks, torch.Generator().manual_seed(6))
    tensors = {key: tensor for key, tensor in tensors.items() if not re.search(r"_conv_(in|out)\.", key)}
    added = {key: delta for key, delta in added.items() if key[1] not in skip}
    file = LoraFile.read(save(tmp_path / "lycoris.safetensors", tensors))
    found = adapted_outputs(networks, [file.load(targets, CPU, torch.float32)])
    assert_near(found, outputs(merged(networks, added)), without)


def test_alphas_that_peft_notes(
    networks: Networks, targets: dict[str, LoraTarget], without: dict[str, Tensor], tmp_path: Path
) -> None:
    """Each network has its own."""
    factors = random_factors(networks, 7, ATTENTION)
    config = {
        f"{part}.{key}": value
        for part, alpha in (("unet", 2), ("text_encoder", 8), ("text_encoder_2", 6))
        for key, value in {
            "r": RANK, "lora_alpha": alpha, "alpha_pattern": {}, "rank_pattern": {}, "peft_type": "LORA",
            "target_modules": [name for own, name in factors if own == part],
        }.items()
    }  # fmt: skip
    path = save(tmp_path / "noted.safetensors", SPELLINGS["diffusers"][0](factors, networks), config)
    found = adapted_outputs(networks, [LoraFile.read(path).load(targets, CPU, torch.float32)])
    assert_near(found, loaded(networks, [(path, 1.0)]), without)


def test_what_is_refused(networks: Networks, targets: dict[str, LoraTarget], tmp_path: Path) -> None:
    def refused(tensors: Mapping[str, Tensor]) -> str:
        with pytest.raises(LoraError) as caught:
            LoraFile.read(save(tmp_path / "bad.safetensors", dict(tensors))).match(targets)
        return str(caught.value)

    def pair(stem: str, down: Sequence[int], up: Sequence[int]) -> dict[str, Tensor]:
        return {f"{stem}.lora_down.weight": torch.ones(*down), f"{stem}.lora_up.weight": torch.ones(*up)}

    good = pair("lora_unet_conv_in", (2, 4, 3, 3), (64, 2, 1, 1))
    assert LoraFile.read(save(tmp_path / "good.safetensors", good)).match(targets)
    stray = pair("lora_te1_text_model_encoder_layers_31_mlp_fc1", (2, 48), (96, 2))
    assert (
        "holds lora_te1_text_model_encoder_layers_31_mlp_fc1.lora_down.weight, for which this model has no"
        in refused(good | stray)
    )
    bare = pair("text_model_encoder_layers_0_mlp_fc1", (2, 48), (96, 2))
    assert "for which this model has no layer" in refused(good | bare), "which encoder?"
    pixel = pair("lora_unet_conv_in", (2, 4, 1, 1), (64, 2, 1, 1))
    assert "lora_unet_conv_in is 64 x 4 and the layer is 64 x 36" in refused(pixel)
    turned = pair("lora_unet_conv_in", (2, 4, 9, 1), (64, 2, 1, 1))
    assert "lora_unet_conv_in is 64 x 36" in refused(turned), "of the right size, and of another kernel"
    middle = good | {"lora_unet_conv_in.lora_mid.weight": torch.ones(2, 2, 3, 3)}
    assert "holds lora_unet_conv_in.lora_mid.weight, which is no part of a LoRA" in refused(middle)
    assert "made for another model" in refused(pair("diffusion_model.layers.0.attention.to_q", (2, 8), (8, 2)))
