"""Run by ``test_fused.py`` under TRITON_INTERPRET=1: every fused operation over random shapes; prints how much was compared.

The interpreter drops a carry when it rounds to e4m3: what should become a power of two may come out as half of it or less. Such
codes are left out of the comparison; ``benchmarks/gpu_kernels.py`` compares them all on a GPU.
"""

from __future__ import annotations

import itertools
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwaga.kernels import fused, reference
from hwaga.kernels.coded import Coded, Form, Rows

FORMS = (Form.PLAIN, Form.CODES, Form.BOTH)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-6}
compared = 0


def close(ours: Rows, theirs: Rows, dtype: torch.dtype) -> None:
    global compared
    compared += 1
    if isinstance(ours, Coded):
        assert isinstance(theirs, Coded)
        torch.testing.assert_close(ours.scale, theirs.scale, rtol=ROUNDING[dtype], atol=0)
        carried = ((ours.codes.view(torch.uint8) & 7) == 0) | ((theirs.codes.view(torch.uint8) & 7) == 0)
        a, b = (torch.where(carried, 0, rows.codes.float()) for rows in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=0.13, atol=0.004)  # one code further at the most
        assert (a != b).sum() <= max(3, a.numel() // 10)
        assert (ours.plain is None) == (theirs.plain is None)
        if ours.plain is not None and theirs.plain is not None:
            close(ours.plain, theirs.plain, dtype)
        return
    assert isinstance(theirs, Tensor)
    assert ours.dtype == theirs.dtype == dtype
    largest = theirs.abs().max().float().item() if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * max(largest, 1e-3))


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(0, 9),
    channels=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(ROUNDING)),
    magnitude=st.sampled_from([1e-3, 1.0, 300.0]),
)
def rows(tokens: int, channels: int, seed: int, dtype: torch.dtype, magnitude: float) -> None:
    torch.manual_seed(seed)
    x, update = (magnitude * torch.randn(tokens, channels).to(dtype) for _ in range(2))
    gate, gain = (torch.randn(3, channels).to(dtype) for _ in range(2))
    for row, form in itertools.product((2, torch.randint(0, 3, (tokens,))), FORMS):
        close(fused.gained_norm(x, gain, 1e-5, row, form), reference.gained_norm(x, gain, 1e-5, row, form), dtype)
        for some_gate, some_gain in itertools.product((gate, None), (gain, None)):
            told = (x, update, some_gate, some_gain, 1e-5, row, form if some_gain is not None else Form.PLAIN)
            for ours, theirs in zip(fused.residual_norm(*told), reference.residual_norm(*told), strict=True):
                close(ours, theirs, dtype)
    close(fused.coded(x), reference.coded(x), dtype)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(0, 5),
    hidden=st.integers(1, 2500),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(ROUNDING)),
)
def swiglu(tokens: int, hidden: int, seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    gate_up = torch.randn(tokens, 2 * hidden).to(dtype)
    for form in FORMS:
        close(fused.swiglu(gate_up, form), reference.swiglu(gate_up, form), dtype)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(0, 5),
    queries=st.integers(1, 7),
    kv=st.integers(1, 5),
    dim=st.sampled_from([2, 16, 64, 128]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(ROUNDING)),
)
def heads(tokens: int, queries: int, kv: int, dim: int, seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    qkv = torch.randn(tokens, (queries + 2 * kv) * dim).to(dtype)
    angles = torch.randn(tokens, dim // 2)
    rotation = torch.polar(torch.ones_like(angles), angles)
    weights = torch.randn(dim).to(dtype), torch.randn(dim).to(dtype)
    for gains, halves in itertools.product((None, weights), (False, True)):
        told = ((queries, kv), gains, 1e-5, rotation)
        made = fused.turned_heads(qkv.clone(), *told, halves=halves)
        for ours, theirs in zip(made, reference.turned_heads(qkv.clone(), *told, halves=halves), strict=True):
            close(ours, theirs, dtype)


if __name__ == "__main__":
    with torch.inference_mode():
        rows()
        swiglu()
        heads()
    sys.stdout.write(f"compared {compared}\n")
