"""SDXL on a GPU, with random weights of the full size: beside diffusers, under caps of memory, and beside Z-Image Turbo.

    python benchmarks/gpu_sdxl.py [--runs 3] [--caps 12 8] [--folder FOLDER] [--without-z-image] [--tiny]

A checkpoint of SDXL's shape in float16 is written in diffusers' layout and opened by both, which then draw in turn: 1024×1024,
40 steps, guidance 5, Euler, prompt to pixels. Then what each stage takes beside the weights, measured and foretold; then
pictures uncapped and under caps of GPU memory, whose bytes must not differ; and last Z-Image Turbo at its 8 steps beside SDXL
at its 40. ``--tiny`` is the same with small networks, on a CPU too, to try the script. The figures go to
``results/gpu_sdxl.json``.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import hashlib
import json
import lzma
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from gpu_full import PROMPT, psnr, timed, write_checkpoint
from PIL import Image
from report import spread, write_report
from safetensors.torch import save_file

from hwaga import DoesNotFitError, Engine, ImageRequest
from hwaga.families.family import Course, Picture
from hwaga.families.sdxl.published import TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE
from hwaga.families.sdxl.words import PUBLISHED_MERGES
from hwaga.placement import ran_out

GIB = 2**30
NEGATIVE = "blurry, low quality, text, watermark"
STEPS, GUIDANCE = 40, 5.0
SIZES = {"1024x1024": (1024, 1024, 1), "1536x1536": (1536, 1536, 1), "1344x768 x4": (1344, 768, 4)}
TINY_SIZES = {"256x256": (256, 256, 1), "256x320 x2": (256, 320, 2)}


def write_sdxl(folder: Path, *, tiny: bool, device: str) -> None:
    """Random weights of the real shape in float16, or small ones in float32, in diffusers' layout."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, second, unet, vae = TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE
    if tiny:
        first = {**first, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
        second = {
            **second,
            "hidden_size": 80,
            "intermediate_size": 160,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
        }
        unet = {**unet, "block_out_channels": [32, 64, 96], "attention_head_dim": [1, 2, 3], "cross_attention_dim": 128,
                "transformer_layers_per_block": [1, 1, 2]}  # fmt: skip
        vae = {**vae, "block_out_channels": [32, 32, 64, 64]}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if tiny else torch.float16)
    with torch.device(device):
        parts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**first)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**second)),
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(vae),
        }
    torch.set_default_dtype(torch.float32)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    ).save_pretrained(folder / "scheduler")
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_tokenizer(folder / name, pad)
    index = {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": True, "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's tokenizer, in the files that SDXL was published with."""
    merges = lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode()
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 324))]
    pairs = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text(merges)
    marks = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    config = {**marks, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))


