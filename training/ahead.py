"""Compilation before its turn: the graphs of the transformer and of its LoRAs depend on shapes alone, and are kept on disk.

While the autoencoder is trained, a process beside it can compile what the later phases would wait for. It runs each graph once,
on the same GPU.
"""

from __future__ import annotations

import time

import torch

from training.low_rank import add_lora, merged
from training.networks import Product, TrainedTransformer, product, transformer_config
from training.phases import transformer
from training.phases.transformer import NoiseLevels, flow_errors
from training.session import Session
from training.supply import LONGEST, SHORT, blank_batches


def compile_ahead(session: Session) -> None:
    """Fills the compiler's cache with the graphs that ``warm_up`` will ask for. Nothing is learnt or written but that."""
    session.prepare()
    recipe = session.recipe
    levels = NoiseLevels(recipe, session.device, recipe.transformer.own_sigmas)
    _, lengths = transformer.caption_ids(session, [""])
    hidden = recipe.text_encoder.hidden
    nothing = torch.zeros(1, int(lengths[0]), hidden, device=session.device, dtype=session.dtype)
    for linear, batch_size in ((product, recipe.transformer.phase.batch), (merged, recipe.loras.phase.batch)):
        network = _network(session, linear)
        for batch in blank_batches(recipe.sizes, batch_size, session.device):
            started = time.monotonic()
            captions = torch.zeros(*batch.ids.shape, hidden, device=session.device, dtype=session.dtype)
            captions.requires_grad_(linear is product)  # the text encoder learns along, but for a LoRA it does not
            for unsaid, guidance in ((None, 0.0), (nothing, 0.1)) if linear is product else ((nothing, 0.1),):
                flow_errors(network, batch, levels, captions, unsaid, guidance, linear).mean().backward()
            session.log(
                "compile", lora=linear is merged, pictures=len(batch.tokens), words=batch.ids.shape[1],
                seconds=time.monotonic() - started,
            )  # fmt: skip


def _network(session: Session, linear: Product) -> TrainedTransformer:
    network = TrainedTransformer(transformer_config(session.recipe)).to(session.device, session.dtype)
    if session.compiles:
        network.compile_blocks(SHORT, LONGEST)
    if linear is merged:
        network.requires_grad_(False)
        add_lora(network, session.recipe.loras.rank)
    return network
