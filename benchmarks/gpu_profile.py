"""Where the time of a picture goes on a GPU: the kernels of the denoising loop, and whether the host ever waits in it.

    python benchmarks/gpu_profile.py [--size 1024x1024] [--precision full] [--folder FOLDER] [--tiny]

Random weights of the full size, as in ``gpu_full.py``. The steps of one picture run under torch's profiler. Between the first
and the last kernel of the loop nothing may synchronise: a step is launched while the one before it computes. The figures go to
``results/gpu_profile.json``.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gpu_full import PROMPT, write_checkpoint
from report import write_report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 8
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA's that the host waits in."""


def kernel(name: str) -> str:
    """A kernel's name without its types and sizes."""
    return name.split("<")[0].split("(")[0].removeprefix("void ")[-60:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--precision", default="full")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-profile"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. This script measures one.")
    if not arguments.folder.exists():
        atexit.register(shutil.rmtree, arguments.folder)
        write_checkpoint(arguments.folder, tiny=arguments.tiny, device="cuda")
        torch.cuda.empty_cache()
    from hwaga import Engine, ImageRequest, Step

    width, height = (int(side) for side in arguments.size.split("x"))
    with Engine.open(arguments.folder, device="cuda", dtype="bfloat16", precision=arguments.precision) as engine:
        for seed in range(3):
            engine.generate(ImageRequest(PROMPT, width=width, height=height, seed=seed, steps=STEPS))
        events = engine.stream(ImageRequest(PROMPT, width=width, height=height, seed=9, steps=STEPS))
        next(events)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for event in events:
                assert isinstance(event, Step)
                if event.index == STEPS - 1:
                    break
            torch.cuda.synchronize()  # ours, to end the measurement
        events.close()  # type: ignore[attr-defined]

    spent, count, waits = Counter[str](), Counter[str](), Counter[str]()
    begin, end = float("inf"), 0.0
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA:
            name = kernel(event.name)
            spent[name] += event.time_range.elapsed_us()
            count[name] += 1
            begin, end = min(begin, event.time_range.start), max(end, event.time_range.end)
        elif event.name.startswith("cuda"):
            waits[event.name] += event.name in WAITS
    steps = STEPS - 2
    figures: dict[str, Any] = {
        "size": arguments.size,
        "precision": arguments.precision,
        "steps": steps,
        "milliseconds_a_step": round((end - begin) / 1000 / steps, 3),
        "busy_milliseconds_a_step": round(sum(spent.values()) / 1000 / steps, 3),
        "kernels_a_step": round(count.total() / steps, 1),
        # One of them is the measurement's own.
        "waits_in_the_loop": {name: number for name, number in waits.items() if number},
        "kernels": {
            name: {"microseconds_a_step": round(spent[name] / steps, 1), "calls_a_step": round(count[name] / steps, 1)}
            for name, _ in spent.most_common(30)
        },
    }
    print(json.dumps(figures, indent=1))
    if not arguments.tiny:
        suffix = "" if arguments.precision == "full" else f"_{arguments.precision}"
        print(write_report(f"gpu_profile{suffix}", figures))


if __name__ == "__main__":
    main()
