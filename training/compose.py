"""Draws scenes as batches of pixels on the device: objects out of the pack, placed, turned, dyed and laid over a background.

Which object goes where is known on the host, so that nothing has to wait for the device to learn how much work there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.colours import COLOURS, dye, palette
from training.pack import Thing, read_pictures
from training.scenes import MOST_OBJECTS, NO_DYE, Placed, Scene

SMALL = 0.55
"""Objects that take less of a texture's side than that are drawn from one of half the size, lest they shimmer."""

JITTER = 5.0
"""How far a background's red, green and blue may be off their colour's, of 255."""


class Textures:
    """The pictures of one style on a device: float16 ``[objects, 4, side, side]``, premultiplied, at full and at half size."""

    def __init__(self, pack: Path, style: str, things: Sequence[Thing], device: torch.device) -> None:
        pictures = read_pictures(pack, style, things)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.full = torch.empty(pictures.shape, dtype=dtype, device=device)
        for start in range(0, len(pictures), 128):
            part = pictures[start : start + 128].to(device).float() / 255
            self.full[start : start + 128] = torch.cat([part[:, :3] * part[:, 3:], part[:, 3:]], dim=1).to(dtype)
        self.half = torch.cat([F.avg_pool2d(part.float(), 2).to(dtype) for part in self.full.split(128)])
        self.mains = torch.tensor([thing.mains[style] for thing in things], device=device)
        self.palette = palette(device)

    @property
    def side(self) -> int:
        return self.full.shape[-1]


@dataclass(frozen=True)
class Layer:
    """One object in each of several pictures of a batch, on the host.

    Attributes:
        rows: which pictures ``[n]``.
        things: numbers of objects ``[n]``.
        spots: x, y, size and angle ``[n, 4]`` as ``Placed`` has them.
        dyes: numbers of colours ``[n]``, or NO_DYE.
    """

    rows: np.ndarray
    things: np.ndarray
    spots: np.ndarray
    dyes: np.ndarray


@dataclass(frozen=True)
class Arrangement:
    """A batch of scenes of one size as numbers, on the host.

    Attributes:
        layers: of objects, the farthest first.
        backgrounds: red, green, blue of top and bottom in [0, 1], ``[B, 2, 3]``.
    """

    layers: tuple[Layer, ...]
    backgrounds: np.ndarray

    def __len__(self) -> int:
        return len(self.backgrounds)

    @classmethod
    def of(cls, scenes: Sequence[Scene], rng: np.random.Generator, jitter: float = JITTER) -> Arrangement:
        """Numbers of scenes, with their backgrounds a little off their colours."""
        layers = []
        for slot in range(MOST_OBJECTS):
            rows = [row for row, scene in enumerate(scenes) if len(scene.placed) > slot]
            if rows:
                layers.append(_layer(rows, [scenes[row].placed[slot] for row in rows]))
        colours = np.array([colour.rgb for colour in COLOURS], np.float32)
        ends = np.array([(scene.top, scene.bottom) for scene in scenes])
        # White that nobody asked for is just white.
        free = np.array([scene.says_background for scene in scenes], np.float32)[:, None]
        first, second = (rng.uniform(-jitter, jitter, (len(scenes), 3)).astype(np.float32) for _ in range(2))
        second = np.where((ends[:, 0] == ends[:, 1])[:, None], first, second)
        off = np.stack([first * free, second * free], axis=1)
        return cls(tuple(layers), np.clip((colours[ends] + off) / 255, 0, 1))


def _layer(rows: list[int], placed: list[Placed]) -> Layer:
    return Layer(
        np.array(rows),
        np.array([spot.thing for spot in placed]),
        np.array([(spot.x, spot.y, spot.size, spot.angle) for spot in placed], np.float32),
        np.array([spot.dye for spot in placed]),
    )


@torch.no_grad()
def compose(textures: Textures, scenes: Arrangement, width: int, height: int) -> Tensor:
    """Pixels in [-1, 1], ``[B, 3, height, width]`` float32."""
    device = textures.full.device
    ends = _sent(scenes.backgrounds, device)
    down = torch.linspace(0, 1, height, device=device)[None, None, :, None]
    top, bottom = ends[:, 0, :, None, None], ends[:, 1, :, None, None]
    image = (top + (bottom - top) * down).expand(-1, -1, -1, width).contiguous()
    for layer in scenes.layers:
        tiny = layer.spots[:, 2] * min(width, height) < SMALL * textures.side
        for source, chosen in ((textures.full, ~tiny), (textures.half, tiny)):
            if chosen.any():
                _lay(image, source, textures, _only(layer, chosen))
    return image * 2 - 1


def _lay(image: Tensor, source: Tensor, textures: Textures, layer: Layer) -> None:
    """Lays objects over the pictures of a batch, in place."""
    device = image.device
    height, width = image.shape[2:]
    # Dyed ones last, so that they are a slice.
    order = np.argsort(layer.dyes != NO_DYE, kind="stable")
    layer = _only(layer, order)
    dyed = int((layer.dyes != NO_DYE).sum())
    rows, things, spots = (_sent(values, device) for values in (layer.rows, layer.things, layer.spots))
    x, y, size, angle = spots[:, :, None, None].unbind(1)
    half = 0.5 * size * min(width, height)
    right = torch.arange(width, device=device) + 0.5 - x * width
    down = torch.arange(height, device=device)[:, None] + 0.5 - y * height
    cos, sin = angle.cos(), angle.sin()
    grid = torch.stack([(cos * right + sin * down) / half, (cos * down - sin * right) / half], dim=-1)
    seen = F.grid_sample(source[things].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    rgb, alpha = seen[:, :3], seen[:, 3:]
    if dyed:
        colours = textures.palette[_sent(layer.dyes[-dyed:], device)]
        opaque = alpha[-dyed:].clamp(min=1e-3)
        rgb[-dyed:] = dye((rgb[-dyed:] / opaque).clamp(0, 1), textures.mains[things[-dyed:]], colours) * alpha[-dyed:]
    image[rows] = image[rows] * (1 - alpha) + rgb


def _only(layer: Layer, chosen: np.ndarray) -> Layer:
    return Layer(layer.rows[chosen], layer.things[chosen], layer.spots[chosen], layer.dyes[chosen])


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    # A copy out of pinned memory does not wait for what the device is at.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
