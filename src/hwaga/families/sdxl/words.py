"""SDXL's two CLIP tokenizers: a prompt of any length as windows of 77 tokens for both encoders. It needs no torch.

CLIP has positions for 77 tokens, of which the first and the last are marks. A longer prompt is read in several windows,
whose embeddings are joined, as AUTOMATIC1111 and ComfyUI do.
"""

from __future__ import annotations

import json
import lzma
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Encoding, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from hwaga.cards import ASSETS, INDEX_FILE
from hwaga.errors import CheckpointError, PromptTooLongError
from hwaga.families.sdxl import emphasis
from hwaga.families.sdxl.emphasis import Weighted

WINDOW = 77
"""Tokens that the encoders have positions for."""

CONTENT = WINDOW - 2
"""Of these, what is not the mark at the beginning or the end."""

BACK_TO_COMMA = 20
"""Tokens at the end of a window that may be left empty to break it behind a comma; the number is AUTOMATIC1111's."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

PUBLISHED_MERGES = ASSETS / "clip" / "merges.txt.xz"
"""OpenAI's, which every SDXL checkpoint uses; for single files, which carry no tokenizer."""

PUBLISHED_PADS = (END, "!")
"""What the two published tokenizers fill windows up with."""

FOLDERS = ("tokenizer", "tokenizer_2")

# How CLIP cuts a text into words, of which each ends in its own token: letters, single digits, runs of other signs.
_WORDS = rf"{re.escape(BEGIN)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"

_COMMAS = (",", "，", "、")
_UNIT = re.compile(r"[^\s,，、]*[,，、]+|[^\s,，、]+")


@dataclass(frozen=True)
class Windows:
    """A prompt as one encoder reads it.

    Attributes:
        ids: token ids of each window: the mark of the beginning, content, the mark of the end, and padding; 77 in all.
        weights: what each of them weighs; 1 but for what stands in brackets.
    """

    ids: list[list[int]]
    weights: list[list[float]]


class _Token(NamedTuple):
    id: int
    start: int
    """Of its characters in the text."""
    weight: float


class _Unit(NamedTuple):
    """What is not split between windows: a word with whatever stands beside it without a space, up to a comma.

    Attributes:
        begin, end: of its characters in the text.
        ids: tokens for each encoder.
        weights: of each of these tokens.
        comma: it ends in a comma.
    """

    begin: int
    end: int
    ids: tuple[list[int], list[int]]
    weights: tuple[list[float], list[float]]
    comma: bool

    @property
    def tokens(self) -> int:
        return max(len(ids) for ids in self.ids)


