from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from hwaga.memory.budget import HostMemory, ProcessMemory, host_memory, process_memory

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
    assert host_memory(tmp_path, tmp_path) is None
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
