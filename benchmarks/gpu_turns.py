"""Z-Image Turbo and SDXL in one process that take turns under caps of GPU memory: what leaves, what a change costs.

    python benchmarks/gpu_turns.py [--caps 22.5 12] [--rounds 6] [--ram SIZE] [--folder FOLDER] [--tiny]

Random weights of the full size, 1024×1024, each model at its default steps and from a prompt of its own each time. In each
round both draw two pictures: the first one after a change of models, and one more. Peaks are held against those that were
foretold, the host's memory against that of the third round, and pictures against those of each model alone, byte for byte,
wherever the plan has the same tiles. ``--tiny`` tries the script with small networks, on a CPU too. The figures go to
``results/gpu_turns.json``; the exit code is 1 where one is not as it must be.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from gpu_full import PROMPT, write_checkpoint
from gpu_sdxl import write_sdxl
from report import spread, write_report

from hwaga import Engine, Engines, ImageRequest
from hwaga.memory.budget import CONTEXT, process_memory

GIB, MIB = 2**30, 2**20
HOST_DRIFT = 64 * MIB


def requests(name: str, rounds: int, *, tiny: bool) -> Iterator[ImageRequest]:
    """Two pictures of each round."""
    size, steps = (256, 2) if tiny else (1024, 8 if name == "z-image" else 40)
    for number in range(2 * rounds):
        yield ImageRequest(f"{PROMPT[:200]} {name} {number}", width=size, height=size, steps=steps, seed=number)


def digest(engine: Engine, request: ImageRequest) -> tuple[str, int | None]:
    """Of a picture and of how it was decoded."""
    made = engine.generate(request).image.tobytes()
    assert engine.plan is not None
    return hashlib.sha256(made).hexdigest()[:12], engine.plan.tile("decode")


def alone(folder: Path, rounds: int, device: str, *, tiny: bool) -> list[tuple[str, int | None]]:
    """The pictures of one model, with the whole device."""
    with Engine.open(folder, device=device) as engine:
        return [digest(engine, request) for request in requests(folder.name, rounds, tiny=tiny)]


def in_turns(
    folders: list[Path],
    expected: dict[str, Any],
    cap: float | None,
    ram: str | None,
    rounds: int,
    device: str,
    *,
    tiny: bool,
) -> dict[str, Any]:
    """Both models under one cap, in GiB of the whole card."""
    cuda = device == "cuda"
    vram = int(cap * GIB) if cap and cuda else None
    rows: dict[str, Any] = {
        folder.name: {
            "changed": [],
            "stayed": [],
            "leaves_gib": [],
            "stays_gib": [],
            "waits_in_ram_gib": [],
            "peak": [],
        }
        for folder in folders
    }
    host, swap, other_bytes = [], [], []
    with Engines.open(folders, device=device, vram=vram, ram=ram) as engines:
        drawn = {folder.name: list(requests(folder.name, rounds, tiny=tiny)) for folder in folders}
        for number in range(0, 2 * rounds, 2):
            for engine in engines:
                name, row = engine.card.name, rows[engine.card.name]
                for place, kind in ((number, "changed"), (number + 1, "stayed")):
                    began = time.perf_counter()
                    result = engine.generate(drawn[name][place])
                    if cuda:
                        torch.cuda.synchronize()
                    row[kind].append(time.perf_counter() - began)
                    plan = engine.plan
                    assert plan is not None
                    sha, tile = expected[name][place]
                    if plan.tile("decode") == tile and hashlib.sha256(result.image.tobytes()).hexdigest()[:12] != sha:
                        other_bytes.append(f"{name} {place}")
                    if kind == "changed":
                        (neighbour,) = plan.neighbours
                        row["leaves_gib"].append(round(neighbour.leaves_bytes / GIB, 2))
                        row["stays_gib"].append(round(neighbour.stays_bytes / GIB, 2))
                        row["waits_in_ram_gib"].append(round(neighbour.pinned_bytes / GIB, 2))
                    if cuda:
                        row["peak"].append((result.memory.peak_vram or 0) / max(plan.peak_vram_bytes, 1))
                    row["predicted_gib"] = round(plan.peak_vram_bytes / GIB, 2)
            memory = process_memory()
            if memory is not None:
                host.append(memory.rss_anon)
                swap.append(memory.swap)
    for row in rows.values():
        row["changed"], row["stayed"] = spread(row["changed"][1:]), spread(row["stayed"][1:])
        row["measured_of_predicted"] = [round(f(row["peak"]), 3) for f in (min, max)] if row["peak"] else None
        del row["peak"]
    gc.collect()
    return {
        "models": rows,
        "other_bytes_than_alone": other_bytes,
        "host_anonymous_mib": [round(bytes / MIB) for bytes in host],
        "swap_bytes": max(swap, default=None),
        "reserved_peak_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if cuda else None,
        "left_after_close_mib": round(torch.cuda.memory_allocated() / MIB, 1) if cuda else None,
    }


def failures(figures: dict[str, Any], cap: float | None) -> list[str]:
    """What is not as it must be."""
    found = [f"{name} is another picture than alone" for name in figures["other_bytes_than_alone"]]
    for name, row in figures["models"].items():
        if row["measured_of_predicted"] and row["measured_of_predicted"][1] > 1:
            found.append(f"{name} took more than was foretold")
    host = figures["host_anonymous_mib"]
    if len(host) > 3 and (host[-1] - host[2]) * MIB > HOST_DRIFT:  # by the third round everything has been met
        found.append(f"the host's memory grew from {host[2]} to {host[-1]} MiB")
    if figures["swap_bytes"]:
        found.append("weights went to swap")
    if cap and figures["reserved_peak_gib"] and figures["reserved_peak_gib"] > cap - CONTEXT / GIB:
        found.append(f"the allocator held {figures['reserved_peak_gib']} GiB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=float, nargs="*", default=[22.5, 12])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--ram", help="most of the host, such as 16GiB")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "turns-random"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device, folder, tiny = "cuda" if torch.cuda.is_available() else "cpu", arguments.folder, arguments.tiny
    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folders = [folder / "z-image", folder / "sdxl"]
    for each, write in zip(folders, (write_checkpoint, write_sdxl), strict=True):
        each.mkdir(parents=True)
        write(each, tiny=tiny, device=device)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    print("checkpoints written", flush=True)
    expected = {each.name: alone(each, arguments.rounds, device, tiny=tiny) for each in folders}
    figures: dict[str, Any] = {
        "weights": "tiny" if tiny else "full size, random",
        "rounds": arguments.rounds,
        "caps_gib": {},
    }
    wrong = []
    for cap in [None, *arguments.caps]:
        found = in_turns(folders, expected, cap, arguments.ram, arguments.rounds, device, tiny=tiny)
        figures["caps_gib"][str(cap or "none")] = found
        wrong += [f"{cap}: {failure}" for failure in failures(found, cap)]
        print(cap, json.dumps(found), flush=True)
    figures["failures"] = wrong
    print(json.dumps(figures, indent=1))
    if not tiny:
        print(write_report("gpu_turns", figures))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
