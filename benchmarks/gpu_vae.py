"""The autoencoder on a GPU beside diffusers', with random weights of the real shape: speed, memory, differences.

    python benchmarks/gpu_vae.py [--runs 7] [--tiny] [--only pictures,norms,upsampling,convolutions,attention,profile,first]

One process, all variants in turn. ``--tiny`` is the same with a small network, to try the script: on a CPU, where
``TRITON_INTERPRET=1`` has to be set, in float32. The figures go to ``results/gpu_vae.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Kernels are compiled anew, so that the first call shows what that takes; what is run beside finds them.
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="triton-"))

import torch
import torch.nn.functional as F
from report import write_report
from torch import Tensor

from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.kernels import attention as torch_attention
from hwaga.kernels import group_norm, image_ops, reference, upsample, wide_attention

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
SECTIONS = ("pictures", "norms", "upsampling", "convolutions", "attention", "profile", "first")
CHANNELS_LAST = torch.channels_last


chosen = image_ops.fused


def small_tiles() -> None:
    """For Triton's interpreter, which takes its time."""
    for module in (group_norm, upsample):
        module.ROWS, module.COLUMNS = 32, 32
    wide_attention.BLOCK = 64


def use_kernels(wanted: bool) -> None:
    """Ours or torch's, whatever the device is."""

    def fused(x: Tensor) -> bool:
        return wanted and (not CUDA or chosen(x))

    image_ops.fused = fused


def search(wanted: bool) -> None:
    """Whether cuDNN tries algorithms. torch remembers one for each convolution, however it was found; that TF32 is allowed,
    which changes nothing for 16 bits, makes it remember both.
    """
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = wanted


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, on the device's clock."""
    if not CUDA:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def first_call(call: Callable[[], Tensor]) -> tuple[dict[str, float], Tensor]:
    """What the first call took by the wall clock, the peak of memory above what was there, and what it gave."""
    synchronize()
    held = 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    given = call()
    synchronize()
    figures = {"first_call_ms": round(1000 * (time.perf_counter() - start), 1)}
    if CUDA:
        figures["peak_mib"] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
    return figures, given