def write_sdxl_lora(path: Path, checkpoint: Path, seed: int, *, kohya: bool, rank: int = 16, device: str) -> None:
    """Random factors for every linear layer in the blocks of all three networks, spelled as diffusers or kohya do."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(checkpoint / "unet")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(checkpoint / "text_encoder")),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig.from_pretrained(checkpoint / "text_encoder_2")
            ),
        }
    prefixes = dict(zip(networks, ("lora_unet_", "lora_te1_", "lora_te2_"), strict=True))
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    options: Any = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    tensors = {}
    for part, network in networks.items():
        for found, layer in network.named_modules():
            if not isinstance(layer, torch.nn.Linear) or not re.search(
                r"transformer_blocks\.|encoder\.layers\.", found
            ):
                continue
            name = found if part == "unet" else f"text_model.{found.removeprefix('text_model.')}"
            stem = prefixes[part] + name.replace(".", "_") if kohya else f"{part}.{name}"
            first = torch.randn(rank, layer.in_features, **options) / layer.in_features**0.5
            second = torch.randn(layer.out_features, rank, **options) * 0.1 / rank**0.5
            tensors |= {f"{stem}.{down}.weight": first.half().cpu(), f"{stem}.{up}.weight": second.half().cpu()}
            if kohya:
                tensors[f"{stem}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)


def open_reference(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """diffusers' pipeline on the device, as it comes."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=dtype, add_watermarker=False).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def compare(folder: Path, device: str, dtype: str, size: tuple[int, int], steps: int, runs: int) -> dict[str, Any]:
    """Both draw the same pictures in turn."""
    cuda, (width, height) = device == "cuda", size
    seconds, held, engine = timed(lambda: Engine.open(folder, device=device, dtype=dtype), cuda)
    rows: dict[str, Any] = {"hwaga_load_seconds": round(seconds, 2), "hwaga_weights_mib": held and round(held / 2**20)}
    seconds, held, pipe = timed(lambda: open_reference(folder, device, getattr(torch, dtype)), cuda)
    rows |= {"diffusers_load_seconds": round(seconds, 2), "diffusers_weights_mib": held and round(held / 2**20)}

    # A prompt of its own for each picture: one that was met before would not be encoded again.
    def ours(seed: int) -> Any:
        return engine.generate(
            ImageRequest(
                f"{PROMPT[:100]} {seed}", negative=f"{NEGATIVE} {seed}", guidance=GUIDANCE, steps=steps, width=width,
                height=height, seed=seed,
            )
        )  # fmt: skip

    # The same noise for both: up to torch 2.11 a seed's float16 numbers are others than its float32 ones, which are ours.
    def theirs(seed: int) -> Any:
        noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator("cpu").manual_seed(seed))
        return pipe(
            f"{PROMPT[:100]} {seed}", negative_prompt=f"{NEGATIVE} {seed}", guidance_scale=GUIDANCE,
            num_inference_steps=steps, width=width, height=height, latents=noise.to(pipe.unet.dtype),
        ).images[0]  # fmt: skip

    first_ours, _, made = timed(lambda: ours(100), cuda)
    first_theirs, _, wanted = timed(lambda: theirs(100), cuda)
    rows |= {
        "psnr_db": psnr(made.image, wanted),
        "contrast": round(float(np.asarray(wanted, float).std()), 1),
        "first_seconds": {"hwaga": round(first_ours, 2), "diffusers": round(first_theirs, 2)},
    }
    taken: dict[str, list[float]] = {"hwaga": [], "diffusers": []}
    phases: dict[str, list[float]] = {"encode": [], "denoise": [], "decode": []}
    for run in range(runs):
        seconds, peak, result = timed(lambda s=run: ours(s), cuda)
        taken["hwaga"].append(seconds)
        rows["hwaga_working_mib"] = peak and round(peak / 2**20)
        for phase, values in phases.items():
            values.append(getattr(result.timings, phase))
        seconds, peak, _ = timed(lambda s=run: theirs(s), cuda)
        taken["diffusers"].append(seconds)
        rows["diffusers_working_mib"] = peak and round(peak / 2**20)
    rows |= {name: spread(values) for name, values in taken.items()}
    rows["times_faster"] = spread([b / a for a, b in zip(taken["hwaga"], taken["diffusers"], strict=True)])
    rows["hwaga_phases"] = {phase: spread(values)["median"] for phase, values in phases.items()}
    engine.close()
    return rows


