"""Launches past Triton's JIT are the launches that it would make. Kernels are compiled as for an H100 and not run: what they
would be run with is held against what they were compiled for.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton has no build for this machine")

import triton.language as tl  # noqa: E402
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.interpreter import InterpretedFunction  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from hwaga.kernels import fused, group_norm, upsample, wide_attention  # noqa: E402
from hwaga.kernels.coded import Form  # noqa: E402
from hwaga.kernels.launcher import KNOWN, Launcher, launched, pieces, power_of_two  # noqa: E402

BITS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv", torch.int64: "i64"}
DEVICES = itertools.count(100)


@triton.jit(do_not_specialize=["row"])
def _kernel(x, y, out, row, count, eps, ADD: tl.constexpr, BLOCK: tl.constexpr = 16):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count) * eps + row
    if ADD:
        value += tl.load(y + at, mask=at < count)
    tl.store(out + at, value, mask=at < count)


class Gpu:
    """A driver of Triton's whose launches are checked and noted. Tensors of the CPU are in its current device's memory.

    Attributes:
        formats: what a tensor held whose address was asked for last.
    """

    def __init__(self) -> None:
        self.device = next(DEVICES)  # nothing is compiled for it yet
        self.stream = 7
        self.launches: list[tuple[Any, ...]] = []
        self.formats: dict[int, torch.dtype] = {}
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (object(), (name, hash(binary), device), 8, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        assert device == self.device
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        """As the driver's own: one for each compiled kernel."""

        def launch(*given: Any) -> None:
            x, y, z, stream, function, packed, told, enter, leave, *arguments = given
            if enter is not None:
                enter(told)
            handed = [
                self._checked(src, index, *each) for index, each in enumerate(strict_zip(src.signature, arguments))
            ]
            self.launches.append((x, y, z, stream, function, packed, *handed))
            if leave is not None:
                leave(told)

        return launch

    def _checked(self, src: Any, index: int, name: str, value: Any) -> Any:
        """An argument as the GPU would get it, if a kernel may be given that."""
        kind = src.signature[name]
        if kind == "constexpr":
            assert value == src.constants[(index,)]
            return value
        if isinstance(value, Tensor):
            value = value.data_ptr()
        if kind.startswith("*"):
            assert value == 0 or kind == "*" + BITS[self.formats[value]]
        elif kind == "fp32":
            assert type(value) is float
        elif kind in ("i32", "i64"):
            assert type(value) is int
            assert value.bit_length() < int(kind[1:])
        else:
            assert kind == "u1"
            assert type(value) is bool
        if ["tt.divisibility", 16] in src.attrs.get((index,), []):
            assert value % 16 == 0, f"{name} is {value}, and the kernel is for multiples of 16"
        return value


def strict_zip(signature: Any, arguments: list[Any]) -> Iterator[tuple[str, Any]]:
    return zip(signature, arguments, strict=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Triton keeps what it has compiled."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Gpu:
    made = Gpu()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.setattr(driver, "_active", made)
    monkeypatch.setattr(Tensor, "get_device", lambda tensor: made.device)
    address_of = Tensor.data_ptr

    def data_ptr(tensor: Tensor) -> int:
        address = address_of(tensor)
        made.formats[address] = tensor.dtype
        return address

    monkeypatch.setattr(Tensor, "data_ptr", data_ptr)
    return made


@pytest.fixture
def jits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that went the JIT's way."""
    went: list[str] = []
    run = JITFunction.run

    def noted(kernel: Any, *arguments: Any, **options: Any) -> Any:
        went.append(kernel.__name__)
        return run(kernel, *arguments, **options)

    monkeypatch.setattr(JITFunction, "run", noted)
    return went


def numbers(dtype: torch.dtype = torch.float32, *, begin: int = 0) -> Tensor:
    """Of a memory that begins at a multiple of 64 bytes; those from a number on."""
    memory = torch.zeros(256, dtype=torch.uint8)
    first = -memory.data_ptr() % 64
    return memory[first : first + 128].view(dtype)[begin:]


X, BRAIN, ODD = numbers(), numbers(torch.bfloat16), numbers(begin=1)
CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "plain": ((X, X, X, 3, 32, 0.5), {"ADD": True}),
    "unaligned": ((ODD, X, X, 3, 32, 0.5), {"ADD": True}),
    "another unaligned": ((X, X, ODD, 3, 32, 0.5), {"ADD": True}),
    "bfloat16": ((BRAIN, X, X, 3, 32, 0.5), {"ADD": True}),
    "without": ((X, None, X, 3, 32, 0.5), {"ADD": False}),
    "one": ((X, X, X, 3, 1, 0.5), {"ADD": True}),
    "uneven": ((X, X, X, 3, 31, 0.5), {"ADD": True}),
    "integer for float": ((X, X, X, 3, 32, 5), {"ADD": True}),
    "bool for integer": ((X, X, X, True, 32, 0.5), {"ADD": True}),
    "constant": ((X, X, X, 3, 32, 0.5), {"ADD": False}),
    "constant of another type": ((X, X, X, 3, 32, 0.5), {"ADD": 1}),
    "block": ((X, X, X, 3, 32, 0.5), {"ADD": True, "BLOCK": 32}),
    "warps": ((X, X, X, 3, 32, 0.5), {"ADD": True, "num_warps": 2}),
    "stages": ((X, X, X, 3, 32, 0.5), {"ADD": True, "num_stages": 4}),
}
SAME = {
    "another row": ((X, X, X, 1, 32, 0.5), {"ADD": True}),
    "another aligned row": ((X, X, X, 16, 32, 0.5), {"ADD": True}),
    "another multiple of 16": ((X, X, X, 3, 64, 0.5), {"ADD": True}),
    "another tensor": ((numbers(), X, numbers(begin=4), 3, 32, 0.25), {"ADD": True}),
}


