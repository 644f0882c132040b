"""The Qwen3 tokenizer with Z-Image's chat template around the prompt. It needs no torch."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

from tokenizers import Tokenizer

from hwaga.errors import CheckpointError, PromptTooLongError

BEFORE = "<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

SOURCE = "https://huggingface.co/Tongyi-MAI/Z-Image-Turbo/resolve/main/tokenizer/tokenizer.json"
"""Where the tokenizer of every Z-Image checkpoint can be had; for messages."""


class PromptTokenizer:
    """Turns a prompt into the ids that the text encoder was given in training.

    Args:
        folder: the checkpoint's ``tokenizer`` folder; its ``tokenizer.json`` is read.

    Raises:
        CheckpointError: no such file, or one that the tokenizers library cannot read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"The checkpoint has no {path}. Weight files carry no tokenizer: fetch {SOURCE} and keep it under that path."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for whatever it cannot parse
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}. Fetch it again.") from error
        # A file may carry the settings of the run that wrote it; a prompt is neither cut nor padded here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt inside its template, not cut."""
        return list(self._tokenizer.encode(BEFORE + prompt + AFTER, add_special_tokens=False).ids)

    def ids_within(self, prompt: str, limit: int) -> list[int]:
        """Token ids of the prompt inside its template.

        Raises:
            PromptTooLongError: more than ``limit`` tokens; it says how many and where the cut would fall.
        """
        ids = self.ids(prompt)
        if len(ids) > limit:
            raise self._too_long(prompt, len(ids), limit)
        return ids

    def _too_long(self, prompt: str, tokens: int, limit: int) -> PromptTooLongError:
        # Tokens may reach across a cut (spaces join what follows), so what fits is found by counting.
        fits = bisect_left(range(1, len(prompt) + 1), True, key=lambda end: len(self.ids(prompt[:end])) > limit)
        kept = prompt[:fits]
        tail = kept[-40:].replace("\n", " ")
        return PromptTooLongError(
            f"The prompt has {tokens} tokens and the limit is {limit}. What fits ends at “…{tail}” "
            f"(character {len(kept)} of {len(prompt)}). Shorten it, or raise max_tokens as far as the model allows.",
            tokens=tokens,
            limit=limit,
            kept=kept,
        )


def of_checkpoint(folder: Path) -> PromptTokenizer:
    """The tokenizer of a checkpoint, from its folder. Raises CheckpointError as ``PromptTokenizer``."""
    return PromptTokenizer(folder / "tokenizer")
