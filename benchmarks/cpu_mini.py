"""This engine beside diffusers on the bundled model, on the CPU, in one process, picture by picture in turn.

    python benchmarks/cpu_mini.py [--runs 10] [--cold 3]

Warm: seconds per 256×256 picture of 8 steps, prompt to pixels, in both number formats; and the engine in the one that it
chooses against diffusers in its quickest. Cold: wall time of a whole command that makes one picture, this engine's command line
against the shortest diffusers script. Memory: the largest resident size of those processes. The figures go to
``results/cpu_mini.json``.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from report import spread, write_report

MINI = Path(__file__).parent.parent / "src" / "hwaga" / "assets" / "mini"
DTYPES = ("float32", "bfloat16")
PROMPTS = ["a red apple on a yellow background", "파란 배경의 고양이", "a cup of coffee on a mint background"]

DIFFUSERS_SCRIPT = """
import sys, torch
from diffusers import ZImagePipeline
pipe = ZImagePipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(1)
image = pipe(sys.argv[2], height=256, width=256, num_inference_steps=8, guidance_scale=0.0, generator=generator).images[0]
image.save(sys.argv[3])
"""


def diffusers_maker(dtype_name: str) -> Callable[[str, int], Any]:
    """A function that makes a picture of (prompt, seed) with diffusers."""
    import torch
    from diffusers import ZImagePipeline

    dtype = getattr(torch, dtype_name)
    pipe = ZImagePipeline.from_pretrained(MINI, dtype=dtype)
    pipe.text_encoder.to(dtype)
    pipe.set_progress_bar_config(disable=True)

    def make(prompt: str, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return pipe(
            prompt, height=256, width=256, num_inference_steps=8, guidance_scale=0.0, generator=generator
        ).images[0]  # fmt: skip

    return make


def hwaga_maker(dtype_name: str) -> Callable[[str, int], Any]:
    """A function that makes a picture of (prompt, seed) with this engine."""
    from hwaga import Engine, ImageRequest

    engine = Engine.open("mini", device="cpu", dtype=dtype_name)

    def make(prompt: str, seed: int) -> Any:
        engine._opened().model.forget()  # or a prompt that was met before would not be encoded again
        return engine.generate(ImageRequest(prompt, seed=seed)).image

    return make


def warm(runs: int) -> dict[str, Any]:
    """Seconds per picture of both in both formats, in turn, and the median of their ratios, picture by picture."""
    makers = {
        f"{name} {dtype}": make(dtype)
        for dtype in DTYPES
        for name, make in (("hwaga", hwaga_maker), ("diffusers", diffusers_maker))
    }
    for make in makers.values():
        for seed in range(2):
            make(PROMPTS[0], seed)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for run in range(runs):
        for name, make in makers.items():
            start = time.perf_counter()
            make(PROMPTS[run % len(PROMPTS)], run)
            seconds[name].append(time.perf_counter() - start)

    def ratio(ours: str, theirs: str) -> dict[str, Any]:
        pairs = zip(seconds[f"hwaga {ours}"], seconds[f"diffusers {theirs}"], strict=True)
        return {"hwaga": ours, "diffusers": theirs, "times_faster": spread([b / a for a, b in pairs])}

    quickest = min(DTYPES, key=lambda dtype: median(seconds[f"diffusers {dtype}"]))
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "same_format": [ratio(dtype, dtype) for dtype in DTYPES],
        "default_against_best": ratio(default_dtype(), quickest),
    }


def default_dtype() -> str:
    """The number format that the engine chooses on this CPU."""
    from hwaga import Engine

    with Engine.open("mini", device="cpu") as engine:
        return str(engine.dtype).removeprefix("torch.")


def cold(runs: int) -> dict[str, Any]:
    """Wall time and peak resident size of whole processes, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        hwaga = str(Path(sys.executable).with_name("hwaga"))
        commands = {
            "hwaga": [
                hwaga,
                "text2image",
                PROMPTS[0],
                "-m",
                "mini",
                "--device",
                "cpu",
                "--seed",
                "1",
                "-o",
                f"{folder}/a.png",
            ],
            "diffusers": [sys.executable, "-c", DIFFUSERS_SCRIPT, str(MINI), PROMPTS[0], f"{folder}/b.png"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        peaks: dict[str, list[int]] = {name: [] for name in commands}
        for run in range(runs + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                elapsed = time.perf_counter() - start
                if status:
                    raise SystemExit(f"{' '.join(command)} failed")
                if run:  # the first run of each fills the page cache
                    seconds[name].append(elapsed)
                    peaks[name].append(_peak_bytes(usage))
    return {
        name: {"seconds": spread(seconds[name]), "peak_rss_mib": round(max(peaks[name]) / 2**20)} for name in commands
    }


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--cold", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    figures: dict[str, Any] = {"cold_command": cold(arguments.cold), "warm": warm(arguments.runs)}
    for name, row in figures["cold_command"].items():
        print(f"cold {name:<10}{row['seconds']['median']:7.2f} s   peak {row['peak_rss_mib']} MiB")
    for name, row in figures["warm"]["seconds"].items():
        print(f"warm {name:<20}{row['median']:7.3f} s a picture")
    for row in (*figures["warm"]["same_format"], figures["warm"]["default_against_best"]):
        print(f"hwaga {row['hwaga']} {row['times_faster']['median']:.2f} times as fast as diffusers {row['diffusers']}")
    print(write_report("cpu_mini", figures))


if __name__ == "__main__":
    main()