def test_the_version_here_is_known() -> None:
    """Before another is added, its ``JITFunction.run`` and ``CudaLauncher`` are to be read; the tests below compare."""
    assert ".".join(triton.__version__.split(".")[:2]) in KNOWN
    assert isinstance(launched(_kernel), Launcher)


def test_launches_are_the_jits(gpu: Gpu, jits: list[str]) -> None:
    kernel = Launcher(_kernel)
    for arguments, constants in CASES.values():
        kernel[(2, 3)](*arguments, **constants)
    jits.clear()
    gpu.launches.clear()
    for arguments, constants in [*CASES.values(), *SAME.values()]:
        for grid in ((5,), (4, 3), (2, 3, 4)):
            _kernel[grid](*arguments, **constants)
            assert len(jits) == 1
            kernel[grid](*arguments, **constants)
            assert len(jits) == 1, "the same was compiled before"
            expected, made = gpu.launches
            assert made == expected
            assert made[:3] == (*grid, 1, 1)[:3]
            jits.clear()
            gpu.launches.clear()


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_what_is_new_goes_through_the_jit(case: str, gpu: Gpu, jits: list[str]) -> None:
    """After what differs from it in one thing."""
    kernel = Launcher(_kernel)
    for name in ("plain", "plain", case, case, "plain"):
        arguments, constants = CASES[name]
        kernel[(2,)](*arguments, **constants)
    assert jits == ["_kernel"] * 2
    assert len(gpu.launches) == 5


@pytest.mark.parametrize(
    "arguments",
    [(X, X, X, 2**31, 32, 0.5), (X, X, X, 3, -(2**31) - 1, 0.5), (X, X, X, 3, 32)],
    ids=["large", "very negative", "by name"],
)
def test_what_is_left_to_the_jit_stays_with_it(arguments: tuple[Any, ...], gpu: Gpu, jits: list[str]) -> None:
    kernel = Launcher(_kernel)
    for _ in range(2):
        kernel[(2,)](*arguments, ADD=True, **({} if len(arguments) == 6 else {"eps": 0.5}))
    assert len(jits) == len(gpu.launches) == 2


