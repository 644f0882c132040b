"""The operations as networks call them: fused where a GPU runs them, a CPU's own on a CPU (in C, or put together from torch's),
and the reference for anything else and wherever a gradient is wanted.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.kernels import avx512, cpu, reference
from hwaga.kernels.coded import Coded, Form, Rows


def gained_norm(x: Tensor, gain: Tensor, eps: float, row: int | Tensor = 0, form: Form = Form.PLAIN) -> Rows:
    """See ``reference.gained_norm``."""
    if _is_fused(x):
        from hwaga.kernels import fused

        return fused.gained_norm(x, gain, eps, row, form)
    if form is Form.PLAIN and _is_on_cpu(x):
        if avx512.can_run(x, gain):
            return avx512.gained_norm(x, gain, eps, row)
        return cpu.gained_norm(x, gain, eps, row)
    return reference.gained_norm(x, gain, eps, row, form)


def residual_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    gain: Tensor | None,
    eps: float,
    row: int | Tensor = 0,
    form: Form = Form.PLAIN,
) -> tuple[Tensor, Rows]:
    """See ``reference.residual_norm``."""
    if _is_fused(x):
        from hwaga.kernels import fused

        return fused.residual_norm(x, update, gate, gain, eps, row, form)
    if form is Form.PLAIN and _is_on_cpu(x):
        if avx512.can_run(x, update, gate, gain):
            return avx512.residual_norm(x, update, gate, gain, eps, row)
        return cpu.residual_norm(x, update, gate, gain, eps, row)
    return reference.residual_norm(x, update, gate, gain, eps, row, form)


def swiglu(gate_up: Tensor, form: Form = Form.PLAIN) -> Rows:
    """See ``reference.swiglu``."""
    if _is_fused(gate_up):
        from hwaga.kernels import fused

        return fused.swiglu(gate_up, form)
    return reference.swiglu(gate_up, form)


def coded(x: Tensor, form: Form = Form.CODES) -> Rows:
    """See ``reference.coded``."""
    if form is not Form.PLAIN and _is_fused(x):
        from hwaga.kernels import fused

        return fused.coded(x, form)
    return reference.coded(x, form)


def turned_heads(
    qkv: Tensor,
    heads: tuple[int, int],
    gains: tuple[Tensor, Tensor] | None,
    eps: float,
    rotation: Tensor,
    *,
    halves: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.turned_heads``."""
    if _is_fused(qkv) and turns(2 * rotation.shape[1]):
        from hwaga.kernels import fused

        return fused.turned_heads(qkv, heads, gains, eps, rotation, halves=halves)
    if not halves and _is_on_cpu(qkv):
        if avx512.turns(qkv, heads, gains):
            return avx512.turned_heads(qkv, heads, gains, eps, rotation)
        return cpu.turned_heads(qkv, heads, gains, eps, rotation)
    return reference.turned_heads(qkv, heads, gains, eps, rotation, halves=halves)


def turns(dim: int) -> bool:
    """Whether heads of a width are turned by a fused operation: where it is a power of two."""
    return dim >= 2 and dim & (dim - 1) == 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of ``[tokens, in]``."""
    # In bfloat16 torch takes oneDNN's products anyway.
    if x.dtype == torch.float32 and _is_on_cpu(x) and cpu.has_products(x.dtype):
        return cpu.product(x, weight, bias)
    return F.linear(x, weight, bias)


def gated_product(x: Tensor, weight: Tensor) -> Tensor | None:
    """``swiglu`` of the product with ``[2 * hidden, in]``, or None where a device has nothing of its own for both together."""
    if not _is_on_cpu(x):
        return None
    if avx512.can_run(x, weight):
        return avx512.swiglu(product(x, weight, None))
    return cpu.gated_product(x, weight) if cpu.has_products(x.dtype) else None


def scaled_product(x: Coded, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """See ``reference.scaled_product``."""
    if multiplies_codes(x.codes.device):
        return torch._scaled_mm(
            x.codes, codes.t(), scale_a=x.scale, scale_b=scale.t(), out_dtype=dtype, use_fast_accum=True
        )
    return reference.scaled_product(x, codes, scale, dtype)


@cache
def multiplies_codes(device: torch.device) -> bool:
    """Whether a device multiplies numbers of 8 bits (e4m3): NVIDIA's do from compute capability 8.9 on."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 9)


def _is_fused(x: Tensor) -> bool:
    return x.is_cuda and not torch.is_grad_enabled() and why_not_fused(x.device) is None


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled()


@cache
def why_not_fused(device: torch.device) -> str | None:
    """None where fused operations run on a device, else what is missing, for people. Slower ones take their place."""
    if device.type != "cuda":
        return "There are fused operations for NVIDIA GPUs only."
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "Fused operations need an NVIDIA GPU of compute capability 8.0 or above."
    try:
        from triton import TritonError

        from hwaga.kernels import fused
    except ImportError as error:
        return _slower(error)
    few = torch.zeros(1, 16, device=device)
    try:
        with torch.cuda.device(device):  # Triton runs on the current one, wherever its tensors are
            fused.gained_norm(few, few, 1e-6)  # without codes: before compute capability 8.9 Triton has no e4m3
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return _slower(error)
    return None


def _slower(error: Exception) -> str:
    reason = f"Triton does not run here, so that operations are not fused and pictures take longer: {error}"
    warnings.warn(reason, RuntimeWarning, stacklevel=3)
    return reason
