"""What SDXL's U-Net reads of prompts: both encoders' embeddings of each token, and one vector of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hwaga.families.sdxl.weighting import weighted
from hwaga.families.sdxl.words import PromptTokenizer, Windows

Adapting = Callable[[Any, Sequence[Any]], AbstractContextManager[Any]]
"""(network, adapters of each row) → within it, the network is run with them."""


@dataclass(frozen=True)
class Prompt:
    """A prompt before it is read: ``families.family.Tokens``. An empty one stands for no negative prompt.

    Attributes:
        tokens: how many there are.
    """

    text: str
    tokens: int

    def __len__(self) -> int:
        return self.tokens


@dataclass(frozen=True)
class Caption:
    """A prompt as the U-Net reads it.

    Attributes:
        embeddings: ``[tokens, D]``, of whole windows of 77.
        pooled: ``[P]``, of the first window.
        filler: ``[77, D]``, a window of nothing: what follows where another prompt is longer.
    """

    embeddings: Tensor
    pooled: Tensor
    filler: Tensor

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + self.pooled.nbytes + self.filler.nbytes

    def emptied(self) -> Caption:
        """The same of zeros."""
        return Caption(*(torch.zeros_like(part) for part in (self.embeddings, self.pooled, self.filler)))

    def filled(self, tokens: int) -> Tensor:
        """The embeddings, followed by as many empty windows as it takes to have so many tokens."""
        missing = (tokens - len(self.embeddings)) // len(self.filler)
        return torch.cat([self.embeddings, *[self.filler] * missing])


@dataclass(frozen=True)
class Encoders:
    """The two text encoders.

    Attributes:
        adapting: applies adapters to a network, row by row.
        zeros: no negative prompt is read as zeros, and not as an empty text.
    """

    first: Any
    second: Any
    tokenizer: PromptTokenizer
    adapting: Adapting
    device: torch.device
    zeros: bool

    def read(self, texts: Sequence[str], adapters: Sequence[Any]) -> list[Caption]:
        """Captions of texts, each with its adapters. Windows of all of them go through the encoders at once."""
        # The empty text is read with each set of adapters: its window fills shorter prompts up, and weights count from it.
        wanted = list(zip(texts, adapters, strict=True))
        asked = list(dict.fromkeys([*(("", own) for own in adapters), *wanted]))
        windows = [self.tokenizer.windows(text) for text, _ in asked]
        places: dict[tuple[str, Any], slice] = {}
        rows: list[Any] = []
        for key, (one, _) in zip(asked, windows, strict=True):
            places[key] = slice(len(rows), len(rows) + len(one.ids))
            rows += [key[1]] * len(one.ids)
        weights = {
            key: [torch.tensor(each.weights) for each in found] for key, found in zip(asked, windows, strict=True)
        }
        states = [self._run(self.first, [one for one, _ in windows], rows).hidden_states[-2]]
        output = self._run(self.second, [two for _, two in windows], rows)
        states.append(output.hidden_states[-2])

        def caption(key: tuple[str, Any]) -> Caption:
            own, nothing = places[key], places["", key[1]].start
            embeddings = torch.cat(
                [
                    weighted(each[own], weight.to(self.device), each[nothing])
                    for each, weight in zip(states, weights[key], strict=True)
                ],
                dim=-1,
            )
            filler = torch.cat([each[nothing] for each in states], dim=-1)
            found = Caption(embeddings, output.text_embeds[own.start].clone(), filler)
            return found if key[0] or not self.zeros else found.emptied()

        return [caption(key) for key in wanted]

    def _run(self, encoder: Any, windows: Sequence[Windows], rows: Sequence[Any]) -> Any:
        ids = torch.tensor([ids for each in windows for ids in each.ids], device=self.device)
        places = torch.arange(ids.shape[1], device=self.device)[None]
        with self.adapting(encoder, rows):
            return encoder(input_ids=ids, position_ids=places, output_hidden_states=True)
