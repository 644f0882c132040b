"""Memory and time of `hwaga convert` over a checkpoint of the published size, or of fewer layers of the same size.

    python benchmarks/convert.py [--precision bf16] [--layers 30] [--encoder-layers 36] [--folder DIR]

The source has the shapes of Z-Image Turbo in diffusers' layout (transformer in float32, the rest in bfloat16) and takes no
space: its values are a hole, and read as zeros. So are most of those that are written; their blocks are given back while more
come, so that 20 GB fit on a disk with room for a few. That changes no byte: all files are hashed again at the end, against what
was noted while they were written. Memory does not depend on values. Time does on the disk: the seconds here are those of the
work and of a page cache. Adds to ``results/convert.json``, by precision, with the layers that there were. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from report import FOLDER, write_report

sys.path.append(str(Path(__file__).parent.parent / "tests"))

BLOCK = 2**20
"""Bytes. Zeros are looked for in whole blocks of this size."""

ZEROS = bytes(BLOCK)
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

fallocate = ctypes.CDLL(None, use_errno=True).fallocate
fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def make_source(folder: Path, layers: int, encoder_layers: int) -> None:
    import torch
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from reference import MINI
    from single_files import write_header
    from transformers import Qwen3Config, Qwen3Model

    sizes = {
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": encoder_layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    }  # fmt: skip
    autoencoder = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    }  # fmt: skip
    with torch.device("meta"):
        networks = {
            "text_encoder": (Qwen3Model(Qwen3Config(**sizes)), "BF16", "model"),
            "transformer": (ZImageTransformer2DModel(n_layers=layers), "F32", "diffusion_pytorch_model"),
            "vae": (AutoencoderKL(**autoencoder), "BF16", "diffusion_pytorch_model"),
        }
    for name, (network, number_format, stem) in networks.items():
        network.config.save_pretrained(folder / name) if name == "text_encoder" else network.save_config(folder / name)
        header = {key: (number_format, tuple(tensor.shape)) for key, tensor in network.state_dict().items()}
        write_header(folder / name / f"{stem}.safetensors", header)
    for path in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(MINI / path, folder / path)


class Holes:
    """Gives zeros of files back to the disk while the files grow. Each byte is looked at once, when it will not change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dug, self.most = folder, dict[str, int](), 0

    def dig(self) -> None:
        files = [*self.folder.rglob("*.safetensors")]
        self.most = max(self.most, sum(path.stat().st_blocks * 512 for path in files))
        for path in files:
            name = path.relative_to(self.folder).as_posix()
            begin, end = self.dug.get(name, 0), path.stat().st_size // BLOCK * BLOCK
            with path.open("r+b") as file:
                for place in range(begin, end, BLOCK):
                    if os.pread(file.fileno(), BLOCK, place) == ZEROS and fallocate(file.fileno(), PUNCH, place, BLOCK):
                        raise OSError(ctypes.get_errno(), "no hole can be made", str(path))
            self.dug[name] = end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--encoder-layers", type=int, default=36)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        make_source(folder / "source", chosen.layers, chosen.encoder_layers)
        begin = time.monotonic()
        command = [sys.executable, "-m", "hwaga", "convert", str(folder / "source"), str(folder / "made")]
        holes = Holes(folder / ".made.converting")
        with subprocess.Popen(
            [*command, "--precision", chosen.precision, "--json"], stdout=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                with suppress(FileNotFoundError):  # moved to its place meanwhile
                    holes.dig()
                time.sleep(0.5)
            assert process.stdout is not None
            said = json.loads(process.stdout.read())
        assert process.returncode == 0, process.returncode
        seconds = time.monotonic() - begin
        # Of the largest child, which is this one; mapped files count, of which there are none but libraries.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        subprocess.run([sys.executable, "-m", "hwaga", "models", "verify", str(folder / "made")], check=True)
    path = FOLDER / "convert.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("where", None)
    known[chosen.precision] = {
        "layers": chosen.layers,
        "encoder_layers": chosen.encoder_layers,
        "published_size": (chosen.layers, chosen.encoder_layers) == (30, 36),
        "read_gb": round(said["to_read_bytes"] / 1e9, 2),
        "written_gb": round(said["to_write_bytes"] / 1e9, 2),
        "most_on_disk_gb": round(holes.most / 1e9, 2),
        "peak_rss_mib": round(peak / 2**20),
        "seconds": round(seconds),
    }
    print(write_report("convert", known), known[chosen.precision])


if __name__ == "__main__":
    main()
