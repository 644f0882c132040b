"""What it takes the host to launch our operations on a GPU: through Triton's JIT, and past it by ``hwaga.kernels.launcher``.

    python benchmarks/gpu_launch.py [--runs 9] [--folder FOLDER] [--tiny]

First each operation alone, at the sizes of the text encoder and of a step at 512×512: microseconds of the host for a call, most
of them one launch, with as many calls in a row as the GPU's queue takes. ``without a launch`` is what such a call takes for all
else: tensors to write to, and Python. Then prompts and pictures of 512×512 as a user has them, with random weights of the full
size. Both ways take turns in one process, and have to give the same bits: the exit code is 1 where they do not. The
figures go to ``results/gpu_launch.json``.

A folder that exists is taken for a checkpoint, as ``gpu_full.py`` writes it; another is written and removed again.
``--tiny`` tries the script with a small network; on a CPU too, where ``TRITON_INTERPRET=1`` has to be set: operations alone are
then the interpreter's, and pictures are drawn as on any CPU.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import triton
from gpu_full import PROMPT, write_checkpoint
from report import spread, write_report
from torch import Tensor

from hwaga import Engine, ImageRequest, Result
from hwaga.kernels import fused
from hwaga.kernels.coded import Coded, Form
from hwaga.kernels.launcher import Launcher

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
JIT, OURS, NONE = "jit", "ours", "without a launch"
QUEUE = 200
"""Calls in a row: few enough that the host should not have to wait for the GPU's queue."""

PROMPT_TOKENS, STEP_TOKENS = 120, 1024 + 128
OURS_IN_PLACE = Launcher.__getitem__


@contextmanager
def launching(way: str) -> Iterator[None]:
    """Launches by one of the ways."""
    ways: dict[str, Callable[[Any, tuple[int, ...]], Any]] = {
        JIT: lambda launcher, grid: launcher.kernel[grid],
        OURS: OURS_IN_PLACE,
        NONE: lambda *_: lambda *_, **__: None,
    }
    Launcher.__getitem__ = ways[way]  # type: ignore[method-assign]
    try:
        yield
    finally:
        Launcher.__getitem__ = OURS_IN_PLACE  # type: ignore[method-assign]


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).bfloat16()


