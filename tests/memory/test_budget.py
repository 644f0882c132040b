from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from hwaga.memory.budget import (
    CONTEXT,
    DEVICE_RESERVE,
    DEVICE_RESERVE_SHARE,
    HOST_BASE,
    HOST_RESERVE,
    STEP,
    HostMemory,
    ProcessMemory,
    budget,
    cap_for,
    host_memory,
    process_memory,
    rounded,
)
from hwaga.memory.device import DeviceMemory
from hwaga.memory.plan import Budget

GIB = 2**30
MEMINFO = """\
MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:    8388608 kB
SwapTotal:       2097152 kB
SwapFree:        1048576 kB
HugePages_Total:       0
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(MEMINFO)
    return folder


def test_the_kernels_figures(proc: Path, tmp_path: Path) -> None:
    assert host_memory(proc, tmp_path) == HostMemory(16 * GIB, 8 * GIB, 2 * GIB, 1 * GIB)


def write_group(folder: Path, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_the_tightest_cgroup_above_the_process_rules(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/team/job\n")
    write_group(tmp_path / "cg" / "team", str(6 * GIB), 5 * GIB, 3 * GIB)
    write_group(tmp_path / "cg" / "team" / "job", "max", 1 * GIB, 0)
    # Of the 5 GiB in use, 3 are page cache that the kernel can drop.
    assert host_memory(proc, tmp_path / "cg") == HostMemory(6 * GIB, 4 * GIB, 2 * GIB, 1 * GIB)


def test_version_one_cgroups(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:cpu:/x\n4:memory:/x\n")
    folder = tmp_path / "cg" / "memory" / "x"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.stat").write_text("total_inactive_file 0\n")
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None
    assert (memory.total, memory.available) == (2 * GIB, GIB)


def test_another_kernel_says_nothing(tmp_path: Path) -> None:
    found = host_memory(tmp_path, tmp_path)
    assert found is not None
    assert 0 < found.available == found.total // 2, "half of what the machine has"
    assert process_memory(tmp_path) is None


def test_a_process(proc: Path) -> None:
    (proc / "self" / "status").write_text("Name:\tpython\nRssAnon:\t  2048 kB\nVmSwap:\t  4 kB\n")
    assert process_memory(proc) == ProcessMemory(2048 * 1024, 4 * 1024)


def test_this_process_grows_with_what_it_holds() -> None:
    before = process_memory()
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        after = process_memory()
    assert before is not None
    assert after is not None
    assert after.rss_anon - before.rss_anon > 48 * 2**20


RAM = HostMemory(total=32 * GIB, available=20 * GIB, swap_total=64 * GIB, swap_used=0)
SMALL = ProcessMemory(rss_anon=GIB, swap=0)


def gpu(free: float, reserved: float = 0, allocated: float = 0) -> DeviceMemory:
    return DeviceMemory(24 * GIB, int(free * GIB), int(reserved * GIB), int(allocated * GIB))


def usable(nbytes: int) -> int:
    """Of free memory, without what the allocator cannot use of it."""
    return int(nbytes * (1 - DEVICE_RESERVE_SHARE)) - DEVICE_RESERVE


def test_what_others_hold_of_a_gpu_is_gone() -> None:
    assert budget("cuda", gpu(10), RAM, SMALL).device_bytes == usable(10 * GIB)
    assert budget("cuda", gpu(3), RAM, SMALL).device_bytes == usable(3 * GIB)


def test_what_the_engine_holds_itself_is_its_to_use() -> None:
    # 6 of 7 GiB that the allocator has taken are in use, 5 of them by weights that could leave.
    found = budget("cuda", gpu(10, reserved=7, allocated=6), RAM, SMALL, held=5 * GIB)
    assert found.device_bytes == usable((10 + 1 + 5) * GIB)


def test_a_cap_is_of_all_that_the_process_takes() -> None:
    found = budget("cuda", gpu(20), RAM, SMALL, vram=8 * GIB)
    assert found.device_bytes == usable(8 * GIB - CONTEXT)
    # What somebody else in this process keeps there counts as taken.
    found = budget("cuda", gpu(20, reserved=3, allocated=3), RAM, SMALL, held=GIB, vram=8 * GIB)
    assert found.device_bytes == usable(6 * GIB - CONTEXT)
    # A cap above what is free adds nothing, and one that is too small leaves nothing.
    assert budget("cuda", gpu(5), RAM, SMALL, vram=23 * GIB) == budget("cuda", gpu(5), RAM, SMALL)
    assert budget("cuda", gpu(20), RAM, SMALL, vram=GIB // 2).device_bytes == 0


def test_half_of_the_hosts_available_memory_may_be_locked() -> None:
    assert budget("cuda", gpu(20), RAM, SMALL).pinned_bytes == (20 * GIB - HOST_RESERVE) // 2
    # What is locked already is not locked away from itself.
    locked = HostMemory(32 * GIB, 14 * GIB, 0, 0)
    holding = ProcessMemory(rss_anon=7 * GIB, swap=0)
    assert budget("cuda", gpu(20), locked, holding, pinned=6 * GIB) == budget("cuda", gpu(20), RAM, SMALL)
    assert budget("mps", gpu(20), RAM, SMALL).pinned_bytes == 0


def test_a_cap_of_the_host_counts_what_the_process_takes_anyway() -> None:
    found = budget("cuda", gpu(20), RAM, SMALL, ram=8 * GIB)
    assert found.host_base == GIB
    assert found.pinned_bytes == (8 * GIB - GIB - HOST_RESERVE) // 2
    assert budget("cuda", gpu(20), RAM, SMALL, ram=GIB // 2).pinned_bytes == 0


def test_swap_is_never_memory() -> None:
    without = HostMemory(RAM.total, RAM.available, 0, 0)
    for device, memory in (("cuda", gpu(20)), ("cpu", None)):
        assert budget(device, memory, RAM, SMALL) == budget(device, memory, without, SMALL)


def test_on_the_cpu_the_host_is_the_device() -> None:
    found = budget("cpu", None, RAM, SMALL)
    assert (found.device_bytes, found.pinned_bytes, found.host_base) == (20 * GIB - HOST_RESERVE, 0, GIB)
    # Weights that the engine holds are neither gone nor part of what the process takes anyway.
    full = HostMemory(32 * GIB, 12 * GIB, 0, 0)
    assert budget("cpu", None, full, ProcessMemory(9 * GIB, 0), held=8 * GIB) == found
    assert budget("cpu", None, RAM, SMALL, ram=4 * GIB).device_bytes == 3 * GIB - HOST_RESERVE
    assert budget("cpu", None, RAM, SMALL, vram=GIB) == found


def test_a_gpu_that_is_thought_of() -> None:
    found = budget("cuda", None, None, None, vram=8 * GIB, ram=16 * GIB)
    assert found.device_bytes == usable(8 * GIB - CONTEXT)
    assert found.host_base == HOST_BASE["cuda"]
    assert found.pinned_bytes == (16 * GIB - HOST_BASE["cuda"] - HOST_RESERVE) // 2
    # Of a host that is there, what the process will take when it starts is not to be had for weights.
    assert budget("cuda", None, RAM, None, vram=8 * GIB).pinned_bytes == (
        (20 * GIB - HOST_BASE["cuda"] - HOST_RESERVE) // 2
    )


def test_the_card_that_would_do() -> None:
    for needed in (0, 1, STEP, 5 * GIB + 1, 7 * GIB + STEP - 1):
        cap = cap_for(needed)
        assert rounded(budget("cuda", None, None, None, vram=cap)).device_bytes >= needed
        assert rounded(budget("cuda", None, None, None, vram=cap - STEP - GIB // 50)).device_bytes < max(needed, 1)


def test_budgets_change_in_steps() -> None:
    found = rounded(Budget("cuda", 5 * STEP + 3, 2 * STEP - 1, 17))
    assert found == Budget("cuda", 5 * STEP, STEP, 17)


def test_files_that_were_read_twice_are_no_less_droppable(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/box\n")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "box" / "memory.current").write_text(f"{7 * GIB}\n")
    (tmp_path / "box" / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {4 * GIB}\n")
    found = host_memory(proc, tmp_path)
    assert found is not None
    assert found.available == 7 * GIB
