"""The bytes of tensors that are alive, counted while something runs: what a GPU's allocator would count, on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed. Those that were there before count as nothing.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs))
        for each in given:
            if isinstance(each, Tensor) and each.device.type != "meta":
                self._meet(each, own=False)
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.device.type != "meta":
                self._meet(each, own=True)
        return made

    def _meet(self, tensor: Tensor, *, own: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is not None and known() is not None:
            return
        nbytes = storage.nbytes() if own else 0
        self.now += nbytes
        self.peak = max(self.peak, self.now)

        def freed(_: object) -> None:
            self.now -= nbytes
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)


def peak_beside(call: Callable[[], object]) -> int:
    """The most bytes of tensors that were alive at a time, of those that a call made."""
    with torch.inference_mode(), LiveBytes() as live:
        call()
    return live.peak
