"""Softmax attention, by the quickest way that a device has: measured the first time, never assumed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda as cuda_backends
from torch.nn.attention import SDPBackend

from hwaga.kernels import avx512, cpu

CANDIDATES = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
"""Ways of torch's that need no matrix of scores."""

PLANNED = 1024
"""Tokens from which on cuDNN is considered. For each new number of tokens it makes a plan, which took 58 ms on an H100
(``benchmarks/gpu_kernels.py``): prompts differ in length and are read once."""

_ONE_AT_A_TIME = threading.RLock()
"""Which ways torch may take is a setting of the whole process: without this, a thread that tries ways for one model would take
them from another that draws, or from one that tries them too, and whatever is left would look like the quickest."""

_SWITCHES: dict[SDPBackend, tuple[Callable[[], bool], Callable[[bool], None]]] = {
    SDPBackend.CUDNN_ATTENTION: (cuda_backends.cudnn_sdp_enabled, cuda_backends.enable_cudnn_sdp),
    SDPBackend.FLASH_ATTENTION: (cuda_backends.flash_sdp_enabled, cuda_backends.enable_flash_sdp),
    SDPBackend.EFFICIENT_ATTENTION: (cuda_backends.mem_efficient_sdp_enabled, cuda_backends.enable_mem_efficient_sdp),
    SDPBackend.MATH: (cuda_backends.math_sdp_enabled, cuda_backends.enable_math_sdp),
}

