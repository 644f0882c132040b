"""The Qwen3 text encoder: the layers that Z-Image listens to, after transformers' ``Qwen3Model``.

The conditioning is the output of the last layer but one, without the final norm. The last layer, the final norm and the
language-model head are therefore neither built nor read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.kernels.attention import attention
from hwaga.kernels.coded import Form, Rows
from hwaga.kernels.operations import coded, gained_norm, residual_norm, swiglu, turned_heads
from hwaga.weights.adapters import Adapters, LinearCall, adapted
from hwaga.weights.config import ConfigValues
from hwaga.weights.fused import FusedLinear
from hwaga.weights.row_table import RowTable


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the network, as ``text_encoder/config.json`` gives them.

    Attributes:
        layers: layers of the checkpoint; one less is built.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    attention_bias: bool
    positions: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TextEncoderConfig:
        """Reads transformers' configuration, of version 5 (``rope_parameters``) or before (``rope_theta``).

        Raises:
            CheckpointError: a value is missing, or the network is of a kind that is not built here.
        """
        read = ConfigValues(values, "text_encoder/config.json")
        if read.text("model_type") != "qwen3":
            raise CheckpointError(f"The text encoder is of type {values['model_type']!r}; Z-Image needs qwen3.")
        rope = read.table("rope_parameters" if values.get("rope_parameters") else "rope_scaling")
        heads = read.count("num_attention_heads")
        config = cls(
            hidden=read.count("hidden_size"),
            intermediate=read.count("intermediate_size"),
            layers=read.count("num_hidden_layers"),
            heads=heads,
            kv_heads=read.count("num_key_value_heads", heads),
            head_dim=read.count("head_dim", 128),
            vocabulary=read.count("vocab_size"),
            norm_eps=read.epsilon("rms_norm_eps"),
            rope_theta=read.positive("rope_theta") if "rope_theta" in values else rope.positive("rope_theta"),
            attention_bias=read.flag("attention_bias", False),
            positions=read.count("max_position_embeddings"),
        )
        if config.heads % config.kv_heads or config.head_dim % 2:
            raise CheckpointError(
                f"text_encoder/config.json contradicts itself: {config.heads} heads of {config.head_dim} channels over "
                f"{config.kv_heads} heads of keys and values."
            )
        kind = rope.text("rope_type", rope.text("type", "default"))
        if kind != "default":
            raise CheckpointError(f"The text encoder scales its positions ({kind!r}), which is not built here.")
        if values.get("use_sliding_window"):
            raise CheckpointError("The text encoder uses sliding-window attention, which is not built here.")
        if values.get("hidden_act", "silu") != "silu":
            raise CheckpointError(
                f"The text encoder's activation is {values['hidden_act']!r}; only silu is built here."
            )
        return config


class Attention(nn.Module):
    """Causal attention with grouped keys and values and per-head norms of q and k."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.qkv_proj = FusedLinear(config.hidden, (q, kv, kv), bias=config.attention_bias)
        self.o_proj = nn.Linear(q, config.hidden, bias=config.attention_bias)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, x: Rows, rotation: Tensor, lengths: Sequence[int], linear: LinearCall) -> Tensor:
        heads, gains = (self.config.heads, self.config.kv_heads), (self.q_norm, self.k_norm)
        qkv = linear(self.qkv_proj, x)
        q, k, v = turned_heads(qkv, heads, gains, self.config.norm_eps, rotation, halves=True)
        return linear(self.o_proj, coded(attention(q, k, v, lengths, causal=True), linear.form(self.o_proj)))


class FeedForward(nn.Module):
    """SwiGLU with gate and up in one product."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(config.hidden, (config.intermediate, config.intermediate), bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Rows, linear: LinearCall) -> Tensor:
        return linear(self.down_proj, linear.gated(self.gate_up_proj, x, linear.form(self.down_proj)))


@dataclass(frozen=True)
class Run:
    """What a prompt goes through the layers with.

    Attributes:
        rotation: complex64 ``[tokens, head_dim / 2]``.
        linear: applies the linear layers, with the prompt's LoRAs or without.
    """

    rotation: Tensor
    linear: LinearCall


class Layer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.Parameter(torch.ones(config.hidden))
        self.post_attention_layernorm = nn.Parameter(torch.ones(config.hidden))

    def form(self, run: Run) -> Form:
        """What the first linear layer wants its tokens in."""
        return run.linear.form(self.self_attn.qkv_proj)

    def forward(
        self, x: Tensor, normed: Rows, run: Run, next_norm: Tensor | None, next_form: Form
    ) -> tuple[Tensor, Rows]:
        """
        Args:
            x: tokens ``[T, hidden]``.
            normed: the same after the layer's first norm.
            next_norm, next_form: of the next layer's first norm, which is taken in the same pass as the end of this one.

        Returns:
            ``x`` and ``normed`` of the next layer.
        """
        update = self.self_attn(normed, run.rotation, (len(x),), run.linear)
        form = run.linear.form(self.mlp.gate_up_proj)
        x, normed = residual_norm(x, update, None, self.post_attention_layernorm[None], self.eps, form=form)
        del update  # memory is at its most in the feed-forward
        update = self.mlp(normed, run.linear)
        return residual_norm(x, update, None, next_norm, self.eps, form=next_form)


class Qwen3Encoder(nn.Module):
    """Turns token ids into the conditioning of the Z-Image transformer."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = RowTable(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers - 1))

    def try_operations(self, device: torch.device, dtype: torch.dtype) -> None:
        """As the transformer's."""
        if not self.layers:
            return
        config, few = self.config, 64
        x = torch.zeros(few, config.hidden, device=device, dtype=dtype)
        gained_norm(x, x[:1], config.norm_eps)
        for norm in (x[:1], None):
            residual_norm(x, x, None, norm, config.norm_eps)
        swiglu(x.new_zeros(few, 2 * config.intermediate))
        heads = config.heads, config.kv_heads
        qkv = x.new_zeros(few, (config.heads + 2 * config.kv_heads) * config.head_dim)
        gains = (qkv[0, : config.head_dim],) * 2
        q, k, v = turned_heads(qkv, heads, gains, config.norm_eps, self._rotation(few).to(device), halves=True)
        attention(q, k, v, (few,), causal=True)

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[Adapters | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        """Conditioning ``[tokens, hidden]`` for each list of token ids, with its LoRAs.

        Prompts go through the layers side by side, and each is computed alone: packed with others it would round in another
        way, and a prompt that was met before would give other bytes than one that was not.
        """
        runs = [
            Run(self._rotation(len(ids)).to(device), adapted([own], [len(ids)]))
            for ids, own in zip(prompts, adapters, strict=True)
        ]
        layers = cast("list[Layer]", list(self.layers))
        xs = [self.embed_tokens(ids, device, dtype) for ids in prompts]
        if not layers:
            return xs
        norms = [layer.input_layernorm[None] for layer in layers]
        states = [
            (x, gained_norm(x, norms[0], layers[0].eps, form=layers[0].form(run)))
            for x, run in zip(xs, runs, strict=True)
        ]
        del xs
        for layer, following, norm in zip(layers, [*layers[1:], None], [*norms[1:], None], strict=True):
            for i, run in enumerate(runs):
                next_form = Form.PLAIN if following is None else following.form(run)
                states[i] = layer(*states[i], run, norm, next_form)
        return [x for x, _ in states]

    def _rotation(self, length: int) -> Tensor:
        """Complex64 ``[tokens, head_dim / 2]``."""
        dim = self.config.head_dim
        rates = 1.0 / (self.config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), rates)
        return torch.polar(torch.ones_like(angles), angles)
