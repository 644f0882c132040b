"""Fits a model's preview: the linear map from a latent pixel to the mean colour of the pixels it stands for.

    python -m training.fit_preview [MODEL]

Pictures are made, and least squares finds for each latent channel how much red, green and blue it adds. Prints the ``preview``
entry of the model's card and how well the map explains pictures that it was not fitted on.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from hwaga.engine import Engine
from hwaga.request import ImageRequest

SUBJECTS = [
    "a red apple", "a cat", "a dog", "a cup of coffee", "a penguin", "a house", "a rocket", "a sunflower", "a slice of pizza",
    "a robot", "a birthday cake", "a frog", "a car", "a strawberry", "a fox", "a ghost",
]  # fmt: skip
BACKGROUNDS = ["yellow", "blue", "pink", "green", "white", "black", "orange", "purple"]


def samples(engine: Engine) -> tuple[Tensor, Tensor]:
    """Latent pixels ``[n, C + 1]`` (the last column is 1) and the mean colours ``[n, 3]`` in [-1, 1] beneath them."""
    model = engine._opened().model
    latents, colours = [], []
    for place, subject in enumerate(SUBJECTS):
        for background in BACKGROUNDS[place % 2 :: 2]:
            request = ImageRequest(f"{subject} on a {background} background", seed=place)
            image = engine.generate(request).image
            pixels = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(image.height, image.width, 3)
            pixels = pixels.permute(2, 0, 1) / 127.5 - 1
            with torch.inference_mode():
                latent = model.encode_pixels(pixels, None)
            scale = image.height // latent.shape[1]
            colours.append(torch.nn.functional.avg_pool2d(pixels, scale).flatten(1).T)
            latents.append(torch.cat([latent.flatten(1).T, torch.ones(latent[0].numel(), 1)], dim=1))
    return torch.cat(latents), torch.cat(colours)


def fit(model: str) -> tuple[list[list[float]], str]:
    """The factors ``[C + 1][3]``, and in words how good they are."""
    with Engine.open(model, device="cpu", dtype="float32") as engine:
        latents, colours = samples(engine)
    half = len(latents) // 2
    factors = torch.linalg.lstsq(latents[:half], colours[:half]).solution
    rest = colours[half:]
    unexplained = (latents[half:] @ factors - rest).square().mean() / rest.var(dim=0).mean()
    share = f"explains {1 - unexplained.item():.3f} of the variance of {len(rest)} others"
    return factors.tolist(), f"fitted on {half} latent pixels; {share}"


def main() -> None:
    factors, quality = fit(sys.argv[1] if len(sys.argv) > 1 else "mini")
    print(f"# {quality}")
    print("preview = [")
    for row in factors:
        print(f"    [{', '.join(f'{value:.4f}' for value in row)}],")
    print("]")


if __name__ == "__main__":
    main()
