"""What Triton would be asked to compile: kernels are noted and not run, so that a network may be on any device."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from hwaga.kernels import image_ops, operations

Variant = tuple[str, Hashable]
"""A kernel's name, and what of its arguments is in its code."""


@contextmanager
def noted() -> Iterator[set[Variant]]:
    """The variants of all kernels that are launched inside. What they would compute is left as it is."""
    from triton.runtime.jit import JITFunction

    from hwaga.kernels import wide_attention
    from hwaga.kernels.launcher import Launcher

    found: set[Variant] = set()

    def run(self: Any, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
        given = dict(zip((parameter.name for parameter in self.params), args, strict=False))
        given |= {parameter.name: options.pop(parameter.name) for parameter in self.params if parameter.name in options}
        seen = [
            (
                parameter.name,
                given[parameter.name] if parameter.is_constexpr else _seen(given[parameter.name], parameter),
            )
            for parameter in self.params
        ]
        found.add((self.__name__, (*seen, *sorted(options.items()))))

    def scores(queries: Tensor, keys: Tensor) -> Tensor:
        return queries.new_empty(queries.shape[0], keys.shape[1], dtype=torch.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide_attention, "_scores", scores)  # a product that is for GPUs alone
        patch.setattr(Launcher, "__getitem__", lambda launcher, grid: launcher.kernel[grid])
        patch.setattr(JITFunction, "run", run)
        patch.setattr(operations, "_is_fused", lambda x: True)
        patch.setattr(operations, "_is_on_cpu", lambda x: False)
        patch.setattr(image_ops, "fused", lambda x: x.itemsize == 2)
        yield found


def _seen(value: Any, parameter: Any) -> Hashable:
    """What Triton makes variants by: a tensor's format and alignment, and of a number, unless that is forgone, whether it is 1
    or a multiple of 16.
    """
    if isinstance(value, Tensor):
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if isinstance(value, int) and not parameter.do_not_specialize:
        return value == 1, value % 16 == 0
    return type(value)
