"""This engine beside diffusers on a GPU, with random weights of the full size: the same pictures? how fast? how much memory?

    python benchmarks/gpu_full.py [--runs 5] [--folder FOLDER] [--sizes 1024x1024 …] [--batch 4] [--tiny]

A checkpoint of Z-Image Turbo's shape with random bfloat16 weights is written in diffusers' layout and opened by all, in one
process: this engine in bfloat16 and in fp8, and diffusers as it is, with cuDNN's attention and its blocks compiled, and, where
torchao is installed, with their products in fp8 as well, a scale for each row. Their pictures of the same seed are compared,
then all of them make pictures in turn, prompt to pixels, each with a prompt of its own. Beside them stands the floor: the
products of matrices and the attention of all steps, alone. ``--tiny`` is the same with a small network, to try the script. The
figures go to ``results/gpu_full.json``, those of some ``--sizes`` to ``results/gpu_full_SIZES.json``.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import dataclasses
import gc
import json
import lzma
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from report import spread, write_report

ROOT = Path(__file__).parent.parent
PROMPT = (
    "A cosy neighbourhood café at golden hour, a barista pouring latte art at a wooden counter, warm light through tall "
    "windows, 따뜻한 분위기의 동네 카페, fresh croissants in the foreground, shallow depth of field, generous empty space "
    "on the left for a headline"
)


def write_checkpoint(folder: Path, *, tiny: bool, device: str) -> None:
    """Random weights of the real shape, in diffusers' layout."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    transformer: dict[str, Any] = {}
    text: dict[str, Any] = {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "architectures": ["Qwen3Model"],
    }  # fmt: skip
    widths = (128, 256, 512, 512)
    if tiny:
        transformer = {
            "dim": 192,
            "n_layers": 2,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 64,
            "axes_dims": [16, 24, 24],
        }
        text.update(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1
        )
        widths = (32, 32, 64, 64)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        parts = {
            "transformer": ZImageTransformer2DModel(**transformer),
            "text_encoder": Qwen3Model(Qwen3Config(**text)),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=widths, layers_per_block=2, latent_channels=16, sample_size=1024,
                scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
            ),
        }  # fmt: skip
    torch.set_default_dtype(torch.float32)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    tokenizer = lzma.decompress((ROOT / "tests/data/qwen3/tokenizer.json.xz").read_bytes())
    (folder / "tokenizer/tokenizer.json").write_bytes(tokenizer)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ZImagePipeline"}))


def open_diffusers(folder: Path, device: str) -> Any:
    """The reference pipeline on the device, in bfloat16."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import PreTrainedTokenizerFast, Qwen3Model

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer/tokenizer.json"), pad_token="<|endoftext|>", padding_side="right"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    dtype = torch.bfloat16
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=Qwen3Model.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class HostWatch:
    """The most anonymous memory that this process held while it was watched, in bytes."""

    def __enter__(self) -> HostWatch:
        from hwaga.memory.budget import process_memory

        self._read = lambda: getattr(process_memory(), "rss_anon", 0)
        self.before = self.peak = self._read()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._read())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def prompt(width: int, seed: int) -> str:
    """The prompt of a picture."""
    return f"{PROMPT}, number {width + seed}"


def timed(make: Callable[[], Any], cuda: bool) -> tuple[float, int | None, Any]:
    """Seconds, peak bytes on the device above what lay there before, and what was made."""
    held = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    made = make()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() - held if cuda else None, made


def context_bytes() -> int | None:
    """What the driver has given to this process beside the allocator's memory, if it tells processes apart."""
    try:
        import pynvml

        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception:  # noqa: BLE001 - of a library that need not be there
        return None
    used = {process.pid: process.usedGpuMemory for process in processes}.get(os.getpid())
    return used - torch.cuda.memory_reserved() if used else None


def psnr(a: Any, b: Any) -> float:
    """Of two 8-bit pictures, in dB."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return round(float(10 * np.log10(255**2 / max(error, 1e-9))), 2)


class Floor:
    """The products and the attention of a generation with nothing between them, over random numbers.

    Args:
        tokens: of the image and the caption together.
        fp8: products of 8-bit numbers.
    """

    DIM, HEADS, HIDDEN, BLOCKS = 3840, 30, 10240, 32

    def __init__(self, tokens: int, *, fp8: bool) -> None:
        from hwaga.kernels.reference import coded

        self.products = []
        for width, out in (
            (self.DIM, 3 * self.DIM),
            (self.DIM, self.DIM),
            (self.DIM, 2 * self.HIDDEN),
            (self.HIDDEN, self.DIM),
        ):
            x, weight = (torch.randn(rows, width, device="cuda").bfloat16() for rows in (tokens, out))
            self.products.append((coded(x), coded(weight)) if fp8 else (x, weight))
        self.qkv = torch.randn(3, 1, self.HEADS, tokens, 128, device="cuda").bfloat16()
        self.fp8 = fp8

    def __call__(self) -> None:
        from hwaga.kernels.attention import attend
        from hwaga.kernels.operations import scaled_product

        with torch.inference_mode():
            for _ in range(self.BLOCKS * STEPS):
                for x, weight in self.products:
                    if self.fp8:
                        scaled_product(x, weight.codes, weight.scale, torch.bfloat16)
                    else:
                        torch.nn.functional.linear(x, weight)
                attend(*self.qkv)


STEPS = 8
SIZES = ["512x512", "1024x1024", "1344x768", "2048x2048"]
COMPILED = "diffusers, cuDNN and compiled blocks"
QUANTIZED = "diffusers, the same in torchao's fp8"


def millijoules() -> int | None:
    """Energy that the GPU has taken since its driver was loaded, if it says so."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)))
    except Exception:  # noqa: BLE001 - of a library that need not be there
        return None


