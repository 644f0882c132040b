"""Hundreds of mixed pictures, one after the other: does memory grow, does swap come in, does it slow down?

    python benchmarks/soak.py [--pictures 500] [--model MODEL] [--device DEVICE] [--vram 22.5GiB] [--full-size | --tiny]

Sizes, both modes, styles and LoRAs take turns, and for models that are drawn with guidance also negative prompts, pictures
without guidance, samplers, weighted words and long prompts; one in twenty is cancelled midway, one in fifty is refused. After
each, what lies on the device besides weights that stay and what is kept for later is counted: it may not change by a byte once
everything has been met.

``--full-size`` writes random weights of the published shape and three LoRAs and uses those: SDXL's with ``--model sdxl``,
Z-Image Turbo's otherwise. ``--tiny`` does the same with small networks, for pictures of a quarter of the size in 4 steps, on a
CPU too. The figures go to ``results/soak.json`` or ``results/soak_sdxl.json``, with ``_gpu`` in the name if they are from one;
the exit code is 1 where one is not as it must be.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

from hwaga import Engine, ImageRequest, ModelCard, RequestError, Settings, Step
from hwaga.memory.budget import process_memory
from hwaga.model_lookup import find_card

MIB = 2**20
WARM = 20
"""Pictures until everything has been met once: sizes, LoRAs, both modes."""

HOST_DRIFT = 64 * MIB
SLOWER = 1.15
"""Times that the last pictures may take of the first ones."""

TINY_STEPS = 4

PROMPTS = ("a red apple", "a fox on a green background", "파란 배경의 고양이", "a slice of pizza", "노란 꽃")
PHRASES = ("a red apple", "a (fox:1.3) on a [green] background", "고양이", f"a street, {'shops, people, ' * 40}rain")
"""For models that read phrases: with weighted words, and in two windows."""

NEGATIVE = "blurry, (text:1.2), watermark"
WORD_STYLES = (None, "realistic", "watercolor")
GUIDED: tuple[dict[str, Any], ...] = (
    {},
    {"negative": NEGATIVE},
    {"guidance": 1.0},
    {"negative": f"{NEGATIVE}, {'fog, haze, ' * 30}", "guidance": 7.5, "sampler": "dpmpp_2m_karras"},
)
"""How models that are drawn with guidance are led, in turn: also from a negative prompt that is longer than the prompt."""


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
    draw, guided = random.Random(0), engine.card.guidance is not None
    aspects, styles = list(engine.card.aspects), [None, *engine.card.styles]
    for i in range(count):
        values: dict[str, Any] = {"seed": i, "steps": steps, "aspect": aspects[i % len(aspects)]}
        if i % 3 == 1:
            width, height = engine.card.aspects[aspects[i % len(aspects)]]
            noise = np.random.default_rng(i).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
            values |= {"image": Image.fromarray(noise).resize((width, height)), "strength": 0.5 + 0.1 * (i % 5)}
            del values["aspect"]
        if guided:
            values |= {"style": WORD_STYLES[i % len(WORD_STYLES)], **GUIDED[i // 5 % len(GUIDED)]}
        if loras:
            values["loras"] = [loras[i % len(loras)]] if i % 4 else []
        elif not guided:
            values["style"] = styles[i % len(styles)]
        end = "refused" if i % 50 == 7 else "cancelled" if i % 20 == 13 else "made"
        if end == "refused":
            values |= {"negative": NEGATIVE, "guidance": 1.0} if guided and i % 100 == 7 else {"steps": 10**6}
        yield end, ImageRequest(draw.choice(PHRASES if guided else PROMPTS), **values)


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
    random_weights = parser.add_mutually_exclusive_group()
    random_weights.add_argument("--full-size", action="store_true", help="random weights of the full size")
    random_weights.add_argument("--tiny", action="store_true", help="random weights of small networks")
    arguments = parser.parse_args()
    if arguments.pictures < 2 * WARM:
        parser.error(f"--pictures must be at least {2 * WARM}: the first {WARM} are what the others are held against")
    from report import write_report

    with ExitStack() as stack:
        settings, loras, weights = Settings.read(), tuple[str, ...](), ""
        card = find_card(arguments.model, settings.models)
        if arguments.full_size or arguments.tiny:
            folder = Path(tempfile.mkdtemp(prefix="soak-"))
            stack.callback(shutil.rmtree, folder)
            settings = replace(settings, data_dir=str(folder))
            device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
            card, loras = write_random(folder, settings, card.family, tiny=arguments.tiny, device=device)
            weights = f"{card.family}, {'tiny' if arguments.tiny else 'full size'}, random"
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
        engine = stack.enter_context(Engine.open(card, device=arguments.device, vram=arguments.vram, settings=settings))
        steps = arguments.steps or (TINY_STEPS if arguments.tiny else None)
        figures = soak(engine, arguments.pictures, loras, steps).figures()
        assert engine.plan is not None
        figures = {
            "model": weights or engine.card.name,
            "device": engine.device.type,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "vram": arguments.vram,
            "parts": {part.name: part.mode for part in engine.plan.parts},
            "steps": steps or engine.card.steps,
            **figures,
        }
        wrong = failures(figures)
        for name, value in figures.items():
            print(f"{name:>20}  {value}")
        name = f"soak{'' if card.family == 'z_image' else f'_{card.family}'}{'' if engine.device.type == 'cpu' else '_gpu'}"
        path = write_report(name, {**figures, "failures": wrong})
    print(path)
    print(f"FAILED: {'; '.join(wrong)}." if wrong else f"PASSED: {arguments.pictures} requests, and nothing grew.")
    sys.exit(1 if wrong else 0)


def write_random(
    folder: Path, settings: Settings, family: str, *, tiny: bool, device: str
) -> tuple[ModelCard, tuple[str, ...]]:
    """Writes a checkpoint with random weights, and LoRAs of rank 16 to where they are looked for: for SDXL of both spellings.

    Returns:
        The model, and the LoRAs' names.
    """
    model, names = folder / "model", ("a", "b", "c")
    settings.loras.mkdir(parents=True)
    model.mkdir()
    files = [settings.loras / f"{name}.safetensors" for name in names]
    if family == "sdxl":
        from gpu_sdxl import write_sdxl, write_sdxl_lora

        write_sdxl(model, tiny=tiny, device=device)
        for seed, file in enumerate(files):
            write_sdxl_lora(file, model, seed, kohya=seed % 2 == 0, device=device)
    else:
        from diffusers import ZImageTransformer2DModel
        from gpu_full import write_checkpoint
        from gpu_lora import write_lora

        write_checkpoint(model, tiny=tiny, device=device)
        with torch.device("meta"):
            config = ZImageTransformer2DModel.load_config(model / "transformer")
            transformer = ZImageTransformer2DModel.from_config(config)
        for seed, file in enumerate(files):
            write_lora(file, transformer, 16, seed, device)
    card = find_card(model, settings.models)
    if tiny:
        aspects = {name: (width // 4, height // 4) for name, (width, height) in card.aspects.items()}
        card = replace(card, aspects=aspects, limits=replace(card.limits, min_side=64))
    return card, names


if __name__ == "__main__":
    main()