@torch.inference_mode()
def stages(folder: Path, device: str, dtype: str, sizes: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """What each stage takes beside what lies there, in MiB: measured, and foretold for pictures as a whole."""
    rows: dict[str, Any] = {}
    cuda = device == "cuda"
    with Engine.open(folder, device=device, dtype=dtype) as engine:
        model: Any = engine._opened().model
        for name, (width, height, count) in sizes.items():
            pictures = [Picture(width, height, 60, source=True, guided=True)] * count
            foretold = {phase.name: phase.work[0].nbytes for phase in model.demand(pictures, STEPS, 0).phases}
            prompts = [model.tokenize(f"{PROMPT[:100]} {name} {i}", 225) for i in range(2 * count)]
            measured = {}
            model.forget()
            _, measured["text"], captions = timed(lambda p=prompts: model.encode_prompts(p, [None] * len(p)), cuda)
            shape = model.latent_shape(width, height)
            schedule = model.schedule(STEPS, 1.0, steps_scale=False, sampler="euler")
            courses = [
                Course(captions[i], shape, schedule, negative=captions[-1 - i], guidance=GUIDANCE) for i in range(count)
            ]
            latents = [torch.randn(shape, device=device) for _ in range(count)]
            with model.denoising(courses) as derivative:
                at = [schedule[0].item()] * count
                derivative(latents, at, range(count))  # kernels are chosen
                _, measured["denoise"], _ = timed(lambda d=derivative, x=latents, a=at: d(x, a, range(len(x))), cuda)
            _, measured["decode"], pixels = timed(lambda x=latents: model.decode_latents(x[0]), cuda)
            _, measured["source"], _ = timed(lambda p=pixels: model.encode_pixels(p.clamp(-1, 1), None), cuda)
            rows[name] = {
                phase: {
                    "measured_mib": round(nbytes / 2**20),
                    "foretold_mib": round(foretold[phase] / 2**20),
                    "of_foretold": round(nbytes / foretold[phase], 3),
                }
                for phase, nbytes in measured.items()
                if nbytes is not None
            }
            print(name, json.dumps(rows[name]), flush=True)
    free(device)
    return rows


def under_cap(
    folder: Path, cap: float | None, device: str, dtype: str, sizes: dict[str, tuple[int, int, int]], steps: int
) -> dict[str, Any]:
    """Pictures under a cap of the whole card in GiB, or without one."""
    cuda = device == "cuda"
    rows: dict[str, Any] = {}
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).resize((512, 512))
    with Engine.open(folder, device=device, dtype=dtype, vram=int(cap * GIB) if cap and cuda else None) as engine:
        for name, (width, height, count) in sizes.items():
            for kind, extra in {"text2image": {}, "image2image": {"image": start, "strength": 0.6}}.items():
                batch = [
                    ImageRequest(
                        f"{PROMPT[:100]}, {kind} {i}", negative=NEGATIVE, guidance=GUIDANCE, width=width, height=height,
                        steps=steps, seed=7 + i, **extra,
                    )
                    for i in range(count)
                ]  # fmt: skip
                try:
                    began = time.perf_counter()
                    results = engine.generate_many(batch)
                    seconds = time.perf_counter() - began
                except (DoesNotFitError, RuntimeError) as error:
                    if not isinstance(error, DoesNotFitError) and not ran_out(error):
                        raise
                    rows[f"{name} {kind}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
                    continue
                plan = engine.plan
                assert plan is not None
                row: dict[str, Any] = {
                    "seconds": round(seconds, 3),
                    "modes": {part.name: f"{part.mode} {len(part.stays)} of {part.blocks}" for part in plan.parts},
                    "tile": plan.tile("decode"),
                    "moved_gib": round(plan.moved_bytes / GIB, 2),
                    "foretold_gib": round(plan.peak_vram_bytes / GIB, 3),
                    "bytes": hashlib.sha256(b"".join(r.image.tobytes() for r in results)).hexdigest()[:12],
                }
                if cuda:
                    row["measured_gib"] = round((results[0].memory.peak_vram or 0) / GIB, 3)
                    row["measured_of_foretold"] = round(row["measured_gib"] / row["foretold_gib"], 3)
                    row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
                rows[f"{name} {kind}"] = row
                print(cap, name, kind, json.dumps(row), flush=True)
    free(device)
    return rows


def side_by_side(sdxl: Path, z_image: Path, device: str, dtype: str, *, tiny: bool, runs: int) -> dict[str, Any]:
    """Z-Image Turbo and SDXL at their default steps, in turn, both on the device."""
    size = 256 if tiny else 1024
    taken: dict[str, list[float]] = {"z-image-turbo, 8 steps": [], "sdxl, 40 steps": []}
    with (
        Engine.open(z_image, device=device, dtype="float32" if tiny else "bfloat16") as turbo,
        Engine.open(sdxl, device=device, dtype=dtype) as other,
    ):
        for run in range(runs + 1):
            for name, engine, steps in zip(taken, (turbo, other), (8, 3 if tiny else STEPS), strict=True):
                request = ImageRequest(f"{PROMPT[:100]} {run}", width=size, height=size, seed=run, steps=steps)
                seconds, _, _ = timed(lambda e=engine, r=request: e.generate(r), device == "cuda")
                taken[name] += [seconds] if run else []
    rows: dict[str, Any] = {name: spread(seconds) for name, seconds in taken.items()}
    one, two = taken.values()
    rows["times_faster"] = spread([b / a for a, b in zip(one, two, strict=True)])
    free(device)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--caps", type=float, nargs="*", default=[12, 8])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "sdxl-random"))
    parser.add_argument("--without-z-image", action="store_true", help="save the time that writing its 20 GB takes")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device, folder, tiny = "cuda" if torch.cuda.is_available() else "cpu", arguments.folder, arguments.tiny
    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sdxl, z_image = folder / "sdxl", folder / "z-image"
    sdxl.mkdir(parents=True)
    write_sdxl(sdxl, tiny=tiny, device=device)
    free(device)
    print("checkpoint written", flush=True)
    dtype, steps = ("float32", 3) if tiny else ("float16", STEPS)
    figures: dict[str, Any] = {"weights": "tiny" if tiny else "full size, random, float16", "steps": steps}
    figures["beside_diffusers"] = compare(
        sdxl, device, dtype, (256, 256) if tiny else (1024, 1024), steps, arguments.runs
    )
    free(device)
    print(json.dumps(figures["beside_diffusers"]), flush=True)
    sizes = TINY_SIZES if tiny else SIZES
    figures["stages"] = stages(sdxl, device, dtype, sizes)
    figures["caps_gib"] = {
        str(cap or "none"): under_cap(sdxl, cap, device, dtype, sizes, steps) for cap in [None, *arguments.caps]
    }
    names = next(iter(figures["caps_gib"].values()))
    figures["same_bytes_under_every_cap"] = {
        name: len({rows[name].get("bytes") for rows in figures["caps_gib"].values() if rows[name].get("tile") is None}) == 1
        for name in names
    }  # fmt: skip
    if not arguments.without_z_image:
        z_image.mkdir()
        write_checkpoint(z_image, tiny=tiny, device=device)
        free(device)
        figures["side_by_side"] = side_by_side(sdxl, z_image, device, dtype, tiny=tiny, runs=arguments.runs)
    print(json.dumps(figures, indent=1))
    if not tiny:
        print(write_report("gpu_sdxl", figures))


if __name__ == "__main__":
    main()