def preview_milliseconds(engine: Any, size: tuple[int, int]) -> dict[str, float]:
    """What the small picture of a step takes once the step has been computed, on its way to the host included."""
    from hwaga import ImageRequest, Settings, Step
    from hwaga.model_lookup import find_card

    engine.card = dataclasses.replace(
        engine.card, preview=find_card("mini", Settings.read().models).preview
    )  # of as many channels
    taken = []
    for event in engine.stream(ImageRequest(PROMPT, width=size[0], height=size[1], steps=STEPS, seed=1)):
        if isinstance(event, Step):
            taken.append(timed(lambda event=event: event.preview, torch.cuda.is_available())[0] * 1000)
    return spread(taken)


def compiled(pipe: Any, change: Callable[[Any], None] | None = None) -> Any:
    """A pipeline with cuDNN's attention and compiled blocks, which has weights of its own only where they were changed."""
    torch._dynamo.config.recompile_limit = 64  # a forward of blocks is compiled for each contender and kind of size
    own = copy.copy(pipe)
    own.transformer = copy.deepcopy(pipe.transformer, {id(each): each for each in pipe.transformer.parameters()})
    if change is not None:
        change(own.transformer)
    own.transformer.set_attention_backend("_native_cudnn")
    own.transformer.compile_repeated_blocks(fullgraph=True)
    return own


