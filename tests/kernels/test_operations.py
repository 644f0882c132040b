"""Which operations run where, and what happens where Triton does not work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch

from hwaga.kernels import operations

GPU = torch.device("cuda:0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """A GPU that is none: tensors lie on the CPU. Its compute capability can be set."""
    capability = [(8, 6)]
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    operations.why_not_fused.cache_clear()
    operations.multiplies_codes.cache_clear()
    yield capability
    operations.why_not_fused.cache_clear()
    operations.multiplies_codes.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no build for this machine")
@pytest.mark.parametrize("kind", ["TritonError", "RuntimeError", "OSError"])
def test_where_triton_fails_the_reference_runs(
    kind: str, gpu: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton import TritonError

    from hwaga.kernels import fused

    error = {"TritonError": TritonError, "RuntimeError": RuntimeError, "OSError": OSError}[kind]("no compiler")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(fused, "gained_norm", fails)
    with pytest.warns(RuntimeWarning, match="no compiler"):
        assert "no compiler" in str(operations.why_not_fused(GPU))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no build for this machine")
def test_what_is_tried_first_runs_on_every_gpu_that_fuses(
    gpu: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before compute capability 8.9 Triton has no e4m3, so that nothing coded may be asked for."""
    from hwaga.kernels import fused

    asked = []
    monkeypatch.setattr(fused, "gained_norm", lambda *told: asked.append(told))
    assert operations.why_not_fused(GPU) is None
    ((_, _, _),) = asked


@pytest.mark.parametrize(
    ("capability", "fuses", "multiplies"), [((7, 5), False, False), ((8, 6), True, False), ((8, 9), True, True)]
)
def test_by_compute_capability(
    capability: tuple[int, int],
    fuses: bool,
    multiplies: bool,
    gpu: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu[0] = capability
    if find_spec("triton") is not None:
        from hwaga.kernels import fused

        monkeypatch.setattr(fused, "gained_norm", lambda *_: None)
        assert (operations.why_not_fused(GPU) is None) == fuses
    assert operations.multiplies_codes(GPU) == multiplies