def test_the_current_device_and_stream(gpu: Gpu, jits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, (arguments, constants) = Launcher(_kernel), CASES["plain"]
    first, second = gpu.device, next(DEVICES)
    for device, stream in ((first, 1), (second, 2), (first, 3), (second, 4)):
        gpu.device, gpu.stream = device, stream
        kernel[(2,)](*arguments, **constants)
    assert len(jits) == 2, "one for each device"
    assert [(launch[3], launch[4][2]) for launch in gpu.launches] == [(1, first), (2, second), (3, first), (4, second)]
    monkeypatch.setattr(Tensor, "get_device", lambda tensor: first)
    kernel[(2,)](*arguments, **constants)
    assert len(jits) == 3, "whether a device may read another one's memory is for the JIT to have looked at"


def test_listeners_hear_of_every_launch(gpu: Gpu, jits: list[str]) -> None:
    kernel, (arguments, constants) = Launcher(_kernel), CASES["plain"]
    heard: list[str] = []

    def listen(told: Any) -> None:
        heard.append(told.get()["name"])

    def run() -> int:
        heard.clear()
        jits.clear()
        for _ in range(3):
            kernel[(2,)](*arguments, **constants)
        return len(heard)

    run()
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(listen)
        try:
            assert run() == len(jits) == 3
        finally:
            chain.remove(listen)
        assert run() == len(jits) == 0
    _kernel.add_pre_run_hook(lambda *_, **__: heard.append("run"))
    try:
        assert run() == 3
    finally:
        _kernel.pre_run_hooks.clear()
    assert run() == 0


def test_without_chains_of_listeners(gpu: Gpu, jits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook may be put in the place of its chain, or nothing."""
    kernel, (arguments, constants) = Launcher(_kernel), CASES["plain"]
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", None)
    for _ in range(2):
        kernel[(2,)](*arguments, **constants)
    assert len(jits) == 1
    heard: list[Any] = []
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", heard.append)
    kernel[(2,)](*arguments, **constants)
    assert len(heard) == 1


def test_what_listeners_had_compiled_is_not_kept(gpu: Gpu, jits: list[str]) -> None:
    """Profilers may have had it changed."""
    kernel, (arguments, constants) = Launcher(_kernel), CASES["plain"]

    def listen(told: Any) -> None:
        pass

    knobs.runtime.launch_enter_hook.add(listen)
    try:
        kernel[(2,)](*arguments, **constants)
    finally:
        knobs.runtime.launch_enter_hook.remove(listen)
    for _ in range(2):
        kernel[(2,)](*arguments, **constants)
    assert len(jits) == 2


def test_a_build_that_launches_in_another_way(gpu: Gpu, jits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, even where warnings are errors, and it is asked once for all kernels."""
    monkeypatch.setattr(Launcher, "_differs", False)
    kernel, other, (arguments, constants) = Launcher(_kernel), Launcher(_kernel), CASES["plain"]
    kind = gpu.launcher_cls

    def launcher_cls(src: Any, metadata: Any) -> Callable[..., None]:
        launch = kind(src, metadata)

        def with_hooks(*given: Any) -> None:
            if given[7] is None:
                raise TypeError("there have to be hooks")
            launch(*given)

        return with_hooks

    monkeypatch.setattr(gpu, "launcher_cls", launcher_cls)
    for each in (kernel, other):
        each[(2,)](*arguments, **constants)
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(RuntimeWarning, match=r"in another way here.*there have to be hooks"),
    ):
        kernel[(2,)](*arguments, **constants)
    with warnings.catch_warnings(action="error"):
        for each in (kernel, other):
            each[(2,)](*arguments, **constants)
    assert len(jits) == len(gpu.launches) == 5
    assert all(launch == gpu.launches[0] for launch in gpu.launches)


def test_threads(gpu: Gpu) -> None:
    """Many at once, each kernel new to all of them. What each was launched with is checked as ever."""
    kernel = Launcher(_kernel)
    cases = [CASES[name] for name in ("plain", "unaligned", "bfloat16", "one")] * 50

    def launch(case: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        kernel[(2,)](*case[0], **case[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(launch, cases))
    assert len(gpu.launches) == len(cases)
    assert len({launch[4:] for launch in gpu.launches}) == 4


def test_where_launches_stay_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, left in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("HWAGA_JIT_LAUNCHES", asked)
        assert (launched(_kernel) is _kernel) == left
    interpreted = InterpretedFunction(_kernel.fn)
    assert launched(interpreted) is interpreted
    for version in ("3.5.1", "3.99.0", "4.0.0+git1234", "main"):
        monkeypatch.setattr(triton, "__version__", version)
        assert launched(_kernel) is _kernel


def test_constants_stand_last() -> None:
    @triton.jit
    def _other(x, SIZE: tl.constexpr, count):
        tl.store(x, count + SIZE)

    with pytest.raises(TypeError, match="_other have to stand behind"):
        Launcher(_other)


def test_our_operations(gpu: Gpu, jits: list[str]) -> None:
    """The second time every kernel of ours is launched with what it was launched with the first time, without the JIT."""
    x = torch.zeros(4, 32, dtype=torch.bfloat16)
    rows, rotation = torch.zeros(4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.complex64)
    picture, weight = torch.zeros(1, 32, 4, 4, dtype=torch.bfloat16), torch.zeros(32, dtype=torch.bfloat16)
    enlarged = torch.zeros(1, 32, 6, 6, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)

    def operations() -> list[tuple[Any, ...]]:
        gpu.launches.clear()
        for form in Form:
            fused.gained_norm(x, x[:1], 1e-5, 0, form)
            fused.residual_norm(x, x, x[:1], x[:1], 1e-5, rows, form)
            fused.swiglu(x, form)
        fused.residual_norm(x, x, None, None, 1e-5)
        fused.turned_heads(x, (2, 1), (x[0, :8], x[0, :8]), 1e-5, rotation, halves=True)
        fused.turned_heads(x, (2, 1), None, 1e-5, rotation)
        group_norm.group_norm_silu(picture, 2, weight, weight, 1e-5, offset=weight)
        group_norm.add_group_norm_silu(picture, picture, weight, 2, weight, weight, 1e-5)
        group_norm.add(picture, None, weight)
        upsample.place(picture, weight, enlarged, 1, 0)
        wide_attention.softmax(x.float(), 0.5, torch.bfloat16)
        return [(*launch[:6], *(each for each in launch[6:] if type(each) is not int)) for launch in gpu.launches]

    first = operations()
    assert set(jits) == {
        "_rows_kernel",
        "_swiglu_kernel",
        "_turn_kernel",
        "_sum",
        "_join",
        "_apply",
        "_place",
        "_softmax",
    }
    jits.clear()
    assert operations() == first
    assert jits == []


def test_integers() -> None:
    for number in range(1, 300):
        assert power_of_two(number) == triton.next_power_of_2(number)
        for size in (1, 2, 3, 16, 299):
            assert pieces(number, size) == triton.cdiv(number, size)
    assert pieces(0, 4) == 0
