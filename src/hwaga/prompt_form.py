"""The form of the text that each model family reads best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PromptForm:
    """How a family's prompts are put together.

    Attributes:
        phrases: it reads phrases between commas, the packs' column ``sdxl``; otherwise sentences, their column ``z_image``.
        negative: it has a negative prompt, for pictures that are drawn with guidance. Without, what is not wanted is worded
            in the prompt, as what to show instead.
        english_only: words of another language hardly count.
    """

    phrases: bool
    negative: bool
    english_only: bool


FORMS: Mapping[str, PromptForm] = MappingProxyType(
    {
        "z_image": PromptForm(phrases=False, negative=False, english_only=False),
        "sdxl": PromptForm(phrases=True, negative=True, english_only=True),
    }
)
"""By family."""
