"""Vector pictures as pixels: as they are, or redrawn as ink lines over a pale wash."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from training.pack import SIDE

UNITS = 32
"""Of a side of a vector picture."""

INK = "#2b2633"
STROKE = 0.8
WASH = 0.55
"""How far towards white the colours are thinned."""

SVG = "http://www.w3.org/2000/svg"
SHAPES = {f"{{{SVG}}}{tag}" for tag in ("path", "circle", "ellipse", "rect")}

ElementTree.register_namespace("", SVG)


def flat(body: str) -> Image.Image:
    """A vector picture's elements as RGBA pixels."""
    return _pixels(body, SIDE)


def line(body: str) -> Image.Image:
    """The same picture drawn with a pen: every shape gets an outline and a pale wash of its colour.

    Shapes that are no thicker than a few strokes (whiskers, seams, eyebrows) would vanish between two outlines, so they become
    strokes themselves; small dark ones (eyes, nostrils) are filled with ink.
    """
    root = ElementTree.fromstring(_document(body, SIDE))
    for shape in _shapes(root):
        colour = _rgb(shape.get("fill", ""))
        if colour is None:
            continue
        thickness = _thickness(ElementTree.tostring(shape, encoding="unicode"))
        light = (0.30 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]) / 255
        if thickness < 2.0 and light < 0.75:
            shape.set("fill", INK)
            continue
        shape.set("fill", INK if light < 0.22 and thickness < 6.0 else _washed(colour))
        if thickness >= 2.0:
            for name, value in (("", INK), ("-width", str(STROKE)), ("-linejoin", "round"), ("-linecap", "round")):
                shape.set("stroke" + name, value)
    inner = "".join(ElementTree.tostring(element, encoding="unicode") for element in root)
    return _pixels(inner, SIDE)


def _shapes(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Everything painted, but not what only clips or is referred to."""
    for element in root:
        if element.tag in SHAPES:
            yield element
        elif element.tag == f"{{{SVG}}}g":
            yield from _shapes(element)


def _document(body: str, side: int) -> str:
    return (
        f'<svg xmlns="{SVG}" xmlns:xlink="http://www.w3.org/1999/xlink" width="{side}" height="{side}" '
        f'viewBox="0 0 {UNITS} {UNITS}">{body}</svg>'
    )


def _pixels(body: str, side: int) -> Image.Image:
    png = bytes(resvg_py.svg_to_bytes(svg_string=_document(body, side)))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _thickness(shape: str) -> float:
    """The widest square that fits inside a shape, in units of the picture, up to about 6."""
    scale = 64 / UNITS
    mask = np.pad(np.asarray(_pixels(shape, 64).getchannel("A")) > 127, 7)
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    widest = 0
    for side in (3, 5, 7, 9, 11, 13):
        if not np.asarray(picture.filter(ImageFilter.MinFilter(side))).any():
            break
        widest = side
    return widest / scale


def _rgb(fill: str) -> tuple[int, int, int] | None:
    """``#rgb`` or ``#rrggbb``; None for gradients and nothing."""
    digits = fill.removeprefix("#")
    if not fill.startswith("#") or len(digits) not in (3, 6):
        return None
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _washed(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{round(value + (255 - value) * WASH):02x}" for value in colour)