def quantize(transformer: Any) -> None:
    """Products of the blocks in e4m3, a scale for each row, as our own; modulation stays as it is, there too."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    # Without torchao's settings of the compiler, which would hold for the other contender too, and search for minutes.
    # The least value keeps rows of zeros from being divided by zero: padding of random weights is such a row.
    way = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), activation_value_lb=1e-6, set_inductor_config=False
    )
    quantize_(
        transformer,
        way,
        filter_fn=lambda module, name: (
            isinstance(module, torch.nn.Linear) and (".attention." in name or ".feed_forward." in name)
        ),
    )


def open_contenders(
    folder: Path, device: str, figures: dict[str, Any], engines: dict[str, Any]
) -> dict[str, Callable[..., Any]]:
    """By name, what makes pictures of a size for seeds, a list of (picture, timings of its phases or None)."""
    from hwaga import Engine, ImageRequest

    cuda = device == "cuda"
    for name, precision in (("hwaga bfloat16", "full"), ("hwaga fp8", "fp8")):
        with HostWatch() as watch:
            opened: Any = partial(Engine.open, folder, device=device, dtype="bfloat16", precision=precision)
            seconds, held, engines[name] = timed(opened, cuda)
        figures["load"][name] = {
            "seconds": round(seconds, 2),
            "host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
            "device_peak_mib": round(held / 2**20) if held else None,
        }
    seconds, _, pipe = timed(lambda: open_diffusers(folder, device), cuda)
    figures["load"]["diffusers"] = {"seconds": round(seconds, 2)}
    pipes = {"diffusers": pipe}
    if cuda:
        pipes[COMPILED] = compiled(pipe)
        if find_spec("torchao"):
            pipes[QUANTIZED] = compiled(pipe, quantize)

    def ours(engine: Any, width: int, height: int, seeds: Sequence[int]) -> list[tuple[Any, Any]]:
        requests = [ImageRequest(prompt(width, seed), width=width, height=height, seed=seed) for seed in seeds]
        return [(result.image, result.timings) for result in engine.generate_many(requests)]

    def theirs(pipe: Any, width: int, height: int, seeds: Sequence[int]) -> list[tuple[Any, Any]]:
        made = pipe(
            [prompt(width, seed) for seed in seeds], width=width, height=height, num_inference_steps=STEPS, guidance_scale=0.0,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip
        return [(image, None) for image in made]

    return {name: partial(ours, engine) for name, engine in engines.items()} | {
        name: partial(theirs, pipe) for name, pipe in pipes.items()
    }


def compared(
    contenders: dict[str, Callable[..., Any]], size: tuple[int, int], batch: int, runs: int, cuda: bool
) -> dict[str, Any]:
    """All contenders at one size, in turn."""
    width, height = size
    rows: dict[str, dict[str, Any]] = {}
    pictures = {}
    for name, make in contenders.items():
        first, _, made = timed(lambda make=make: make(width, height, range(100, 100 + batch)), cuda)
        pictures[name] = made[0][0]
        rows[name] = {"first_seconds": round(first, 3)}
    for name, row in rows.items():
        row["psnr_db_to_diffusers"] = psnr(pictures[name], pictures["diffusers"])
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    phases: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for run in range(runs):
        for name, make in contenders.items():
            before = millijoules()
            seconds, peak, made = timed(
                lambda make=make, run=run: make(width, height, range(run * batch, run * batch + batch)), cuda
            )
            after = millijoules()
            taken[name].append(seconds)
            rows[name]["working_mib"] = round(peak / 2**20) if peak else None
            if before is not None and after is not None:
                rows[name]["joules"] = round((after - before) / 1000, 1)
            if made[0][1] is not None:
                for phase in ("encode", "denoise", "decode"):
                    phases[name].setdefault(phase, []).append(getattr(made[0][1], phase))
    for name, row in rows.items():
        row |= spread(taken[name]) | {"p95": round(float(np.percentile(taken[name], 95)), 4)}
        row["phases"] = {phase: spread(values)["median"] for phase, values in phases[name].items()}
        row["times_faster_than"] = {
            other: spread([b / a for a, b in zip(taken[name], taken[other], strict=True)])["median"]
            for other in contenders
            if other.startswith("diffusers") and other != name
        }
    return rows


def floors(size: tuple[int, int], rows: dict[str, Any]) -> dict[str, Any]:
    """The floor at one size, and the denoising of this engine as a multiple of it."""
    tokens = -(-(size[0] // 16) * (size[1] // 16) // 32) * 32 + CAPTION
    found: dict[str, Any] = {"tokens": tokens}
    for name, fp8 in (("hwaga bfloat16", False), ("hwaga fp8", True)):
        if fp8 and torch.cuda.get_device_capability() < (8, 9):
            continue
        floor = Floor(tokens, fp8=fp8)
        floor()
        seconds = [timed(floor, True)[0] for _ in range(3)]
        found[name] = spread(seconds) | {
            "denoise_times_floor": round(rows[name]["phases"]["denoise"] / min(seconds), 3)
        }
    return found


CAPTION = 128
"""Caption tokens that the prompts come to, padding included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-random"))
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--batch", type=int, default=4, help="pictures at once, at squares of 1024x1024 and below")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, folder = "cuda" if cuda else "cpu", arguments.folder
    sizes = [
        tuple(int(side) for side in size.split("x")) for size in (["256x256"] if arguments.tiny else arguments.sizes)
    ]

    report = "gpu_full" if arguments.sizes == SIZES else f"gpu_full_{'_'.join(arguments.sizes)}"
    figures: dict[str, Any] = {
        "weights": "tiny" if arguments.tiny else "full size, random, bfloat16",
        "versions": {name: version(name) for name in ("diffusers", "torchao", "triton") if find_spec(name)},
        "load": {},
    }
    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder)
    write_checkpoint(folder, tiny=arguments.tiny, device=device)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    print("checkpoint written", flush=True)
    engines: dict[str, Any] = {}
    contenders = open_contenders(folder, device, figures, engines)
    print(figures["load"], flush=True)
    figures["pictures"] = {}
    few = min(arguments.runs, 2)  # of what takes many seconds
    for size in sizes:
        for batch in (1, arguments.batch):
            large = size[0] * size[1] > 1.1 * 1024 * 1024
            if batch > 1 and (large or size[0] != size[1]):
                continue
            name = f"{size[0]}x{size[1]}" + (f", {batch} at once" if batch > 1 else "")
            rows: dict[str, Any] = compared(
                contenders, size, batch, few if batch > 1 or large else arguments.runs, cuda
            )  # type: ignore[arg-type]
            if cuda and batch == 1 and not arguments.tiny:
                rows["floor"] = floors(size, rows)  # type: ignore[arg-type]
            figures["pictures"][name] = rows
            print(name, json.dumps(rows), flush=True)
            if not arguments.tiny:
                write_report(report, figures)  # what there is, should the machine be taken away

    figures["preview_milliseconds"] = preview_milliseconds(engines["hwaga bfloat16"], sizes[0])  # type: ignore[arg-type]

    from hwaga import Engine, ImageRequest

    with Engine.open("mini", device="cpu", dtype="float32") as reference:
        request = ImageRequest("a red apple on a yellow background", seed=7)
        expected = reference.generate(request).image
    figures["mini_against_cpu_float32_psnr_db"] = {}
    for dtype, precision in (("float32", "full"), ("bfloat16", "full"), ("bfloat16", "fp8")):
        with Engine.open("mini", device=device, dtype=dtype, precision=precision) as mini:
            start = ImageRequest("a fox", image=mini.generate(request).image, strength=0.5, seed=1)
            assert mini.generate(start).image.size == (256, 256)
            value = psnr(mini.generate(request).image, expected)
            figures["mini_against_cpu_float32_psnr_db"][f"{dtype}, {precision}"] = value
    print(json.dumps(figures, indent=1))
    if not arguments.tiny:
        print(write_report(report, figures))


if __name__ == "__main__":
    main()
