"""What can be asked of a model's family while no network is loaded and torch is not imported: how many tokens a prompt has, by
the checkpoint's tokenizer, and whether what it is drawn with is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from hwaga.cards import ModelCard
from hwaga.families import named, open_tokenizer


def missing_packages(card: ModelCard) -> list[str]:
    """Packages that a model is drawn with and that are not installed. None of them is imported."""
    return [package for package in named(card.family).packages if find_spec(package) is None]


def is_countable(card: ModelCard) -> bool:
    """Whether ``token_counter`` has what it takes: the checkpoint, or a tokenizer that comes along."""
    return card.present or named(card.family).with_tokenizer


def token_counter(card: ModelCard) -> Callable[[str], int]:
    """A function from a prompt to its number of tokens on this model, chat template included.

    Raises:
        CardError: there is no such family.
        CheckpointError: the checkpoint lacks its tokenizer, or it is damaged.
    """
    tokenizer = open_tokenizer(card.family, card.folder)
    return lambda prompt: len(tokenizer.ids(prompt))


def token_checker(card: ModelCard) -> Callable[[str, int], int]:
    """As ``token_counter``, for a prompt and its limit; the function raises PromptTooLongError beyond that."""
    card.check_present()
    tokenizer = open_tokenizer(card.family, card.folder)
    return lambda prompt, limit: len(tokenizer.ids_within(prompt, limit))
