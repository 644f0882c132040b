"""Muon for the weight matrices and Adam for everything else, over exact copies of weights that may be kept in fewer bits.

Muon (Keller Jordan, 2024) moves a matrix by its momentum made orthogonal, so that every direction advances alike; it needs a
third fewer steps here than Adam. The networks may hold bfloat16 weights, as inference has them: updates smaller than their last
bit add up in the float32 copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that takes singular values to about 1."""


class MuonAdam:
    """Trains named parameters.

    Args:
        parts: how many matrices a parameter is stacked from; 0 for one that Adam takes.
        average: how much of the averaged weights stays, each step.

    Attributes:
        masters: float32 copies of the parameters, by name.
        averages: their exponential averages.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], parts: Callable[[str, nn.Parameter], int], average: float
    ) -> None:
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self.masters = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self.averages = {name: master.clone() for name, master in self.masters.items()}
        self.average = average
        self.steps = 0
        self._parts = {name: parts(name, parameter) for name, parameter in self.parameters.items()}
        self._groups: dict[tuple[int, int], list[str]] = {}
        for name, count in self._parts.items():
            if count:
                _, rows, columns = self._matrix(name, self.masters[name]).shape
                self._groups.setdefault((rows, columns), []).append(name)
        self._momenta = {
            name: torch.zeros_like(self.masters[name]) for names in self._groups.values() for name in names
        }
        self._others = [name for name, count in self._parts.items() if not count]
        leaves = [self.masters[name] for name in self._others]
        fused = bool(leaves) and leaves[0].is_cuda
        self._adam = (
            torch.optim.AdamW(leaves, lr=0.0, betas=(0.9, 0.97), weight_decay=0.0, fused=fused) if leaves else None
        )

    def gradients(self) -> list[Tensor]:
        """Of all parameters, zeros where nothing was computed."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    @torch.no_grad()
    def step(self, rate: float, matrix_rate: float, clip: float = 1.0) -> None:
        """One update from the parameters' gradients, which it drops. Nothing waits for the GPU."""
        gradients = dict(zip(self.parameters, [g.float() for g in self.gradients()], strict=True))
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients.values()))))
        torch._foreach_mul_(list(gradients.values()), (clip / (norm + 1e-6)).clamp(max=1.0))
        if self._adam is not None:
            for name in self._others:
                self.masters[name].grad = gradients[name]
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
        for shape, names in self._groups.items():
            momenta = [self._momenta[name] for name in names]
            found = [gradients[name] for name in names]
            torch._foreach_lerp_(momenta, found, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(found, momenta, MOMENTUM)
            stacked = torch.cat([self._matrix(name, each) for name, each in zip(names, ahead, strict=True)])
            update = orthogonal(stacked).to(torch.float32)
            pieces = update.split([self._parts[name] for name in names])
            updates = [piece.reshape(self.masters[name].shape) for name, piece in zip(names, pieces, strict=True)]
            # As large an update as Adam's would be (Liu et al. 2025), so that both live with rates of one size.
            scale = -matrix_rate * 0.2 * math.sqrt(max(shape))
            torch._foreach_add_([self.masters[name] for name in names], updates, alpha=scale)
        for parameter in self.parameters.values():
            parameter.grad = None
        self.steps += 1
        masters = list(self.masters.values())
        kept = min(self.average, (self.steps + 1) / (self.steps + 20))
        torch._foreach_lerp_(list(self.averages.values()), masters, 1 - kept)
        torch._foreach_copy_([parameter.data for parameter in self.parameters.values()], masters)

    def _matrix(self, name: str, value: Tensor) -> Tensor:
        """``[parts, out, in]``: stacked matrices apart, and a convolution as the matrix that it is."""
        return value.reshape(self._parts[name], value.shape[0] // self._parts[name], -1)

    @torch.no_grad()
    def use_averages(self) -> None:
        """Makes the parameters their averages, to be looked at."""
        torch._foreach_copy_([p.data for p in self.parameters.values()], list(self.averages.values()))

    @torch.no_grad()
    def use_masters(self) -> None:
        """Makes the parameters what they are trained from again."""
        torch._foreach_copy_([p.data for p in self.parameters.values()], list(self.masters.values()))

    def state(self) -> dict[str, Tensor]:
        """Masters, averages and moments as one table. Moments are kept in bfloat16: they are averages of noise."""
        state = {f"master.{name}": value for name, value in self.masters.items()}
        state |= {f"average.{name}": value for name, value in self.averages.items()}
        state |= {f"momentum.{name}": value.bfloat16() for name, value in self._momenta.items()}
        for name in self._others:
            for key, value in (self._adam.state[self.masters[name]] if self._adam else {}).items():
                state[f"adam.{key}.{name}"] = value if key == "step" else value.bfloat16()
        state["steps"] = torch.tensor(self.steps)
        return state

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state, or from one of weights alone: then moments start anew and weights are their averages."""
        whole = "steps" in state
        for name, master in self.masters.items():
            master.copy_(state[f"master.{name}"] if whole else state[name])
            self.averages[name].copy_(state[f"average.{name}"] if whole else state[name])
        torch._foreach_copy_([p.data for p in self.parameters.values()], list(self.masters.values()))
        if not whole:
            return
        self.steps = int(state["steps"])
        for name, momentum in self._momenta.items():
            momentum.copy_(state[f"momentum.{name}"])
        for name in self._others:
            found = {key.split(".")[1]: value for key, value in state.items() if _is_moment(key, name)}
            assert self._adam is not None
            master = self.masters[name]
            self._adam.state[master] = {
                key: value.clone() if key == "step" else value.to(master) for key, value in found.items()
            }


def _is_moment(key: str, name: str) -> bool:
    return key.startswith("adam.") and key.split(".", 2)[2] == name


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns to each of ``[n, out, in]``, in bfloat16."""
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


def stacked_parts(name: str, parameter: nn.Parameter) -> int:
    """How a network's parameters are trained: matrices of the blocks and larger convolutions by Muon, all else by Adam."""
    if parameter.ndim < 2 or "embed" in name or "modulation" in name or "final_layer" in name or "pad_token" in name:
        return 0
    if "conv_in" in name or "conv_out" in name or "head" in name or "stem" in name:
        return 0
    if "qkv" in name:
        return 3
    return 2 if ("w13" in name or "gate_up" in name) else 1
