"""Networks in files without a configuration, as ComfyUI and llama.cpp keep them: which file holds what.

Files are told by the names of their tensors, never by their own name, and by their headers alone. One file may hold several
networks, each below a prefix of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwaga.errors import CheckpointError
from hwaga.weights.gguf_file import is_gguf, read_gguf
from hwaga.weights.stored import FORMATS, NUMBER_FORMATS, SCALED_FORMAT, HeaderEntry, StoredTensor, read_header

Header = Mapping[str, HeaderEntry]

SIGNS = {
    "transformer": r"(|.*\.)cap_pad_token",
    "text encoder": r"(|.*?\.)(?:(?:model\.)?layers\.0\.self_attn\.q_norm|blk\.0\.attn_q_norm)\.weight",
    "autoencoder": r"(|.*\.)decoder\.conv_in\.weight",
}
"""For each network, a tensor that every file of it holds. What stands before its name is the prefix of all its tensors."""

OTHERS = {
    r"control_(?:layers|all_x_embedder|noise_refiner)\.": "a ControlNet",
    r"cap_embedder\.0\.weight": "a Lumina 2 transformer",
    r"double_blocks\.0\.": "a transformer of the Flux or HunyuanVideo family",
    r"joint_blocks\.0\.": "a Stable Diffusion 3 transformer",
    r"(?:input_blocks|down_blocks)\.0\.": "a Stable Diffusion U-Net",
    r"transformer_blocks\.0\.": "a diffusion transformer of another family",
    r"(?:text_model|encoder\.block\.0\.layer)\.": "a CLIP or T5 text encoder",
    r"(?:embed_tokens|token_embd)\.weight": "a language model other than Qwen3",
}
"""What else a file may be, by a part of a tensor's name; the first that is found counts."""

LORA = re.compile(r"\blora_|\.lora\.|\.(?:lokr|hada)_")

UNUSED = re.compile(r".*\.logit_scale")
"""What ComfyUI writes beside a text encoder into a file of several networks; it is a CLIP model's, and unused here."""


@dataclass(frozen=True)
class Part:
    """One network's weights in a file.

    Attributes:
        prefix: what stands before each of its tensors' names.
        tensors: all of them, scales and markers aside.
    """

    file: Path
    prefix: str
    tensors: tuple[StoredTensor, ...]

    @property
    def names(self) -> list[str]:
        """The tensors' names without the prefix."""
        return [tensor.name.removeprefix(self.prefix) for tensor in self.tensors]


def find_parts(files: Sequence[Path]) -> dict[str, Part]:
    """The networks that some files hold, by the names of ``SIGNS``. Files of other kinds may lie beside them.

    Raises:
        CheckpointError: a network is missing or there twice. It says of each file without one what is wrong with it.
    """
    parts: dict[str, Part] = {}
    refused = []
    for file in files:
        try:
            found = _read_parts(file)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        for name, part in found.items():
            if name in parts:
                raise CheckpointError(
                    f"One {name} is in {parts[name].file} and one in {file}. Keep one of them, or name the "
                    "files of the model in a card.toml (files = [...])."
                )
            parts[name] = part
    missing = [name for name in SIGNS if name not in parts]
    if missing:
        looked = ", ".join(path.name for path in files)
        raise CheckpointError(" ".join([f"No {' and no '.join(missing)} was found in {looked}.", *refused]))
    return parts


def _read_parts(path: Path) -> dict[str, Part]:
    """The networks in one file. Raises CheckpointError where it holds none, or more than them."""
    header = read_weights(path)
    prefixes: dict[str, str] = {}
    for kind, sign in SIGNS.items():
        for match in filter(None, (re.fullmatch(sign, name) for name in header)):
            if match[1] in prefixes or kind in prefixes.values():
                raise CheckpointError(
                    f"{path.name} holds several networks that no prefix tells apart. Give one file for each."
                )
            prefixes[match[1]] = kind
    strays = [name for name in header if not name.startswith(tuple(prefixes)) and not UNUSED.fullmatch(name)]
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in strays):
            raise CheckpointError(f"{path.name} holds {what}, which is no part of Z-Image.")
    if not prefixes:
        known = f"among them {next(iter(header))}" if header else "none at all"
        raise CheckpointError(f"{path.name} holds {len(header)} tensors, {known}, and no network that is known here.")
    if strays:
        raise CheckpointError(
            f"{path.name} holds {strays[0]}, which belongs to none of its networks ({', '.join(prefixes.values())})."
        )
    headers: dict[str, dict[str, HeaderEntry]] = {prefix: {} for prefix in prefixes}
    for name, entry in header.items():
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if prefix is not None:
            headers[prefix][name.removeprefix(prefix)] = entry
    return {kind: part_of(path, prefix, headers[prefix]) for prefix, kind in prefixes.items()}


