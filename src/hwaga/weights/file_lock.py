"""A lock that a killed process leaves open: it belongs to the open file, not to the name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwaga.errors import HwagaError


@contextmanager
def locked(path: Path, refusal: HwagaError) -> Iterator[None]:
    """Holds a file that nobody else holds, and removes it afterwards.

    Raises:
        HwagaError: ``refusal``, where somebody does.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break  # else it is a lock that its last holder has just removed
        except BlockingIOError:
            os.close(descriptor)
            raise refusal from None
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
