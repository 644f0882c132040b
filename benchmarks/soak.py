"""Hundreds of mixed pictures, one after the other: does memory grow, does swap come in, does it slow down?

    python benchmarks/soak.py [--pictures 500] [--model MODEL] [--device DEVICE] [--vram 22.5GiB] [--full-size]

Sizes, both modes, styles and LoRAs take turns; one in twenty is cancelled midway and one in fifty is refused. After each, what
lies on the device besides weights that stay and what is kept for later is counted: it may not change by a byte once everything
has been met. On a GPU, ``--full-size`` writes random weights of Z-Image Turbo's shape and three LoRAs and uses those. The
figures go to ``results/soak.json``, or ``results/soak_gpu.json`` on a GPU; the exit code is 1 where one is not as it must be.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

from hwaga import Engine, ImageRequest, RequestError, Settings, Step
from hwaga.memory.budget import process_memory

MIB = 2**20
WARM = 20
"""Pictures until everything has been met once: sizes, LoRAs, both modes."""

HOST_DRIFT = 64 * MIB
SLOWER = 1.15
"""Times that the last pictures may take of the first ones."""

PROMPTS = ("a red apple", "a fox on a green background", "파란 배경의 고양이", "a slice of pizza", "노란 꽃")


@dataclass
class Soak:
    """What was seen.

    Attributes:
        outside: bytes on the device after each request, besides the weights that stay and what is kept.
        rss_anon, swap: bytes of the process after each request; empty where there is no /proc.
        seconds: of each picture that was finished.
        counts: requests by how they ended.
    """

    outside: list[int] = field(default_factory=list)
    rss_anon: list[int] = field(default_factory=list)
    swap: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        first, last = self.seconds[WARM:][:50], self.seconds[-50:]
        warm = slice(min(WARM, len(self.outside) - 1), None)
        return {
            "requests": self.counts,
            "device_drift_bytes": max(self.outside[warm]) - min(self.outside[warm]),
            "host_drift_mib": round((max(self.rss_anon[warm]) - self.rss_anon[warm][0]) / MIB, 1) if self.rss_anon else None,
            "host_anonymous_mib": round(self.rss_anon[-1] / MIB) if self.rss_anon else None,
            "swap_bytes": max(self.swap, default=None),
            "seconds_of_first": round(statistics.median(first), 4),
            "seconds_of_last": round(statistics.median(last), 4),
            "last_to_first": round(statistics.median(last) / statistics.median(first), 3),
        }  # fmt: skip


def failures(figures: dict[str, Any], *, timed: bool = True) -> list[str]:
    """What is not as it must be."""
    found = []
    if figures["device_drift_bytes"]:
        found.append(f"{figures['device_drift_bytes']} bytes stayed on the device")
    if (figures["host_drift_mib"] or 0) * MIB > HOST_DRIFT:
        found.append(f"the host's memory grew by {figures['host_drift_mib']} MiB")
    if figures["swap_bytes"]:
        found.append(f"{figures['swap_bytes']} bytes went to swap")
    if timed and figures["last_to_first"] > SLOWER:
        found.append(f"the last pictures took {figures['last_to_first']} times the first")
    return found


def requests(
    engine: Engine, count: int, loras: tuple[str, ...], steps: int | None
) -> Iterator[tuple[str, ImageRequest]]:
    """Requests of a fixed mix, and how each is to end: "made", "cancelled" or "refused"."""
    draw = random.Random(0)
    aspects, styles = list(engine.card.aspects), [None, *engine.card.styles]
    for i in range(count):
        values: dict[str, Any] = {"seed": i, "steps": steps, "aspect": aspects[i % len(aspects)]}
        if i % 3 == 1:
            width, height = engine.card.aspects[aspects[i % len(aspects)]]
            noise = np.random.default_rng(i).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
            values |= {"image": Image.fromarray(noise).resize((width, height)), "strength": 0.5 + 0.1 * (i % 5)}
            del values["aspect"]
        if loras:
            values["loras"] = [loras[i % len(loras)]] if i % 4 else []
        else:
            values["style"] = styles[i % len(styles)]
        end = "refused" if i % 50 == 7 else "cancelled" if i % 20 == 13 else "made"
        if end == "refused":
            values["steps"] = 10**6
        yield end, ImageRequest(draw.choice(PROMPTS), **values)


def live_bytes() -> int:
    """Of all tensors of the CPU that this process holds."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def outside(engine: Engine) -> int:
    """Bytes on the device besides weights that stay and what is kept between requests."""
    placement = engine._placement
    assert placement is not None
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
    else:
        held = live_bytes() - placement.residency.pinned_bytes
    return held - placement.residency.device_bytes - placement.model.kept_bytes


