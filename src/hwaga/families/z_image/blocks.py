"""The blocks of the Z-Image transformer, and how tokens go through a stack of them.

Shapes: D model width, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.kernels.attention import attention
from hwaga.kernels.coded import Form, Rows
from hwaga.kernels.operations import coded, gained_norm, residual_norm, turned_heads
from hwaga.weights.adapters import LinearCall
from hwaga.weights.fused import FusedLinear

QK_NORM_EPS = 1e-5


@dataclass(frozen=True)
class BlockModulation:
    """What one block's norms multiply with, ``[rows, D]`` each (see ``Modulation``): their own weights, times what time makes
    of them. A gain is 1 + scale of a norm before a branch, a gate the tanh of one after it.
    """

    attention_gain: Tensor
    attention_gate: Tensor
    ffn_gain: Tensor
    ffn_gate: Tensor


@dataclass(frozen=True)
class Run:
    """What tokens go through blocks with.

    Attributes:
        rotation: complex64 ``[T, head_dim / 2]``.
        lengths: tokens of each image; attention stays inside.
        linear: applies the linear layers, with LoRAs or without.
        row: the row of the modulation: one for all tokens, or ``[T]``.
    """

    rotation: Tensor
    lengths: Sequence[int]
    linear: LinearCall
    row: int | Tensor = 0


class Attention(nn.Module):
    """Self-attention with per-head norms of q and k and rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = FusedLinear(config.dim, (config.dim,) * 3, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None

    def forward(self, x: Rows, rotation: Tensor, lengths: Sequence[int], linear: LinearCall) -> Tensor:
        qkv = linear(self.qkv, x)
        gains = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        q, k, v = turned_heads(qkv, (self.heads, self.heads), gains, QK_NORM_EPS, rotation)
        return linear(self.out, coded(attention(q, k, v, lengths), linear.form(self.out)))


class FeedForward(nn.Module):
    """SwiGLU with gate and up in one product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w13 = FusedLinear(config.dim, (config.hidden, config.hidden), bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Rows, linear: LinearCall) -> Tensor:
        return linear(self.w2, linear.gated(self.w13, x, linear.form(self.w2)))


class Block(nn.Module):
    """Attention and feed-forward, each between a pre-norm and a post-norm. With ``modulated``, time scales and gates both."""

    def __init__(self, config: TransformerConfig, *, modulated: bool) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm1 = nn.Parameter(torch.ones(config.dim))
        self.attention_norm2 = nn.Parameter(torch.ones(config.dim))
        self.ffn_norm1 = nn.Parameter(torch.ones(config.dim))
        self.ffn_norm2 = nn.Parameter(torch.ones(config.dim))
        self.adaLN_modulation = nn.Linear(config.time_dim, 4 * config.dim) if modulated else None

    def modulate(self, time: Tensor, linear: LinearCall) -> BlockModulation:
        """The factors for embedded times ``[times, time_dim]``."""
        assert self.adaLN_modulation is not None, "the context refiner is not modulated"
        scale_attention, gate_attention, scale_ffn, gate_ffn = linear(self.adaLN_modulation, time).chunk(4, dim=-1)
        return BlockModulation(
            (1 + scale_attention) * self.attention_norm1,
            gate_attention.tanh() * self.attention_norm2,
            (1 + scale_ffn) * self.ffn_norm1,
            gate_ffn.tanh() * self.ffn_norm2,
        )

    def unmodulated(self) -> BlockModulation:
        """The norms' own weights, as one row."""
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        return BlockModulation(*(norm[None] for norm in norms))

    def begin(self, x: Tensor, gain: Tensor, run: Run) -> Rows:
        """The first norm, of tokens that do not come from a block."""
        return gained_norm(x, gain, self.eps, run.row, self.form(run))

    def form(self, run: Run) -> Form:
        """What the first layer wants its tokens in."""
        return run.linear.form(self.attention.qkv)

    def forward(
        self, x: Tensor, normed: Rows, run: Run, modulation: BlockModulation, next_gain: Tensor | None, next_form: Form
    ) -> tuple[Tensor, Rows]:
        """
        Args:
            x: packed tokens ``[T, D]``.
            normed: the same after the block's first norm.
            modulation: factors of the norms.
            next_gain, next_form: of the next block's first norm, which is taken in the same pass as the end of this block.

        Returns:
            ``x`` and ``normed`` of the next block.
        """
        linear = run.linear
        update = self.attention(normed, run.rotation, run.lengths, linear)
        form = linear.form(self.feed_forward.w13)
        x, normed = residual_norm(x, update, modulation.attention_gate, modulation.ffn_gain, self.eps, run.row, form)
        del update  # memory is at its most in the feed-forward
        update = self.feed_forward(normed, linear)
        return residual_norm(x, update, modulation.ffn_gate, next_gain, self.eps, run.row, next_form)


def run_blocks(
    blocks: Sequence[Block], modulations: Sequence[BlockModulation], xs: list[Tensor], runs: Sequence[Run]
) -> list[Tensor]:
    """Takes packed tokens through a stack of blocks, each ``[T, D]`` in a run of its own; a block meets all runs in turn.

    The list of tokens is emptied, so that what nobody else holds takes no memory beside what becomes of it.
    """
    if not blocks:
        return list(xs)
    states = [(x, blocks[0].begin(x, modulations[0].attention_gain, run)) for x, run in zip(xs, runs, strict=True)]
    xs.clear()
    gains = [modulation.attention_gain for modulation in modulations[1:]]
    for block, modulation, following, gain in zip(
        blocks, modulations, [*blocks[1:], None], [*gains, None], strict=True
    ):
        for i, run in enumerate(runs):
            next_form = Form.PLAIN if following is None else following.form(run)
            states[i] = block(*states[i], run, modulation, gain, next_form)
    return [x for x, _ in states]
