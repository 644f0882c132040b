"""Everything but SDXL runs where diffusers and transformers are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sdxl_reference import random_sdxl

BLOCKER = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "transformers", "peft", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""

USE = """
import sys
from pathlib import Path

folder, data = Path(sys.argv[1]), Path(sys.argv[2])

def command(*arguments):
    from hwaga.cli import main
    sys.argv = ["hwaga", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code or 0

assert command("--help") == 0
assert command("models") == 0
assert command("text2image", "a red apple", "--model", "mini", "--steps", "1", "-o", str(data / "apple.png")) == 0

from hwaga import Engine, ImageRequest, ModelError
from hwaga.model_lookup import find_card
import hwaga.server.api, hwaga.server.dispatcher, hwaga.server.worker

with Engine.open("mini", device="cpu") as engine:
    assert engine.generate(ImageRequest("a red apple", seed=7, steps=2)).image.size == (256, 256)
assert find_card("sdxl", data).family == find_card(folder, data).family == "sdxl"
assert command("prompt", "a cake", "--avoid", "text", "--model", "sdxl") == 0, "its tokenizer needs neither"

for model in (folder, "sdxl"):
    assert command("plan", "--model", str(model), "--vram", "8GiB") == 2
try:
    Engine.open(folder, device="cpu")
except ModelError as refused:
    print("refused:", refused)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a Python that finds none of these packages, though they are there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    paths = [str(tmp_path / "site"), str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HWAGA_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def test_all_but_sdxl_runs(environment: dict[str, str], tmp_path: Path) -> None:
    folder = random_sdxl(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-c", USE, str(folder), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert (tmp_path / "apple.png").stat().st_size > 1000
    says = "Stable Diffusion XL is drawn with the packages diffusers and transformers, which are not here"
    assert f"refused: {says}" in done.stdout
    assert "pip install '.[sdxl]'" in done.stdout
    errors = " ".join(done.stderr.split())
    assert errors.count(says) == 2, "of both plans"
    assert "Traceback" not in errors


def test_the_packages_are_out_of_reach(environment: dict[str, str]) -> None:
    for package in ("diffusers", "transformers"):
        __import__(package)
        done = subprocess.run(
            [sys.executable, "-c", f"import {package}"], env=environment, capture_output=True, text=True, check=False
        )
        assert f"No module named '{package}'" in done.stderr
