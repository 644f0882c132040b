"""This engine beside diffusers on a GPU, with random weights of the full size: the same pictures? how fast? how much memory?

    python benchmarks/gpu_full.py [--runs 5] [--folder FOLDER] [--tiny]

A checkpoint of Z-Image Turbo's shape with random bfloat16 weights is written in diffusers' layout and opened by both. Their
pictures of the same seed are compared, then both make pictures in turn, prompt to pixels. ``--tiny`` is the same with a small
network, to try the script. The figures go to ``results/gpu_full.json``.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import lzma
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
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


def psnr(a: Any, b: Any) -> float:
    """Of two 8-bit pictures, in dB."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return round(float(10 * np.log10(255**2 / max(error, 1e-9))), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-random"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, folder = "cuda" if cuda else "cpu", arguments.folder
    sizes = [(256, 256)] if arguments.tiny else [(512, 512), (1024, 1024), (1344, 768)]
    from hwaga import Engine, ImageRequest

    figures: dict[str, Any] = {"weights": "tiny" if arguments.tiny else "full size, random, bfloat16"}
    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder)
    write_checkpoint(folder, tiny=arguments.tiny, device=device)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    print("checkpoint written", flush=True)

    with HostWatch() as watch:
        seconds, held, engine = timed(lambda: Engine.open(folder, device=device, dtype="bfloat16"), cuda)
    figures["hwaga_load"] = {
        "seconds": round(seconds, 2),
        "host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
        "device_peak_mib": round(held / 2**20) if held else None,
    }
    with HostWatch() as watch:
        seconds, _, pipe = timed(lambda: open_diffusers(folder, device), cuda)
    figures["diffusers_load"] = {
        "seconds": round(seconds, 2),
        "host_anonymous_peak_mib": round((watch.peak - watch.before) / 2**20),
    }
    print(figures, flush=True)

    # A prompt of its own for each picture: one that was met before would not be encoded again.
    def hwaga(width: int, height: int, seed: int) -> Any:
        return engine.generate(ImageRequest(prompt(width, seed), width=width, height=height, seed=seed))

    def diffusers(width: int, height: int, seed: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        return pipe(
            prompt(width, seed), width=width, height=height, num_inference_steps=8, guidance_scale=0.0, generator=generator
        ).images[0]  # fmt: skip

    figures["pictures"] = {}
    for width, height in sizes:
        first_ours, _, ours = timed(lambda w=width, h=height: hwaga(w, h, 100), cuda)
        first_theirs, _, theirs = timed(lambda w=width, h=height: diffusers(w, h, 100), cuda)
        rows: dict[str, Any] = {
            "psnr_db": psnr(ours.image, theirs),
            "contrast": round(float(np.asarray(theirs, float).std()), 1),
            "first": {"hwaga": round(first_ours, 3), "diffusers": round(first_theirs, 3)},
        }
        seconds_of: dict[str, list[float]] = {"hwaga": [], "diffusers": []}
        phases: dict[str, list[float]] = {"encode": [], "denoise": [], "decode": []}
        for run in range(arguments.runs):
            taken, peak, result = timed(lambda w=width, h=height, s=run: hwaga(w, h, s), cuda)
            seconds_of["hwaga"].append(taken)
            rows["hwaga_working_mib"] = round(peak / 2**20) if peak else None
            for phase, values in phases.items():
                values.append(getattr(result.timings, phase))
            taken, peak, _ = timed(lambda w=width, h=height, s=run: diffusers(w, h, s), cuda)
            seconds_of["diffusers"].append(taken)
            rows["diffusers_working_mib"] = round(peak / 2**20) if peak else None
        pairs = zip(seconds_of["hwaga"], seconds_of["diffusers"], strict=True)
        rows |= {name: spread(values) for name, values in seconds_of.items()}
        rows["times_faster"] = spread([b / a for a, b in pairs])
        rows["hwaga_phases"] = {phase: spread(values)["median"] for phase, values in phases.items()}
        figures["pictures"][f"{width}x{height}"] = rows
        print(width, height, json.dumps(rows), flush=True)

    twice = []
    for _ in range(2):
        engine._opened().model.forget()
        twice.append(np.asarray(hwaga(*sizes[-1], 3).image).tobytes())
    figures["same_bytes_twice"] = twice[0] == twice[1]

    mixed = [ImageRequest(PROMPT, width=w, height=h, seed=5) for w, h in (sizes * 4)[:4]]
    alone = [engine.generate(request).image for request in mixed]
    taken, peak, packed = timed(lambda: engine.generate_many(mixed), cuda)
    figures["packed_batch_of_4"] = {
        "seconds": round(taken, 3),
        "working_mib": round(peak / 2**20) if peak else None,
        "psnr_db_to_alone": [psnr(a, b.image) for a, b in zip(alone, packed, strict=True)],
    }
    with Engine.open("mini", device="cpu", dtype="float32") as reference:
        request = ImageRequest("a red apple on a yellow background", seed=7)
        expected = reference.generate(request).image
    figures["mini_against_cpu_float32_psnr_db"] = {}
    for dtype in ("float32", "bfloat16"):
        with Engine.open("mini", device=device, dtype=dtype) as mini:
            start = ImageRequest("a fox", image=mini.generate(request).image, strength=0.5, seed=1)
            assert mini.generate(start).image.size == (256, 256)
            figures["mini_against_cpu_float32_psnr_db"][dtype] = psnr(mini.generate(request).image, expected)
    print(json.dumps(figures, indent=1))
    if not arguments.tiny:
        print(write_report("gpu_full", figures))


if __name__ == "__main__":
    main()
