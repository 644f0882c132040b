"""Dyeing changes an object's main colour and nothing else."""

from __future__ import annotations

import pytest
import torch
from training.colours import COLOURS, dye, from_oklab, main_colour, nearest, palette, to_oklab

NAMES = [colour.name for colour in COLOURS]


def _picture() -> torch.Tensor:
    """A shaded orange square with a black eye, a blue bow and a white tooth, on nothing."""
    picture = torch.zeros(4, 64, 64)
    picture[:, 8:56, 8:56] = torch.tensor([0.95, 0.55, 0.15, 1.0])[:, None, None]
    picture[:3, 8:56, 8:56] *= torch.linspace(1.0, 0.7, 48)[None, :, None]
    picture[:3, 20:24, 20:24] = 0.08
    picture[:3, 40:46, 30:40] = torch.tensor([0.1, 0.3, 0.9])[:, None, None]
    picture[:3, 50:54, 20:24] = 0.97
    return picture


def test_oklab_goes_there_and_back() -> None:
    rgb = torch.rand(3, 16, 16)
    torch.testing.assert_close(from_oklab(to_oklab(rgb)), rgb, atol=2e-3, rtol=0)
    white = to_oklab(torch.ones(3, 1, 1)).flatten()
    torch.testing.assert_close(white, torch.tensor([1.0, 0.0, 0.0]), atol=1e-3, rtol=0)


def test_the_main_colour_is_that_of_most_of_the_object() -> None:
    main, share = main_colour(_picture())
    assert NAMES[nearest(main)] == "orange"
    assert 0.85 < share < 1


@pytest.mark.parametrize(
    "name", ["blue", "green", "pink", "purple", "red", "brown", "white", "black", "gray", "yellow"]
)
def test_what_is_dyed_looks_so_and_keeps_its_shading(name: str) -> None:
    picture = _picture()
    main, _ = main_colour(picture)
    colours = palette(picture.device)
    dyed = torch.cat([dye(picture[:3], main, colours[NAMES.index(name)]), picture[3:]])
    assert NAMES[nearest(main_colour(dyed)[0])] in {name, *(("navy",) if name == "black" else ())}
    # Everything else stays: the eye, the bow, the tooth.
    for rows, columns in (
        (slice(21, 23), slice(21, 23)),
        (slice(41, 45), slice(31, 39)),
        (slice(51, 53), slice(21, 23)),
    ):
        torch.testing.assert_close(dyed[:3, rows, columns], picture[:3, rows, columns], atol=0.02, rtol=0)
    light = to_oklab(dyed[:3])[0]
    assert light[10, 10] > light[54, 54] + 0.03


def test_greys_are_dyed_by_their_lightness() -> None:
    picture = torch.ones(4, 32, 32)
    picture[:3] = 0.8
    picture[:3, 10:14, 10:14] = 0.05
    main, share = main_colour(picture)
    assert share > 0.9
    dyed = dye(picture[:3], main, palette(picture.device)[NAMES.index("blue")])
    assert dyed[2, 20, 20] > dyed[0, 20, 20] + 0.3
    assert dyed[:, 11, 11].max() < 0.1
