"""The autoencoder: pixels to latents and back, trained on composed pictures of every style."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.families.z_image.autoencoder import Autoencoder
from training.compose import Textures, compose
from training.layouts import random_scenes
from training.networks import autoencoder_config, build_autoencoder
from training.optimizer import MuonAdam, stacked_parts
from training.pack import BASE_STYLE, STYLES
from training.session import Progress, Session, keep, resume

NAME = "autoencoder"

PIECES = "pieces"
"""The phase after this one, and its weights."""

CHANCES = (0.5, 0.25, 0.25)
"""Of each style."""

MEASURED = 96
"""Pictures that latents and fidelity are measured on, of each style; their seeds are no others'."""


def train(session: Session, seconds: float | None = None) -> None:
    recipe = session.recipe.autoencoder
    torch.manual_seed(session.recipe.seed)
    autoencoder = build_autoencoder(autoencoder_config(recipe)).to(session.device, session.dtype)
    autoencoder = autoencoder.to(memory_format=torch.channels_last)
    optimizer = MuonAdam(autoencoder.named_parameters(), stacked_parts, recipe.phase.average)
    progress = Progress(session, NAME, recipe.phase, seconds)
    resume(session, NAME, optimizer, progress)
    textures = {style: session.textures(style) for style in STYLES}
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    if session.compiles:
        encoder, decoder = torch.compile(encoder, dynamic=False), torch.compile(decoder, dynamic=False)
    random_ = torch.Generator().manual_seed(session.recipe.seed * 1000 + session.rank + progress.steps * 31)
    torch.manual_seed(session.recipe.seed * 1000 + session.rank + 1)
    size = session.recipe.sizes.standard[0]
    shown: list[Tensor] = []

    for done in progress:
        whole = done > 1 - recipe.whole_share
        style = STYLES[int(torch.multinomial(torch.tensor(CHANCES), 1, generator=random_))]
        count = recipe.phase.batch // 2
        picture = compose(textures[style], random_scenes(session.things, count, random_), *size)
        picture = varied(picture, random_)
        if not whole:
            picture = torch.cat([_crop(picture, recipe.crop, random_) for _ in range(2)])
        picture = picture.to(session.dtype, memory_format=torch.channels_last)
        coder, drawer = (autoencoder.encoder, autoencoder.decoder) if whole else (encoder, decoder)
        mean, log_variance = coder(picture).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        again = drawer(latents.to(session.dtype)).float()
        error = again - picture.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = unlikeness(error) + recipe.kl * kl
        loss.backward()
        session.share_gradients([optimizer])
        optimizer.step(*progress.rates(done))
        shown.append(torch.stack([error.detach().square().mean(), kl.detach()]))
        if progress.steps % 100 == 0:
            squared_, kl_ = torch.stack(shown).mean(0).tolist()
            shown.clear()
            session.log(NAME, step=progress.steps, done=done, psnr=psnr(squared_), kl=kl_)
    keep(session, NAME, optimizer, progress)
    if progress.finished:
        optimizer.use_averages()
        _measure(session, autoencoder.float(), textures)


def weights(session: Session) -> dict[str, Tensor]:
    """The trained weights, with the decoder that was made fit for pieces, if it is there."""
    return session.load(NAME) | (session.load(PIECES) if session.has(PIECES) else {})


def load(session: Session) -> Autoencoder:
    """The trained autoencoder, whose latents have a mean of 0 and a deviation of 1."""
    found = weights(session)
    numbers = session.load("latents")
    config = autoencoder_config(
        session.recipe.autoencoder, round(float(numbers["scaling"]), 4), round(float(numbers["shift"]), 4)
    )
    autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(found)
    return autoencoder.to(session.device, session.dtype, memory_format=torch.channels_last).eval()


@torch.no_grad()
def _measure(session: Session, autoencoder: Autoencoder, textures: dict[str, Textures]) -> None:
    """Writes what latents have to be multiplied with, and says how faithful pictures come back that were not trained on."""
    if session.rank:
        return
    random_ = torch.Generator().manual_seed(session.recipe.seed * 1000 + 999)
    size = session.recipe.sizes.standard[0]
    count = MEASURED if session.device.type == "cuda" else 8
    latents, found_psnr = [], {}
    for style in STYLES:
        arrangement = random_scenes(session.things, count, random_)
        picture = compose(textures[style], arrangement, *size)
        found = torch.cat([autoencoder.encode(part) for part in picture.split(16)])
        again = torch.cat([autoencoder.decode(part) for part in found.split(16)]).clamp(-1, 1)
        errors = (again - picture).square().mean((1, 2, 3))
        found_psnr[style] = (10 * torch.log10(4 / errors)).mean().item()
        if style == BASE_STYLE:
            latents.append(found)
        session.sheet(f"autoencoder-{style}", torch.stack([picture[:8], again[:8]], dim=1).flatten(0, 1))
    everything = torch.cat(latents)
    shift, deviation = everything.mean(), everything.std()
    session.save("latents", {"shift": shift, "scaling": 1 / deviation})
    channels = everything.std(dim=(0, 2, 3))
    session.log(
        NAME,
        psnr=found_psnr,
        shift=shift,
        deviation=deviation,
        least_channel=channels.min(),
        largest_channel=channels.max(),
    )


def unlikeness(error: Tensor) -> Tensor:
    """What is trained away: absolute, squared and edge errors."""
    return error.abs().mean() + 8 * error.square().mean() + 0.5 * _edges(error)


def psnr(squared: float) -> float:
    """In dB, of a mean squared error of pictures in [-1, 1]."""
    return 10 * math.log10(4 / max(squared, 1e-9))


def _edges(error: Tensor) -> Tensor:
    """Mean differences of neighbouring errors at three scales: what is sharp in one picture and soft in the other."""
    total = error.new_zeros(())
    for _ in range(3):
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total


def _crop(picture: Tensor, side: int, random_: torch.Generator) -> Tensor:
    height, width = picture.shape[2:]
    y = int(torch.randint(height - side + 1, (1,), generator=random_))
    x = int(torch.randint(width - side + 1, (1,), generator=random_))
    return picture[:, :, y : y + side, x : x + side]


def varied(picture: Tensor, random_: torch.Generator) -> Tensor:
    """A quarter with channels exchanged and some with noise on it: users bring pictures of other colours and textures."""
    quarter = len(picture) // 4
    order = torch.randperm(3, generator=random_).tolist()
    exchanged = picture[:quarter, order]
    side = 2 ** int(torch.randint(3, 7, (1,), generator=random_))
    rough = torch.randn(quarter // 2, 3, side, side, device=picture.device) * 0.25
    rough = F.interpolate(rough, picture.shape[2:], mode="bilinear")
    noisy = (picture[quarter : quarter + len(rough)] + rough).clamp(-1, 1)
    return torch.cat([exchanged, noisy, picture[quarter + len(rough) :]])
