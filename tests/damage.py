"""Damaged files for the readers of weights and cards, and what may come of reading one: an answer, or an error of ours."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gguf_files import write_gguf
from safetensors.torch import save

from hwaga.card_toml import card_toml
from hwaga.cards import ASSETS, ModelCard
from hwaga.errors import HwagaError
from hwaga.weights.gguf_file import read_gguf
from hwaga.weights.hub import RemoteFile
from hwaga.weights.partial_file import finished_ranges
from hwaga.weights.single_file import find_parts
from hwaga.weights.stored import stored_tensors
from hwaga.weights.verified import MARKER, CheckedFile, Verified, condition, verify

NAMES = ("a.cap_pad_token", "b.layers.0.self_attn.q_norm.weight", "c.decoder.conv_in.weight")

NUMBERS = (
    0,
    1,
    2,
    3,
    8,
    9,
    31,
    32,
    255,
    256,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)

VALUES = (
    "0", "-1", "1", "1e400", "nan", "-inf", "true", '""', '"\\u0000"', '"../../x"', "[]", "[[1, 2, 3]]", "{}", "{ a = 1 }",
    "9" * 30, "1979-05-27T07:32:00Z", '"' + "가" * 5000 + '"', "[" * 300 + "]" * 300, "'''", "=", "\n[a]\n", '"mini"',
)  # fmt: skip


def _safetensors() -> list[bytes]:
    tensors = {name: torch.ones(8, 64) for name in NAMES}
    scaled = {
        "a.scaled_fp8": torch.ones(2).to(torch.float8_e4m3fn),
        "a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "a.scale_weight": torch.ones(1),
    }
    fewer = {
        "a.weight_int8": torch.ones(2, 8, dtype=torch.int8),
        "a.weight_int8_scale": torch.ones(2, 1).bfloat16(),
        "b.weight_int4": torch.ones(2, 1, 32, dtype=torch.uint8),
        "b.weight_int4_scale": torch.ones(2, 1, 1).bfloat16(),
        "b.weight_int4_low": torch.ones(2, 1, 1).bfloat16(),
    }
    return [save(tensors), save({**tensors, **scaled}, metadata={"format": "pt"}), save(fewer), save({})]


def _gguf() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed"
        write_gguf(path, {name: torch.ones(1, 256) for name in NAMES}, lambda name, _: "Q4_K" if "0" in name else "F32")
        write_gguf(path.with_name("llama"), {"blk.0.attn_q_norm.weight": torch.ones(3)}, lambda *_: "F32", "qwen3")
        return [path.read_bytes(), path.with_name("llama").read_bytes(), path.read_bytes()[:400]]


def _cards() -> list[bytes]:
    return [path.read_bytes() for path in (*sorted((ASSETS / "cards").glob("*.toml")), ASSETS / "mini" / "card.toml")]


def _download_notes() -> list[bytes]:
    """A marker, and the state of a file that is half there."""
    with tempfile.TemporaryDirectory() as name:
        files = {
            "damaged.json": CheckedFile(90, 64 * "a", 10**18),
            "vae/model.safetensors": CheckedFile(1, 64 * "b", 3),
        }
        Verified("owner/name", 40 * "c", files, ("scheduler/a.json",), ("loras/a.safetensors",)).write(Path(name))
        marker = (Path(name) / MARKER).read_bytes()
    state = {"blob": 64 * "0", "size": 200, "ranges": [[0, 30], [40, 100]]}
    return [marker, json.dumps(state).encode()]


def _verify(path: Path) -> object:
    """As `hwaga models` and `hwaga models verify` do."""
    (path.parent / MARKER).write_bytes(path.read_bytes())
    condition(replace(ModelCard.read(ASSETS / "mini" / "card.toml"), folder=path.parent))
    return list(verify(path.parent))


def _read_state(path: Path) -> object:
    remote = RemoteFile("a", 200, 64 * "0", 64 * "0")
    path.with_name("a.part.json").write_bytes(path.read_bytes())
    path.with_name("a.part").write_bytes(bytes(100))
    ranges = finished_ranges(path.with_name("a"), remote)
    if not all(type(start) is type(end) is int and 0 <= start < end <= 100 for start, end in ranges):
        raise AssertionError(ranges)
    return ranges


def _read_safetensors(path: Path) -> object:
    return stored_tensors([path])


def _read_parts(path: Path) -> object:
    return find_parts([path])


def _read_card(path: Path) -> object:
    """As everything does; and what was read can be written down again, as `hwaga convert` does."""
    card = ModelCard.read(path)
    again = path.with_name("again.toml")
    again.write_text(card_toml(replace(card, files=(), folder=path.parent)), encoding="utf-8")
    if ModelCard.read(again) != replace(card, files=(), folder=path.parent.resolve(), download=None):
        raise AssertionError("another card was written than was read")
    return card


@dataclass(frozen=True)
class Reader:
    """A reader, whole files that it takes, and what the damaged ones are called."""

    seeds: Callable[[], list[bytes]]
    reads: tuple[Callable[[Path], object], ...]
    suffix: str


READERS = {
    "safetensors": Reader(_safetensors, (_read_safetensors, _read_parts), ".safetensors"),
    "gguf": Reader(_gguf, (read_gguf, _read_parts), ".gguf"),
    "download": Reader(_download_notes, (_verify, _read_state), ".json"),
    "card": Reader(_cards, (_read_card,), ".toml"),
}


def damaged(seeds: list[bytes], numbers: random.Random) -> bytes:
    """A whole file with some places overwritten, cut out, doubled or filled with numbers and texts that mean trouble."""
    if numbers.randrange(20) == 0:
        return numbers.randbytes(numbers.randrange(200))
    data = bytearray(numbers.choice(seeds))
    for _ in range(numbers.randint(1, 4)):
        # Headers stand in front: half of the damage goes there.
        at = numbers.randint(0, min(len(data), 300) if numbers.random() < 0.5 else len(data))
        kind = numbers.randrange(12)
        if kind == 0:
            data[at : at + 1] = numbers.randbytes(1)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", numbers.choice(NUMBERS))
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", numbers.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 3:
            del data[at : at + numbers.randint(1, 64)]
        elif kind == 4:
            data[at:at] = data[at : at + numbers.randint(1, 64)]
        elif kind == 5:
            del data[at:]
        else:
            end = next((place for place in range(at, len(data)) if data[place : place + 1] in b"\n,}]"), len(data))
            start = max(data.rfind(mark, 0, at + 1) for mark in (b"=", b":", b"[", b",", b"\n")) + 1
            data[start:end] = numbers.choice(VALUES).encode()
    return bytes(data)


def fuzz(name: str, inputs: int, seed: int, folder: Path) -> Counter[str]:
    """Reads so many damaged files, and counts the answers. Whatever is raised but errors of ours comes through.

    The file that does it is left in the folder, and a run with the same seed makes it again.
    """
    reader, found, numbers = READERS[name], Counter[str](), random.Random(seed)
    seeds, path = reader.seeds(), folder / f"damaged{reader.suffix}"
    for _ in range(inputs):
        path.write_bytes(damaged(seeds, numbers))
        for read in reader.reads:
            try:
                read(path)
                found["read"] += 1
            except HwagaError as error:
                if not str(error):
                    raise AssertionError("an error without a message") from error
                found[type(error).__name__] += 1
    return found
