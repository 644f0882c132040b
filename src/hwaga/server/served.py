"""A model that is served: what its card, the packs and its tokenizer say of a request, before an engine does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwaga.card_styles import Style
from hwaga.cards import ModelCard
from hwaga.errors import PromptTooLongError, RequestError
from hwaga.loras import LoraLibrary
from hwaga.prompt import Composition, Library, compose
from hwaga.request import ImageRequest
from hwaga.settings import Settings
from hwaga.tokens import token_checker

if TYPE_CHECKING:
    from hwaga.server.drawing import Words


@dataclass(frozen=True)
class Served:
    """See the module's docstring.

    Attributes:
        count: tokens of a prompt, with a limit beyond which it raises PromptTooLongError.
    """

    card: ModelCard
    library: Library
    loras: LoraLibrary
    count: Callable[[str, int], int]

    @classmethod
    def of(cls, card: ModelCard, library: Library, settings: Settings) -> Served:
        """A model by its card. Raises CheckpointError where its tokenizer is not there, or damaged."""
        return cls(card, library, LoraLibrary(settings.loras), token_checker(card))

    @property
    def own_styles(self) -> Mapping[str, Style]:
        """The model's own styles that can be asked for: less those that are nothing but a LoRA that is not there."""
        return {
            name: style
            for name, style in self.card.styles.items()
            if name in self.library.styles or style.lora is None or (self.card.folder / style.lora).is_file()
        }

    def composed(self, words: Words | ImageRequest, limit: int) -> Composition:
        """The prompt that words come to, counted. Raises RequestError."""
        return compose(
            words.prompt, family=self.card.family, library=self.library, card=self.card, style=words.style,
            industry=words.industry, avoid=words.avoid, use=words.use, style_fallback=words.style_fallback,
            guidance=words.guidance, count_tokens=lambda text: self.count(text, 10**9), token_limit=limit,
        )  # fmt: skip

    def check(self, request: ImageRequest) -> int:
        """Refuses what the model does not take, as far as that is known without the engine, so that the client hears of it at
        once and not when it is its turn. Returns how many tokens it has: those of the prompt, and those of the negative prompt
        where that is used.

        Raises:
            RequestError: (or a subclass) with the remedy.
        """
        card, limits = self.card, self.card.limits
        limit = request.max_tokens or limits.tokens
        if limit > limits.max_tokens:
            raise RequestError(f"max_tokens of {limit} is beyond {card.name}, which takes {limits.max_tokens} at most.")
        card.check_guidance(request)
        if request.steps is not None and request.steps > limits.max_steps:
            raise RequestError(f"{card.name} takes {limits.max_steps} steps at most, not {request.steps}.")
        if request.aspect is not None:
            card.size_of(request.aspect)
        if request.width is not None and request.height is not None:
            card.check_size(request.width, request.height)
        for lora in request.model_loras:
            self.loras.find(lora.name, card)
        text, negative = request.model_prompt, request.model_negative
        if request.composes:
            composition = self.composed(request, limit)
            text = composition.text
            negative = ", ".join(part for part in (request.negative, composition.negative) if part)
        tokens = self.count(text, limit)
        guidance = card.guidance if request.guidance is None else request.guidance
        if negative and guidance is not None and guidance > 1:
            try:
                tokens += self.count(negative, limit)
            except PromptTooLongError as error:
                said = str(error).replace("The prompt", "The negative prompt", 1)
                raise PromptTooLongError(said, tokens=error.tokens, limit=error.limit, kept=error.kept) from error
        return tokens
