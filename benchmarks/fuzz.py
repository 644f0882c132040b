"""Damaged weights, cards and notes of downloads, many of them, through the readers of each.

    python benchmarks/fuzz.py [--inputs 120000] [--seed 1] [--memory-mib 256]

So many for each reader, some of which read a file in two ways, in processes that may not grow by more memory than that. Every
file must be read, or refused with an error of Hwaga's; anything else ends the run with exit code 1. The counts go to
``results/fuzz.json``. Linux only.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from report import write_report

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from damage import READERS, fuzz

BATCH = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.batch:
        run_batch(chosen.batch, chosen.seed, chosen.memory_mib)
        return
    begin, readers, faults = time.monotonic(), {}, []
    for reader in READERS:
        answers, inputs = Counter[str](), 0
        for number in range(-(-chosen.inputs // BATCH)):
            command = [sys.executable, __file__, "--batch", reader, "--memory-mib", str(chosen.memory_mib)]
            done = subprocess.run(
                [*command, "--seed", str(chosen.seed * 10_000 + number)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                faults.append({"reader": reader, "seed": chosen.seed * 10_000 + number, "error": done.stderr[-3000:]})
                continue
            inputs += BATCH
            answers.update({name: int(times) for name, times in map(str.split, done.stdout.splitlines())})
        readers[reader] = {"inputs": inputs, "answers": dict(sorted(answers.items()))}
        print(reader, readers[reader], flush=True)
    figures: dict[str, Any] = {
        "inputs": sum(each["inputs"] for each in readers.values()),
        "memory_cap_mib": chosen.memory_mib,
        "seconds": round(time.monotonic() - begin),
        "readers": readers,
        "faults": faults,
    }
    print(write_report("fuzz", figures))
    sys.exit(1 if faults else 0)


def run_batch(reader: str, seed: int, memory_mib: int) -> None:
    """In a process of its own: the address space may grow by so much and no more."""
    with tempfile.TemporaryDirectory() as folder:
        fuzz(reader, 20, seed, Path(folder))  # imports what is imported late
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = fuzz(reader, BATCH, seed, Path(folder))
    for name, times in found.items():
        print(name, times)


if __name__ == "__main__":
    main()
