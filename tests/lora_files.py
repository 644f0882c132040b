"""Random LoRAs for a checkpoint, written in each spelling that is met in the wild."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Factors = dict[str, tuple[Tensor, Tensor]]
"""For each layer by the reference's name: ``down [rank, in]`` and ``up [out, rank]``, alpha being the rank."""

RANK = 4


def random_factors(network: nn.Module, seed: int, *, size: float = 0.5, skip: str = "nothing") -> Factors:
    """Factors for every linear layer of a network of the reference."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and skip not in name:
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            factors[name] = down, size * torch.randn(module.out_features, RANK, generator=generator) / RANK**0.5
    return factors


def _peft(prefix: str, middle: str = "") -> Callable[[Factors], dict[str, Tensor]]:
    def spell(factors: Factors) -> dict[str, Tensor]:
        return {
            f"{prefix}{name}.lora_{side}{middle}.weight": tensor
            for name, pair in factors.items()
            for side, tensor in zip("AB", pair, strict=True)
        }

    return spell


def _kohya(prefix: str) -> Callable[[Factors], dict[str, Tensor]]:
    """With an alpha of half the rank, made up for by ``up``."""

    def spell(factors: Factors) -> dict[str, Tensor]:
        tensors = {}
        for name, (down, up) in factors.items():
            stem = prefix + name.replace(".", "_")
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.lora_up.weight"] = 2 * up
            tensors[f"{stem}.alpha"] = torch.tensor(RANK / 2)
        return tensors

    return spell


def _dotted(factors: Factors) -> dict[str, Tensor]:
    """One trainer's way: "to.q" for "to_q", with the fused product and the output once more under their other names."""
    tensors = {}
    for name, (down, up) in factors.items():
        dotted = name
        for each in "qkv":
            dotted = dotted.replace(f"attention.to_{each}", f"attention.to.{each}")
        for stem in {dotted, dotted.replace("attention.to_out.0", "attention.out")}:
            tensors[f"{stem}.lora.down.weight"] = down
            tensors[f"{stem}.lora.up.weight"] = up
        if name.endswith("attention.to_q"):
            stem = name.replace("to_q", "qkv")
            tensors[f"{stem}.lora.down.weight"] = torch.randn_like(down)
            tensors[f"{stem}.lora.up.weight"] = torch.randn(3 * len(up), RANK)
    return tensors


SPELLINGS: dict[str, Callable[[Factors], dict[str, Tensor]]] = {
    "diffusers": _peft("transformer."),
    "bare": _peft(""),
    "peft": _peft("base_model.model."),
    "peft of a pipeline": _peft("base_model.model.transformer."),
    "ModelScope": _peft("", ".default"),
    "ai-toolkit": _peft("diffusion_model."),
    "ComfyUI": _peft("model.diffusion_model."),
    "kohya": _kohya("lora_unet_"),
    "musubi": _kohya("lora_unet__"),
    "LyCORIS": _kohya("lycoris_"),
    "dotted": _dotted,
}
"""Spellings of a LoRA over the transformer. Each gives the same deltas."""

READ_BY_REFERENCE = ("diffusers", "ModelScope", "ai-toolkit", "kohya")
"""Those that diffusers 0.42 loads whole, over every layer. It drops or refuses layers of the others."""


def fused(factors: Factors) -> tuple[dict[str, Tensor], Factors]:
    """Under the original names, q, k and v as one; and the same factors as the reference sees them."""
    tensors: dict[str, Tensor] = {}
    seen: Factors = {}
    renames = {"all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1": "final_layer", "to_out.0": "out"}
    for name, (down, up) in factors.items():
        stem = name
        for theirs, original in renames.items():
            stem = stem.replace(theirs, original)
        if name.endswith("attention.to_q"):
            ups = [factors[name.replace("to_q", each)][1] for each in ("to_q", "to_k", "to_v")]
            down, up, stem = down, torch.cat(ups), stem.replace("to_q", "qkv")
            seen |= {name.replace("to_q", each): (down, part) for each, part in zip(("to_q", "to_k", "to_v"), ups)}  # noqa: B905
        elif name.endswith(("to_k", "to_v")):
            continue
        else:
            seen[name] = down, up
        tensors[f"diffusion_model.{stem}.lora_A.weight"] = down
        tensors[f"diffusion_model.{stem}.lora_B.weight"] = up
    return tensors, seen


def lokr(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """LoKr over every linear layer: one factor whole, the other of low rank or whole, by turns."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for place, (name, module) in enumerate(linears):
        o1, i1 = _divisor(module.out_features), _divisor(module.in_features)
        o2, i2 = module.out_features // o1, module.in_features // i1
        stem = f"diffusion_model.{name}"
        tensors[f"{stem}.lokr_w1"] = torch.randn(o1, i1, generator=generator) / i1**0.5
        if place % 2:
            tensors[f"{stem}.lokr_w2_a"] = torch.randn(o2, RANK, generator=generator) / RANK**0.5
            tensors[f"{stem}.lokr_w2_b"] = torch.randn(RANK, i2, generator=generator) / i2**0.5
        else:
            tensors[f"{stem}.lokr_w2"] = 0.5 * torch.randn(o2, i2, generator=generator) / i2**0.5
        tensors[f"{stem}.alpha"] = torch.tensor(RANK / 2)
    return tensors


def loha(network: nn.Module, seed: int, rank: int) -> dict[str, Tensor]:
    """LoHa over every linear layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            shapes = {"a": (module.out_features, rank), "b": (rank, module.in_features)}
            for factor in ("w1", "w2"):
                for side, shape in shapes.items():
                    value = torch.randn(shape, generator=generator) / (shape[1] ** 0.5)
                    tensors[f"lycoris_{name.replace('.', '_')}.hada_{factor}_{side}"] = value
            tensors[f"lycoris_{name.replace('.', '_')}.alpha"] = torch.tensor(rank / 2)
    return tensors


def merge(network: nn.Module, deltas: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Adds deltas to the weights of a network of the reference."""
    with torch.no_grad():
        for name, delta in deltas.items():
            linear = network.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight += (weight * delta).to(linear.weight)


def deltas_of(factors: Factors) -> dict[str, Tensor]:
    return {name: up.double() @ down.double() for name, (down, up) in factors.items()}


def save(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None) -> Path:
    """Writes a LoRA file, with what peft notes about it."""
    metadata = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(config)} if config else {})
    save_file(
        {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}, path, metadata
    )
    return path


def _divisor(size: int) -> int:
    return next((each for each in (4, 3, 2) if size % each == 0), 1)
