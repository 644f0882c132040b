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


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None


def trim_host_memory() -> None:
    """Returns freed memory to the system; does nothing where the C library is not glibc."""
    libc = _libc()
    if libc is not None:
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
