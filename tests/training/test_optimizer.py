"""The optimiser: matrices by Muon, the rest by Adam, and a state that goes on as if nothing had happened."""

from __future__ import annotations

import torch
from torch import nn
from training.optimizer import MuonAdam, orthogonal, stacked_parts


def _network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("qkv", nn.Linear(16, 48, bias=False))
    network.add_module("silu", nn.SiLU())
    network.add_module("embedder", nn.Linear(48, 4))
    return network.to(dtype)


def _step(network: nn.Module, optimizer: MuonAdam, seed: int) -> float:
    random_ = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 16, generator=random_)
    parameter = next(network.parameters())
    loss = (network(x.to(parameter.dtype)).float() - x[:, :4]).square().mean()
    loss.backward()
    optimizer.step(3e-3, 3e-3)
    return loss.item()


def test_it_learns_and_averages_follow() -> None:
    network = _network()
    optimizer = MuonAdam(network.named_parameters(), stacked_parts, 0.9)
    losses = [_step(network, optimizer, seed) for seed in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    for name, master in optimizer.masters.items():
        assert 0 < (optimizer.averages[name] - master).abs().max() < 0.1


def test_a_saved_state_goes_on_exactly() -> None:
    network = _network()
    optimizer = MuonAdam(network.named_parameters(), stacked_parts, 0.9)
    for seed in range(5):
        _step(network, optimizer, seed)
    again = _network()
    second = MuonAdam(again.named_parameters(), stacked_parts, 0.9)
    second.load({key: value.clone() for key, value in optimizer.state().items()})
    assert second.steps == 5
    for seed in range(5, 8):
        assert abs(_step(network, optimizer, seed) - _step(again, second, seed)) < 2e-3
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_weights_alone_are_enough_to_go_on() -> None:
    network = _network()
    optimizer = MuonAdam(network.named_parameters(), stacked_parts, 0.9)
    weights = {name: torch.full_like(value, 0.5) for name, value in optimizer.masters.items()}
    optimizer.load(weights)
    assert all((parameter == 0.5).all() for parameter in network.parameters())
    _step(network, optimizer, 0)


def test_steps_smaller_than_a_bfloat16s_last_bit_add_up() -> None:
    network = _network(torch.bfloat16)
    optimizer = MuonAdam(network.named_parameters(), lambda *_: 0, 0.0)
    parameter = network.get_submodule("embedder").weight
    before = parameter.detach().clone()
    for _ in range(40):
        for each in network.parameters():
            each.grad = torch.ones_like(each)
        optimizer.step(1e-5, 0.0, clip=1e9)
    moved = optimizer.masters["embedder.weight"] - before.float()
    torch.testing.assert_close(moved, torch.full_like(moved, -4e-4), atol=3e-5, rtol=0)


def test_muons_direction_has_no_preferred_axis() -> None:
    matrices = torch.randn(3, 24, 64)
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_stacked_matrices_are_made_orthogonal_apart() -> None:
    network = _network()
    optimizer = MuonAdam(network.named_parameters(), stacked_parts, 0.0)
    weight = network.get_submodule("qkv").weight
    before = weight.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight.grad = torch.randn_like(weight)
    weight.grad[:16] *= 1000  # q alone
    optimizer.step(0.0, 1.0, clip=1e9)
    moved = [part.norm() for part in (weight.detach() - before).split(16)]
    assert max(moved) / min(moved) < 1.2
