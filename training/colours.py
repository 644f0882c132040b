"""Colours that captions name, and arithmetic on colours as people see them.

Colours are compared and moved in Oklab (Björn Ottosson, 2020): L is lightness, a and b are the colour, and equal distances look
about equally far. The functions take ``[..., 3, H, W]`` tensors, so that the same code finds an object's colour on a CPU and
dyes a batch of pictures on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Colour:
    """A colour and its names.

    Attributes:
        rgb: 0 to 255.
        english: adjectives, the usual one first.
        korean: (before a noun, as a noun) pairs, the usual one first.
        dyes: whether objects are dyed in it; close neighbours of other colours serve as backgrounds only.
    """

    rgb: tuple[int, int, int]
    english: tuple[str, ...]
    korean: tuple[tuple[str, str], ...]
    dyes: bool = True

    @property
    def name(self) -> str:
        return self.english[0]


def _colour(rgb: tuple[int, int, int], english: str, korean: str, *, dyes: bool = True) -> Colour:
    pairs = [form.split("/") for form in korean.split(", ")]
    return Colour(rgb, tuple(english.split(", ")), tuple((before, noun) for before, noun in pairs), dyes)


COLOURS = (
    _colour((255, 255, 255), "white, pure white", "하얀/하얀색, 흰/흰색, 흰색/흰색, 하얀색/화이트"),
    _colour((24, 24, 28), "black, jet black", "검은/검은색, 까만/까만색, 검정/검정색, 검은색/블랙"),
    _colour((150, 150, 156), "gray, grey", "회색/회색, 잿빛/그레이"),
    _colour((222, 52, 52), "red, bright red", "빨간/빨간색, 빨강/빨강, 붉은/붉은색, 빨간색/레드"),
    _colour((245, 140, 40), "orange, bright orange", "주황색/주황색, 주황/주황, 오렌지색/오렌지색"),
    _colour((250, 216, 60), "yellow, bright yellow", "노란/노란색, 노랑/노랑, 노란색/옐로"),
    _colour((66, 172, 88), "green, grass green", "초록/초록색, 초록색/초록, 녹색/녹색"),
    _colour((152, 228, 202), "mint, mint green", "민트색/민트색, 민트/민트", dyes=False),
    _colour((138, 204, 246), "sky blue, light blue, pale blue", "하늘색/하늘색, 연한 파란색/하늘색"),
    _colour((48, 98, 224), "blue, bright blue", "파란/파란색, 파랑/파랑, 푸른/푸른색, 파란색/블루"),
    _colour((30, 44, 96), "navy, dark blue, navy blue", "남색/남색, 짙은 남색/네이비", dyes=False),
    _colour((136, 80, 202), "purple, violet", "보라색/보라색, 보라/보라, 자주색/퍼플"),
    _colour((250, 168, 198), "pink, light pink", "분홍색/분홍색, 분홍/분홍, 핑크색/핑크, 핑크/핑크색"),
    _colour((130, 86, 56), "brown, chocolate brown", "갈색/갈색, 밤색/브라운"),
    _colour((240, 226, 198), "beige, cream", "베이지색/베이지색, 베이지/베이지, 크림색/크림색", dyes=False),
)
"""The order is a colour's number in scenes, and counts for what is held out."""

DYES = tuple(index for index, colour in enumerate(COLOURS) if colour.dyes)

WHITE = 0

_NAMES = {name for colour in COLOURS for name in (*colour.english, *(word for pair in colour.korean for word in pair))}
_NAMES |= {"golden", "gold", "silver", "colorful", "rainbow", "홍", "풋", "금색", "은색"}


def names_colour(words: str) -> bool:
    """Whether words for an object tell its colour already, so that another one would contradict them."""
    return any(name in (words.split() if name.isascii() else words) for name in _NAMES)


