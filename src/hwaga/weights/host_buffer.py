"""Memory of the host that a GPU can read by itself.

torch's own page-locked allocator rounds sizes up to powers of two and keeps what is freed. Buffers here are as large as they
are asked to be, and go back to the system when they are let go of.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable

import torch

from hwaga.errors import DeviceMemoryError


class HostBuffer:
    """Bytes of the host; page-locked where they are for a GPU.

    Attributes:
        tensor: uint8 ``[nbytes]``. Nothing else may hold on to it once the buffer is let go of.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.nbytes = nbytes
        try:
            pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DeviceMemoryError(f"The host has no {nbytes / 2**20:.0f} MiB left: {error.strerror}.") from error
        self.tensor = torch.frombuffer(pages, dtype=torch.uint8)[:nbytes]
        self._release: Callable[[], object] = lambda: None
        if device.type == "cuda" and nbytes:
            start = self.tensor.data_ptr()
            with torch.cuda.device(device):
                refused = torch.cuda.cudart().cudaHostRegister(start, nbytes, 0)
            if int(refused):
                raise DeviceMemoryError(
                    f"The system does not lock {nbytes / 2**20:.0f} MiB of memory for the GPU ({refused}). Give less with "
                    "--ram, so that weights are read from their files instead."
                )
            self._release = weakref.finalize(self, _unlock, start)

    def close(self) -> None:
        """Gives the memory back. Copies from or to it must have ended."""
        self._release()
        self.tensor = torch.empty(0, dtype=torch.uint8, device="cpu")


def _unlock(start: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(start)
