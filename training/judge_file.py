"""The judge as ``benchmarks/following.py`` reads it: norms folded into convolutions, eight bits and a scale for
each output channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.pack import Thing
from training.phases.judge import Convolution, Judge


def write_judge(judge: Judge, things: tuple[Thing, ...], folder: Path) -> None:
    """Writes ``judge.safetensors``, and ``objects.json`` with the everyday objects."""
    stored: dict[str, Tensor] = {}
    for name, weight, bias in _layers(judge.cpu().eval()):
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-8).div(127).view(-1, *(1,) * (weight.ndim - 1))
        stored[f"{name}.codes"] = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        stored[f"{name}.scale"] = scale.to(torch.float32)
        stored[f"{name}.bias"] = bias.to(torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "judge.safetensors")
    objects = [
        {"class": number, "en": thing.english.usual, "ko": thing.korean.usual}
        for number, thing in enumerate(things)
        if thing.everyday
    ]
    text = json.dumps(objects, ensure_ascii=False, indent=0)
    (folder / "objects.json").write_text(text + "\n", encoding="utf-8")


def _layers(judge: Judge) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "stem", *_folded(judge.stem)
    for level, (down, residual) in enumerate(zip(judge.downs, judge.residuals, strict=True)):
        first, _, second = residual.children()
        yield f"down{level}", *_folded(down)
        yield f"res{level}a", *_folded(first)
        yield f"res{level}b", *_folded(second)
    yield "head", judge.object_head.weight.detach(), judge.object_head.bias.detach()


def _folded(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does its norm's work too."""
    assert isinstance(layer, Convolution)
    norm = layer.norm
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    return layer.conv.weight.detach() * gain[:, None, None, None], (norm.bias - norm.running_mean * gain).detach()
