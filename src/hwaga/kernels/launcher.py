"""Launches of Triton's kernels without what its JIT does before each of them.

The JIT binds a launch's arguments, writes down all that a kernel may be specialised on as a text, and looks up what it compiled
for that. A ``Launcher`` has a shorter key for the same, and hands what the JIT compiled for that key straight to the driver.
Whatever it does not know goes the JIT's way: a new key, a kind of argument that our operations have not, and all launches while
somebody listens to them, as profilers do. Triton's settings (``TRITON_DEBUG`` and the like) count when a key is new.
``HWAGA_JIT_LAUNCHES=1`` leaves all launches to the JIT, should they ever be suspected.

Importing this needs Triton, and of it nothing that versions which are not known might have moved.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import triton
from torch import Tensor

KNOWN = frozenset({"3.6", "3.7", "3.8", "3.9"})
"""Versions of Triton whose sources launch in the way that is written down here. With any other, launches are the JIT's.
``tests/kernels/test_launcher.py`` holds the two against each other for the version that is installed."""

ALIGNED = 16
"""What kernels may be compiled for a pointer or an integer to be a multiple of."""

INT32 = range(-(2**31), 2**31)
"""Integers of 32 bits. For larger integers the JIT compiles other kernels."""


class Compiled(NamedTuple):
    """What is launched again.

    Attributes:
        kernel: as the JIT compiled it, and has launched it once.
        run: takes a launch to the driver.
        constants: what follows the arguments there, which the driver drops.
    """

    kernel: Any
    run: Callable[..., None]
    constants: tuple[Any, ...]


class Launcher:
    """A kernel, launched as Triton's are: ``kernel[grid](*arguments, **constants)``.

    Arguments go by position, constants and Triton's options by name. As with Triton, a kernel runs on the current device and in
    its current stream.

    Raises:
        TypeError: the kernel has constants before its arguments.
    """

    _differs: ClassVar[bool] = False
    """Whether the driver refused a launch: then it will refuse those of all kernels."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._defaults = {each.name: each.default for each in kernel.params if each.is_constexpr}
        arguments = kernel.params[: len(kernel.params) - len(self._defaults)]
        if any(each.is_constexpr for each in arguments):
            raise TypeError(f"The constants of {kernel.__name__} have to stand behind its arguments.")
        self._specialized = [not each.do_not_specialize for each in arguments]
        self._compiled: dict[tuple[Any, ...] | None, Compiled] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        # What is compiled for a listener may be another kernel, and is not kept.
        if self._differs or self._is_listened_to():
            self.kernel[grid](*arguments, **constants)
            return
        active = triton.runtime.driver.active
        device = active.get_current_device()
        key, handed = self._key(device, arguments, constants)
        compiled, refused = self._compiled.get(key), None
        if compiled is not None:
            kernel, run, rest = compiled
            x, y, z = (*grid, 1, 1)[:3]
            stream = active.get_current_stream(device)
            try:
                run(x, y, z, stream, kernel.function, kernel.packed_metadata, None, None, None, *handed, *rest)
            except (AttributeError, TypeError) as error:
                # Of arguments, before anything is launched: a build that is not what its version says.
                Launcher._differs, refused = True, error
            else:
                return
        made = self.kernel[grid](*arguments, **constants)
        if refused is not None:
            reason = f"Triton {triton.__version__} launches in another way here, and more slowly: {refused}"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
        # Under Triton's asynchronous compiling it is something else, and without a GPU nothing.
        if key is not None and isinstance(made, triton.compiler.CompiledKernel):
            rest = tuple(constants.get(name, default) for name, default in self._defaults.items())
            self._compiled[key] = Compiled(made, made.run, rest)

    def _key(
        self, device: int, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> tuple[tuple[Any, ...] | None, list[Any]]:
        """All that the JIT specialises on, or None for what is left to it; and the arguments as the driver takes them."""
        handed: list[Any] = []
        if len(arguments) != len(self._specialized):
            return None, handed
        # By their types too: 1 is equal to True and to 1.0, and compiled to something else.
        key: list[Any] = [device, *constants, *constants.values(), *map(type, constants.values())]
        for argument, specialized in zip(arguments, self._specialized, strict=True):
            kind = type(argument)
            if argument is None or kind is float or kind is bool:
                key.append(kind)
                handed.append(argument)
            elif kind is int and argument in INT32:
                # One becomes a constant.
                key.append((argument == 1, argument % ALIGNED == 0) if specialized else int)
                handed.append(argument)
            # About a tensor the driver is asked whether this device may read it, which a pointer spares. Of another device's
            # it has to be asked. For AMD's GPUs kernels depend on a tensor's size too; none of ours is launched there.
            elif isinstance(argument, Tensor) and argument.get_device() == device:
                pointer = argument.data_ptr()
                key.append((argument.dtype, pointer % ALIGNED == 0))
                handed.append(pointer)
            else:
                return None, handed
        return tuple(key), handed

    def _is_listened_to(self) -> bool:
        """Whether anybody but us is to hear of launches. Triton has chains of such hooks, most often empty."""
        runtime = triton.knobs.runtime
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        return bool(self.kernel.pre_run_hooks or getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def launched(kernel: Any) -> Any:
    """A decorator on top of ``triton.jit``: the kernel with a launcher, where Triton compiles and its version is known."""
    if os.environ.get("HWAGA_JIT_LAUNCHES", "0") not in ("", "0"):
        return kernel
    version = ".".join(triton.__version__.split(".")[:2])
    return Launcher(kernel) if version in KNOWN and isinstance(kernel, triton.JITFunction) else kernel


def pieces(total: int, size: int) -> int:
    """How many pieces of a size cover a total. Triton's own ``cdiv`` is for kernels, and slow outside of them."""
    return -(-total // size)


def power_of_two(least: int) -> int:
    """The smallest power of two that is no less than a positive number, as a block's size has to be."""
    return 1 << (least - 1).bit_length()
