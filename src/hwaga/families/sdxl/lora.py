"""LoRAs for SDXL: where their names lead, and how they run beside the weights of borrowed networks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from hwaga.weights.adapters import Adapters
from hwaga.weights.layouts import Layout, ldm_unet
from hwaga.weights.lora import LoraTarget, lora_targets

TEXT_ENCODERS = {
    "text_encoder": ("text_encoder_", "lora_te1_", "lora_te_", "text_encoders_clip_l_transformer_", "clip_l_"),
    "text_encoder_2": ("text_encoder_2_", "lora_te2_", "text_encoders_clip_g_transformer_", "clip_g_"),
}
"""What LoRA files put before the names of each encoder's layers, which are otherwise the same for both: diffusers, kohya (whose
files for one encoder mean the first), ComfyUI. One of them must stand there."""


def sdxl_lora_targets(unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module) -> dict[str, LoraTarget]:
    """Every layer of the three networks that a LoRA may be for, by each name that it may have in a file.

    Args:
        unet: diffusers' ``UNet2DConditionModel``, of which also latent diffusion's names are known.
        text_encoder, text_encoder_2: transformers' CLIP text encoders.
    """
    targets: dict[str, LoraTarget] = {}
    for name, target in lora_targets([(unet, (Layout(), ldm_unet(resolutions_with_attention(unet))))]).items():
        # diffusers once kept LoRAs in the processors of attention.
        for spelling in (name, re.sub(r"_(attn[12])_(?=to_)", r"_\1_processor_", name)):
            targets.setdefault(spelling, replace(target, name=f"unet.{target.name}"))
    for part, encoder in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        for name, target in lora_targets([(encoder, (Layout(),))]).items():
            bare = name.removeprefix("text_model_")
            # The same processors named the layers of these encoders as those of a U-Net.
            old = re.sub(r"_self_attn_([qkv]|out)_proj$", r"_self_attn_to_\1", bare)
            for prefix in TEXT_ENCODERS[part]:
                for spelling in (bare, f"text_model_{bare}", old, f"text_model_{old}"):
                    targets.setdefault(prefix + spelling, replace(target, name=f"{part}.{target.name}"))
    return targets


def resolutions_with_attention(unet: nn.Module) -> list[bool]:
    """For each resolution of a U-Net, from the pixels on, whether its blocks have attention."""
    blocks = dict(unet.named_children())["down_blocks"]
    return ["attentions" in dict(block.named_children()) for block in blocks.children()]


@contextmanager
def adapted_network(network: nn.Module, sets: Sequence[Adapters | None]) -> Iterator[None]:
    """Within it, every layer of a network that LoRAs are for adds what they say. Weights stay as they are.

    Args:
        network: called with as many rows along the first axis as there are sets; only its linear layers and convolutions
            matter. Others may use it in the meantime only with the same rows.
        sets: for each row of the batch, its adapters or None. Neighbours that share the same object are computed together.
    """
    runs: list[tuple[int, int, Adapters]] = []
    for row, adapters in enumerate(sets):
        if adapters is None:
            continue
        if runs and runs[-1][1] == row and runs[-1][2] is adapters:
            runs[-1] = runs[-1][0], row + 1, adapters
        else:
            runs.append((row, row + 1, adapters))
    wanted = {layer for _, _, adapters in runs for layer in adapters.by_layer}
    hook = partial(_add, runs, len(sets))
    with ExitStack() as hooks:
        for module in network.modules() if wanted else ():
            if module in wanted:
                hooks.callback(module.register_forward_hook(hook).remove)
        yield


def _add(
    runs: Sequence[tuple[int, int, Adapters]], rows: int, layer: nn.Module, arguments: tuple[Any, ...], out: Tensor
) -> None:
    """A forward hook: adds to the rows of a layer's fresh output what their adapters make of its input."""
    x = arguments[0]
    assert len(x) == rows, f"{len(x)} rows for {rows} sets of adapters"
    for first, last, adapters in runs:
        adapter = adapters.by_layer.get(layer)
        if adapter is not None:
            adapter.add_after(layer, x[first:last], out[first:last])