TRIAL_TOKENS, TRIAL_HEADS, TRIAL_CALLS, TRIALS = 4096, 8, 32, 3
"""Enough work that the GPU is behind the host, and little memory: weights are read at the same time."""


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, causal: bool = False) -> Tensor:
    """Softmax attention inside each run of the pack.

    Args:
        q: ``[tokens, heads, head_dim]``.
        k, v: ``[tokens, kv_heads, head_dim]``; ``heads`` is a multiple of ``kv_heads``.
        lengths: tokens of each run, in order; their sum is ``tokens``.

    Returns:
        ``[tokens, heads * head_dim]``.
    """
    if len(set(lengths)) > 1:
        runs = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), lengths, strict=True)
        return torch.cat([attention(a, b, c, (length,), causal=causal) for a, b, c, length in runs])
    batch = len(lengths)
    if not causal and avx512.attends(q, k, v):
        return avx512.attend(q, k, v, batch)
    q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, causal=causal).transpose(1, 2).flatten(2).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention of ``[batch, heads, tokens, head_dim]``; keys and values may have fewer heads.

    Where the device has no kernel that works without the matrix of scores, queries go through in pieces.
    """
    if q.dtype != v.dtype:
        assert not causal, "scores in float32 are for attention to everything"
        return cpu.attend(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    if q.requires_grad:  # torch chooses: ways are tried for drawing, and not in a function that is being compiled
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    if not keeps_scores(q.device, q.dtype):
        way = quickest(q.device, q.dtype, q.shape[-1], q.shape[2] >= PLANNED, grouped, causal) if q.is_cuda else None
        if way is None:
            return any_way(q, k, v, causal=causal)
        with _ONE_AT_A_TIME, taking(way):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    rows = max(SCORES // (q.shape[0] * q.shape[1] * k.shape[2] * q.element_size()), 1)
    pieces = []
    for start in range(0, q.shape[2], rows):
        piece = q[:, :, start : start + rows]
        seen = None
        if causal:
            places = torch.arange(start, start + piece.shape[2], device=q.device)
            seen = places[:, None] >= torch.arange(k.shape[2], device=q.device)
        pieces.append(any_way(piece, k, v, seen))
    return torch.cat(pieces, dim=2)


def any_way(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """``attend`` by the way that torch takes."""
    grouped = q.shape[1] != k.shape[1]
    with _ONE_AT_A_TIME:
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal, enable_gqa=grouped)


@contextmanager
def taking(way: SDPBackend) -> Iterator[None]:
    """torch's attention goes this of the four ways that a GPU has: what ``torch.nn.attention.sdpa_kernel`` does for them,
    without its bookkeeping. A step of a picture asks for it some thirty times, while a small picture waits for the host.
    """
    changed = [(turn, each is way) for each, (is_on, turn) in _SWITCHES.items() if is_on() is not (each is way)]
    try:
        for turn, wanted in changed:
            turn(wanted)
        yield
    finally:
        for turn, wanted in changed:
            turn(not wanted)


@cache
def quickest(
    device: torch.device, dtype: torch.dtype, head_dim: int, planned: bool, grouped: bool, causal: bool
) -> SDPBackend | None:
    """Which of ``CANDIDATES`` is the quickest on a GPU for such heads; None where none of them takes them.

    It takes some tens of milliseconds, once a process; most of a second where cuDNN is loaded for it.

    Args:
        planned: ways that plan for each number of tokens are considered.
    """
    heads = TRIAL_HEADS // 4 if grouped else TRIAL_HEADS
    q = torch.zeros(1, TRIAL_HEADS, TRIAL_TOKENS, head_dim, device=device, dtype=dtype)
    k = q[:, :heads].clone()
    seconds: dict[SDPBackend, float] = {}
    for way in CANDIDATES if planned else [way for way in CANDIDATES if way is not SDPBackend.CUDNN_ATTENTION]:
        try:
            seconds[way] = _seconds(q, k, way, causal=causal, grouped=grouped)
        except torch.OutOfMemoryError:
            raise  # of this moment, and no reason to leave a way out for good
        except RuntimeError:  # it does not take such heads: torch names no other error for that
            continue
    # Of ways that are nearly as quick the same one each time, since each rounds in its own way.
    enough = 1.05 * min(seconds.values(), default=0.0)
    return next((way for way in seconds if seconds[way] <= enough), None)


def _seconds(q: Tensor, k: Tensor, way: SDPBackend, *, causal: bool, grouped: bool) -> float:
    taken = list[float]()
    # A stream of its own: weights may be on their way in the current one.
    own = torch.cuda.Stream(q.device) if q.is_cuda else None
    if own is not None:
        own.wait_stream(torch.cuda.current_stream(q.device))
    with torch.cuda.stream(own), _ONE_AT_A_TIME, taking(way), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a way that does not take such heads, torch says why
        for _ in range(TRIALS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            F.scaled_dot_product_attention(q, k, k, is_causal=causal, enable_gqa=grouped)
            begin.record()
            for _ in range(TRIAL_CALLS):
                F.scaled_dot_product_attention(q, k, k, is_causal=causal, enable_gqa=grouped)
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end))
    return min(taken)


SCORES = 128 * 2**20
"""Bytes of a matrix of scores that is worked on at a time; some three of them are alive."""

SCORES_ALIVE = 4 * SCORES


@cache
def keeps_scores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention on a device writes its scores out. Fused kernels work on CPUs, and on NVIDIA GPUs from Ampere on in any
    format, before that not in bfloat16.
    """
    if device.type == "cuda":
        return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0)
    return device.type not in ("cpu", "meta")


WIDE_SCORES = 64 * 2**20
"""Bytes of float32 scores that ``wide_attention`` works on at a time. With 128 MiB it takes a tenth less time for a picture of
1024², a fifth for 2048² (``benchmarks/gpu_vae.py``), and it is a small part of the autoencoder's work."""

WIDE_QUERIES = 128
"""There, queries go through in multiples of this, so that no tile of the products is part empty."""


def queries_at_once(tokens: int) -> int:
    """How many queries ``wide_attention`` takes through so many tokens at a time."""
    return min(max(WIDE_SCORES // (4 * tokens) // WIDE_QUERIES, 1) * WIDE_QUERIES, tokens)


def wide_attention_bytes(tokens: int, itemsize: int) -> int:
    """What ``wide_attention`` takes beside its result: scores, the shares that they come to in the model's format, and, where
    there are more queries than one piece of them, the shares of the piece before.
    """
    queries = queries_at_once(tokens)
    return queries * tokens * (4 + (itemsize if queries == tokens else 2 * itemsize))


def scores_alive(device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of scores that attention has written out at a time, at most."""
    if keeps_scores(device, dtype):
        return SCORES_ALIVE
    return cpu.SCORES_ALIVE if device.type == "cpu" and dtype == torch.bfloat16 else 0
