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


ROWS = 4
"""Windows that go through the encoders at once; fewer are filled up. Products of other shapes round otherwise, and what was
read beside other prompts is kept: a picture would not be the same to the bit again."""


@dataclass(frozen=True)
class Prompt:
    """A prompt before it is read: ``families.family.Tokens``. An empty one stands for no negative prompt.

    Attributes:
        tokens: how many there are.
        windows: that it is read in. They are not always filled.
    """

    text: str
    tokens: int
    windows: int = 1

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


Key = tuple[str, Any]
"""A text, and adapters or None."""


@dataclass(frozen=True)
class Reading:
    """What goes through the encoders.

    Attributes:
        wanted: the texts that captions are made of.
        windows: of these and of the empty text, for both encoders.
    """

    wanted: tuple[Key, ...]
    windows: dict[Key, tuple[Windows, Windows]]

    @property
    def passes(self) -> int:
        """How often both encoders are run."""
        return -(-sum(len(one.ids) for one, _ in self.windows.values()) // ROWS)


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

    def plan(self, texts: Sequence[str], adapters: Sequence[Any]) -> Reading:
        """What has to be read for some texts, each with its adapters."""
        # The empty text is read with each set of adapters: its window fills shorter prompts up, and weights count from it.
        wanted = tuple(zip(texts, adapters, strict=True))
        asked = dict.fromkeys([*(("", own) for own in adapters), *wanted])
        return Reading(wanted, {key: self.tokenizer.windows(key[0]) for key in asked})

    def read(self, reading: Reading) -> list[Caption]:
        """The captions of texts."""
        rows = [
            (key, *pair) for key, (one, two) in reading.windows.items() for pair in zip(one.ids, two.ids, strict=True)
        ]
        first: list[Tensor] = []
        second: list[Tensor] = []
        pooled: list[Tensor] = []
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            some += [rows[0]] * (ROWS - len(some))
            own = [key[1] for key, _, _ in some]
            first += self._run(self.first, [ids for _, ids, _ in some], own).hidden_states[-2]
            output = self._run(self.second, [ids for _, _, ids in some], own)
            second += output.hidden_states[-2]
            pooled += output.text_embeds
        places = {key: [i for i, row in enumerate(rows) if row[0] == key] for key in reading.windows}

        def caption(key: Key) -> Caption:
            own, (nothing,) = places[key], places["", key[1]]
            embeddings = [
                weighted(
                    torch.stack([states[i] for i in own]), torch.tensor(read.weights).to(self.device), states[nothing]
                )
                for states, read in zip((first, second), reading.windows[key], strict=True)
            ]
            filler = torch.cat([first[nothing], second[nothing]], dim=-1)
            found = Caption(torch.cat(embeddings, dim=-1), pooled[own[0]].clone(), filler)
            return found if key[0] or not self.zeros else found.emptied()

        return [caption(key) for key in reading.wanted]

    def _run(self, encoder: Any, ids: Sequence[Sequence[int]], adapters: Sequence[Any]) -> Any:
        places = torch.arange(len(ids[0]), device=self.device)[None]
        with self.adapting(encoder, adapters):
            return encoder(
                input_ids=torch.tensor(ids, device=self.device), position_ids=places, output_hidden_states=True
            )
