"""The devices of this machine, and what memory they have."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from hwaga.errors import DeviceError


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a GPU.

    Attributes:
        total: of the device.
        free: taken by no process.
        reserved: taken by this process's allocator.
        allocated: of those, in use.
    """

    total: int
    free: int
    reserved: int
    allocated: int


def find_device(name: str | None) -> torch.device:
    """A device by name, or the fastest present.

    Raises:
        DeviceError: no such device on this machine; the ones there are listed.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    present = cuda + present
    if name is None:
        return torch.device(present[0])
    if name == "cuda" and cuda:
        return torch.device(cuda[0])
    if name not in present:
        raise DeviceError(f"There is no device {name!r} here. There is {', '.join(present)}.")
    return torch.device(name)


def current(device: torch.device) -> AbstractContextManager[None]:
    """Makes a GPU the current one of this thread meanwhile. torch computes where its tensors are, Triton on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_memory(device: torch.device) -> DeviceMemory | None:
    """What a GPU has; None for the CPU, whose memory is the host's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        taken, used = torch.mps.driver_allocated_memory(), torch.mps.current_allocated_memory()
        return DeviceMemory(total, max(total - taken, 0), taken, used)
    return None


def peak_allocated(device: torch.device) -> int | None:
    """The most that this process's tensors took of a GPU since ``reset_peak``; None where that is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Counts the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def limit_allocator(device: torch.device, nbytes: int | None) -> None:
    """Holds this process's tensors on a GPU to so many bytes; None lifts the limit."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if nbytes is None else min(max(nbytes, 0) / total, 1.0)
        torch.cuda.set_per_process_memory_fraction(share, device)


def give_back(device: torch.device) -> None:
    """Returns what the allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Of x86 processors that multiply bfloat16: twice as fast as float32 on AMD's Zen 4, which has the first."""


@cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's CPU is quicker in bfloat16 than in float32. Others convert each number, and are slower in it.

    Args:
        cpuinfo: where Linux describes the processors; elsewhere nothing is known, and the answer is no.
    """
    if not torch.backends.mkldnn.is_available():  # torch's own products do not use the instructions
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not BFLOAT16_FLAGS.isdisjoint(flags)
