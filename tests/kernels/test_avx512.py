"""The operations in C against the reference in float64 or torch's own, over random shapes."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwaga.kernels import avx512, image_ops, operations, reference
from hwaga.kernels.attention import attention

DTYPES = [torch.float32, torch.bfloat16]
EXACT = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""What a number may be off by, as a share of it or of one: rounding of the result, little else."""

runs_here = pytest.mark.skipif(not avx512.level(), reason="not compiled, or a CPU without AVX-512")
dots_here = pytest.mark.skipif(avx512.level() < avx512.ALL, reason="not compiled, or a CPU without AVX-512's bfloat16")
dtypes = pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=dots_here)], ids=str)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, wanted: Tensor, times: float = 1.0) -> None:
    bound = EXACT[found.dtype] * times
    torch.testing.assert_close(found.double(), wanted.double(), rtol=bound, atol=bound)


def flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text().partition("flags")[2].partition("\n")[0].split()) if info.exists() else set()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="for Linux on x86-64 with a C compiler",
)
def test_it_is_compiled_where_it_can_be() -> None:
    module, level = avx512._compiled()
    assert module is not None, "install the package again: make install"
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags()
    assert level == (0 if not wide else 2 if "avx512_bf16" in flags() else 1)


@runs_here
def test_threads_are_torchs() -> None:
    # Two runtimes of OpenMP would each have a thread for every core, which take turns.
    maps = Path("/proc/self/maps").read_text().split("\n")
    assert len({line.split()[-1] for line in maps if "libgomp" in line or "libiomp" in line}) == 1


@runs_here
@dtypes
@given(st.data())
@settings(max_examples=60)
def test_norms(dtype: torch.dtype, data: st.DataObject) -> None:
    tokens, channels = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 200))
    rows = data.draw(st.integers(1, 3))
    x, update = numbers(tokens, channels, dtype=dtype), numbers(tokens, channels, dtype=dtype, seed=1)
    factors = numbers(rows, 4 * channels, dtype=dtype, seed=2).chunk(4, dim=1)  # rows that do not lie side by side
    gate, gain = (data.draw(st.sampled_from([None, factors[i]])) for i in (1, 2))
    row = data.draw(st.one_of(st.integers(0, rows - 1), st.just(torch.arange(tokens) % rows)))
    assert avx512.can_run(x, update, gate, gain)
    total, normed = avx512.residual_norm(x, update, gate, gain, 1e-5, row)
    wide = [None if each is None else each.double() for each in (x, update, gate, gain)]
    close(total, reference.residual_norm(*wide, 1e-5, row)[0], 4)
    if gain is None:
        assert normed is total
        return
    # The norm is of the sum as it was rounded.
    close(normed, reference.gained_norm(total.double(), gain.double(), 1e-5, row), 4)
    close(avx512.gained_norm(x, gain, 1e-5, row), reference.gained_norm(x.double(), gain.double(), 1e-5, row), 4)


@runs_here
@dtypes
@given(st.integers(0, 70), st.integers(1, 200))
@settings(max_examples=40)
def test_swiglu(dtype: torch.dtype, tokens: int, hidden: int) -> None:
    gate_up = numbers(tokens, 2 * hidden, dtype=dtype) * 5
    close(avx512.swiglu(gate_up), reference.swiglu(gate_up.double()), 4)


@runs_here
def test_swiglu_at_the_ends() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("inf"), float("nan")])
    found = avx512.swiglu(torch.cat([gate, torch.ones(9)])[None])[0]
    torch.testing.assert_close(found, F.silu(gate), equal_nan=True, atol=1e-30, rtol=1e-5)


