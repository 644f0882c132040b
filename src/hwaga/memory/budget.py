"""What memory is free, and what this process holds: host RAM as the kernel and the cgroup allow it, and device memory.

Swap never counts as memory to use: a generation that reaches it is slower than any plan that avoids it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwaga.memory.plan import Budget

if TYPE_CHECKING:
    from hwaga.memory.device import DeviceMemory

GIB = 2**30

CONTEXT = int(0.8 * GIB)
"""What CUDA takes of a GPU for a process, beside the process's tensors: 0.51 GiB when it starts and 0.75 after pictures of
all kinds on an H100 (``benchmarks/gpu_memory.py``). Counted where a cap is given; of a real device it has been taken already.
"""

DEVICE_RESERVE = 128 * 2**20
DEVICE_RESERVE_SHARE = 0.04
"""Of the device, for what the allocator cannot use of what it takes: so much, and this share of the whole. With 0.07 GiB left
of 15.25, four pictures took twice their time, since memory was given back and taken again at every step.
"""

HOST_BASE = {"cpu": int(0.4 * GIB), "mps": int(0.6 * GIB), "cuda": int(1.1 * GIB)}
"""Anonymous memory of a process with torch and a context on such a device, where none is running."""

HOST_RESERVE = GIB // 2
"""Of the host, for whatever else goes on there."""

PINNED_SHARE = 0.5
"""Of the host's available memory that may be locked. The other half is the page cache's, which the rest is read through;
what is locked cannot be taken back when another program needs memory."""

STEP = 64 * 2**20
"""Budgets are rounded down to a multiple of this, so that blocks don't come and go with every change of a few MiB."""

UNKNOWN = 2**50
"""For memory that cannot be told: no limit."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the host.

    Attributes:
        total: RAM, or the cgroup's limit where that is lower.
        available: RAM that can be had without swapping.
        swap_total, swap_used: swap of the machine.
    """

    total: int
    available: int
    swap_total: int
    swap_used: int


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of this process: anonymous resident memory, and what of it lies in swap."""

    rss_anon: int
    swap: int


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> HostMemory | None:
    """Memory of the host; of a system without /proc, half of what it has is taken to be free. None where nothing is known."""
    lines = _kilobyte_lines(proc / "meminfo")
    if "MemTotal" not in lines:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # another system
            return None
        return HostMemory(total, total // 2, 0, 0)
    total, available = lines["MemTotal"], lines.get("MemAvailable", lines.get("MemFree", 0))
    for limit, used in _cgroup_limits(proc, cgroup):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    swap_total = lines.get("SwapTotal", 0)
    return HostMemory(total, available, swap_total, swap_total - lines.get("SwapFree", 0))


def process_memory(proc: Path = Path("/proc")) -> ProcessMemory | None:
    """Memory of this process, or None where there is no /proc to read it from."""
    lines = _kilobyte_lines(proc / "self" / "status")
    return ProcessMemory(lines["RssAnon"], lines.get("VmSwap", 0)) if "RssAnon" in lines else None


def _kilobyte_lines(path: Path) -> dict[str, int]:
    """The lines of a /proc file that give kilobytes ("MemFree:  123 kB"), in bytes."""
    try:
        text = path.read_text()
    except OSError:  # another kernel: the caller is told that nothing is known
        return {}
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            values[name] = int(rest.split()[0]) * 1024
    return values


def _cgroup_limits(proc: Path, cgroup: Path) -> list[tuple[int, int]]:
    """(limit, used) of the process's cgroup and of each above it; version 2, then version 1. Page cache that the kernel
    can drop is not counted as used.
    """
    limits = []
    try:
        groups = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:  # no cgroups, no limits
        return []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        version1 = "memory" in controllers.split(",")
        if controllers and not version1:
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version1 else ("memory.max", "memory.current")
        root = cgroup / "memory" if version1 else cgroup
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            try:
                limit = (place / names[0]).read_text().strip()
                if not limit.isdecimal():  # no limit: what is used need not be read
                    continue
                used = (place / names[1]).read_text()
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            except OSError:  # this level sets no limit
                continue
            kinds = ("inactive_file", "active_file")  # a file that was read twice is active, and no less droppable
            droppable = sum(int(stat.get(f"total_{kind}" if version1 else kind, 0)) for kind in kinds)
            limits.append((int(limit), max(int(used) - droppable, 0)))
    return limits


def budget(
    device: str,
    memory: DeviceMemory | None,
    host: HostMemory | None,
    process: ProcessMemory | None,
    *,
    held: int = 0,
    pinned: int = 0,
    vram: int | None = None,
    ram: int | None = None,
) -> Budget:
    """What an engine may take of a device and of the host.

    Args:
        device: "cuda", "mps" or "cpu".
        memory: of the device; None for the CPU, and for a GPU that is only thought of, which is then all the engine's.
        host: None where it cannot be told; then it sets no limit.
        process: None where it cannot be told, or has not started: then what it will take is not to be had for anything else.
        held: bytes of the device that the engine has already, for what it could let go of.
        pinned: bytes of the host that it has locked already.
        vram, ram: caps of what the process takes in all; ``ram`` is the host's whole memory for a GPU that is thought of.
    """
    base = (
        HOST_BASE[device] if process is None else max(process.rss_anon - pinned - (held if device == "cpu" else 0), 0)
    )
    available = UNKNOWN if host is None else host.available + pinned + (held if device == "cpu" else 0)
    if process is None:
        available -= base
    if ram is not None:
        available = min(available, ram - base)
    if device == "cpu":
        return Budget(device, max(available - HOST_RESERVE, 0), 0, base, base + available)
    limits = []
    if memory is not None:
        limits.append(memory.free + memory.reserved - memory.allocated + held)
    if vram is not None:
        others = 0 if memory is None else memory.allocated - held
        limits.append(vram - CONTEXT - others)
    may_lock = max(int((available - HOST_RESERVE) * PINNED_SHARE), 0) if device == "cuda" else 0
    found = min(limits, default=0)
    usable = max(int(found * (1 - DEVICE_RESERVE_SHARE)) - DEVICE_RESERVE, 0)
    return Budget(device, usable, may_lock, base, base + available)


def rounded(found: Budget) -> Budget:
    """A budget in whole steps."""
    return replace(
        found, device_bytes=found.device_bytes // STEP * STEP, pinned_bytes=found.pinned_bytes // STEP * STEP
    )


def cap_for(device_bytes: int) -> int:
    """The smallest cap of a GPU that leaves so much for weights and work, to a hundredth of a GiB above."""
    least = int((-(-device_bytes // STEP) * STEP + DEVICE_RESERVE) / (1 - DEVICE_RESERVE_SHARE)) + CONTEXT
    return -(-least * 100 // GIB) * GIB // 100 + 1