class PromptTokenizer:
    """Turns a prompt into the ids that the two text encoders were given in training.

    Args:
        folder: the checkpoint. Where it is no folder of diffusers', the published tokenizers are used.

    Raises:
        CheckpointError: a tokenizer is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / INDEX_FILE).is_file():
            self._encoders = tuple(_ClipTokenizer.read(folder / name) for name in FOLDERS)
        else:
            self._encoders = tuple(_ClipTokenizer.published(pad) for pad in PUBLISHED_PADS)

    def ids(self, prompt: str) -> list[int]:
        """Content tokens of the first encoder: without brackets and weights, marks and padding, and not cut."""
        return [token for run in emphasis.parse(prompt) for token in self._encoders[0].encode(run.text).ids]

    def ids_within(self, prompt: str, limit: int) -> list[int]:
        """The same, of a prompt that is fit to be drawn.

        Raises:
            PromptTooLongError: more than ``limit`` tokens; it says how many and where the cut would fall.
            PromptError: a weight that no picture comes of.
        """
        emphasis.check(emphasis.parse(prompt))
        ids = self.ids(prompt)
        if len(ids) > limit:
            fits = bisect_left(range(1, len(prompt) + 1), True, key=lambda end: len(self.ids(prompt[:end])) > limit)
            kept = prompt[:fits]
            tail = kept[-40:].replace("\n", " ")
            raise PromptTooLongError(
                f"The prompt has {len(ids)} tokens and the limit is {limit}. What fits ends at “…{tail}” "
                f"(character {len(kept)} of {len(prompt)}). Shorten it, or raise max_tokens as far as the model allows.",
                tokens=len(ids),
                limit=limit,
                kept=kept,
            )
        return ids

    def windows(self, prompt: str) -> tuple[Windows, Windows]:
        """The prompt for both encoders, in equally many windows that hold the same words.

        Raises:
            PromptError: a weight that no picture comes of.
        """
        runs = emphasis.parse(prompt)
        emphasis.check(runs)
        filled = _fill(_units(runs, self._encoders))
        return _windows(filled, 0, self._encoders[0]), _windows(filled, 1, self._encoders[1])


@dataclass(frozen=True)
class _ClipTokenizer:
    """One encoder's tokenizer.

    Attributes:
        begin, end, pad: ids of the marks and of padding.
    """

    tokenizer: Tokenizer
    begin: int
    end: int
    pad: int

    @classmethod
    def read(cls, folder: Path) -> _ClipTokenizer:
        """From a folder as transformers saves it, by any of its versions.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        whole, pair = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
        missing = [path for path in pair if not path.is_file()]
        if missing and not whole.is_file():
            raise CheckpointError(f"The checkpoint has neither {whole} nor {missing[0]}. Fetch the checkpoint again.")
        read = [whole] if whole.is_file() else list(pair)
        try:
            if whole.is_file():
                tokenizer = Tokenizer.from_file(str(whole))
                # A file may carry the settings of the run that wrote it; a prompt is neither cut nor padded here.
                tokenizer.no_truncation()
                tokenizer.no_padding()
            else:
                vocabulary = json.loads(pair[0].read_text(encoding="utf-8"))
                tokenizer = _byte_pairs(vocabulary, _merges(pair[1].read_text(encoding="utf-8")))
        except Exception as error:  # tokenizers raises bare Exception for whatever it cannot parse
            raise CheckpointError(f"{read[0]} cannot be read as a tokenizer: {error}. Fetch it again.") from error
        pad = _configured(folder, "pad_token", END)
        lacking = [mark for mark in (BEGIN, END, pad) if tokenizer.token_to_id(mark) is None]
        if lacking:
            raise CheckpointError(
                f"{read[0]} has no token {lacking[0]}, so it is no tokenizer of SDXL's. Fetch it again."
            )
        if not whole.is_file():
            _add_marks(tokenizer, pad)
        return cls.of(tokenizer, pad)

    @classmethod
    def published(cls, pad: str) -> _ClipTokenizer:
        """OpenAI's, with a token of its vocabulary for padding."""
        merges = _merges(lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode())
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
        tokenizer = _byte_pairs({word: place for place, word in enumerate(words)}, merges)
        _add_marks(tokenizer, pad)
        return cls.of(tokenizer, pad)

    @classmethod
    def of(cls, tokenizer: Tokenizer, pad: str) -> _ClipTokenizer:
        """One that is known to have the marks."""
        vocabulary = tokenizer.get_vocab()
        return cls(tokenizer, vocabulary[BEGIN], vocabulary[END], vocabulary[pad])

    def encode(self, text: str) -> Encoding:
        """Content tokens of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False)


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer of a vocabulary: small letters, bytes for letters, and a sign for the end of a word."""
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _add_marks(tokenizer: Tokenizer, pad: str) -> None:
    """Makes the marks tokens wherever they stand in a text, which transformers does: also the second encoder's padding, "!"."""
    # In capitals too, but for the one that pads; so say the published configurations, as transformers reads them.
    tokenizer.add_special_tokens(
        [AddedToken(mark, normalized=mark != pad) for mark in dict.fromkeys((BEGIN, END, pad))]
    )


def _merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt. Raises ValueError for a line that is none."""
    merges = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#version"):
            left, right = line.split()
            merges.append((left, right))
    return merges


def _configured(folder: Path, key: str, default: str) -> str:
    """A token that the configuration beside a tokenizer names.

    Raises:
        CheckpointError: the configuration cannot be read.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Fetch it again.") from error
        if isinstance(value, dict):  # transformers up to 4 writes tokens with their options
            value = value.get("content")
        if isinstance(value, str):
            return value
    return default


