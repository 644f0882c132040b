"""The real worker, ``python cramped_worker.py FD``, on a device that has room for one and a half of the bundled model."""

from __future__ import annotations

from hwaga.memory.plan import Budget
from hwaga.placement import Placement
from hwaga.server import worker

ROOM = 210 * 2**20


if __name__ == "__main__":
    Placement.budget = lambda self: Budget("cuda", ROOM, ROOM)  # type: ignore[method-assign]
    worker.main()
