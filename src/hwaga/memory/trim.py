"""Gives memory of the host that was freed back to the system.

glibc keeps what small allocations leave behind in an arena of each thread, and a process that loads weights or decodes pictures
seems to grow for days. Nothing has leaked: ``malloc_trim`` returns it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

M_ARENA_MAX = -8
"""Of mallopt(3)."""

SPARE = 128 * 2**20
"""Bytes of freed memory that may stay for the next picture. A small picture on a CPU is computed in less, and the system would
have to hand out the same pages again for each."""


class _Statistics(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return None
    if hasattr(libc, "mallinfo2"):  # glibc has it from 2.33 on
        libc.mallinfo2.restype = _Statistics
    return libc


def trim_host_memory(spare: int = 0) -> None:
    """Returns freed memory to the system, unless it is less than ``spare`` bytes; does nothing where the C library is not
    glibc.
    """
    libc = _libc()
    if libc is None or (spare and hasattr(libc, "mallinfo2") and libc.mallinfo2().fordblks < spare):
        return
    libc.malloc_trim(0)


def prepare_process() -> None:
    """Settings of memory that hold for a whole process: for those of our own, at their start, before torch is imported."""
    limit_arenas()
    # Segments that grow leave fewer gaps than segments of fixed sizes, which blocks of many sizes do not fill.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def limit_arenas(count: int = 2) -> None:
    """Lets threads share so many arenas. For processes of our own, at their start: it holds for the whole process."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, count)
