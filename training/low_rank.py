"""LoRA factors beside the layers of a network that is trained: added, applied, taken away."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.weights.fused import FusedLinear
from training.networks import TrainedTransformer, product


def merged(layer: nn.Linear, x: Tensor) -> Tensor:
    """A ``Product`` for layers that ``add_lora`` has been at: the weight and what the LoRA adds to it, as one product."""
    if not hasattr(layer, "lora_down"):
        return product(layer, x)
    update = (cast(Tensor, layer.lora_up) @ cast(Tensor, layer.lora_down)).flatten(0, 1)
    return F.linear(x, layer.weight + update, layer.bias)


def add_lora(transformer: TrainedTransformer, rank: int) -> list[tuple[str, nn.Parameter]]:
    """Gives the blocks' linear layers LoRA factors, a pair for each layer that diffusers has in the place of a fused one.

    Returns:
        Their names and parameters: ``lora_down`` ``[parts, rank, in]`` and ``lora_up`` ``[parts, out / parts, rank]``. The up
        halves are zero, so that the network is as it was.
    """
    added = []
    for name, layer in transformer.net.named_modules():
        if not isinstance(layer, nn.Linear) or not (".attention." in name or ".feed_forward." in name):
            continue
        parts = len(layer.outs) if isinstance(layer, FusedLinear) else 1
        weight = layer.weight
        down = torch.randn(parts, rank, layer.in_features) * layer.in_features**-0.5
        up = torch.zeros(parts, layer.out_features // parts, rank)
        for suffix, value in (("lora_down", down), ("lora_up", up)):
            layer.register_parameter(suffix, nn.Parameter(value.to(weight.device, weight.dtype)))
            added.append((f"{name}.{suffix}", getattr(layer, suffix)))
    return added


def remove_lora(transformer: TrainedTransformer) -> None:
    """Takes away what ``add_lora`` has added."""
    for layer in transformer.net.modules():
        for suffix in ("lora_down", "lora_up"):
            layer._parameters.pop(suffix, None)