def in_turn(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each, all of them in each round. Those that cannot run here are left out, and said so."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            taken[name].append(milliseconds(call))
    return taken


def candidates(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float | str]:
    """Median milliseconds of each after a first call, or why it does not run."""
    able: dict[str, Callable[[], Any]] = {}
    rows: dict[str, float | str] = {}
    for name, call in calls.items():
        try:
            call()
            synchronize()
            able[name] = call
        except (RuntimeError, NotImplementedError, ValueError) as error:
            rows[name] = str(error).strip().splitlines()[0][:120]
        except Exception as error:  # noqa: BLE001 (a kernel that does not compile has errors of its own)
            rows[name] = f"{type(error).__name__}: {error}"[:120]
    rows |= {name: round(median(times), 4) for name, times in in_turn(able, runs).items()}
    return rows


def psnr(value: Tensor, expected: Tensor) -> float:
    """In dB, over the range of what is expected."""
    error = (value.double() - expected.double()).square().mean().item()
    span = (expected.max() - expected.min()).item()
    return round(float(10 * torch.log10(torch.tensor(span**2 / max(error, 1e-20)))), 2)


def distance(value: Tensor, expected: Tensor) -> float:
    """Relative, in the mean."""
    return float(f"{((value.double() - expected.double()).norm() / expected.double().norm()).item():.2e}")


def random_autoencoder(*, tiny: bool) -> Any:
    """diffusers' module with random float32 weights; its norms do something to their channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    with torch.device(DEVICE):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 64, 64) if tiny else (128, 256, 512, 512), layers_per_block=2,
            latent_channels=16, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159,
            use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    for name, parameter in vae.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return vae.eval().requires_grad_(False)


def networks(*, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """diffusers' in float32; and for each variant encode and decode, both on normalised latents."""
    exact = random_autoencoder(tiny=tiny)
    config = AutoencoderConfig.from_json(dict(exact.config))

    def theirs(vae: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        def encode(pixels: Tensor) -> Tensor:
            return (vae.encode(pixels.to(vae.dtype)).latent_dist.mode() - config.shift) * config.scaling

        def decode(latents: Tensor) -> Tensor:
            return vae.decode(latents.to(vae.dtype) / config.scaling + config.shift, return_dict=False)[0]

        return encode, decode

    def copy(dtype: torch.dtype) -> Any:
        from diffusers import AutoencoderKL

        with torch.device(DEVICE):
            vae = AutoencoderKL.from_config(exact.config).to(dtype)
        vae.load_state_dict(exact.state_dict())
        return vae.eval().requires_grad_(False)

    def ours(kernels: bool, *, benchmark: bool = False, laid_out: bool = False) -> tuple[Callable[..., Tensor], ...]:
        with torch.device(DEVICE):
            vae = Autoencoder(config).to(DTYPE)
        vae.load_state_dict(exact.state_dict())
        vae.eval().requires_grad_(False)
        if laid_out:
            vae.to(memory_format=CHANNELS_LAST)

        def call(method: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            use_kernels(kernels)
            search(benchmark)
            try:
                return method(x)
            finally:
                search(False)

        return lambda x: call(vae.encode, x), lambda x: call(vae.decode, x)

    return theirs(exact), {
        "diffusers": theirs(copy(DTYPE)),
        "diffusers channels-last": theirs(copy(DTYPE).to(memory_format=CHANNELS_LAST)),
        "hwaga before": ours(False),
        "hwaga": ours(True),
        "hwaga, weights laid out": ours(True, laid_out=True),
        "hwaga, cudnn.benchmark": ours(True, benchmark=True),
    }


def pictures(exact: Any, variants: dict[str, Any], sizes: list[tuple[int, int]], runs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for width, height in sizes:
        pixels = F.interpolate(
            torch.randn(1, 3, height // 16, width // 16, device=DEVICE), (height, width), mode="bicubic"
        )
        pixels = (0.4 * pixels + 0.1 * torch.randn_like(pixels)).clamp(-1, 1)
        latents = torch.randn(1, 16, height // 8, width // 8, device=DEVICE)
        for number, (phase, x) in enumerate((("encode", pixels), ("decode", latents))):
            rows: dict[str, Any] = {}
            # In float32 the largest takes long, and shows nothing that the others don't.
            expected = exact[number](x) if width * height < 2**22 else None
            calls = {name: (lambda pair=pair, n=number, x=x: pair[n](x)) for name, pair in variants.items()}
            for name, call in calls.items():
                rows[name], value = first_call(call)
                value = value.float()
                assert torch.isfinite(value).all(), (name, phase)
                if expected is None:
                    rows[name]["psnr_to"] = name
                    expected = value
                else:
                    rows[name]["psnr_db"] = psnr(value, expected)
                del value
            times = in_turn(calls, runs if width * height < 2**22 else max(runs // 2, 1))
            for name, taken in times.items():
                rows[name] |= {"ms": round(median(taken), 3), "least_ms": round(min(taken), 3)}
                if "diffusers" in times:
                    ratios = [theirs / mine for theirs, mine in zip(times["diffusers"], taken, strict=True)]
                    rows[name]["times_faster_than_diffusers"] = round(median(ratios), 2)
            found[f"{phase} {width}x{height}"] = rows
            print(phase, width, height, flush=True)
            for name, row in rows.items():
                print(f"  {name:28}", json.dumps(row), flush=True)
            del expected
    return found


def norms(shapes: list[tuple[int, int]], groups: int, runs: int) -> dict[str, Any]:
    """Group norm and SiLU; and the sum with a residual and a bias before it."""
    found: dict[str, Any] = {}
    for channels, side in shapes:
        x = torch.randn(1, channels, side, side, device=DEVICE, dtype=DTYPE)
        weight, bias, offset = (torch.randn(channels, device=DEVICE, dtype=DTYPE) for _ in range(3))
        last, residual = (each.contiguous(memory_format=CHANNELS_LAST) for each in (x, torch.randn_like(x)))
        affine = (groups, weight, bias, 1e-6)
        exact = reference.group_norm_silu(
            x.double(), groups, weight.double(), bias.double(), 1e-6, offset=offset.double()
        )
        ours = group_norm.group_norm_silu(last.clone(), *affine, offset=offset)
        error = distance(ours, exact)
        del exact, ours

        def with_rows(rows: int, call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> None:
                before, group_norm.ROWS = group_norm.ROWS, rows
                try:
                    call()
                finally:
                    group_norm.ROWS = before

            return run

        def norm(last: Tensor = last, affine: Any = affine) -> Tensor:
            return group_norm.group_norm_silu(last, *affine)

        def joined(
            last: Tensor = last, residual: Tensor = residual, offset: Tensor = offset, affine: Any = affine
        ) -> Any:
            return group_norm.add_group_norm_silu(last, residual, offset, *affine)

        calls: dict[str, Callable[[], Any]] = {
            "torch": lambda x=x, a=affine: reference.group_norm_silu(x, *a),
            "torch channels-last": lambda x=last, a=affine: reference.group_norm_silu(x, *a),
            "copy": lambda x=last, y=residual: y.copy_(x),
        }
        for rows in (16, 32, 64):
            calls[f"ours, {rows} pixels"] = with_rows(rows, norm)
            calls[f"ours with sum, {rows} pixels"] = with_rows(rows, joined)
        found[f"{channels} channels, {side} x {side}"] = rows = candidates(calls, runs)
        rows["relative_error"] = error
        print("norm", channels, side, json.dumps(rows), flush=True)
    return found


def nearest(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As diffusers has it."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The reference in channels-last order."""
    return reference.upsample_conv(x, weight.contiguous(memory_format=CHANNELS_LAST), bias)


def four_at_once(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One convolution for the four kernels. What is placed of its result is copied first here; a kernel could do without."""
    batch, channels, height, width = x.shape
    shape = (batch, channels, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST)
    y = F.conv2d(x, upsample.quad_kernels(weight).flatten(0, 1), padding=1)
    for number in range(4):
        upsample.place(y[:, number * channels :][:, :channels], bias, out, number // 2, number % 2)
    return out


def upsampling(shapes: list[tuple[int, int]], runs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for channels, side in shapes:
        x = torch.randn(1, channels, side, side, device=DEVICE, dtype=DTYPE)
        weight = torch.randn(channels, channels, 3, 3, device=DEVICE, dtype=DTYPE) / (3 * channels**0.5)
        bias = torch.randn(channels, device=DEVICE, dtype=DTYPE)
        last, weight_last = (each.contiguous(memory_format=CHANNELS_LAST) for each in (x, weight))

        calls: dict[str, Callable[[], Any]] = {
            "transposed": partial(reference.upsample_conv, x, weight, bias),
            "transposed channels-last": partial(transposed, last, weight, bias),
            "transposed channels-last, no bias": partial(transposed, last, weight, None),
            "nearest channels-last": partial(nearest, last, weight_last, bias),
            "nearest channels-last, no bias": partial(nearest, last, weight_last, None),
            "four": partial(upsample.upsample_conv, last, weight, bias),
            "four at once, with copies": partial(four_at_once, last, weight, bias),
            "of four: kernels": partial(upsample.quad_kernels, weight),
            "of four: one convolution": partial(F.conv2d, last, upsample.quad_kernels(weight)[0], padding=1),
            "of four at once: convolution": partial(
                F.conv2d, last, upsample.quad_kernels(weight).flatten(0, 1), padding=1
            ),
        }
        found[f"{channels} channels, {side} x {side}"] = rows = candidates(calls, runs)
        exact = nearest(x.float(), weight.float(), bias.float())
        rows["relative_error_transposed"] = distance(reference.upsample_conv(x, weight, bias), exact)
        rows["relative_error_four"] = distance(upsample.upsample_conv(last, weight, bias), exact)
        del exact
        print("upsampling", channels, side, json.dumps(rows), flush=True)
    return found


def convolutions(shapes: list[tuple[int, int, int, int, int]], runs: int) -> dict[str, Any]:
    """Each (channels, out, kernel, stride, side): torch's choice of an algorithm against the search of cudnn.benchmark."""
    found: dict[str, Any] = {}
    for channels, out, kernel, stride, side in shapes:
        x = torch.randn(1, channels, side, side, device=DEVICE, dtype=DTYPE)
        weight = torch.randn(out, channels, kernel, kernel, device=DEVICE, dtype=DTYPE) / (kernel * channels**0.5)
        bias = torch.randn(out, device=DEVICE, dtype=DTYPE)
        last, weight_last = (each.contiguous(memory_format=CHANNELS_LAST) for each in (x, weight))
        padding = kernel // 2 if stride == 1 else 0

        def searched(call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> None:
                search(True)
                try:
                    call()
                finally:
                    search(False)

            return run

        def plain(a: Any = (last, weight_last), stride: int = stride, padding: int = padding) -> Tensor:
            return F.conv2d(*a, None, stride, padding)

        def padded(a: Any = (last, weight_last, bias), stride: int = stride, padding: int = padding) -> Tensor:
            use_kernels(True)
            return image_ops.convolve(*a, stride=stride, padding=padding)[0]

        calls: dict[str, Callable[[], Any]] = {
            "NCHW": lambda a=(x, weight), s=stride, p=padding: F.conv2d(*a, None, s, p),
            "heuristics": plain,
            "heuristics, bias": lambda a=(last, weight_last, bias), s=stride, p=padding: F.conv2d(*a, s, p),
            "weights as stored": lambda a=(last, weight), s=stride, p=padding: F.conv2d(*a, None, s, p),
            "search": searched(plain),
        }
        if channels % 8 or out % 8:
            calls["to multiples of 8"] = padded
        rows: dict[str, Any] = candidates(calls, runs)
        synchronize()
        operations = 2 * channels * out * kernel**2 * (side // stride) ** 2
        if isinstance(rows["heuristics"], float):
            rows["tflops"] = round(operations / rows["heuristics"] / 1e9, 1)
        found[f"{channels} to {out}, {kernel} x {kernel}, stride {stride}, {side} x {side}"] = rows
        print("convolution", channels, out, kernel, stride, side, json.dumps(rows), flush=True)
    return found


def attention(sizes: list[int], channels: int, runs: int) -> dict[str, Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from wide_flash import attend_flash

    found: dict[str, Any] = {}
    for tokens in sizes:
        q, k, v = (torch.randn(1, tokens, channels, device=DEVICE, dtype=DTYPE) for _ in range(3))
        q *= 2  # some scores count more than others

        def sdpa(backend: Any, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])

        def pieces(scores: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            before, torch_attention.WIDE_SCORES = torch_attention.WIDE_SCORES, scores
            try:
                return wide_attention.attend_wide(q, k, v)
            finally:
                torch_attention.WIDE_SCORES = before

        def by_torch(rows: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            """Scores in the model's format."""
            scaled = q[0] * q.shape[-1] ** -0.5
            out = [F.softmax(part @ k[0].t(), dim=-1) @ v[0] for part in scaled.split(rows)]
            return torch.cat(out)[None]

        calls: dict[str, Callable[[], Any]] = {
            "quickest of torch": lambda a=(q, k, v): torch_attention.attend(*(each[:, None] for each in a))[:, 0],
            "sdpa efficient": lambda f=sdpa: f(SDPBackend.EFFICIENT_ATTENTION),
            "sdpa cudnn": lambda f=sdpa: f(SDPBackend.CUDNN_ATTENTION),
            "sdpa flash": lambda f=sdpa: f(SDPBackend.FLASH_ATTENTION),
        }
        for mib in (32, 64, 128, 256, 1024):
            calls[f"pieces of {mib} MiB"] = lambda f=pieces, n=mib * 2**20: f(n)
        for rows in (1024, 4096):
            calls[f"torch, scores in 16 bits, {rows} queries"] = lambda f=by_torch, n=rows: f(n)
        for queries, keys, warps, stages in ((64, 32, 8, 2), (64, 64, 8, 1)):
            calls[f"flash {queries} x {keys}, {warps} warps, {stages} stages"] = (
                lambda a=(q, k, v), o=(queries, keys, warps, stages): attend_flash(*a, *o)
            )
        if tokens > 2**15:
            calls = {name: call for name, call in calls.items() if "cudnn" not in name and "sdpa flash" not in name}
        rows = candidates(calls, runs if tokens < 2**15 else 3)
        some = slice(0, 128)
        exact = F.scaled_dot_product_attention(*(each[:, None].double() for each in (q[:, some], k, v)))[:, 0]
        for name in (
            "quickest of torch",
            "pieces of 64 MiB",
            "torch, scores in 16 bits, 1024 queries",
            "flash 64 x 32, 8 warps, 2 stages",
        ):
            if not isinstance(rows[name], str):
                rows[f"relative_error {name}"] = distance(calls[name]()[:, some], exact)
        found[f"{tokens} tokens"] = rows
        print("attention", tokens, json.dumps(rows), flush=True)
    return found


def profile(variants: dict[str, Any], side: int) -> dict[str, Any]:
    """The kernels of one encode and one decode."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    found: dict[str, Any] = {}
    latents = torch.randn(1, 16, side // 8, side // 8, device=DEVICE)
    pixels = torch.randn(1, 3, side, side, device=DEVICE)
    for number, (phase, x) in enumerate((("encode", pixels), ("decode", latents))):
        call = variants["hwaga"][number]
        call(x)
        synchronize()
        with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as seen:
            start = time.perf_counter()
            call(x)
            queued = time.perf_counter() - start
            synchronize()
        events = [event for event in seen.key_averages() if event.device_type.name == "CUDA"]
        events.sort(key=lambda event: -event.self_device_time_total)
        found[phase] = {
            "queued_ms": round(1000 * queued, 2),
            "kernels_ms": round(sum(event.self_device_time_total for event in events) / 1000, 3),
            "kernels": [
                {"ms": round(event.self_device_time_total / 1000, 3), "calls": event.count, "name": event.key[:110]}
                for event in events[:30]
            ],
        }
        print(phase, json.dumps(found[phase] | {"kernels": None}))
        for row in found[phase]["kernels"]:
            print(f"  {row['ms']:8.3f} ms {row['calls']:4}  {row['name']}", flush=True)
    return found


def first_of_a_process(*, tiny: bool) -> None:
    """Seconds of the first encode and decode of a process, to standard output; then of another size."""
    exact = random_autoencoder(tiny=tiny)
    vae = Autoencoder(AutoencoderConfig.from_json(dict(exact.config)))
    vae.load_state_dict(exact.state_dict())
    vae.to(DEVICE, DTYPE).requires_grad_(False)
    del exact
    use_kernels(True)
    if not CUDA:
        small_tiles()
    torch.zeros(2**20, device=DEVICE).sum().item()
    found = {}
    for side in (1024, 768) if CUDA else (16,):
        latents = torch.randn(1, 16, side // 8, side // 8, device=DEVICE)
        for name in ("first", "second"):
            found[f"decode {side} {name}"] = first_call(lambda x=latents: vae.decode(x))[0]["first_call_ms"]
    print(json.dumps(found))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tiny, runs = arguments.tiny, arguments.runs
    if arguments.first:
        first_of_a_process(tiny=tiny)
        return
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        raise SystemExit(f"No such sections: {', '.join(unknown)}. There are: {', '.join(SECTIONS)}.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # for what is to be exact
    if not CUDA:  # the interpreter takes its time for each tile
        small_tiles()
    began = time.perf_counter()
    figures: dict[str, Any] = {"weights": "tiny" if tiny else f"full size, random, {DTYPE}"}
    variants: dict[str, Any] = {}
    if {"pictures", "profile"} & set(wanted):
        exact, variants = networks(tiny=tiny)
        if not CUDA:
            variants = {name: variants[name] for name in ("diffusers", "hwaga before", "hwaga")}
    if "pictures" in wanted:
        sizes = [(32, 16)] if tiny else [(512, 512), (1024, 1024), (1344, 768), (2048, 2048)]
        figures["pictures"] = pictures(exact, variants, sizes, runs)
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
    if "profile" in wanted:
        figures["profile"] = profile(variants, 16 if tiny else 1024)
    variants.clear()
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    if "norms" in wanted:
        full = [(128, 1024), (256, 1024), (256, 512), (512, 512), (512, 256), (512, 128)]
        figures["norms_ms"] = norms([(32, 8)] if tiny else full, 32, runs)
    if "upsampling" in wanted:
        full = [(512, 128), (512, 256), (256, 512)]
        figures["upsampling_ms"] = upsampling([(16, 4)] if tiny else full, runs)
    if "convolutions" in wanted:
        convs = [
            (16, 512, 3, 1, 128), (512, 512, 3, 1, 128), (512, 512, 3, 1, 256), (512, 256, 3, 1, 512),
            (256, 256, 3, 1, 512), (256, 128, 3, 1, 1024), (256, 128, 1, 1, 1024), (128, 128, 3, 1, 1024),
            (128, 3, 3, 1, 1024), (3, 128, 3, 1, 1024), (128, 128, 3, 2, 1025), (128, 256, 3, 1, 512),
            (256, 256, 3, 2, 513), (256, 512, 3, 1, 256),
        ]  # fmt: skip
        figures["convolutions_ms"] = convolutions([(3, 8, 3, 1, 8), (8, 3, 3, 1, 8)] if tiny else convs, runs)
    if "attention" in wanted:
        figures["attention_ms"] = attention([48] if tiny else [4096, 16384, 65536], 64 if tiny else 512, runs)
    if "first" in wanted:
        command = [sys.executable, __file__, "--first", *(["--tiny"] if tiny else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = done.stdout.strip().splitlines()
        figures["first_of_a_process_ms"] = json.loads(answer[-1]) if answer else done.stderr[-2000:]
        print(figures["first_of_a_process_ms"])
    figures["seconds"] = round(time.perf_counter() - began)
    print(f"{figures['seconds']} s")
    if not tiny:
        print(write_report("gpu_vae", figures))
    elif "BENCHMARK_RESULTS" in os.environ:
        print(write_report("gpu_vae_tiny", figures))


if __name__ == "__main__":
    main()
