"""What the style and industry packs add to a prompt, as the command line and the server would put it."""

from __future__ import annotations

import itertools
from functools import cache

from hwaga.cards import ASSETS, ModelCard
from hwaga.prompt.compose import compose
from hwaga.prompt.library import Library

TYPED = "x"

CARD = "z-image-turbo.toml"
"""A model that takes all of the packs' wording."""


@cache
def additions() -> tuple[str, ...]:
    """The packs' wording for every style, every industry and many pairs of both, without what was typed."""
    library = Library.load()
    card = ModelCard.read(ASSETS / "cards" / CARD)
    styles, industries = [None, *library.styles], [None, *library.industries]
    texts = []
    for number, (style, industry) in enumerate(itertools.product(styles, industries)):
        alone = style is None or industry is None
        if not alone and number % 7:
            continue
        text = compose(TYPED, family="z_image", library=library, card=card, style=style, industry=industry).text
        if added := text.removeprefix(TYPED).lstrip(" .,"):
            texts.append(added)
    return tuple(texts)
