"""Units of weights without a network: each is a number, written over its memory."""

from __future__ import annotations

from torch import Tensor, nn


class FakeUnit:
    """See ``hwaga.memory.residency.Unit``. Its module can be called, as a block is."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number, self.nbytes = number, nbytes
        self.module: nn.Module = nn.Identity()
        self.host: Tensor | None = None
        self.attached = False
        self.memory: Tensor | None = None

    def parameters(self, memory: Tensor) -> Tensor:
        return memory

    def attach(self, parameters: Tensor) -> None:
        self.memory, self.attached = parameters, True

    def detach(self) -> None:
        self.memory, self.attached = None, False

    def park(self, memory: Tensor) -> None:
        if self.host is None:
            self.host = memory.clone()

    def drop_copy(self) -> None:
        self.host = None

    @property
    def ready(self) -> bool:
        """Its weights are where the network looks for them."""
        return self.memory is not None and bool((self.memory == self.number).all())
