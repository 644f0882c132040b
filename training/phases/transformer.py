"""The transformer and, more slowly, the text encoder: rectified flow from noise to the latents of composed pictures.

Three things are not the textbook's. In the last part of the phase the target moves away from what the model draws without a
caption ("model guidance", Tang et al. 2025), so that no guidance is needed when pictures are made. Some noise
levels are just those that the sampler visits. And some samples continue another picture, as image-to-image does:
see ``noised``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hwaga.families.z_image.autoencoder import Autoencoder
from hwaga.sampling.schedule import flow_match
from training.batches import WORDS, Batch, grid
from training.networks import (
    LATENT_CHANNELS,
    PATCH,
    Product,
    TrainedTextEncoder,
    TrainedTransformer,
    patchify,
    product,
    transformer_config,
    unpatchify,
)
from training.optimizer import MuonAdam, stacked_parts
from training.pack import BASE_STYLE
from training.phases import autoencoder, text_encoder
from training.recipe import Recipe
from training.session import Progress, Session, keep, resume
from training.supply import LONGEST, SHORT, Supply
from training.tokenizer import token_ids

NAME = "transformer"

SHOWN = (
    "a red apple on a yellow background", "파란 배경의 고양이", "a blue cat on a white background", "커피, 베이지색 배경",
    "two strawberries on a mint background", "강아지와 자동차, 초록 배경", "a small rocket, navy background",
    "분홍색 집, 하늘색 배경",
)  # fmt: skip
EVERY = 2000
"""Steps between the sheets of ``SHOWN``."""


@dataclass(frozen=True)
class Noised:
    """Samples on their way from noise to a picture.

    Attributes:
        tokens: ``[B, N, …]`` where they are.
        sigmas: noise levels ``[B]``, 1 at pure noise.
        velocity: where they go, per unit of noise level that is lost.
    """

    tokens: Tensor
    sigmas: Tensor
    velocity: Tensor


def noised(batch: Batch, sigmas: Tensor, starts: Tensor) -> Noised:
    """Samples at given noise levels.

    Most lie on the straight line from noise to their picture. An edited one started, as image-to-image does, from
    another picture (its source) taken to the noise level ``start``, and goes straight from there to its own: half
    of what it still shows at a middle noise level is the source, and the way leads from that to what the caption
    says. The lower the start, the steeper, so edits begin at 0.4 or more. One that started lower goes back to its source,
    whatever the caption says: a low strength of image-to-image keeps the picture.

    Args:
        starts: noise levels ``[B]`` at which edited samples started, none lower than ``sigmas``.
    """
    noise = torch.randn_like(batch.tokens)
    sigma, start = sigmas[:, None, None], starts[:, None, None]
    begun = (1 - start) * batch.sources + start * noise
    edited = batch.edited[:, None, None]
    wanted = torch.where(edited & (start < LEAST_START), batch.sources, batch.tokens)
    way = (wanted - begun) / start
    straight = (1 - sigma) * batch.tokens + sigma * noise
    return Noised(
        torch.where(edited, begun + (start - sigma) * way, straight),
        sigmas,
        torch.where(edited, way, batch.tokens - noise),
    )


LEAST_START = 0.4

KEPT = (0.25, 0.03, 0.35)
"""Share of edited samples that start so low that their source is kept, and between which noise levels those start."""


class NoiseLevels:
    """Draws noise levels."""

    def __init__(self, recipe: Recipe, device: torch.device, own: float) -> None:
        self.own = own
        self.visited = flow_match(recipe.sampler_steps, recipe.shift)[:-1].to(device)

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise levels ``[B]``, and where edited samples started."""
        count, device = len(batch.tokens), batch.tokens.device
        usual = torch.randn(count, device=device).sigmoid()
        usual = torch.where(torch.rand(count, device=device) < 0.1, torch.rand(count, device=device), usual)
        usual = 2 * usual / (1 + usual)
        visited = self.visited[torch.randint(len(self.visited), (count,), device=device)]
        sigmas = torch.where(torch.rand(count, device=device) < self.own, visited, usual)
        starts = LEAST_START + (1 - LEAST_START) * torch.rand(count, device=device)
        share, lowest, highest = KEPT
        low = lowest + (highest - lowest) * torch.rand(count, device=device)
        starts = torch.where(torch.rand(count, device=device) < share, low, starts)
        along = starts * (1 - torch.rand(count, device=device).square() * 0.98)
        return torch.where(batch.edited, along, sigmas), torch.where(batch.edited, starts, torch.ones_like(starts))