def soak(engine: Engine, count: int, loras: tuple[str, ...] = (), steps: int | None = None) -> Soak:
    """Makes the pictures. Raises AssertionError where one ends in another way than it should."""
    seen = Soak()
    for i, (end, request) in enumerate(requests(engine, count, loras, steps)):
        start = time.perf_counter()
        found = "made"
        try:
            for event in engine.stream(request):
                if end == "cancelled" and isinstance(event, Step) and event.index >= max(event.total // 2, 1):
                    found = "cancelled"
                    break
        except RequestError:
            found = "refused"
        assert found == end, f"request {i} was {found} and should have been {end}"
        seen.counts[end] = seen.counts.get(end, 0) + 1
        if end == "made":
            seen.seconds.append(time.perf_counter() - start)
        seen.outside.append(outside(engine))
        memory = process_memory()
        if memory is not None:
            seen.rss_anon.append(memory.rss_anon)
            seen.swap.append(memory.swap)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device")
    parser.add_argument("--vram", help='most of the GPU, such as "22.5GiB"')
    parser.add_argument("--steps", type=int, help="of each picture; the model's own where left out")
    parser.add_argument("--full-size", action="store_true", help="random weights of the full size instead of a model")
    arguments = parser.parse_args()
    from report import write_report

    with ExitStack() as stack:
        model: Any = arguments.model
        settings, loras = None, tuple[str, ...]()
        if arguments.full_size:
            from gpu_full import write_checkpoint
            from gpu_lora import write_lora

            folder = Path(tempfile.mkdtemp(prefix="soak-"))
            stack.callback(shutil.rmtree, folder)
            device = arguments.device or "cuda"
            write_checkpoint(folder / "model", tiny=False, device=device)
            model, settings, loras = folder / "model", Settings(data_dir=str(folder)), ("a", "b", "c")
            settings.loras.mkdir(parents=True)
            write_loras(folder, loras, device, write_lora)
            gc.collect()
            torch.cuda.empty_cache()
        engine = stack.enter_context(
            Engine.open(model, device=arguments.device, vram=arguments.vram, settings=settings)
        )
        figures = soak(engine, arguments.pictures, loras, arguments.steps).figures()
        assert engine.plan is not None
        figures = {
            "model": "full size, random, bfloat16" if arguments.full_size else engine.card.name,
            "device": engine.device.type,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "vram": arguments.vram,
            "parts": {part.name: part.mode for part in engine.plan.parts},
            "steps": arguments.steps or engine.card.steps,
            **figures,
        }
        wrong = failures(figures)
        for name, value in figures.items():
            print(f"{name:>20}  {value}")
        path = write_report("soak" if engine.device.type == "cpu" else "soak_gpu", {**figures, "failures": wrong})
    print(path)
    print(f"FAILED: {'; '.join(wrong)}." if wrong else f"PASSED: {arguments.pictures} requests, and nothing grew.")
    sys.exit(1 if wrong else 0)


def write_loras(folder: Path, names: tuple[str, ...], device: str, write_lora: Any) -> None:
    """LoRAs of rank 16 over the transformer of a checkpoint, in the folder that they are looked for in."""
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        transformer = ZImageTransformer2DModel()
    for seed, name in enumerate(names):
        write_lora(folder / "loras" / f"{name}.safetensors", transformer, 16, seed, device)


if __name__ == "__main__":
    main()
