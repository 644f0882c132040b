"""Pictures under caps of GPU memory: where the plan puts the weights, what it foretells, what is measured, what it costs.

    python benchmarks/gpu_memory.py [--caps 22.5 16 12 10 8 6] [--folder FOLDER] [--tiny]

Random weights of Z-Image Turbo's shape, in bfloat16 and as the hub has them (transformer in float32), on one GPU whose
allocator is held to the cap as well. For every cap: three sizes, from a prompt and from a picture, with a LoRA. A picture's
bytes must not depend on the cap. Loading is timed beside reading the files and beside diffusers. The figures go to
``results/gpu_memory.json`` and ``results/gpu_loading.json``. ``--tiny`` tries the script with a small network, on a CPU too.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from gpu_full import PROMPT, HostWatch, context_bytes, open_diffusers, timed, write_checkpoint
from gpu_lora import write_lora
from PIL import Image
from report import write_report

from hwaga import DoesNotFitError, Engine, ImageRequest, Settings
from hwaga.memory.budget import CONTEXT, process_memory

GIB = 2**30
SIZES = {"1024x1024": (1024, 1024, 1), "1536x1536": (1536, 1536, 1), "1344x768 x4": (1344, 768, 4)}


def requests(size: tuple[int, int, int], kind: str, start: Any, seed: int) -> list[ImageRequest]:
    """A batch of a kind."""
    width, height, count = size
    extra: dict[str, Any] = {"image2image": {"image": start, "strength": 0.6}, "with LoRA": {"loras": ("one",)}}.get(
        kind, {}
    )
    return [
        ImageRequest(f"{PROMPT}, {kind} {width} {i}", width=width, height=height, seed=seed + i, **extra)
        for i in range(count)
    ]


def under_cap(
    folder: Path, cap: float, settings: Settings, device: str, sizes: dict[str, Any], runs: int
) -> dict[str, Any]:
    """All pictures under one cap, in GiB of the whole card; what CUDA itself takes is off it."""
    cuda = device == "cuda"
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap * GIB - CONTEXT) / total))
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    start = Image.fromarray(values).resize((512, 512), Image.Resampling.BICUBIC)
    rows: dict[str, Any] = {}
    began = time.perf_counter()
    with (
        HostWatch() as watch,
        Engine.open(
            folder,
            device=device,
            dtype="bfloat16",
            precision="full",
            vram=int(cap * GIB) if cuda else None,
            settings=settings,
        ) as engine,
    ):
        loaded = time.perf_counter() - began
        for name, size in sizes.items():
            for kind in ("text2image", "image2image", "with LoRA"):
                row: dict[str, Any] = {}
                try:
                    batch = requests(size, kind, start, 7)
                    taken = []
                    for run in range(runs):
                        # A prompt of its own each time, or it would not be encoded again.
                        again = [each.replace(prompt=f"{each.prompt} {run}") for each in batch]
                        if cuda:
                            torch.cuda.synchronize()
                        t = time.perf_counter()
                        results = engine.generate_many(again)
                        taken.append(time.perf_counter() - t)
                    plan = engine.plan
                    assert plan is not None
                    row = {
                        "modes": {part.name: f"{part.mode} {len(part.stays)}" for part in plan.parts},
                        "tile": plan.tile("decode"),
                        "moved_gib": round(plan.moved_bytes / GIB, 2),
                        "pinned_gib": round(plan.pinned_bytes / GIB, 2),
                        "predicted_gib": round(plan.peak_vram_bytes / GIB, 3),
                        "seconds": round(min(taken), 3),
                        "first_seconds": round(taken[0], 3),
                        "phases": {
                            p: round(getattr(results[0].timings, p), 3) for p in ("encode", "denoise", "decode")
                        },
                        "bytes": hashlib.sha256(b"".join(r.image.tobytes() for r in results)).hexdigest()[:12],
                        "predicted_ram_mib": round(plan.peak_ram_bytes / 2**20),
                        "rss_anon_mib": round((results[0].memory.rss_anon or 0) / 2**20),
                        "swap_mib": round((results[0].memory.swap or 0) / 2**20),
                    }
                    if cuda:
                        row |= {
                            "measured_gib": round((results[0].memory.peak_vram or 0) / GIB, 3),
                            "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
                        }
                        row["measured_of_predicted"] = round(row["measured_gib"] / row["predicted_gib"], 3)
                except (DoesNotFitError, torch.OutOfMemoryError) as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                rows[f"{name} {kind}"] = row
                print(cap, name, kind, json.dumps(row), flush=True)
    if cuda:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "load_seconds": round(loaded, 2),
        "host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
        "pictures": rows,
        "left_after_close_mib": round(torch.cuda.memory_allocated() / 2**20, 1) if cuda else None,
    }


def read_files(folder: Path, threads: int) -> float:
    """Seconds to read all weight files into one buffer of a thread each, and nothing else."""
    files = sorted(folder.rglob("*.safetensors"))
    step = 16 * 2**20
    places = [(path, start) for path in files for start in range(0, path.stat().st_size, step)]
    handles = {path: os.open(path, os.O_RDONLY) for path in files}
    buffers = [bytearray(step) for _ in range(threads)]

    def read(worker: int) -> None:
        for path, start in places[worker::threads]:
            os.preadv(handles[path], [buffers[worker]], start)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    seconds = time.perf_counter() - began
    for handle in handles.values():
        os.close(handle)
    return seconds


def loading(folder: Path, device: str) -> dict[str, Any]:
    """Seconds and host memory to bring all weights to the device, warm page cache."""
    rows: dict[str, Any] = {}
    read_files(folder, 8)
    rows["read_files_8_threads_seconds"] = round(min(read_files(folder, 8) for _ in range(2)), 2)
    rows["read_files_1_thread_seconds"] = round(read_files(folder, 1), 2)
    for name, opens in (
        ("hwaga", lambda: Engine.open(folder, device=device, dtype="bfloat16", precision="full")),
        ("diffusers", lambda: open_diffusers(folder, device)),
    ):
        ctypes.CDLL(None).malloc_trim(0)
        with HostWatch() as watch:
            seconds, _, opened = timed(opens, device == "cuda")
        rows[name] = {
            "seconds": round(seconds, 2),
            "host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
        }
        if name == "hwaga":
            opened.close()
        del opened
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(name, rows[name], flush=True)
    return rows


def as_float32(folder: Path, target: Path) -> None:
    """The same checkpoint with the transformer in float32, as the hub has it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(folder, target, ignore=lambda at, names: names if Path(at).name == "transformer" else [],
                    copy_function=os.link)  # fmt: skip
    (target / "transformer").mkdir(exist_ok=True)
    for path in (folder / "transformer").iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                save_file(
                    {key: file.get_tensor(key).float() for key in list(file.keys())}, target / "transformer" / path.name
                )
        else:
            shutil.copy(path, target / "transformer" / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=float, nargs="+", default=[70, 22.5, 16, 12, 10, 8, 6])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-random"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", choices=("caps", "loading"), help="one half of the figures")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = arguments.folder
    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint = folder / "bfloat16"
    checkpoint.mkdir(parents=True)
    write_checkpoint(checkpoint, tiny=arguments.tiny, device=device)
    settings = Settings(data_dir=str(folder / "data"))
    settings.loras.mkdir(parents=True)
    with torch.device("meta"):
        network = ZImageTransformer2DModel(**ZImageTransformer2DModel.load_config(checkpoint / "transformer"))
    write_lora(settings.loras / "one.safetensors", network, 16, seed=1, device=device)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    print("checkpoint written", flush=True)
    figures: dict[str, Any] = {"weights": "tiny" if arguments.tiny else "full size, random, bfloat16"}
    process = process_memory()
    figures["rss_anon_before_mib"] = round((process.rss_anon if process else 0) / 2**20)
    if device == "cuda" and (context := context_bytes()):
        figures["context_mib"] = round(context / 2**20)
    sizes = {"256x256": (256, 256, 1), "256x256 x2": (256, 256, 2)} if arguments.tiny else SIZES
    figures["caps_gib"] = {}
    for cap in [] if arguments.only == "loading" else arguments.caps:
        figures["caps_gib"][str(cap)] = under_cap(checkpoint, cap, settings, device, sizes, arguments.runs)
    figures["same_bytes_under_every_cap"] = {
        name: len({rows["pictures"][name].get("bytes") for rows in figures["caps_gib"].values()
                   if rows["pictures"][name].get("tile") is None}) == 1
        for name in next(iter(figures["caps_gib"].values()), {"pictures": {}})["pictures"]
    }  # fmt: skip
    if device == "cuda" and (context := context_bytes()):
        figures["context_after_mib"] = round(context / 2**20)
    print(json.dumps(figures, indent=1))
    if not arguments.tiny and arguments.only != "loading":
        print(write_report("gpu_memory", figures))
    if arguments.only != "caps":
        figures = {"weights": figures["weights"]}
        figures["loading_bfloat16"] = loading(checkpoint, device)
        as_float32(checkpoint, folder / "float32")
        figures["loading_float32_transformer"] = loading(folder / "float32", device)
        print(json.dumps(figures, indent=1))
        if not arguments.tiny:
            print(write_report("gpu_loading", figures))


if __name__ == "__main__":
    main()
