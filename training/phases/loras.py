"""The style LoRAs: the finished model, taught to draw the same scenes in another style of the pack."""

from __future__ import annotations

import torch
from torch import Tensor

from training.batches import Batch
from training.low_rank import add_lora, merged, remove_lora
from training.optimizer import MuonAdam
from training.phases import autoencoder, transformer
from training.phases.transformer import SHOWN, NoiseLevels, flow_errors, sample, warm_up
from training.session import Progress, Session, keep, resume
from training.supply import LONGEST, SHORT, Supply

OWN_SIGMAS = 0.6
"""A LoRA has seconds to learn: more of its samples are at the sampler's own noise levels."""


def name_of(style: str) -> str:
    return f"lora-{style}"


def train(style: str, session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.loras
    progress = Progress(session, name_of(style), recipe.phase, seconds)
    coder = autoencoder.load(session)
    network, encoder = transformer.load(session)
    network.requires_grad_(False)
    if session.compiles:
        network.compile_blocks(SHORT, LONGEST)
    torch.manual_seed(session.recipe.seed + 5)
    optimizer = MuonAdam(add_lora(network, recipe.rank), lambda *_: 0, recipe.phase.average)
    resume(session, name_of(style), optimizer, progress)
    seed = f"{session.recipe.seed} lora {style} {session.rank} {progress.steps}"
    large = session.recipe.transformer
    supply = Supply(
        session, coder, style, seed, reuse=large.reuse, capacity=large.pool // 4, edits=large.edits, empty=0.02
    )
    levels = NoiseLevels(session.recipe, session.device, OWN_SIGMAS)
    torch.manual_seed(session.recipe.seed * 1000 + session.rank + progress.steps + 50)
    losses: list[Tensor] = []
    nothing, lengths = transformer.caption_ids(session, [""])
    with torch.no_grad():
        unsaid = encoder(nothing[:, : int(lengths[0])])

    def errors(batch: Batch, guidance: float) -> Tensor:
        with torch.no_grad():
            captions = encoder(batch.ids)
        return flow_errors(network, batch, levels, captions, unsaid, guidance, merged)

    if session.compiles:
        warm_up(supply, recipe.phase.batch, errors, [optimizer])
    for done in progress:
        loss = errors(supply.draw(recipe.phase.batch), large.guidance).mean()
        loss.backward()
        session.share_gradients([optimizer])
        optimizer.step(*progress.rates(done))
        losses.append(loss.detach())
        if progress.steps % (100 if session.device.type == "cuda" else 20) == 0:
            session.log(name_of(style), step=progress.steps, done=done, loss=torch.stack(losses).mean())
            losses.clear()
    keep(session, name_of(style), optimizer, progress)
    optimizer.use_averages()
    pictures = sample(session, (network, encoder, coder), list(SHOWN), session.recipe.sizes.standard[0], merged)
    session.sheet(name_of(style), pictures, 4)
    remove_lora(network)
