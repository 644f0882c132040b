"""The autoencoder's operations on GPUs against their reference, in Triton's interpreter; and when they are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwaga.kernels import image_ops


def test_against_the_reference() -> None:
    """In a process of its own: whether Triton interprets is settled when the operations are imported."""
    pytest.importorskip("triton", reason="Triton has no build for this machine")
    script = Path(__file__).parent / "interpreted_images.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


class OnGpu:
    """What is asked of a tensor before an operation is chosen."""

    is_cuda = True
    device = torch.device("cuda")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def test_which_tensors_kernels_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_ops, "why_not_fused", lambda device: None)
    with torch.inference_mode():
        assert image_ops.fused(OnGpu(torch.bfloat16))  # type: ignore[arg-type]
        assert not image_ops.fused(OnGpu(torch.float32))  # type: ignore[arg-type]
        assert not image_ops.fused(torch.zeros(1, dtype=torch.bfloat16))
        monkeypatch.setattr(image_ops, "why_not_fused", lambda device: "no Triton")
        assert not image_ops.fused(OnGpu(torch.bfloat16))  # type: ignore[arg-type]
    monkeypatch.setattr(image_ops, "why_not_fused", lambda device: None)
    with torch.enable_grad():
        assert not image_ops.fused(OnGpu(torch.bfloat16))  # type: ignore[arg-type]