def text_operations(tokens: int, hidden: int, width: int, heads: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """What a layer of the text encoder calls."""
    x, update, gain, gate_up = (
        random(tokens, hidden),
        random(tokens, hidden),
        random(1, hidden),
        random(tokens, 2 * width),
    )
    qkv, gains = random(tokens, (heads[0] + 2 * heads[1]) * 128), (random(128), random(128))
    rotation = torch.polar(torch.ones(tokens, 64), torch.randn(tokens, 64)).to(DEVICE)
    return {
        "gained_norm": lambda: fused.gained_norm(x, gain, 1e-6),
        "residual_norm": lambda: fused.residual_norm(x, update, None, gain, 1e-6),
        "swiglu": lambda: fused.swiglu(gate_up),
        "turned_heads": lambda: fused.turned_heads(qkv, heads, gains, 1e-6, rotation, halves=True),
    }


def step_operations(tokens: int, dim: int, hidden: int, *, codes: bool) -> dict[str, Callable[[], Any]]:
    """What a block of the transformer calls, with weights in bfloat16 and in fp8."""
    x, update, gain, gate = random(tokens, dim), random(tokens, dim), random(8, dim), random(8, dim)
    gate_up, qkv, gains = random(tokens, 2 * hidden), random(tokens, 3 * dim), (random(128), random(128))
    rotation = torch.polar(torch.ones(tokens, 64), torch.randn(tokens, 64)).to(DEVICE)
    heads = dim // 128, dim // 128
    calls: dict[str, Callable[[], Any]] = {
        "residual_norm": lambda: fused.residual_norm(x, update, gate, gain, 1e-5, 3),
        "swiglu": lambda: fused.swiglu(gate_up),
        "turned_heads": lambda: fused.turned_heads(qkv, heads, gains, 1e-5, rotation),
    }
    if codes:
        calls |= {
            "residual_norm, codes": lambda: fused.residual_norm(x, update, gate, gain, 1e-5, 3, Form.CODES),
            "swiglu, codes": lambda: fused.swiglu(gate_up, Form.CODES),
            "coded": lambda: fused.coded(x),
        }
    return calls


def bits(made: Any) -> list[Tensor]:
    """Copies of all that an operation has returned, as bytes."""
    if isinstance(made, Tensor):
        return [made.contiguous().clone().view(torch.uint8)]
    parts = [part for part in made if part is not None] if isinstance(made, (tuple, Coded)) else []
    return [tensor for part in parts for tensor in bits(part)]


def microseconds(call: Callable[[], Any], calls: int) -> float:
    """Of the host, for one of so many calls."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    taken = time.perf_counter() - start
    synchronize()
    return taken / calls * 1e6


def measured(cases: dict[str, Callable[[], Any]], runs: int, calls: int, wrong: list[str]) -> dict[str, Any]:
    """Each case by all ways in turn."""
    figures: dict[str, Any] = {}
    for name, call in cases.items():
        made = {}
        for way in (JIT, OURS):
            with launching(way):
                call()  # compiles
                made[way] = bits(call()) if name != "turned_heads" else []
        if len(made[JIT]) != len(made[OURS]) or not all(map(torch.equal, made[JIT], made[OURS])):
            wrong.append(f"{name} gives other bits")
        taken: dict[str, list[float]] = {way: [] for way in (JIT, OURS, NONE)}
        for run in range(runs):
            for way in sorted(taken, reverse=run % 2 == 1):
                with launching(way):
                    taken[way].append(microseconds(call, calls))
        figures[name] = {way: spread(values) for way, values in taken.items()}
        print(name, {way: row["median"] for way, row in figures[name].items()}, flush=True)
    return figures


def same_heads(wrong: list[str]) -> None:
    """``turned_heads`` works in place, so that each way has to have an input of its own."""
    qkv, gains = random(24, 3 * 256), (random(128), random(128))
    rotation = torch.polar(torch.ones(24, 64), torch.randn(24, 64)).to(DEVICE)
    made = {}
    for way in (JIT, OURS):
        with launching(way):
            for _ in range(2):  # our way goes through the JIT the first time
                made[way] = bits(fused.turned_heads(qkv.clone(), (2, 2), gains, 1e-5, rotation))
    if not all(map(torch.equal, made[JIT], made[OURS])):
        wrong.append("turned_heads gives other bits")


def pictures(folder: Path, precision: str, runs: int, wrong: list[str], *, tiny: bool) -> dict[str, Any]:
    """Prompts that are new and pictures of them, by both ways in turn."""
    taken: dict[str, dict[str, list[float]]] = {way: {"encode": [], "denoise": [], "total": []} for way in (JIT, OURS)}
    side, steps = (256, 2) if tiny else (512, 8)
    with Engine.open(folder, device=DEVICE, dtype="bfloat16", precision=precision) as engine:

        def drawn(way: str, request: ImageRequest) -> Result:
            engine._placement.model.captions.clear()  # type: ignore[union-attr]
            with launching(way):
                return engine.generate(request)

        for run in range(-2, runs):
            request = ImageRequest(f"{PROMPT}, number {run + 10}", width=side, height=side, steps=steps, seed=run + 10)
            made = {}
            for way in sorted(taken, reverse=run % 2 == 1):
                result = drawn(way, request)
                made[way] = result.image.tobytes()
                if run >= 0:
                    for phase, seconds in taken[way].items():
                        seconds.append(getattr(result.timings, phase) * 1000)
            if made[JIT] != made[OURS]:
                repeats = drawn(JIT, request).image.tobytes() == made[JIT]
                doubt = "" if repeats else ", and so has the JIT's own when it is drawn again"
                wrong.append(f"{precision}: picture {run} has other bits{doubt}")
    figures = {way: {phase: spread(values) for phase, values in phases.items()} for way, phases in taken.items()}
    print(precision, {way: {phase: row[phase]["median"] for phase in row} for way, row in figures.items()}, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-launch"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    tiny, runs = arguments.tiny, 2 if arguments.tiny else arguments.runs
    if not CUDA:
        if not tiny or os.environ.get("TRITON_INTERPRET") != "1":
            raise SystemExit("There is no GPU here. To try the script, set TRITON_INTERPRET=1 and give --tiny.")
    elif not isinstance(fused._rows_kernel, Launcher):
        raise SystemExit(
            f"All launches are the JIT's: Triton {triton.__version__} is not known, or HWAGA_JIT_LAUNCHES is set."
        )
    codes = CUDA and torch.cuda.get_device_capability() >= (8, 9)
    wrong: list[str] = []
    figures: dict[str, Any] = {"triton": triton.__version__, "wrong": wrong}

    def keep(name: str, found: dict[str, Any]) -> None:
        figures[name] = found
        if not tiny:
            write_report("gpu_launch", figures)  # what there is, should the machine be taken away

    with torch.inference_mode():
        torch.manual_seed(0)
        same_heads(wrong)
        text = text_operations(8, 64, 128, (2, 1)) if tiny else text_operations(PROMPT_TOKENS, 2560, 9728, (32, 8))
        step = step_operations(*((8, 256, 512) if tiny else (STEP_TOKENS, 3840, 10240)), codes=codes)
        calls = 2 if tiny else QUEUE
        keep("microseconds a call, text encoder", measured(text, runs, calls, wrong))
        keep("microseconds a call, 512x512", measured(step, runs, calls, wrong))
        del text, step
    if not arguments.folder.exists():
        atexit.register(shutil.rmtree, arguments.folder, ignore_errors=True)
        write_checkpoint(arguments.folder, tiny=tiny, device=DEVICE)
    if CUDA:
        torch.cuda.empty_cache()
    for precision in ("full", "fp8") if codes else ("full",):
        keep(f"milliseconds, {precision}", pictures(arguments.folder, precision, runs, wrong, tiny=tiny))
    print(json.dumps(figures), flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
