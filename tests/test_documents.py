"""Figures in documents are those of the results that lie beside them, and of what plans count."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwaga.forecast import forecast
from hwaga.model_lookup import find_card
from hwaga.settings import Settings

ROOT = Path(__file__).parents[1]


def test_tables_are_what_was_measured() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("precision", ["full", "int8", "fp8", "int4"])
def test_weights_are_what_a_plan_counts(tmp_path: Path, precision: str) -> None:
    settings = Settings(data_dir=str(tmp_path))
    said = forecast("z-image-turbo", vram="40 GiB", ram="16 GiB", precision=precision, settings=settings)
    assert all(part.mode == "resident" for part in said.plan.parts)
    size = f"{sum(part.stays_bytes for part in said.plan.parts) / 2**30:.1f} GiB"
    row = re.search(
        rf"^\| `{precision}`[^|]*\| (.+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert row is not None
    assert row[1] == size
    if precision == "full":
        memory = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
        used = 2 * sum(part.parameters for part in find_card("z-image-turbo", tmp_path).parts.values())
        assert f"{size} of a GPU in bfloat16" in memory
        assert f"{used / 2**30:.1f} GiB are used" in memory