def flow_errors(
    network: TrainedTransformer,
    batch: Batch,
    levels: NoiseLevels,
    captions: Tensor,
    nothing: Tensor | None,
    guidance: float,
    linear: Product = product,
) -> Tensor:
    """Mean squared errors of the velocities of a batch ``[B]``.

    Args:
        captions: the text encoder's output ``[B, P, caption_dim]``.
        nothing: that of an empty caption ``[1, tokens, caption_dim]``, without padding; None for no guidance.
        guidance: how far targets move from what is drawn without a caption.
    """
    sample = noised(batch, *levels.draw(batch))
    given = [(captions, batch.lengths)]
    if nothing is not None:
        tokens = nothing.shape[1]
        padded = F.pad(nothing.detach(), (0, 0, 0, captions.shape[1] - tokens)).expand(len(captions), -1, -1)
        given.append((padded, torch.full_like(batch.lengths, tokens)))
    velocities = network(sample.tokens, batch.grid, 1 - sample.sigmas, given, linear)
    target = sample.velocity
    if nothing is not None:
        target = target + guidance * (velocities[0].detach() - velocities[1])
    return (velocities[0] - target).square().mean((1, 2))


def warm_up(
    supply: Supply, count: int, errors: Callable[[Batch, float], Tensor], optimizers: Sequence[MuonAdam]
) -> None:
    """Compiles the blocks for every shape, with guidance and without, before time is taken. Nothing is learnt by it."""
    for batch in supply.one_of_each(count):
        for guidance in (0.0, 0.1):
            errors(batch, guidance).mean().backward()
    for optimizer in optimizers:
        for parameter in optimizer.parameters.values():
            parameter.grad = None


