"""LoRA files of every spelling met in the wild, matched with a network and brought to its device.

A key of such a file is a layer's name and a role ("lora_A.weight", "alpha"). Both are told by data: roles by ``ROLES``, names
by the layouts that checkpoints are read with, dots and underscores being the same. Nothing is skipped: a key without a
place, a matrix that does not fit and a value that is no number are errors that name the key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hwaga.errors import LoraError
from hwaga.weights.adapters import Adapters, Delta, Full, Kronecker, LayerAdapter, LowRank
from hwaga.weights.checkpoint import listed
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import Layout
from hwaga.weights.lora_header import DORA, ROLE, LoraLayer, PeftAlphas, peft_alphas, read_header
from hwaga.weights.recent import RecentlyUsed

PREFIXES = (
    "base_model_model_", "model_diffusion_model_", "diffusion_model_", "transformer_", "text_encoders_qwen3_4b_",
    "text_encoder_", "lora_unet_", "unet_", "lora_transformer_", "lora_te1_", "lora_te_", "lycoris_", "model_", "_",
)  # fmt: skip
"""What may stand before a layer's name, any of them and several, with dots as underscores."""


@dataclass(frozen=True)
class LoraTarget:
    """A place for a LoRA: a linear layer or a convolution of ours, or some rows of it.

    Attributes:
        layer: None for one of the reference that is not built here, as nothing listens to it.
        name: what it is called in our network; for messages.
        rows: the output rows that the file's layer stands for.
        layout: place of the layout that the name is from.
    """

    layer: nn.Linear | nn.Conv2d | None
    name: str
    rows: slice
    layout: int

    @property
    def shape(self) -> tuple[int, int] | None:
        """Of the delta; see ``LoraLayer.shape``."""
        if self.layer is None:
            return None
        rows = self.rows.stop - self.rows.start
        if isinstance(self.layer, nn.Conv2d):
            return rows, self.layer.in_channels * math.prod(self.layer.kernel_size)
        return rows, self.layer.in_features

    def takes(self, group: LoraLayer) -> bool:
        """Whether a layer of a file is of this layer's shape."""
        kernel = self.layer.kernel_size if isinstance(self.layer, nn.Conv2d) else (1, 1)
        return self.layer is None or (group.shape == self.shape and group.kernel in ((), kernel))


def lora_targets(
    networks: Iterable[tuple[nn.Module, Sequence[Layout]]], unused: Mapping[str, str] | None = None
) -> dict[str, LoraTarget]:
    """Every linear layer and convolution of some networks, by each name that a layout gives it, with underscores for dots.

    Args:
        networks: each with its layouts, the one whose names count first at the front.
        unused: beginnings of names that stand for layers which are not built, and of those that they are like.
    """
    targets: dict[str, LoraTarget] = {}
    for network, layouts in networks:
        layers = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        for place, layout in enumerate(layouts):
            for name, layer in layers:
                spellings = layout.sources(f"{name}.weight")
                outs: Sequence[int] = [_rows(layer)]
                if isinstance(layer, FusedLinear) and len(spellings) == len(layer.outs):
                    outs = layer.outs
                start = 0
                for spelling, size in zip(spellings, outs, strict=True):
                    target = LoraTarget(layer, name, slice(start, start + size), place)
                    known = _underscored(spelling.removesuffix(".weight"))
                    targets.setdefault(known, target)
                    if known.endswith("_to_out_0"):  # some trainers leave out the list that diffusers keeps it in
                        targets.setdefault(known.removesuffix("_0"), target)
                    start += size
    for missing, like in (unused or {}).items():
        for name in [name for name in targets if name.startswith(like)]:
            absent = missing + name.removeprefix(like)
            targets.setdefault(absent, replace(targets[name], layer=None, name=absent))
    return targets