@runs_here
@dtypes
@pytest.mark.parametrize("normed", [True, False])
@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([16, 32, 48, 64, 128]))
@settings(max_examples=25)
def test_turned_heads(dtype: torch.dtype, normed: bool, tokens: int, heads: int, width: int) -> None:
    qkv = numbers(tokens, 3 * heads * width, dtype=dtype)
    gains = (numbers(width, dtype=dtype, seed=1), numbers(width, dtype=dtype, seed=2)) if normed else None
    angle = numbers(tokens, width // 2, dtype=torch.float32, seed=3)
    rotation = torch.polar(torch.ones_like(angle), angle)
    assert avx512.turns(qkv, (heads, heads), gains)
    wide = None if gains is None else (gains[0].double(), gains[1].double())
    wanted = reference.turned_heads(qkv.double(), (heads, heads), wide, 1e-5, rotation)
    for found, expected in zip(
        avx512.turned_heads(qkv.clone(), (heads, heads), gains, 1e-5, rotation), wanted, strict=True
    ):
        close(found, expected, 8)


@runs_here
@dtypes
@given(st.integers(1, 150), st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 32, 48, 64, 80, 128]))
@settings(max_examples=40)
def test_attention(dtype: torch.dtype, tokens: int, runs: int, heads: int, width: int) -> None:
    q, k, v = numbers(runs * tokens, 3 * heads, width, dtype=dtype).split(heads, dim=1)  # as turned_heads leaves them
    assert avx512.attends(q, k, v)
    found = attention(q, k, v, (tokens,) * runs)
    for run, own in enumerate(found.split(tokens)):
        parts = (each[run * tokens : (run + 1) * tokens].transpose(0, 1).double() for each in (q, k, v))
        wanted = F.scaled_dot_product_attention(*parts).transpose(0, 1).flatten(1)
        close(own, wanted, 2)


@runs_here
@dtypes
def test_attention_of_runs_of_other_lengths(dtype: torch.dtype) -> None:
    q, k, v = numbers(90, 6, 48, dtype=dtype).split(2, dim=1)
    found = attention(q, k, v, (50, 40))
    assert torch.equal(found, torch.cat([attention(*(each[part] for each in (q, k, v)), (n,)) for part, n in (
        (slice(0, 50), 50), (slice(50, 90), 40))]))  # fmt: skip


@runs_here
@dtypes
def test_attention_to_one_of_many(dtype: torch.dtype) -> None:
    """Scores that are far apart, and large: all of the weight is on one key."""
    k = torch.zeros(64, 1, 16, dtype=dtype)
    k[37] = 100
    q, v = torch.full_like(k, 100), numbers(64, 1, 16, dtype=dtype)
    assert torch.equal(attention(q, k, v, (64,)), v[37:38, 0].expand(64, -1))


@runs_here
def test_what_is_no_number_stays_none() -> None:
    x = numbers(4, 1, 16, dtype=torch.float32)
    x[2, 0, 3] = float("nan")
    assert attention(x, x, x, (4,)).isnan().all()
    assert avx512.gained_norm(x[:, 0], torch.ones(1, 16), 1e-5).isnan().any(1).tolist() == [False, False, True, False]
    half = avx512.gained_norm(x[:, 0].bfloat16(), torch.ones(1, 16).bfloat16(), 1e-5)
    assert half.isnan().all(1).tolist() == [False, False, True, False]


@runs_here
@dtypes
@given(st.data())
@settings(max_examples=40)
def test_group_norm(dtype: torch.dtype, data: st.DataObject) -> None:
    groups, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    batch, height, columns = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 13)), data.draw(st.integers(2, 13))
    channels = groups * width
    x, residual = (
        (numbers(batch, channels, height, columns, dtype=dtype, seed=seed) + 3).contiguous(
            memory_format=torch.channels_last
        )
        for seed in range(2)
    )
    weight, bias = numbers(channels, dtype=dtype, seed=2), numbers(channels, dtype=dtype, seed=3)
    silu = data.draw(st.booleans())
    assert avx512.norms(x, residual, weight, bias)
    total, normed = image_ops.add_group_norm_silu(
        x.clone(memory_format=torch.preserve_format), residual, None, groups, weight, bias, 1e-6, silu=silu
    )
    assert torch.equal(total, x + residual)
    wanted = reference.group_norm_silu(total.double(), groups, weight.double(), bias.double(), 1e-6, silu=silu)
    close(normed, wanted, 8)
    in_place = image_ops.group_norm_silu(total, groups, weight, bias, 1e-6, silu=silu)
    assert in_place.data_ptr() == total.data_ptr()
    assert torch.equal(in_place, normed)


