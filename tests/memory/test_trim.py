from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from hwaga.memory import trim

glibc = pytest.mark.skipif(trim._libc() is None, reason="the C library is not glibc")

# Many small allocations, with one at the end that keeps the heap from shrinking by itself.
PROGRAM = """
import ctypes
from hwaga.memory.budget import process_memory
from hwaga.memory.trim import trim_host_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 1024
taken = [libc.malloc(size) for _ in range(1024)]
for place in taken:
    ctypes.memset(place, 1, size)
for place in taken[:-1]:
    libc.free(place)
before = process_memory().rss_anon
trim_host_memory()
print(before - process_memory().rss_anon)
"""


@glibc
def test_what_was_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 32 * 2**20


@glibc
@pytest.mark.skipif(not hasattr(trim._libc(), "mallinfo2"), reason="glibc before 2.33 does not say what is free")
def test_a_little_may_stay() -> None:
    little, much = (PROGRAM.replace("trim_host_memory()", f"trim_host_memory({mib} * 2**20)") for mib in (128, 32))
    freed = [
        int(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        )
        for program in (little, much)
    ]
    assert freed[0] < 2**20
    assert freed[1] > 32 * 2**20


@glibc
def test_threads_share_a_few_arenas() -> None:
    # With as many arenas as threads, each thread's small allocations come from another 64 MiB of addresses.
    program = """
import ctypes, re, threading
from hwaga.memory.trim import limit_arenas
limit_arenas(1)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
found = set()
barrier = threading.Barrier(8)
def take():
    barrier.wait()
    found.add(libc.malloc(100) >> 26)
    barrier.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) == 1


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, _: object) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", Other)
    trim._libc.cache_clear()
    try:
        assert trim._libc() is None
        trim.trim_host_memory()
        trim.limit_arenas()
    finally:
        trim._libc.cache_clear()
