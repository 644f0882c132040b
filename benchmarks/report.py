"""What every benchmark writes: its figures beside the machine and the version of the code that gave them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, fastest and slowest of repeated timings, in seconds."""
    return {
        "median": round(statistics.median(seconds), 4),
        "min": round(min(seconds), 4),
        "max": round(max(seconds), 4),
        "runs": len(seconds),
    }


def write_report(name: str, figures: dict[str, Any]) -> Path:
    """Writes ``results/NAME.json``; ``BENCHMARK_RESULTS`` names another folder."""
    folder = Path(os.environ.get("BENCHMARK_RESULTS", FOLDER))
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"where": _where(), **figures}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _where() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    # A machine that was sent the files alone is told which commit they are, and has nothing to compare them with.
    told = os.environ.get("BENCHMARK_COMMIT")
    changes = None if told else bool(_git("status", "--porcelain", "--", ":/src", ":/benchmarks/*.py"))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": told or _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": changes,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