@runs_here
def test_as_many_threads_as_there_are_give_the_same() -> None:
    x = numbers(300, 21, 48, dtype=torch.float32)
    parts = x.split(7, dim=1)
    picture = numbers(2, 24, 40, 40, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    ones = torch.ones(24)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = torch.empty_like(picture)
            avx512.group_norm_silu(picture, None, 8, ones, ones, 1e-6, silu=True, out=out)
            found.append((attention(*parts, (300,)), avx512.swiglu(x.flatten(1)[:, :1000].contiguous()), out))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@runs_here
def test_infinity_is_not_hidden() -> None:
    x = torch.zeros(1, 16, 10, 10).contiguous(memory_format=torch.channels_last)
    x[0, 3, 5, 5] = float("inf")
    ones = torch.ones(16)
    found = image_ops.group_norm_silu(x.clone(memory_format=torch.preserve_format), 4, ones, ones, 1e-6, silu=False)
    wanted = reference.group_norm_silu(x, 4, ones, ones, 1e-6, silu=False)
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_no_memory_is_said_as_torch_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(avx512, "_compiled", lambda: (SimpleNamespace(attend=fails, norm_pictures=fails), avx512.ALL))
    x, ones = torch.zeros(4, 1, 16), torch.ones(16)
    with pytest.raises(torch.OutOfMemoryError):
        avx512.attend(x, x, x, 1)
    picture = torch.zeros(1, 16, 2, 2).contiguous(memory_format=torch.channels_last)
    with pytest.raises(torch.OutOfMemoryError):
        avx512.group_norm_silu(picture, None, 4, ones, ones, 1e-6, silu=True, out=picture)


@runs_here
def test_of_another_source_it_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "avx512.c").write_text("another")
    monkeypatch.setattr(avx512, "__file__", str(tmp_path / "avx512.py"))
    assert avx512._compiled.__wrapped__() == (None, avx512.NOTHING)


def _as_torch_does(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> Tensor:
    monkeypatch.setattr(avx512, "_compiled", lambda: (None, avx512.NOTHING))
    return call()


@dtypes
def test_without_it_operations_are_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(40, 48, dtype=dtype), numbers(2 * 96, 48, dtype=dtype, seed=1) / 7
    qkv, rotation = numbers(40, 3 * 96, dtype=dtype), torch.ones(40, 24, dtype=torch.complex64)
    picture = numbers(1, 32, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def all_of_it() -> Tensor:
        q, k, v = operations.turned_heads(qkv.clone(), (2, 2), None, 1e-5, rotation)
        normed = image_ops.group_norm_silu(
            picture.clone(memory_format=torch.preserve_format), 8, x[0, :32], x[1, :32], 1e-6
        )
        gated = operations.gated_product(x, weight)
        parts = [
            operations.gained_norm(x, x[:1], 1e-5), *operations.residual_norm(x, x, x[:1], x[:1], 1e-5),
            attention(q, k, v, (40,)), normed, operations.swiglu(x @ weight.t()) if gated is None else gated,
        ]  # fmt: skip
        return torch.cat([part.float().flatten() for part in parts])

    own = all_of_it()
    torch.testing.assert_close(
        _as_torch_does(monkeypatch, all_of_it), own, rtol=0, atol=1e-5 if dtype.itemsize == 4 else 0.06
    )


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.zeros(2, 16, dtype=torch.float64),),
        (torch.zeros(2, 16), torch.zeros(2, 16, dtype=torch.bfloat16)),
        (torch.zeros(16, 2).t(),),
    ],
    ids=["format", "formats", "strides"],
)
def test_other_tensors_are_left_to_torch(tensors: tuple[Tensor, ...]) -> None:
    assert not avx512.can_run(*tensors)


def test_gradients_are_left_to_torch() -> None:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(8, 2, 16, requires_grad=True)
        assert not avx512.attends(x, x, x)
        picture = torch.zeros(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
        assert not avx512.norms(picture, None, torch.ones(16), torch.ones(16))


def test_other_heads_are_left_to_torch() -> None:
    few, odd = torch.zeros(8, 2, 16), torch.zeros(8, 4, 24)
    assert not avx512.attends(torch.zeros(8, 4, 16), few, few)
    assert not avx512.attends(odd, odd, odd)
    assert not avx512.turns(torch.zeros(8, 8 * 16), (4, 2), None)
    assert not avx512.turns(torch.zeros(8, 3 * 4 * 24), (4, 4), None)