def to_oklab(rgb: Tensor) -> Tensor:
    """``[..., 3, H, W]`` sRGB in [0, 1] to Oklab."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    cones = _mixed(linear, _TO_CONES).clamp(min=0).pow(1 / 3)
    return _mixed(cones, _TO_LAB)


def from_oklab(lab: Tensor) -> Tensor:
    """The inverse, clamped to what a screen can show."""
    linear = _mixed(_mixed(lab, _FROM_LAB).pow(3), _FROM_CONES)
    high = 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, high).clamp(0, 1)


def palette(device: torch.device) -> Tensor:
    """The colours in Oklab, ``[colours, 3]``."""
    rgb = torch.tensor([colour.rgb for colour in COLOURS], dtype=torch.float32) / 255
    return to_oklab(rgb[..., None, None])[..., 0, 0].to(device)


def main_colour(rgba: Tensor) -> tuple[Tensor, float]:
    """The colour that most of an object has.

    Args:
        rgba: ``[4, H, W]`` in [0, 1], not premultiplied.

    Returns:
        Oklab ``[3]``, and the share of the object's area that dyeing would change.
    """
    alpha = rgba[3].flatten()
    lab = to_oklab(rgba[:3]).flatten(1)
    chroma = lab[1:].norm(dim=0)
    hue = torch.atan2(lab[2], lab[1])
    bins = (hue / (2 * torch.pi) * 36).round().long() % 36
    grey = chroma < _GREY
    # Greys compete by lightness, colours by hue; neighbours add up so that a boundary between bins halves nothing.
    counts = torch.zeros(36).index_add_(0, bins[~grey], alpha[~grey])
    counts = counts + counts.roll(1) + counts.roll(-1)
    levels = torch.zeros(8).index_add_(0, (lab[0, grey] * 7.999).long(), alpha[grey])
    levels[1:-1] = levels[1:-1] + 0.5 * (levels[:-2] + levels[2:])
    if counts.max() >= levels.max():
        best = int(counts.argmax())
        distance = (bins - best + 18) % 36 - 18
        chosen = ~grey & (distance.abs() <= 1)
    else:
        best = int(levels.argmax())
        chosen = grey & ((lab[0] * 7.999).long() == best)
    weight = alpha * chosen
    main = (lab * weight).sum(1) / weight.sum().clamp(min=1e-6)
    reached = dye_weight(lab[..., None], main[:, None, None])[0, :, 0]
    return main, float((reached * alpha).sum() / alpha.sum().clamp(min=1e-6))


def nearest(lab: Tensor) -> int:
    """The number of the colour that ``[3]`` in Oklab is closest to."""
    return int((palette(lab.device) - lab).norm(dim=1).argmin())


def dye_weight(lab: Tensor, main: Tensor) -> Tensor:
    """How much of each pixel belongs to the main colour, ``[..., 1, H, W]`` in [0, 1].

    A shaded object keeps its hue over a wide range of lightness, so hue decides for colours and lightness for
    greys; what is dark or pale on a coloured object (eyes, teeth, highlights) is left as it is.

    Args:
        lab: ``[..., 3, H, W]``.
        main: ``[..., 3, 1, 1]``.
    """
    chroma, main_chroma = lab[..., 1:, :, :].norm(dim=-3, keepdim=True), main[..., 1:, :, :].norm(dim=-3, keepdim=True)
    along = (lab[..., 1:, :, :] * main[..., 1:, :, :]).sum(-3, keepdim=True) / (chroma * main_chroma).clamp(min=1e-6)
    dark = (main[..., :1, :, :] - 0.28).clamp(0.08, 0.26)
    coloured = _rise(along, 0.55, 0.8) * _rise(chroma, 0.03, 0.06) * _rise(lab[..., :1, :, :] - dark, 0.0, 0.1)
    distance = (lab[..., :1, :, :] - main[..., :1, :, :]).abs()
    grey = _rise(-chroma, -0.07, -0.045) * _rise(-distance, -0.36, -0.26)
    return torch.where(main_chroma >= _GREY, coloured, grey)


def dye(rgb: Tensor, main: Tensor, target: Tensor) -> Tensor:
    """Gives the parts of a picture that have its main colour another one, with their shading kept.

    Args:
        rgb: ``[..., 3, H, W]`` in [0, 1].
        main, target: Oklab, ``[..., 3]``.
    """
    lab = to_oklab(rgb)
    main, target = main[..., None, None], target[..., None, None]
    weight = dye_weight(lab, main)
    shade = lab[..., :1, :, :] - main[..., :1, :, :]
    # Near white and black there is less room for shading on one side.
    room = 0.9 - 0.45 * _rise((target[..., :1, :, :] - 0.6).abs(), 0.15, 0.35)
    light = target[..., :1, :, :] + room * shade
    vivid = (1 + 0.5 * shade).clamp(0.6, 1.2)
    dyed = torch.cat([light.clamp(0.05, 1.0), target[..., 1:, :, :] * vivid], dim=-3)
    return from_oklab(lab + weight * (dyed - lab))


_GREY = 0.05
"""Chroma below which a colour passes for grey."""


def _rise(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _mixed(x: Tensor, rows: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", _matrix(rows, x.device, x.dtype), x)


@cache
def _matrix(rows: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(rows, device=device, dtype=dtype)


_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_FROM_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_FROM_CONES = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)
