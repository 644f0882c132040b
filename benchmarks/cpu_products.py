"""What one core of this CPU multiplies, by way and number format, at the sizes of the bundled model; and attention by way.

    python benchmarks/cpu_products.py [--runs 150]

It measures time that the thread computed, not the clock's, and the fastest of many runs, so that other work on the machine
matters little. The figures go to ``results/cpu_products.json``; choices in ``hwaga/kernels/cpu.py`` and the default number
format rest on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from report import write_report
from torch import Tensor

from hwaga.kernels import cpu
from hwaga.kernels.reference import swiglu

TOKENS, DIM, HIDDEN, HEADS = 288, 336, 896, 7
PRODUCTS = {"qkv": (DIM, 3 * DIM), "out": (DIM, DIM), "gate and up": (DIM, 2 * HIDDEN), "down": (HIDDEN, DIM)}
DTYPES = (torch.float32, torch.bfloat16)


def fastest(call: Callable[[], object], runs: int) -> float:
    """Seconds of the thread."""
    best = float("inf")
    for _ in range(runs):
        start = time.thread_time()
        call()
        best = min(best, time.thread_time() - start)
    return best


def products(runs: int) -> dict[str, Any]:
    """GFLOP/s of each linear layer: torch's own (MKL's in float32), oneDNN's, and oneDNN's with weights packed for it."""
    rows: dict[str, Any] = {}
    for dtype in DTYPES:
        for name, (width, out) in PRODUCTS.items():
            x, weight = torch.randn(TOKENS, width).to(dtype), torch.randn(out, width).to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS)
            seconds = {
                "torch": fastest(lambda x=x, w=weight: F.linear(x, w), runs),
                "onednn": fastest(lambda x=x, w=weight: cpu.product(x, w, None), runs),
                "onednn packed": fastest(lambda x=x, w=packed: cpu.product(x, w, None), runs),
            }
            work = 2 * TOKENS * width * out / 1e9
            rows[f"{name} {_name(dtype)}"] = {way: round(work / taken) for way, taken in seconds.items()}
    return rows


def gated(runs: int) -> dict[str, Any]:
    """Microseconds of the gate's and up's product, silu and their product."""
    rows = {}
    for dtype in DTYPES:
        x, weight = torch.randn(TOKENS, DIM).to(dtype), torch.randn(2 * HIDDEN, DIM).to(dtype)
        apart = fastest(lambda x=x, w=weight: swiglu(F.linear(x, w)), runs)
        at_once = fastest(lambda x=x, w=weight: cpu.gated_product(x, w), runs)
        rows[_name(dtype)] = {"torch": round(apart * 1e6), "in one pass": round(at_once * 1e6)}
    return rows


def attention(runs: int) -> dict[str, Any]:
    """Microseconds of attention, and the root mean square of its error beside that of its result."""
    q, k, v = (torch.randn(1, HEADS, TOKENS, DIM // HEADS) * 2 for _ in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    halves = q.bfloat16(), k.bfloat16(), v.bfloat16()
    ways: dict[str, Callable[[], Tensor]] = {
        "torch float32": lambda: F.scaled_dot_product_attention(q, k, v),
        "torch bfloat16": lambda: F.scaled_dot_product_attention(*halves),
        "scores in float32": lambda: cpu.attend(q, k, halves[2]),
    }
    return {
        name: {
            "microseconds": round(fastest(way, runs) * 1e6),
            "error": float(f"{((way().double() - exact).square().mean() / exact.square().mean()).sqrt().item():.1e}"),
        }
        for name, way in ways.items()
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=150)
    runs = parser.parse_args().runs
    if not all(cpu.has_products(dtype) for dtype in DTYPES):
        raise SystemExit("This CPU has no products of oneDNN's in torch.")
    torch.set_num_threads(1)
    figures = {"gflop_per_second": products(runs), "gated_microseconds": gated(runs), "attention": attention(runs)}
    for name, rows in figures.items():
        for row, values in rows.items():
            print(f"{name:<20}{row:<24}{values}")
    print(write_report("cpu_products", figures))


if __name__ == "__main__":
    main()
