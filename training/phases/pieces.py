"""The autoencoder's decoder once more, so that it can work in pieces: what a piece looks like shall not depend on what lies
beside it.

Group norms measure a whole picture. A decoder that has only seen latents of pictures that it drew whole relies on what they
measure, and pieces of a plain background come out in different shades. Here latents of a whole picture are decoded in windows.
The encoder stays as it was, since the transformer learns its latents: held to the same in windows, it moved the latents at the
border of whole pictures. What it encodes in pieces is told by ``_measure``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.batches import PIXELS
from training.compose import compose
from training.layouts import random_scenes
from training.networks import autoencoder_config, build_autoencoder
from training.optimizer import MuonAdam, stacked_parts
from training.pack import BASE_STYLE, STYLES
from training.phases import autoencoder
from training.phases.autoencoder import CHANCES, MEASURED, psnr, unlikeness, varied
from training.session import Progress, Session, keep, resume

NAME = autoencoder.PIECES

WINDOWS = (0.75, 1.0, 1.5)
"""Sides of windows, in the autoencoder's crops."""

WHOLE = 0.25
"""Share of steps whose window is the picture."""


def train(session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.autoencoder
    network = build_autoencoder(autoencoder_config(recipe))
    network.load_state_dict(session.load(autoencoder.NAME))
    network = network.to(session.device, session.dtype, memory_format=torch.channels_last)
    network.encoder.requires_grad_(False)
    optimizer = MuonAdam(network.decoder.named_parameters("decoder"), stacked_parts, recipe.pieces.average)
    progress = Progress(session, NAME, recipe.pieces, seconds)
    resume(session, NAME, optimizer, progress)
    textures = {style: session.textures(style) for style in STYLES}
    random_ = torch.Generator().manual_seed(session.recipe.seed * 1000 + session.rank + progress.steps * 31 + 6)
    torch.manual_seed(session.recipe.seed * 1000 + session.rank + progress.steps + 6)
    size = session.recipe.sizes.standard[0]
    shown: list[Tensor] = []

    for done in progress:
        style = STYLES[int(torch.multinomial(torch.tensor(CHANCES), 1, generator=random_))]
        picture = compose(textures[style], random_scenes(session.things, recipe.pieces.batch, random_), *size)
        picture = varied(picture, random_).to(session.dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            whole = network.encoder(picture)
        rows, columns = window(picture, recipe.crop, random_)
        part = picture[:, :, rows, columns].float()
        mean, log_variance = whole[:, :, _latent(rows), _latent(columns)].float().chunk(2, dim=1)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance.clamp(-30, 20)).exp()
        error = network.decoder(latents.to(session.dtype)).float() - part
        loss = unlikeness(error)
        loss.backward()
        session.share_gradients([optimizer])
        optimizer.step(*progress.rates(done))
        shown.append(error.detach().square().mean())
        if progress.steps % 100 == 0:
            session.log(NAME, step=progress.steps, done=done, psnr=psnr(torch.stack(shown).mean().item()))
            shown.clear()
    keep(session, NAME, optimizer, progress)
    if progress.finished:
        _measure(session)


def window(picture: Tensor, crop: int, random_: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a window that begins and ends with a latent pixel; the whole picture at times."""
    height, width = picture.shape[2:]
    if torch.rand((), generator=random_) < WHOLE:
        return slice(0, height), slice(0, width)
    share = WINDOWS[int(torch.randint(len(WINDOWS), (), generator=random_))]
    return _span(height, int(crop * share), random_), _span(width, int(crop * share), random_)


def _span(length: int, side: int, random_: torch.Generator) -> slice:
    side = min(side // PIXELS, length // PIXELS)
    start = int(torch.randint(length // PIXELS - side + 1, (), generator=random_))
    return slice(start * PIXELS, (start + side) * PIXELS)


def _latent(pixels: slice) -> slice:
    return slice(pixels.start // PIXELS, pixels.stop // PIXELS)


@torch.no_grad()
def _measure(session: Session) -> None:
    """How faithful pictures are that come back whole, and in pieces of the crop's side."""
    if session.rank:
        return
    network = autoencoder.load(session).float()
    random_ = torch.Generator().manual_seed(session.recipe.seed * 1000 + 998)
    count = MEASURED // 4 if session.device.type == "cuda" else 2
    size, crop = session.recipe.sizes.standard[0], session.recipe.autoencoder.crop
    picture = compose(session.textures(BASE_STYLE), random_scenes(session.things, count, random_), *size)
    latents = network.encode(picture)
    found = {
        "whole": network.decode(latents),
        "decoded_in_pieces": network.decode(latents, crop),
        "encoded_in_pieces": network.decode(network.encode(picture, None, crop)),
    }
    fidelity = {name: psnr((again.clamp(-1, 1) - picture).square().mean().item()) for name, again in found.items()}
    session.sheet(NAME, torch.stack([picture[:8], *(again[:8] for again in found.values())], dim=1).flatten(0, 1))
    session.log(NAME, psnr=fidelity)
