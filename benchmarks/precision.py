"""Weights in fewer bits: how like the pictures stay, what memory they take and what time they cost.

    python benchmarks/precision.py [--runs 5] [--prompts 96] [--folder FOLDER]

The bundled model's weights are real, so likeness is measured on its pictures: the same prompts and seeds with whole weights
and with each precision, in float32; "fp8 products" is fp8 as newer GPUs have it, whose products are of 8-bit numbers on both
sides. How often they show what was asked for is judged by ``following.py``. With a GPU, random
weights of the full size tell memory and time at 1024×1024, beside whole weights in the same process. The figures go to
``results/precision.json``, or ``results/precision_gpu.json`` with a GPU.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from following import Judge, score, wishes
from gpu_full import PROMPT, HostWatch, psnr, timed, write_checkpoint
from report import spread, write_report

from hwaga import Engine, ImageRequest
from hwaga.weights.quantize import PRECISIONS

THINGS = [
    "a red apple on a yellow background", "파란 배경의 고양이", "a cup of coffee on a mint background", "햄버거, 주황색 배경",
    "하늘색 배경의 펭귄", "a sunflower on white", "a birthday cake on a brown background", "초록 배경에 자동차",
]  # fmt: skip
SEEDS = (1, 2, 3)
SIDE = 1024


PRODUCTS = "fp8 products"


@contextmanager
def opened(name: str, device: str, dtype: str) -> Iterator[Engine]:
    """The bundled model with its weights kept in a precision. The products of codes are computed in float32 where the device
    has none, and for all widths: the mini's do not suit a GPU's.
    """
    with ExitStack() as patches:
        if name == PRODUCTS:
            patches.enter_context(patch("hwaga.families.z_image.model._codes_pay", lambda *_: True))
            patches.enter_context(patch("hwaga.kernels.operations.multiplies_codes", lambda _: False))
            patches.enter_context(patch("hwaga.weights.quantize.RUN", 1))
        precision = "fp8" if name == PRODUCTS else name
        yield patches.enter_context(Engine.open("mini", device=device, dtype=dtype, precision=precision))


def likeness(device: str) -> dict[str, Any]:
    """PSNR of the mini's pictures to those with whole weights."""
    requests = [ImageRequest(thing, seed=seed) for thing in THINGS for seed in SEEDS]
    with Engine.open("mini", device=device, dtype="float32") as engine:
        whole = [engine.generate(request).image for request in requests]
    rows = {}
    for name in (*PRECISIONS, PRODUCTS):
        with opened(name, device, "float32") as engine:
            values = sorted(psnr(a, engine.generate(r).image) for a, r in zip(whole, requests, strict=True))
        rows[name] = {
            "psnr_db_median": round(float(np.median(values)), 1),
            "psnr_db_worst": values[0],
            "pictures": len(values),
        }
        print(name, rows[name], flush=True)
    return rows


def following(device: str, count: int) -> dict[str, Any]:
    """How often the mini's pictures show what prompts ask for, with whole weights in both number formats and in fewer bits."""
    judge, asked, rows = Judge(), list(wishes(count)), {}
    fewer = [(name, "bfloat16") for name in (*PRECISIONS, PRODUCTS)]
    for name, dtype in (("full", "float32"), ("full", "bfloat16"), *fewer):
        with opened(name, device, dtype) as engine:
            drawn = [(wish, engine.generate(ImageRequest(wish.prompt, seed=i)).image) for i, wish in enumerate(asked)]
        rows[f"{name} {dtype}"] = score(judge, drawn)
        print(name, dtype, rows[f"{name} {dtype}"], flush=True)
    return rows


def cost(folder: Path, runs: int) -> dict[str, Any]:
    """Memory and seconds of a full-size picture with each precision."""
    write_checkpoint(folder, tiny=False, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    rows = {}
    for name in ("full", *PRECISIONS):
        start = torch.cuda.memory_allocated()
        with HostWatch() as watch:
            load, peak, engine = timed(
                lambda n=name: Engine.open(folder, device="cuda", dtype="bfloat16", precision=n), True
            )
        weights = torch.cuda.memory_allocated() - start
        with engine:
            request = ImageRequest(PROMPT, width=SIDE, height=SIDE, seed=1)
            engine.generate(request)
            seconds, works = [], 0
            phases: dict[str, list[float]] = {"encode": [], "denoise": [], "decode": []}
            for _ in range(runs):
                taken, working, result = timed(lambda e=engine, r=request: e.generate(r), True)
                seconds.append(taken)
                works = max(works, working or 0)
                for phase, values in phases.items():
                    values.append(getattr(result.timings, phase))
        rows[name] = {
            "weights_mib": round(weights / 2**20),
            "load_seconds": round(load, 2),
            "load_device_peak_above_weights_mib": round(((peak or 0) - weights) / 2**20),
            "load_host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
            "working_mib": round(works / 2**20),
            "seconds": spread(seconds),
            "phases": {phase: spread(values)["median"] for phase, values in phases.items()},
        }
        del engine, result
        gc.collect()
        torch.cuda.empty_cache()
        print(name, rows[name], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=96, help="for the score of following prompts")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-random"))
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    figures: dict[str, Any] = {"bits": {name: precision.bits for name, precision in PRECISIONS.items()}}
    figures["mini_likeness"] = likeness("cuda" if cuda else "cpu")
    figures["mini_following"] = following("cuda" if cuda else "cpu", arguments.prompts)
    if cuda:
        if arguments.folder.exists():
            raise SystemExit(f"{arguments.folder} exists. Name a folder that can be made and removed again.")
        atexit.register(shutil.rmtree, arguments.folder)
        figures["full_size"] = cost(arguments.folder, arguments.runs)
    print(write_report("precision_gpu" if cuda else "precision", figures))


if __name__ == "__main__":
    main()