def _units(runs: Sequence[Weighted], encoders: Sequence[_ClipTokenizer]) -> list[_Unit]:
    """The prompt in units for both encoders, which are found by its text, so that both have the same ones."""
    text = "".join(run.text for run in runs)
    begins = [match.start() for match in _UNIT.finditer(text)]
    tokens: tuple[list[_Token], list[_Token]] = ([], [])
    words: set[int] = set()
    at = 0
    for run in runs:
        for which, encoder in enumerate(encoders):
            encoded = encoder.encode(run.text)
            tokens[which].extend(
                _Token(token, at + start, run.weight)
                for token, (start, _) in zip(encoded.ids, encoded.offsets, strict=True)
            )
            word_ids = encoded.word_ids
            words |= {
                at + encoded.offsets[i][0] for i in range(len(word_ids)) if i == 0 or word_ids[i] != word_ids[i - 1]
            }
        at += len(run.text)
    units = _at(begins, text, tokens)
    long = [(unit.begin, unit.end) for unit in units if unit.tokens > CONTENT]
    if long:  # such as a list without spaces: it may end at any of CLIP's own words
        begins += [word for word in words if any(begin < word < end for begin, end in long)]
        units = _at(sorted(set(begins)), text, tokens)
    return [piece for unit in units for piece in _cut(unit)]


def _at(begins: Sequence[int], text: str, tokens: tuple[list[_Token], list[_Token]]) -> list[_Unit]:
    """Tokens in units that begin at some characters of the text."""
    begins = begins or [0]  # what is no word to Python may have tokens all the same
    ends = [*begins[1:], len(text)]
    units = [
        _Unit(begin, end, ([], []), ([], []), text[begin:end].rstrip().endswith(_COMMAS))
        for begin, end in zip(begins, ends, strict=True)
    ]
    for which, own in enumerate(tokens):
        for token in own:
            unit = units[max(bisect_right(begins, token.start) - 1, 0)]
            unit.ids[which].append(token.id)
            unit.weights[which].append(token.weight)
    return units


def _cut(unit: _Unit) -> list[_Unit]:
    """A single word that is longer than a window, in pieces of one; other units as they are."""
    parts = [slice(start, start + CONTENT) for start in range(0, max(unit.tokens, 1), CONTENT)]
    return [
        unit._replace(
            ids=(unit.ids[0][part], unit.ids[1][part]),
            weights=(unit.weights[0][part], unit.weights[1][part]),
            comma=unit.comma and part is parts[-1],
        )
        for part in parts
    ]


def _fill(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Units in windows. A window ends behind a comma if there is one near its end, or else behind its last whole unit."""
    windows: list[list[_Unit]] = [[]]
    for unit in units:
        window = windows[-1]
        if _load([*window, unit]) > CONTENT:
            place = len(window)
            while place and not window[place - 1].comma and _load(window[:place]) >= CONTENT - BACK_TO_COMMA:
                place -= 1
            near = place and window[place - 1].comma and _load(window[:place]) >= CONTENT - BACK_TO_COMMA
            moved = window[place:] if near else []
            if _load([*moved, unit]) > CONTENT:
                moved = []
            del window[len(window) - len(moved) :]
            windows.append(moved)
        windows[-1].append(unit)
    return windows


def _load(units: Sequence[_Unit]) -> int:
    """Tokens that units take of a window."""
    return max(sum(len(unit.ids[which]) for unit in units) for which in (0, 1))


def _windows(filled: Sequence[Sequence[_Unit]], which: int, encoder: _ClipTokenizer) -> Windows:
    ids, weights = [], []
    for window in filled:
        content = [token for unit in window for token in unit.ids[which]]
        marked = [encoder.begin, *content, encoder.end]
        ids.append(marked + [encoder.pad] * (WINDOW - len(marked)))
        own = [weight for unit in window for weight in unit.weights[which]]
        weights.append([1.0, *own, *[1.0] * (WINDOW - 1 - len(own))])
    return Windows(ids, weights)
