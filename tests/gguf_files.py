"""GGUF files for tests, written with the format's own package, and random blocks of every number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

StateDict = dict[str, Tensor]

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where blocks keep their scales, which are float16 and must be finite to stand for weights."""


def kind_of(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def random_rows(name: str, rows: int, width: int, numbers: np.random.Generator, scale: float = 0.01) -> np.ndarray:
    """Packed rows ``[rows, bytes]`` of a format, random in every bit of their codes, with values near ``scale``."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind_of(name)]
    if name not in HALVES:
        values = (numbers.standard_normal((rows, width)) * scale).astype(np.float32)
        return gguf.quantize(values, kind_of(name)).reshape(rows, -1).view(np.uint8)
    blocks = numbers.integers(0, 256, (rows * width // weights, nbytes), dtype=np.uint8)
    for at in HALVES[name]:
        halves = (numbers.standard_normal(len(blocks)) * scale / 100).astype(np.float16)
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    tensors: StateDict,
    choose: Callable[[str, Tensor], str],
    architecture: str = "lumina2",
    metadata: Mapping[str, int] | None = None,
    seed: int = 0,
) -> StateDict:
    """Writes tensors in the formats that ``choose`` names, and returns the values that the file stands for, in float32.

    Formats that the package cannot write (those named K) get random blocks in place of the values.
    """
    numbers = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_token_list([f"word{place}" for place in range(500)])
    for key, value in (metadata or {}).items():
        writer.add_custom_alignment(value) if key == "general.alignment" else writer.add_uint32(key, value)
    stands_for: StateDict = {}
    for name, tensor in tensors.items():
        kind, values = choose(name, tensor), tensor.float().numpy()
        if kind.endswith("_K"):
            packed = random_rows(kind, math.prod(values.shape[:-1]), values.shape[-1], numbers)
            packed = packed.reshape(*values.shape[:-1], -1)
        else:
            packed = gguf.quantize(values, kind_of(kind))
        writer.add_tensor(name, packed, raw_dtype=kind_of(kind))
        meant = gguf.dequantize(np.ascontiguousarray(packed), kind_of(kind)).reshape(values.shape)
        stands_for[name] = torch.from_numpy(meant.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for
