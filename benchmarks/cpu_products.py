"""What one core of this CPU multiplies, by way and number format, at the sizes of the bundled model; and attention by way.

    python benchmarks/cpu_products.py [--runs 150]

It measures time that the thread computed, not the clock's, and the fastest of many runs, so that other work on the machine
matters little. The figures go to ``results/cpu_products.json``; choices in ``hwaga/kernels`` and the default number
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

from hwaga.kernels import avx512, cpu
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
        if avx512.level():
            in_c = fastest(lambda x=x, w=weight: avx512.swiglu(cpu.product(x, w, None)), runs)
            rows[_name(dtype)]["silu in C"] = round(in_c * 1e6)
    return rows


def eight_bits(runs: int) -> dict[str, Any]:
    """GFLOP/s of oneDNN's product of 8-bit integers, without what makes rows of activations into them: Hwaga has none."""
    rows = {}
    for name, (width, out) in PRODUCTS.items():
        x = torch.randint(0, 256, (TOKENS, width), dtype=torch.uint8)
        weight = torch.ops.onednn.qlinear_prepack(
            torch.randint(-127, 128, (out, width), dtype=torch.int8), [TOKENS, width]
        )
        scales, zeros = torch.ones(out), torch.zeros(out, dtype=torch.int32)

        def call(x: Tensor = x, weight: Tensor = weight, scales: Tensor = scales, zeros: Tensor = zeros) -> Tensor:
            made: Tensor = torch.ops.onednn.qlinear_pointwise(
                x, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
            )
            return made

        rows[name] = round(2 * TOKENS * width * out / 1e9 / fastest(call, runs))
    return rows


def between(runs: int) -> dict[str, Any]:
    """Microseconds of what a block does between products: the end of a branch with two norms, norm and rotation of heads."""
    rows = {}
    for dtype in DTYPES:
        x, update, gain = (torch.randn(n, DIM).to(dtype) for n in (TOKENS, TOKENS, 1))
        qkv, head = torch.randn(TOKENS, 3 * DIM).to(dtype), torch.randn(DIM // HEADS).to(dtype)
        angles = torch.randn(TOKENS, DIM // HEADS // 2)
        rotation = torch.polar(torch.ones_like(angles), angles)
        for name, way in {"torch": cpu, "in C": avx512}.items():
            if way is avx512 and avx512.level() < avx512.ALL:
                continue
            ends = fastest(lambda way=way, a=x, b=update, g=gain: way.residual_norm(a, b, g, g, 1e-5), runs)
            turns = fastest(
                lambda way=way, a=qkv, g=head, r=rotation: way.turned_heads(a, (HEADS, HEADS), (g, g), 1e-5, r), runs
            )
            rows[f"{_name(dtype)}, {name}"] = {"residual_norm": round(ends * 1e6), "turned_heads": round(turns * 1e6)}
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
    if avx512.level() == avx512.ALL:
        for dtype, parts in ((torch.float32, (q, k, v)), (torch.bfloat16, halves)):
            packed = [part[0].transpose(0, 1).contiguous() for part in parts]
            ways[f"in C {_name(dtype)}"] = lambda packed=packed: (
                avx512.attend(*packed, 1).unflatten(1, (HEADS, -1)).transpose(0, 1)[None]
            )
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
    figures = {
        "gflop_per_second": products(runs),
        "gflop_per_second_int8": eight_bits(runs),
        "gated_microseconds": gated(runs),
        "between_microseconds": between(runs),
        "attention": attention(runs),
    }
    for name, rows in figures.items():
        for row, values in rows.items():
            print(f"{name:<24}{row:<24}{values}")
    print(write_report("cpu_products", figures))


if __name__ == "__main__":
    main()
