"""The operations of a block on a GPU, one by one: right against the reference? how many microseconds? how near to the floor?

    python benchmarks/gpu_kernels.py [--tiny]

Shapes are those of Z-Image Turbo at 1024² with a prompt of 120 tokens. Fused operations stand beside the plain ones, ways to
compute attention beside each other (with what the first picture of a new size pays), and products of matrices in bfloat16
beside those in 8 bits. The figures go to ``results/gpu_kernels.json``. ``--tiny`` tries the script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())  # what compiling takes is measured too

import torch
import torch.nn.functional as F
from report import write_report
from torch.nn.attention import sdpa_kernel

from hwaga.kernels import fused, reference
from hwaga.kernels.attention import CANDIDATES, quickest
from hwaga.kernels.coded import Coded, Form

DIM, HEADS, HIDDEN = 3840, 30, 10240
DTYPE = torch.bfloat16


def microseconds(work: Callable[[], Any], runs: int = 20) -> float:
    """Median time on the GPU, the caches filled with something else before."""
    flush = torch.empty(2**26, dtype=torch.int32, device="cuda")
    taken = []
    for _ in range(runs + 3):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) * 1000)
    return round(statistics.median(taken[3:]), 1)


def first_seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call, compiling included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return round(time.perf_counter() - start, 4)


def values(rows: Any) -> torch.Tensor:
    """What rows stand for."""
    return rows.codes.float() * rows.scale if isinstance(rows, Coded) else rows.float()


def difference(a: Any, b: Any) -> float:
    """Largest difference, of the largest value."""
    a, b = values(a), values(b)
    return round(((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).item(), 6)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(DTYPE)


def operations(tokens: int) -> dict[str, Any]:
    """Each fused operation beside the plain one."""
    x, update, gain, gate = random(tokens, DIM), random(tokens, DIM), random(2, DIM), random(2, DIM)
    rows = torch.randint(0, 2, (tokens,), device="cuda")
    gate_up, qkv = random(tokens, 2 * HIDDEN), random(tokens, 3 * DIM)
    angles = torch.randn(tokens, 64, device="cuda")
    rotation, gains = torch.polar(torch.ones_like(angles), angles), (random(128), random(128))
    text, text_gains = random(120, (32 + 16) * 128), gains
    cases: dict[str, Callable[[Any], Any]] = {
        "gained_norm": lambda k: k.gained_norm(x, gain, 1e-5, 1),
        "gained_norm, a row for each token": lambda k: k.gained_norm(x, gain, 1e-5, rows),
        "gained_norm, codes": lambda k: k.gained_norm(x, gain, 1e-5, 1, Form.CODES),
        "gained_norm, both": lambda k: k.gained_norm(x, gain, 1e-5, 1, Form.BOTH),
        "residual_norm": lambda k: k.residual_norm(x, update, gate, gain, 1e-5, 1)[1],
        "residual_norm, codes": lambda k: k.residual_norm(x, update, gate, gain, 1e-5, 1, Form.CODES)[1],
        "residual_norm, nothing after": lambda k: k.residual_norm(x, update, gate, None, 1e-5, 1)[0],
        "residual_norm, no gate": lambda k: k.residual_norm(x, update, None, gain, 1e-5, 1)[1],
        "swiglu": lambda k: k.swiglu(gate_up),
        "swiglu, codes": lambda k: k.swiglu(gate_up, Form.CODES),
        "coded": lambda k: k.coded(x),
        "turned_heads": lambda k: torch.cat(k.turned_heads(qkv.clone(), (HEADS, HEADS), gains, 1e-5, rotation), 1),
        "turned_heads, halves": lambda k: torch.cat(
            k.turned_heads(text.clone(), (32, 8), text_gains, 1e-6, rotation[:120], halves=True), 1
        ),
    }
    timed = {
        **cases,
        "turned_heads": lambda k: k.turned_heads(qkv, (HEADS, HEADS), gains, 1e-5, rotation),
        "turned_heads, halves": lambda k: k.turned_heads(text, (32, 8), text_gains, 1e-6, rotation[:120], halves=True),
    }
    figures = {}
    for name, case in cases.items():
        first = first_seconds(lambda case=case: case(fused))
        figures[name] = {
            "difference": difference(case(fused), case(reference)),
            "first_seconds": first,
            "fused_us": microseconds(lambda name=name: timed[name](fused)),
            "reference_us": microseconds(lambda name=name: timed[name](reference)),
        }
        print(tokens, name, figures[name], flush=True)
    # Another number of tokens compiles nothing.
    figures["another_size_first_seconds"] = first_seconds(
        lambda: fused.swiglu(fused.gained_norm(random(tokens - 13, 2 * HIDDEN), random(1, 2 * HIDDEN), 1e-5))  # type: ignore[arg-type]
    )
    return figures


def ways_of_attention(tokens: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for way in CANDIDATES:
        q, k, v = random(1, tokens, 3, HEADS, 128).permute(2, 0, 3, 1, 4).unbind()
        try:
            with sdpa_kernel(way), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)  # noqa: E731
                figures[way.name] = {"first_seconds": first_seconds(call), "us": microseconds(call)}
        except RuntimeError as error:
            figures[way.name] = str(error)[:80]
    print(tokens, figures, flush=True)
    return figures


def products(tokens: int) -> dict[str, Any]:
    """Each product of a block, in bfloat16 and in 8 bits."""
    figures = {}
    for name, width, out in (("qkv", DIM, 3 * DIM), ("out", DIM, DIM), ("w13", DIM, 2 * HIDDEN), ("w2", HIDDEN, DIM)):
        x, weight = random(tokens, width), random(out, width)
        codes = reference.coded(x)
        kept = reference.coded(weight)
        assert isinstance(codes, Coded)
        assert isinstance(kept, Coded)
        figures[name] = {"bfloat16_us": microseconds(lambda x=x, w=weight: F.linear(x, w))}
        if torch.cuda.get_device_capability() >= (8, 9):
            call = lambda a=codes, b=kept: torch._scaled_mm(  # noqa: E731
                a.codes, b.codes.t(), scale_a=a.scale, scale_b=b.scale.t(), out_dtype=DTYPE, use_fast_accum=True
            )
            exact = reference.scaled_product(codes, kept.codes, kept.scale, torch.float32)
            figures[name] |= {
                "fp8_us": microseconds(call),
                "fp8_difference": difference(call(), exact),
                "fp8_to_bfloat16": difference(call(), F.linear(x, weight)),
            }
        print(tokens, name, figures[name], flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. This script measures one.")
    sizes = [96] if arguments.tiny else [4224]
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        for tokens in sizes:
            figures[f"{tokens} tokens"] = {
                "operations": operations(tokens),
                "products": products(tokens),
                "attention": ways_of_attention(tokens),
            }
        for tokens in (120, 1152, 1184, 4225, 16640):
            figures[f"{tokens} tokens"] = {"attention": ways_of_attention(tokens)}
        start = time.perf_counter()
        way = quickest(torch.device("cuda"), DTYPE, 128, True, False, False)
        figures["chosen"] = {"way": way.name if way else None, "seconds": round(time.perf_counter() - start, 3)}
        figures["text_encoder_1152"] = products(120)
    if not arguments.tiny:
        print(write_report("gpu_kernels", figures))


if __name__ == "__main__":
    main()
