"""Where the time of a picture goes on a CPU, ours and diffusers', and what its multiplications alone would take.

    python benchmarks/cpu_profile.py [--runs 5]

The bundled model, 256×256, 8 steps, prompt to pixels, under torch's profiler: seconds of the calling thread by kind of
operation, the medians over pictures made in turn. The floor of each is its multiplications and additions, counted while it
draws, at the speed that a large product of matrices has on all threads in the same run. The figures go to
``results/cpu_profile.json``.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch
from cpu_mini import DTYPES, PROMPTS, diffusers_maker, hwaga_maker
from report import write_report
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from hwaga.kernels import avx512

KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::linear", "mkldnn::_linear_pointwise"),
    "attention": (
        "hwaga::attend", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::_softmax",
        "aten::scaled_dot_product",
    ),
    "convolutions": (
        "aten::mkldnn_convolution", "aten::convolution", "aten::_convolution", "aten::conv2d", "aten::conv_transpose",
        "aten::slow_conv", "aten::thnn_conv", "mkldnn::_convolution",
    ),
}  # fmt: skip
"""What operations of each kind begin with. All others are passes over memory."""

IN_C = ("attend", "gained_norm", "residual_norm", "turned_heads", "swiglu", "group_norm_silu")
"""Operations of ``avx512``, which torch's profiler does not see by itself."""

PASSES, OUTSIDE = "passes over memory", "outside torch"

SIDE = 2048
"""Of the square matrices that tell the speed."""


def kind(operation: str) -> str:
    return next((name for name, begins in KINDS.items() if operation.startswith(begins)), PASSES)


def gflop_per_second(dtype: torch.dtype) -> float:
    """Of a large product, the best of some."""
    left, right = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best / 1e9


def gflop(make: Callable[[str, int], Any]) -> float:
    """Multiplications and additions of a picture, in thousands of millions."""
    # Those that the counter does not know.
    own = {
        torch.ops.mkldnn._linear_pointwise: _linear,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    }
    # Operations in C multiply what torch's do, and only those are counted.
    without = mock.patch.object(avx512, "_compiled", return_value=(None, avx512.NOTHING))
    with without, FlopCounterMode(display=False, custom_mapping=own) as counter:
        make(PROMPTS[0], 1)
    return counter.get_total_flops() / 1e9


def _linear(x: torch.Size, second: torch.Size, third: Any, *_: Any, **__: Any) -> int:
    """Of oneDNN's product, which has the weight in second place, or in third where another tensor is multiplied in."""
    weight = third if isinstance(third, torch.Size) and len(third) == 2 else second
    return int(2 * x.numel() * weight[0])


def _attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Of ``[B, H, N, D]`` and ``[B, H, M, D]``: scores, and the mean of values by them."""
    return int(4 * query.numel() * key[2])


def seen(name: str) -> Callable[..., Any]:
    """An operation in C, so that the profiler has it by its name."""
    call = getattr(avx512, name)

    def recorded(*arguments: Any, **options: Any) -> Any:
        with record_function(f"hwaga::{name}"):
            return call(*arguments, **options)

    return recorded


def spent(make: Callable[[str, int], Any], seed: int) -> dict[str, float]:
    """Seconds of one picture by kind, and altogether."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        make(PROMPTS[seed % len(PROMPTS)], seed)
        whole = time.perf_counter() - started
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        found[kind(event.key)] += event.self_cpu_time_total / 1e6
    return {**found, OUTSIDE: max(whole - sum(found.values()), 0.0), "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for name in IN_C:
        setattr(avx512, name, seen(name))
    figures: dict[str, Any] = {"gflop_per_second": {}, "pictures": {}}
    for dtype in DTYPES:
        speed = gflop_per_second(getattr(torch, dtype))
        figures["gflop_per_second"][dtype] = round(speed, 1)
        makers = {"hwaga": hwaga_maker(dtype), "diffusers": diffusers_maker(dtype)}
        for make in makers.values():
            make(PROMPTS[0], 0)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
        for seed in range(arguments.runs):
            for name, make in makers.items():
                runs[name].append(spent(make, seed))
        for name, make in makers.items():
            work = gflop(make)
            found = {
                of: round(median(run.get(of, 0.0) for run in runs[name]), 4)
                for of in (*KINDS, PASSES, OUTSIDE, "whole")
            }
            figures["pictures"][f"{name} {dtype}"] = {
                "seconds": found, "gflop": round(work, 1), "floor": round(work / speed, 4),
            }  # fmt: skip
            print(f"{name} {dtype}", figures["pictures"][f"{name} {dtype}"], flush=True)
    print(write_report("cpu_profile", figures))


if __name__ == "__main__":
    main()