def read_weights(path: Path) -> Header:
    """What a file of weights holds, by name.

    Raises:
        CheckpointError: it is damaged, of a format that is not read here, or a LoRA.
    """
    try:
        header = read_gguf(path).tensors if is_gguf(path) else read_header(path)
    except CheckpointError:
        _check_magic(path)
        raise
    if any(LORA.search(name) for name in header):
        raise CheckpointError(
            f"{path.name} is a LoRA, not a model. Add it with `hwaga lora add {path.name}` and name it with --lora."
        )
    return header


def part_of(path: Path, prefix: str, header: Header) -> Part:
    """The weights of one network, by their names without the prefix.

    Raises:
        CheckpointError: they are in a format that is not read here.
    """
    return Part(path, prefix, (_blocks if is_gguf(path) else _tensors)(path, prefix, header))


def _check_magic(path: Path) -> None:
    """Raises CheckpointError for files of other formats that weights come in."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return
    if head == b"PK\x03\x04" or head[:1] == b"\x80":
        raise CheckpointError(
            f"{path.name} is a pickle, which can run code when it is opened, or an archive of one. "
            "Hwaga reads safetensors and GGUF: fetch or convert the checkpoint in one of them."
        )


def _blocks(path: Path, prefix: str, header: Header) -> tuple[StoredTensor, ...]:
    """Weights of a GGUF file. Some writers drop the pad tokens' axis of length 1."""
    tensors = []
    for name, (number_format, shape, offset) in header.items():
        stored = FORMATS[number_format]
        size = math.prod(shape) // stored.run_values * stored.run_bytes
        if name.endswith("_pad_token") and len(shape) == 1:
            shape = (1, *shape)
        tensors.append(StoredTensor(prefix + name, path, shape, size, offset, number_format))
    return tuple(tensors)


def _tensors(path: Path, prefix: str, header: Header) -> tuple[StoredTensor, ...]:
    """Weights with their scales.

    ComfyUI's scaled fp8 keeps ``x.scale_weight`` beside ``x.weight``, ``x.scale_input`` for products of fp8 with fp8, which
    are not made here, and a marker named ``scaled_fp8``.
    """
    scales = {name for name in header if name.endswith(".scale_weight")}
    for name in scales:
        weight = header.get(f"{name.removesuffix('scale_weight')}weight")
        if weight is None or weight[0] != SCALED_FORMAT:
            raise CheckpointError(f"{path.name} holds {prefix}{name}, and no weight in {SCALED_FORMAT} that it scales.")
        if header[name][0] not in NUMBER_FORMATS or math.prod(header[name][1]) != 1:
            raise CheckpointError(
                f"{path.name}: {prefix}{name} is {list(header[name][1])} of {header[name][0]} and should be one number."
            )
    tensors = []
    for name, (number_format, shape, offset) in header.items():
        if name in scales or name.endswith(".scale_input") or name == "scaled_fp8":
            continue
        if number_format not in (*NUMBER_FORMATS, SCALED_FORMAT):
            known = ", ".join((*NUMBER_FORMATS, SCALED_FORMAT))
            raise CheckpointError(f"{path.name} stores {prefix}{name} as {number_format}; only {known} are read here.")
        scale = f"{name.removesuffix('weight')}scale_weight" if name.endswith(".weight") else ""
        if number_format == SCALED_FORMAT and "scaled_fp8" in header and scale not in scales:
            raise CheckpointError(f"{path.name} is marked as scaled fp8 and has no scale for {prefix}{name}.")
        size = math.prod(shape) * FORMATS[number_format].run_bytes
        factor = None
        if scale in scales:
            form, _, place = header[scale]
            factor = StoredTensor(prefix + scale, path, (1,), NUMBER_FORMATS[form].run_bytes, place, form)
        tensors.append(StoredTensor(prefix + name, path, shape, size, offset, number_format, factor))
    return tuple(tensors)
