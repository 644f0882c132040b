"""What a LoRA file holds, by its header: layers and roles, shapes, and the alphas that peft noted. No values are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hwaga.errors import LoraError
from hwaga.loras import PEFT_CONFIG, PEFT_NOTE
from hwaga.weights.checkpoint import PICKLES, listed

ROLES = {
    "down": r"\.lora(?:_A(?:\.\w+)?|_down|\.down|_linear_layer\.down)\.weight|_lora\.down\.weight|\.lora_A",
    "up": r"\.lora(?:_B(?:\.\w+)?|_up|\.up|_linear_layer\.up)\.weight|_lora\.up\.weight|\.lora_B",
    "alpha": r"\.alpha|\.lora_alpha",
    **{name: rf"\.{name}(?:\.weight)?" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
                                                    "lokr_w2_b", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
}  # fmt: skip
"""How a key ends, by what the tensor is. peft writes its adapter's name into the first two (``.lora_A.default.weight``)."""

ROLE = re.compile("|".join(f"(?P<{role}>{pattern})" for role, pattern in ROLES.items()).join(("(?:", ")$")))

DORA = re.compile(r"dora_scale|lora_magnitude_vector")

WEIGHT_FORMATS = ("F32", "F16", "BF16")
SCALAR_FORMATS = (*WEIGHT_FORMATS, "F64", "I64", "I32")

CONVOLUTIONS = ("down", "up", "lokr_w2")
"""Roles of which a convolution's tensor may be ``[out, in, height, width]``. The others are matrices, of which one axis goes
over channels and places of the kernel together."""


@dataclass(frozen=True)
class LoraLayer:
    """The tensors of one layer of a file, without their values.

    Attributes:
        stem: the layer as the file calls it.
        keys: key in the file by role.
        shapes: shape by role.
    """

    stem: str
    keys: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def complaint(self) -> str | None:
        """What is wrong with the tensors of a layer by themselves."""
        roles = set(self.keys) - {"alpha"}
        w1 = "lokr_w1" in roles or {"lokr_w1_a", "lokr_w1_b"} <= roles
        w2 = "lokr_w2" in roles or {"lokr_w2_a", "lokr_w2_b"} <= roles
        loha = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
        whole = roles in ({"down", "up"}, loha) or (w1 and w2 and all(role.startswith("lokr") for role in roles))
        if not whole:
            return f"{self.stem} has {', '.join(sorted(self.keys.values())) or 'nothing'} alone"
        flat = [
            role
            for role, shape in self.shapes.items()
            if (role != "alpha" and len(shape) not in ((2, 4) if role in CONVOLUTIONS else (2,)))
            or 0 in shape
            or (role == "up" and math.prod(shape[2:]) != 1)
        ]
        if flat:
            return f"{self.keys[flat[0]]} is no matrix but {list(self.shapes[flat[0]])}"
        if "alpha" in self.keys and math.prod(self.shapes["alpha"]) != 1:
            return f"{self.keys['alpha']} is no number but {list(self.shapes['alpha'])}"
        pairs = [("up", "down"), ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"), ("hada_w1_a", "hada_w1_b"),
                 ("hada_w2_a", "hada_w2_b")]  # fmt: skip
        for left, right in pairs:
            if left in roles and self.shapes[left][1] != self.shapes[right][0]:
                return f"{self.keys[left]} and {self.keys[right]} are of different rank"
        if roles == loha and [self.shapes["hada_w1_a"][0], self.shapes["hada_w1_b"][1]] != [
            self.shapes["hada_w2_a"][0], self.shapes["hada_w2_b"][1]
        ]:  # fmt: skip
            return f"the two factors of {self.stem} differ in shape"
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the delta. Of a convolution, a column is a channel at a place of the kernel."""
        shapes = {role: (*shape[:1], math.prod(shape[1:])) for role, shape in self.shapes.items()}
        if "up" in shapes:
            return shapes["up"][0], shapes["down"][1]
        if "hada_w1_a" in shapes:
            return shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]
        factors = [
            shapes.get(name) or (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1]) for name in ("lokr_w1", "lokr_w2")
        ]
        return factors[0][0] * factors[1][0], factors[0][1] * factors[1][1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width, where the tensors say them."""
        return self.shapes.get("down", self.shapes.get("lokr_w2", ()))[2:]

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by."""
        for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if role in self.shapes:
                return self.shapes[role][0]
        return None


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by key, and the file's notes."""
    if path.suffix in PICKLES:
        raise LoraError(
            f"{path.name} is a pickle, which can run code when it is opened. Hwaga reads LoRAs as safetensors only: "
            "fetch or convert it in that format."
        )
    if not path.is_file():
        raise LoraError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - the handle is no mapping
            formats = {key: (view.get_dtype(), tuple(view.get_shape())) for key, view in views.items()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LoraError(
            f"{path} is truncated, or no safetensors file ({error}). Fetch it again, or give a LoRA in that format."
        ) from error
    foreign = [
        f"{key} ({kind})"
        for key, (kind, shape) in formats.items()
        if kind not in (WEIGHT_FORMATS if math.prod(shape) > 1 else SCALAR_FORMATS)
    ]
    if foreign:
        raise LoraError(f"{path.name} stores {listed(foreign)}; {', '.join(WEIGHT_FORMATS)} are read here.")
    return {key: shape for key, (_, shape) in formats.items()}, metadata


@dataclass(frozen=True)
class PeftAlphas:
    """peft's note of a network's alphas.

    Attributes:
        alpha: of the layers that no pattern names.
        by_layer: ends of layer names, and their alphas.
        root: the scale divides by the rank's square root ("rank-stabilised").
    """

    alpha: float
    by_layer: Mapping[str, float]
    root: bool

    def scale(self, layer: str, rank: int) -> float:
        """What the delta of a layer is multiplied with."""
        own = [alpha for name, alpha in self.by_layer.items() if layer == name or layer.endswith(f".{name}")]
        return (own[0] if own else self.alpha) / (math.sqrt(rank) if self.root else rank)


def peft_alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftAlphas]:
    """The note in a file that diffusers wrote, or in the ``adapter_config.json`` that peft writes beside its own."""
    text, source = metadata.get(PEFT_NOTE), PEFT_NOTE
    beside = path.with_name(PEFT_CONFIG)
    if text is None and path.name.startswith("adapter_model.") and beside.is_file():
        text, source = beside.read_text(encoding="utf-8", errors="replace"), PEFT_CONFIG
    if text is None:
        return {}
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("no table")
        networks = {key.rpartition("lora_alpha")[0] for key in values if key.endswith("lora_alpha")}
        return {network: _alphas(values, network) for network in sorted(networks, reverse=True)}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise LoraError(f"{path.name}: its {source} cannot be read ({error}). Export it again.") from error


def _alphas(values: Mapping[str, Any], network: str) -> PeftAlphas:
    by_layer = values.get(f"{network}alpha_pattern") or {}
    strange = [name for name in by_layer if not re.fullmatch(r"[\w.-]+", name)]
    if strange:
        raise ValueError(f"alpha_pattern holds {strange[0]!r}, which is no layer's name")
    alphas = [values[f"{network}lora_alpha"], *by_layer.values()]
    if any(isinstance(alpha, bool) or not math.isfinite(alpha) for alpha in alphas):
        raise ValueError("an alpha is no number")
    named = dict(zip(by_layer, map(float, alphas[1:]), strict=True))
    return PeftAlphas(float(alphas[0]), named, values.get(f"{network}use_rslora") is True)
