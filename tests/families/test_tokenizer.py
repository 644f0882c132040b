"""Token ids against transformers, with the real Qwen3 tokenizer and with the bundled one, and where a long prompt is cut."""

from __future__ import annotations

import lzma
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import MINI, reference_ids
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hwaga import CheckpointError, PromptTooLongError
from hwaga.families.z_image.tokenizer import PromptTokenizer

DATA = Path(__file__).parents[1] / "data"

BASES = ["a red apple", "고양이 세 마리", "四只猫", "🐈‍⬛ 👩🏽‍🍳", "don't", "2024년 3월", "<|im_end|>"]
BLANKS = [" ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b", "\ufeff", "    \n\n  "]
ODD = [
    " ", "\n", "\n\n\n", " \n", "\n ", "\t\t", "\u3000", "\u200d", "\ufe0f", "\u0301", "\x00", "\x07a\x1b[0m", "\ufffd",
    "e\u0301", "\uac01", "\u1100\u1161\u11a8", "ᄀ", "ㅎ", "\U0001f468\u200d", "\U0010ffff", "\ue000", "a\u0301\u0302\u0303",
    "ﷺ", "0" * 70, "word " * 80, "고양이 " * 60, "猫" * 90, "🍎" * 60, "\n" * 40, " " * 200,
]  # fmt: skip


def prompts() -> list[str]:
    """More than 200 prompts: a file of written ones, then the same texts with blanks in every place, then oddities."""
    written = (DATA / "prompts.txt").read_text(encoding="utf-8").splitlines()
    blanks = [
        text
        for i, blank in enumerate(BLANKS)
        for base in (BASES[i % len(BASES)], BASES[(i + 3) % len(BASES)])
        for text in (blank + base, base + blank, base + blank + base)
    ]
    return [*written, *blanks, *ODD]


@dataclass(frozen=True)
class Pair:
    """One tokenizer, ours and the reference's."""

    ours: PromptTokenizer = field(repr=False)
    reference: PreTrainedTokenizerBase = field(repr=False)

    @property
    def template(self) -> int:
        """Tokens of the chat template alone."""
        return len(self.ours.ids(""))


@pytest.fixture(scope="module", params=["qwen3", "mini"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = MINI / "tokenizer"
    if request.param == "qwen3":
        folder = tmp_path_factory.mktemp("qwen3")
        (folder / "tokenizer.json").write_bytes(lzma.decompress((DATA / "qwen3" / "tokenizer.json.xz").read_bytes()))
        shutil.copy(DATA / "qwen3" / "tokenizer_config.json", folder)
    return Pair(PromptTokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_same_ids_as_transformers(pair: Pair) -> None:
    texts = prompts()
    assert len(set(texts)) >= 200
    wrong = [text for text in texts if pair.ours.ids(text) != reference_ids(pair.reference, text)]
    assert not wrong


# Characters that BPE, normalisation and the split into words treat differently.
PIECES = st.sampled_from(
    ["고양이", "떡볶이 ", "a", " red", "apple", "  ", " \n", "\n\n", "\t", "🐈‍⬛", "👨‍👩‍👧‍👦", "🏳️‍🌈", "\u00e9", "e\u0301",
     "\uac01", "\u1100\u1161\u11a8", "四只", "1234", "!!", "...", "—", "<|im_end|>", "ﬁ", "\u00a0", "\u3000",
     "don't", "'s", "ᄒ"]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=14).map("".join),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
)


@given(text=TEXTS)
def test_same_ids_for_any_text(pair: Pair, text: str) -> None:
    assert pair.ours.ids(text) == reference_ids(pair.reference, text)


@given(text=TEXTS, data=st.data())
def test_within_the_limit(pair: Pair, text: str, data: st.DataObject) -> None:
    ids = pair.ours.ids(text)
    assert pair.ours.ids_within(text, len(ids) + data.draw(st.integers(0, 5))) == ids


@settings(max_examples=200)
@given(text=TEXTS, data=st.data())
def test_where_a_long_prompt_is_cut(pair: Pair, text: str, data: st.DataObject) -> None:
    tokens = len(pair.ours.ids(text))
    limit = data.draw(st.integers(1, tokens - 1))
    with pytest.raises(PromptTooLongError) as caught:
        pair.ours.ids_within(text, limit)
    error = caught.value
    assert (error.tokens, error.limit) == (tokens, limit)
    assert text.startswith(error.kept)
    assert len(error.kept) < len(text)
    message = str(error)
    assert f"{tokens} tokens" in message
    assert f"limit is {limit}" in message
    assert f"(character {len(error.kept)} of {len(text)})" in message
    if limit < pair.template:
        assert error.kept == "", "not even the template fits"
        return
    assert len(pair.ours.ids(error.kept)) <= limit, "what is said to fit does not"
    assert len(pair.ours.ids(text[: len(error.kept) + 1])) > limit, "the next character would fit too"
    if "<|" not in text:  # the letters of such a token count one by one until it is complete
        longer = range(len(error.kept) + 1, len(text) + 1)
        assert all(len(pair.ours.ids(text[:n])) > limit for n in longer if n > len(error.kept) + 8), "more would fit"


def test_long_korean_prompt_is_cut_between_characters(pair: Pair) -> None:
    text = "따뜻한 조명 아래 김이 나는 떡볶이와 👨‍👩‍👧‍👦 " * 60
    with pytest.raises(PromptTooLongError) as caught:
        pair.ours.ids_within(text, 512)
    kept = caught.value.kept
    assert text.startswith(kept)
    assert 500 <= len(pair.ours.ids(kept)) <= 512
    assert kept[-40:].replace("\n", " ") in str(caught.value)


def test_settings_of_whoever_wrote_the_file_do_not_cut(tmp_path: Path) -> None:
    """transformers saves the truncation and padding that it last ran with into tokenizer.json."""
    tokenizer = AutoTokenizer.from_pretrained(MINI / "tokenizer")
    tokenizer(["a"], padding="max_length", max_length=16, truncation=True)
    tokenizer.save_pretrained(tmp_path)
    assert '"max_length": 16' in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    for text in ("a", "a red apple on a yellow background " * 10):
        assert PromptTokenizer(tmp_path).ids(text) == PromptTokenizer(MINI / "tokenizer").ids(text)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"version": "1.0", "model": {"type": "none"}}'])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        PromptTokenizer(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no .*tokenizer\.json"):
        PromptTokenizer(tmp_path)
