"""LoRAs on a GPU at full size, beside diffusers with peft: what they cost a picture, and how long switching takes.

    python benchmarks/gpu_lora.py [--runs 5] [--folder FOLDER] [--tiny]

Random LoRAs of rank 16 and 64 over every linear layer of the transformer's blocks, on random weights of the full size. Both
make the same pictures, without and with each LoRA, in turn. Then each switches between two LoRAs of a rank: Hwaga takes one
that it has kept, and one that it has to read; diffusers unloads one and loads the other, or swaps it in place ("hotswap").
``--tiny`` is the same with a small network, to try the script. The figures go to ``results/gpu_lora.json``.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from gpu_full import PROMPT, open_diffusers, psnr, timed, write_checkpoint
from report import spread, write_report
from safetensors.torch import save_file

RANKS = (16, 64)


def write_lora(path: Path, transformer: torch.nn.Module, rank: int, seed: int, device: str = "cpu") -> None:
    """Random factors for every linear layer of the blocks, of a size that changes the picture. They are made on ``device``."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith(("layers.", "noise_refiner.", "context_refiner.")):
            options: Any = {"generator": generator, "device": generator.device}
            down = torch.randn(rank, module.in_features, **options) / module.in_features**0.5
            up = torch.randn(module.out_features, rank, **options) * 0.1 / rank**0.5
            tensors[f"transformer.{name}.lora_A.weight"] = down.bfloat16().cpu()
            tensors[f"transformer.{name}.lora_B.weight"] = up.bfloat16().cpu()
    save_file(tensors, path)


def forget(path: Path) -> None:
    """Takes a file out of the page cache, so that it is read from the disk the next time."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "z-image-random"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, folder, runs = "cuda" if cuda else "cpu", arguments.folder, arguments.runs
    side = 256 if arguments.tiny else 1024
    from hwaga import Engine, ImageRequest, Settings

    if folder.exists():
        raise SystemExit(f"{folder} exists. Name a folder that can be made and removed again.")
    atexit.register(shutil.rmtree, folder)
    write_checkpoint(folder / "model", tiny=arguments.tiny, device=device)
    gc.collect()
    settings = Settings(data_dir=str(folder), lora_cache="4 GiB")
    settings.loras.mkdir()
    pipe = open_diffusers(folder / "model", device)
    figures: dict[str, Any] = {"weights": "tiny" if arguments.tiny else "full size, random, bfloat16", "side": side}
    files = {(rank, place): settings.loras / f"r{rank}{place}.safetensors" for rank in RANKS for place in "ab"}
    for (rank, place), path in files.items():
        write_lora(path, pipe.transformer, rank, seed=rank + ord(place), device=device)
    figures["file_mib"] = {str(rank): round(files[rank, "a"].stat().st_size / 2**20) for rank in RANKS}
    engine = Engine.open(folder / "model", device=device, dtype="bfloat16", settings=settings)
    print("opened", figures, flush=True)

    def hwaga(*loras: str) -> Any:
        return engine.generate(ImageRequest(PROMPT, width=side, height=side, seed=1, loras=loras))

    def diffusers() -> Any:
        generator = torch.Generator("cpu").manual_seed(1)
        return pipe(
            PROMPT, width=side, height=side, num_inference_steps=8, guidance_scale=0.0, generator=generator
        ).images[0]  # fmt: skip

    def seconds(make: Callable[..., Any], *given: Any) -> float:
        return timed(lambda: make(*given), cuda)[0]

    def read(name: str) -> Any:
        engine._opened().model.forget()
        return engine._opened().model.adapters([(settings.loras / f"{name}.safetensors", 1.0)])

    def load(name: str, **options: Any) -> None:
        pipe.load_lora_weights(str(settings.loras), weight_name=f"{name}.safetensors", **options)

    def unload_and_load(name: str) -> None:
        pipe.unload_lora_weights()
        load(name)

    def hotswap(name: str) -> None:
        load(name, adapter_name="style", hotswap=True)

    base_bytes = hwaga().image.tobytes()
    for rank in RANKS:
        names = [f"r{rank}{place}" for place in "ab"]
        rows: dict[str, Any] = {}
        hwaga(names[0])
        without, with_one, with_two = list[float](), list[float](), list[float]()
        for _ in range(runs):
            without.append(seconds(hwaga))
            with_one.append(seconds(hwaga, names[0]))
            with_two.append(seconds(hwaga, f"{names[0]}:0.7", f"{names[1]}:0.4"))
        rows["hwaga"] = {
            "without": spread(without),
            "one": spread(with_one),
            "two_weighted": spread(with_two),
            "added_by_one": round(float(np.median(with_one) / np.median(without)) - 1, 4),
            "added_by_two": round(float(np.median(with_two) / np.median(without)) - 1, 4),
        }
        alternating = [seconds(hwaga, name) for _ in range(runs) for name in names]
        rows["hwaga"]["alternating"] = spread(alternating)
        rows["hwaga"]["switch_kept_seconds"] = round(float(np.median(alternating) - np.median(with_one)), 4)

        from_cache = [seconds(read, name) for name in names * 2]
        from_disk = []
        for name in names * 2:
            forget(settings.loras / f"{name}.safetensors")
            from_disk.append(seconds(read, name))
        rows["hwaga"]["read_from_page_cache"] = spread(from_cache)
        rows["hwaga"]["read_from_disk"] = spread(from_disk)

        picture = hwaga(names[0]).image
        reference = list[float]()
        bare = list[float]()
        for _ in range(runs):
            bare.append(seconds(diffusers))
        loading = [seconds(load, names[0])]
        drawn = diffusers()
        for _ in range(runs):
            reference.append(seconds(diffusers))
        switching = [seconds(unload_and_load, name) for name in names[::-1]]
        pipe.unload_lora_weights()
        load(names[0], adapter_name="style")
        swapping = [seconds(hotswap, name) for name in (names[1], names[0], names[1])]
        pipe.unload_lora_weights()
        rows["diffusers"] = {
            "without": spread(bare),
            "one": spread(reference),
            "added_by_one": round(float(np.median(reference) / np.median(bare)) - 1, 4),
            "load": spread(loading),
            "unload_and_load": spread(switching),
            "hotswap": spread(swapping),
        }
        rows["psnr_db_to_diffusers"] = psnr(picture, drawn)
        rows["psnr_db_to_no_lora"] = psnr(picture, hwaga().image)
        figures[f"rank_{rank}"] = rows
        print(rank, json.dumps(rows), flush=True)
    figures["base_is_bit_identical_after"] = hwaga().image.tobytes() == base_bytes
    print(json.dumps(figures, indent=1))
    if not arguments.tiny:
        print(write_report("gpu_lora", figures))


if __name__ == "__main__":
    main()