def train(session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.transformer
    cuda = session.device.type == "cuda"
    torch.manual_seed(session.recipe.seed + 3)
    coder = autoencoder.load(session)
    encoder = text_encoder.load(session)
    transformer = TrainedTransformer(transformer_config(session.recipe)).to(session.device, session.dtype)
    if session.compiles:
        transformer.compile_blocks(SHORT, LONGEST)
    drawing = MuonAdam(transformer.net.named_parameters(), stacked_parts, recipe.phase.average)
    reading = MuonAdam(encoder.named_parameters(), stacked_parts, recipe.phase.average)
    progress = Progress(session, NAME, recipe.phase, seconds)
    resume(session, NAME, drawing, progress)
    resume(session, f"{NAME}_text", reading, progress)
    seed = f"{session.recipe.seed} {NAME} {session.rank} {progress.steps}"
    supply = Supply(session, coder, BASE_STYLE, seed, reuse=recipe.reuse, capacity=recipe.pool, edits=recipe.edits)
    levels = NoiseLevels(session.recipe, session.device, recipe.own_sigmas)
    ids, lengths = caption_ids(session, [""])
    nothing = ids[:, : int(lengths[0])]
    torch.manual_seed(session.recipe.seed * 1000 + session.rank + progress.steps)

    def errors(batch: Batch, guidance: float) -> Tensor:
        captions = encoder(batch.ids)
        return flow_errors(transformer, batch, levels, captions, encoder(nothing) if guidance else None, guidance)

    if session.compiles:
        warm_up(supply, recipe.phase.batch, errors, (drawing, reading))
    losses: list[Tensor] = []
    pictures = 0
    for done in progress:
        guidance = recipe.guidance * min(max((done - recipe.guidance_from) / 0.05, 0.0), 1.0)
        batch = supply.draw(recipe.phase.batch)
        loss = errors(batch, guidance).mean()
        loss.backward()
        session.share_gradients([drawing, reading])
        rate, matrix_rate = progress.rates(done)
        drawing.step(rate, matrix_rate)
        reading.step(rate * recipe.encoder_rate, matrix_rate * recipe.encoder_rate)
        losses.append(loss.detach())
        pictures += len(batch.tokens)
        if progress.steps % (100 if cuda else 20) == 0:
            session.log(
                NAME, step=progress.steps, done=done, guidance=guidance, loss=torch.stack(losses).mean(), pictures=pictures,
                seconds=progress.seconds,
            )  # fmt: skip
            losses.clear()
        if progress.steps and progress.steps % EVERY == 0:
            _show(session, f"{NAME}-{progress.steps}", transformer, encoder, coder, (drawing, reading))
    keep(session, NAME, drawing, progress)
    keep(session, f"{NAME}_text", reading, progress)
    _show(session, NAME, transformer, encoder, coder, (drawing, reading))


def load(session: Session) -> tuple[TrainedTransformer, TrainedTextEncoder]:
    """Both networks with the averaged weights."""
    transformer = TrainedTransformer(transformer_config(session.recipe))
    transformer.net.load_state_dict(session.load(NAME))
    encoder = text_encoder.load(session)
    encoder.load_state_dict(session.load(f"{NAME}_text"))
    return transformer.to(session.device, session.dtype), encoder


def caption_ids(session: Session, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids ``[B, P]``, padded, and the tokens of each caption."""
    found = token_ids(Tokenizer.from_file(str(session.tokenizer / "tokenizer.json")), captions, 256)
    longest = -(-max(map(len, found)) // WORDS) * WORDS
    ids = torch.zeros(len(found), longest, dtype=torch.long)
    for row, tokens in enumerate(found):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids.to(session.device), torch.tensor([len(tokens) for tokens in found], device=session.device)


@torch.no_grad()
def sample(
    session: Session,
    networks: tuple[TrainedTransformer, TrainedTextEncoder, Autoencoder],
    captions: list[str],
    size: tuple[int, int],
    linear: Product = product,
) -> Tensor:
    """Pictures ``[B, 3, H, W]`` of captions, always from the same noise. For looking while training; evaluation asks hwaga."""
    transformer, encoder, coder = networks
    ids, lengths = caption_ids(session, captions)
    text = encoder(ids)
    rows, columns = grid(size)
    random_ = torch.Generator().manual_seed(7)
    shape = (len(captions), LATENT_CHANNELS, rows * PATCH, columns * PATCH)
    tokens = patchify(torch.randn(shape, generator=random_)).to(session.device)
    sigmas = flow_match(session.recipe.sampler_steps, session.recipe.shift)
    with transformer.eagerly():
        for here, there in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            times = torch.full((len(captions),), 1 - here, device=session.device)
            (velocity,) = transformer(tokens, (rows, columns), times, [(text, lengths)], linear)
            tokens = tokens + (here - there) * velocity
    return coder.decode(unpatchify(tokens, (rows, columns)))


def _show(
    session: Session,
    name: str,
    transformer: TrainedTransformer,
    encoder: TrainedTextEncoder,
    coder: Autoencoder,
    optimizers: tuple[MuonAdam, MuonAdam],
) -> None:
    """Saves a sheet of what the averaged weights draw, and goes back to the weights that are trained."""
    for optimizer in optimizers:
        optimizer.use_averages()
    pictures = sample(session, (transformer, encoder, coder), list(SHOWN), session.recipe.sizes.standard[0])
    session.sheet(name, pictures, 4)
    for optimizer in optimizers:
        optimizer.use_masters()