def _rows(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file by its header: layers and shapes, understood and whole, without values.

    Attributes:
        path: the file.
        groups: by layer name with underscores for dots, prefixes included.
        alphas: what peft noted about it, by the network's prefix; often empty.
    """

    path: Path
    groups: Mapping[str, LoraLayer]
    alphas: Mapping[str, PeftAlphas]

    @classmethod
    def read(cls, path: Path) -> LoraFile:
        """Reads the header.

        Raises:
            LoraError: not there, not safetensors, no LoRA, or of a kind that is not computed here.
        """
        keys, metadata = read_header(path)
        groups: dict[str, LoraLayer] = {}
        unknown, doubled = [], []
        for key, shape in keys.items():
            match = ROLE.search(key)
            if match is None or match.lastgroup is None:
                unknown.append(key)
                continue
            stem, role = key[: match.start()], match.lastgroup
            group = groups.setdefault(_underscored(stem), LoraLayer(stem, {}, {}))
            if role in group.keys:
                doubled.append(key)
            group.keys[role], group.shapes[role] = key, shape
        if any(DORA.search(key) for key in unknown):
            raise LoraError(
                f"{path.name} is a DoRA, which changes the base weights' size and cannot be applied beside them. "
                "Train or export it as a plain LoRA."
            )
        if not groups:
            raise LoraError(
                f"{path.name} is no LoRA: none of its {len(keys)} tensors is part of one (such as {next(iter(keys), 'none')}). "
                "If it is a checkpoint, give it as the model."
            )
        if unknown:
            raise LoraError(f"{path.name} holds {listed(unknown)}, which is no part of a LoRA, LoHa or LoKr.")
        if doubled:
            raise LoraError(f"{path.name} holds {listed(doubled)} twice over, in two spellings. Export it again.")
        broken = [complaint for group in groups.values() if (complaint := group.complaint)]
        if broken:
            raise LoraError(f"{path.name} is not whole: {listed(broken, '; ')}. Fetch or export it again.")
        return cls(path, groups, peft_alphas(path, metadata))

    def match(self, targets: Mapping[str, LoraTarget]) -> list[tuple[LoraTarget, LoraLayer]]:
        """The place of each layer.

        Raises:
            LoraError: layers without a place, or of another shape: the LoRA of another model.
        """
        found: dict[str, list[tuple[LoraTarget, LoraLayer]]] = {}
        unmatched, misshapen, doubled = [], [], []
        for name, group in self.groups.items():
            target = _target(name, targets)
            if target is None:
                unmatched.append(next(iter(group.keys.values())))
                continue
            others = found.setdefault(target.name, [])
            if any(other.rows == target.rows and other.layout == target.layout for other, _ in others):
                doubled.append(group.stem)
            others.append((target, group))
            if not target.takes(group):
                wanted = " x ".join(map(str, target.shape or ()))
                misshapen.append(f"{group.stem} is {' x '.join(map(str, group.shape))} and the layer is {wanted}")
        if len(unmatched) + len(misshapen) == len(self.groups):
            detail = listed(misshapen, "; ") if misshapen else f"there is no {listed(unmatched)}"
            raise LoraError(f"{self.path.name} was made for another model: {detail}. Use it with the model it is for.")
        if unmatched:
            raise LoraError(f"{self.path.name} holds {listed(unmatched)}, for which this model has no layer.")
        if misshapen:
            raise LoraError(f"{self.path.name} does not fit this model: {listed(misshapen, '; ')}.")
        if doubled:
            raise LoraError(f"{self.path.name} holds {listed(doubled)} twice over, in two spellings. Export it again.")
        return [place for places in found.values() for place in _without_repeats(self.path, places)]

    def check_values(self) -> None:
        """Reads everything.

        Raises:
            LoraError: a value is not finite, by key, or cannot be read.
        """
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                bad = self._not_finite(file)
        except (SafetensorError, OSError) as error:
            raise LoraError(f"{self.path} cannot be read: {error}. Fetch it again.") from error
        if bad:
            raise LoraError(
                f"{self.path.name}: {listed(bad)} holds NaN or infinity. The file is damaged: fetch it again."
            )

    def load(self, targets: Mapping[str, LoraTarget], device: torch.device, dtype: torch.dtype) -> Adapters:
        """Reads the values and makes them ready for a device.

        Raises:
            LoraError: see ``match``; or a value that is not finite, by key.
        """
        matched = self.match(targets)
        deltas: dict[nn.Linear | nn.Conv2d, list[tuple[slice, Delta]]] = {}
        finite: list[Tensor] = []
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                for target, group in matched:
                    if target.layer is None:
                        continue
                    scale = self._scale(group, file)
                    tensors = {
                        role: file.get_tensor(key).to(device) for role, key in group.keys.items() if role != "alpha"
                    }
                    delta = _delta(tensors, scale, dtype)
                    finite += [tensor.isfinite().all() for tensor in delta.tensors()]
                    deltas.setdefault(target.layer, []).append((target.rows, delta))
                # One wait for the device, not one for each tensor.
                if finite and not torch.stack(finite).all():
                    bad = self._not_finite(file)
                    what = (
                        f"{listed(bad)} holds NaN or infinity"
                        if bad
                        else "its alpha makes values too large for a number"
                    )
                    raise LoraError(f"{self.path.name}: {what}. The file is damaged: fetch it again.")
        except (SafetensorError, OSError) as error:
            raise LoraError(f"{self.path} cannot be read: {error}. Fetch it again.") from error
        return Adapters({layer: LayerAdapter.of(found, _rows(layer)) for layer, found in deltas.items()})

    def _scale(self, group: LoraLayer, file: Any) -> float:
        """What the delta is multiplied with: alpha / rank, 1 where there is no alpha."""
        rank = group.rank
        if rank is None:  # LoKr of two whole matrices has no rank, and what its trainers write for alpha means nothing
            return 1.0
        if "alpha" in group.keys:
            scale = float(file.get_tensor(group.keys["alpha"]).item()) / rank
        else:
            network = next((prefix for prefix in self.alphas if _dotted(group.stem).startswith(prefix)), None)
            scale = (
                1.0 if network is None else self.alphas[network].scale(_dotted(group.stem).removeprefix(network), rank)
            )
        if not math.isfinite(scale):
            key = group.keys.get("alpha", f"the alpha of {group.stem}")
            raise LoraError(f"{self.path.name}: {key} holds NaN or infinity. The file is damaged: fetch it again.")
        return scale

    def _not_finite(self, file: Any) -> list[str]:
        keys = [key for group in self.groups.values() for role, key in group.keys.items() if role != "alpha"]
        return [key for key in keys if not torch.isfinite(file.get_tensor(key)).all()]


GROWTH = 2
"""A LoRA takes at most about so many times its file on the device: of layers that are one product here and several in the file,
each part is widened to the whole by zeros.
"""


class LoraCache:
    """LoRAs on a device, ready to use; those used longest ago are let go of when they take more than a limit.

    A generation that uses one that was let go of keeps it to its end.
    """

    def __init__(
        self, targets: Mapping[str, LoraTarget], *, device: torch.device, dtype: torch.dtype, limit: int
    ) -> None:
        self.targets = targets
        self.device = device
        self.dtype = dtype
        self.kept: RecentlyUsed[tuple[tuple[object, float], ...], Adapters] = RecentlyUsed(
            limit, lambda adapters: adapters.nbytes
        )

    def new_bytes(self, loras: Sequence[tuple[Path, float]]) -> int:
        """About the most that ``adapters`` would take for them beside what is kept."""
        wanted = [(path, weight) for path, weight in loras if weight]
        if self.kept.get(tuple((_version(path), weight) for path, weight in wanted)) is not None:
            return 0
        size = sum(GROWTH * path.stat().st_size for path, _ in wanted)
        # At another weight than 1, and of several together, what is used is made from what is kept.
        return size if len(wanted) == 1 and wanted[0][1] == 1.0 else 2 * size

    def adapters(self, loras: Sequence[tuple[Path, float]]) -> Adapters | None:
        """What LoRAs at some weights add together; the same object for the same ones while it is kept, None for none.

        Raises:
            LoraError: a file is not there or not for this model.
        """
        wanted = [(path, weight) for path, weight in loras if weight]
        if not wanted:
            return None
        uses = tuple((_version(path), weight) for path, weight in wanted)
        known = self.kept.get(uses)
        if known is not None:
            return known
        if len(wanted) == 1 and wanted[0][1] == 1.0:
            return self.kept.put(uses, LoraFile.read(wanted[0][0]).load(self.targets, self.device, self.dtype))
        parts = [(cast(Adapters, self.adapters([(path, 1.0)])), weight) for path, weight in wanted]
        return self.kept.put(uses, Adapters.combined(parts))


def _version(path: Path) -> tuple[str, int, int]:
    """A file that was replaced is another file."""
    try:
        found = path.stat()
    except OSError as error:
        raise LoraError(f"The LoRA {path} is not there any more: {error.strerror}.") from error
    return str(path), found.st_mtime_ns, found.st_size


def _without_repeats(path: Path, places: list[tuple[LoraTarget, LoraLayer]]) -> list[tuple[LoraTarget, LoraLayer]]:
    """The groups of one layer, each of its rows once.

    Some trainers write a layer under the names of two layouts: q, k and v each, and fused once more, which repeats them.
    """
    first = min(target.layout for target, _ in places)
    kept = [(target, group) for target, group in places if target.layout == first]
    covered = {row for target, _ in kept for row in range(target.rows.start, target.rows.stop)}
    for target, group in places:
        if target.layout != first and not covered.issuperset(range(target.rows.start, target.rows.stop)):
            raise LoraError(
                f"{path.name} holds {group.stem} and, under another name, a part of it ({kept[0][1].stem}). Export it again."
            )
    return kept


def _delta(tensors: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> Delta:
    """The delta of one layer. Products are formed in float32, and rounded once."""
    full = {role: tensor.float().flatten(1) for role, tensor in tensors.items()}
    if "up" in full:
        # Copied, since a tensor that is read on the CPU is the file's own memory, and the file may be replaced.
        return LowRank(full["down"].to(dtype, copy=True), (full["up"] * scale).to(dtype))
    if "hada_w1_a" in full:
        a1, b1, a2, b2 = (full[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        rank, out, width = a1.shape[1] * a2.shape[1], a1.shape[0], b1.shape[1]
        if rank * (out + width) >= out * width:
            return Full(((a1 @ b1) * (a2 @ b2) * scale).to(dtype))
        # (a1 b1) * (a2 b2), element by element, is of rank r1 r2: its factors are all products of a column of a1 and one
        # of a2, and of a row of b1 and one of b2.
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
        return LowRank(down.to(dtype), (up * scale).to(dtype))
    left, right = (
        full[name] if name in full else full[f"{name}_a"] @ full[f"{name}_b"] for name in ("lokr_w1", "lokr_w2")
    )
    return Kronecker((left * scale).to(dtype), right.to(dtype, copy=True))


def _target(name: str, targets: Mapping[str, LoraTarget]) -> LoraTarget | None:
    """The layer of a name, with whatever prefixes it has taken off."""
    while name not in targets:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return targets[name]


def _dotted(stem: str) -> str:
    return stem.removeprefix("base_model.model.")


def _underscored(name: str) -> str:
    return name.replace(".", "_")
