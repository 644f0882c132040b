"""Attention of borrowed networks by the quickest way that a device has, and in pieces where it would write its scores out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hwaga.kernels.attention import any_way, attend, keeps_scores

NARROW = 128
"""Widest heads that ways of attention are tried with; the autoencoder has one head of all its channels."""


class QuickAttention:
    """A processor for diffusers' ``Attention`` modules as SDXL's networks have them: no masks, no norms of heads."""

    def __call__(
        self,
        module: Any,
        states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """What ``[rows, tokens, channels]`` or ``[rows, channels, h, w]`` make of themselves, or of what was read of prompts.

        Args:
            encoder_hidden_states: ``[rows, words, D]``. This name and the next ones are those that diffusers passes things by.
            attention_mask: None.
            temb: the time, which SDXL's attention has no use for.
        """
        assert attention_mask is None, "nothing is masked in SDXL"
        x = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        if module.group_norm is not None:
            x = module.group_norm(x.transpose(1, 2)).transpose(1, 2)
        read = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(source).unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for layer, source in ((module.to_q, x), (module.to_k, read), (module.to_v, read))
        )
        # Ways are chosen for tokens that attend to themselves. Words are few, and of any number.
        tried = encoder_hidden_states is None and q.shape[-1] <= NARROW
        whole = not tried and not keeps_scores(q.device, q.dtype)
        found = any_way(q, k, v) if whole else attend(q, k, v)
        out: Tensor = module.to_out[0](found.transpose(1, 2).flatten(2))
        if states.ndim == 4:
            out = out.transpose(1, 2).unflatten(2, states.shape[2:])
        return out + states if module.residual_connection else out
