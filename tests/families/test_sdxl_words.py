"""SDXL's words against transformers' CLIPTokenizer: ids, windows of a long prompt, and weights in brackets."""

from __future__ import annotations

import json
import lzma
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from hwaga.errors import CheckpointError, PromptError, PromptTooLongError
from hwaga.families import open_tokenizer
from hwaga.families.sdxl import emphasis
from hwaga.families.sdxl.emphasis import Weighted
from hwaga.families.sdxl.weighting import weighted
from hwaga.families.sdxl.words import PUBLISHED_MERGES, PromptTokenizer, Windows

BEGIN, END, BANG = 49406, 49407, 0

PROMPTS = [
    "a photo of a cat", "", "  a\t\nb ", "wow!! Hello, World! don't stop", "한국어 카페, 따뜻한 조명",
    "naïve é e\u0301 🐈‍⬛ 👨‍👩‍👧",
    "x <|endoftext|> y <|startoftext|> <|ENDOFTEXT|>", "1234 16:9 f/2.8 — state-of-the-art", "ΣΑΣ ﬁne İstanbul",
]  # fmt: skip


def _mark(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers in the files that SDXL was published with."""
    folder = tmp_path_factory.mktemp("sdxl")
    merges = lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode()
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 512)) if n < 256 + 68]
    assert len(letters) == 256
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [line.replace(" ", "") for line in merges.splitlines()[1:]] + ["<|startoftext|>", "<|endoftext|>"]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        (folder / name).mkdir()
        (folder / name / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
        (folder / name / "merges.txt").write_text(merges)
        marks = {"bos_token": _mark("<|startoftext|>"), "eos_token": _mark("<|endoftext|>"),
                 "unk_token": _mark("<|endoftext|>"), "pad_token": pad}  # fmt: skip
        (folder / name / "special_tokens_map.json").write_text(json.dumps(marks))
        config = {**marks, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> list[Any]:
    return [CLIPTokenizer.from_pretrained(checkpoint / name) for name in ("tokenizer", "tokenizer_2")]


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> PromptTokenizer:
    return PromptTokenizer(checkpoint)


def content(windows: Windows, pad: int) -> list[list[int]]:
    """Without marks and padding."""
    found = []
    for ids in windows.ids:
        assert len(ids) == 77
        end = len(ids)
        while ids[end - 1] == pad:
            end -= 1
        end += pad == END
        assert ids[0] == BEGIN
        assert ids[end - 1] == END
        found.append(ids[1 : end - 1])
    return found


# Token ids


def reference(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids)


@pytest.mark.parametrize("text", PROMPTS)
def test_one_window_is_the_references(text: str, ours: PromptTokenizer, theirs: list[Any]) -> None:
    for windows, tokenizer in zip(ours.windows(text), theirs, strict=True):
        assert windows.ids == [reference(tokenizer, text)]
        assert windows.weights == [[1.0] * 77]
    assert ours.ids(text) == list(theirs[0](text, add_special_tokens=False).input_ids)


WORDS = st.sampled_from(["a", " red", "apple", ", ", ",", "  ", "\n", "\x1c", "\u0085", "!", "!!", "고양이", "e\u0301",
                         "🐈‍⬛", "1", "don't", "ﬁ", "İ", "ß", "\u00a0", "\u3000", "、", "<|endoftext|>", "'s"])  # fmt: skip
BRACKETS = st.sampled_from(
    ["(", ")", "[", "]", "\\", ":", "1.2", ":1.1)", ":0)", ":-3)", ":.5)", ":1e3)", ":99)", ":nan)"]
)
PLAIN = st.lists(WORDS, max_size=30).map("".join)
ANY = st.one_of(
    st.lists(WORDS | BRACKETS, max_size=40).map("".join), st.text(st.characters(codec="utf-8"), max_size=30)
)


@settings(max_examples=120)
@given(text=PLAIN)
def test_any_text_without_brackets(text: str, ours: PromptTokenizer, theirs: list[Any]) -> None:
    windows = ours.windows(text)
    for own, tokenizer in zip(windows, theirs, strict=True):
        whole = list(tokenizer(text, add_special_tokens=False).input_ids)
        if max(len(each(text, add_special_tokens=False).input_ids) for each in theirs) <= 75:
            assert own.ids == [reference(tokenizer, text)]
        else:
            assert [token for ids in own.ids for token in ids if token not in (BEGIN, END, BANG)] == [
                token for token in whole if token not in (BEGIN, END, BANG)
            ]
    assert len(windows[0].ids) == len(windows[1].ids)


def test_as_transformers_saves_it_today(
    checkpoint: Path, theirs: list[Any], ours: PromptTokenizer, tmp_path: Path
) -> None:
    for name, tokenizer in zip(("tokenizer", "tokenizer_2"), theirs, strict=True):
        tokenizer("a", padding="max_length", max_length=7, truncation=True)  # is saved with it, and is not to cut
        tokenizer.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").is_file()
        assert not (tmp_path / name / "merges.txt").is_file()
    (tmp_path / "model_index.json").write_text("{}")
    saved = PromptTokenizer(tmp_path)
    for text in (*PROMPTS, "a long, long prompt, " * 30):
        assert saved.windows(text) == ours.windows(text)


def test_single_files_use_the_published_ones(ours: PromptTokenizer, tmp_path: Path) -> None:
    """Even beside the tokenizer of another model."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("not SDXL's")
    published = PromptTokenizer(tmp_path)
    for text in PROMPTS:
        assert published.windows(text) == ours.windows(text)


def test_found_by_family_without_torch(checkpoint: Path) -> None:
    assert open_tokenizer("sdxl", checkpoint).ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
    program = (
        "import sys; from pathlib import Path; from hwaga.families import open_tokenizer\n"
        f"print(open_tokenizer('sdxl', Path({str(checkpoint)!r})).ids('cat'))\n"
        "sys.exit(', '.join(n for n in ('torch', 'transformers', 'diffusers') if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[2368]\n"), done.stderr


# Damage


@pytest.mark.parametrize(
    ("file", "data", "says"),
    [
        ("merges.txt", None, r"neither .*tokenizer\.json nor .*merges\.txt"),
        ("vocab.json", b"[]", r"vocab\.json cannot be read as a tokenizer"),
        ("vocab.json", b"\xff", r"vocab\.json cannot be read as a tokenizer"),
        ("merges.txt", b"a b c\n", r"vocab\.json cannot be read as a tokenizer"),
        ("vocab.json", b'{"a": 0}', r"has no token <\|startoftext\|>|cannot be read as a tokenizer"),
        ("tokenizer_config.json", b"[", r"tokenizer_config\.json cannot be read"),
        ("tokenizer_config.json", b'{"pad_token": "<pad>"}', r"has no token <pad>"),
        ("tokenizer.json", b"{}", r"tokenizer\.json cannot be read as a tokenizer"),
    ],
)  # fmt: skip
def test_damaged_files(file: str, data: bytes | None, says: str, checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("tokenizer", "tokenizer_2"):
        (tmp_path / folder).mkdir()
        for path in (checkpoint / folder).iterdir():
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model_index.json").write_text("{}")
    damaged = tmp_path / "tokenizer_2" / file
    damaged.unlink() if data is None else damaged.write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        PromptTokenizer(tmp_path)


# Windows


def test_long_prompts_break_behind_a_comma_near_the_end(ours: PromptTokenizer) -> None:
    words = ["cat"] * 60 + ["dog,"] + ["hat"] * 30
    first, second = content(ours.windows(" ".join(words))[0], END)
    assert first == ours.ids(" ".join(words[:61]))
    assert second == ours.ids(" ".join(words[61:]))
    far = ["cat"] * 40 + ["dog,"] + ["hat"] * 50
    first, second = content(ours.windows(" ".join(far))[0], END)
    assert first == ours.ids(" ".join(far))[:75], "a comma that far from the end leaves too much empty"
    assert len(first) + len(second) == len(ours.ids(" ".join(far)))
    listed = ",".join(["red fox"] * 60)
    found = content(ours.windows(listed)[0], END)
    comma = ours.ids(",")[0]
    assert len(found) > 2
    assert all(window[-1] == comma for window in found[:-1]), "also without spaces"


def test_no_word_is_split(ours: PromptTokenizer) -> None:
    long_word = "(unbelievably:1.2)interconnected-microarchitectural"
    unit = ours.ids(long_word)
    assert len(unit) > 4
    for before in range(60, 76):
        windows = ours.windows("cat " * before + long_word + " dog")[0]
        places = [range(len(window) - len(unit) + 1) for window in content(windows, END)]
        found = [
            window[place : place + len(unit)] == unit
            for window, starts in zip(content(windows, END), places, strict=True)
            for place in starts
        ]
        assert found.count(True) == 1
        weights = [weight for window in windows.weights for weight in window]
        assert weights.count(1.2) == len(ours.ids("unbelievably"))


def test_words_longer_than_a_window(ours: PromptTokenizer) -> None:
    listed = "/".join(["red"] * 200)
    found = content(ours.windows(listed)[0], END)
    assert [token for window in found for token in window] == ours.ids(listed)
    endless = "가나다라마바사" * 40
    found = content(ours.windows(endless)[0], END)
    assert [token for window in found for token in window] == ours.ids(endless)
    assert [len(window) for window in found[:-1]] == [75] * (len(found) - 1)


def test_both_encoders_have_the_same_words_in_each_window(ours: PromptTokenizer) -> None:
    """The second one reads every "!" alone, so that its tokens are more."""
    text = "wow!!!!! what a day, " * 20
    one, two = ours.windows(text)
    assert len(one.ids) == len(two.ids) > 2
    for first, second in zip(one.ids, two.ids, strict=True):
        words = [sum(ids[1:].count(token) for token in ours.ids("day")) for ids in (first, second)]
        assert words[0] == words[1] > 0
        assert len(first) == len(second) == 77


def test_the_limit(ours: PromptTokenizer) -> None:
    text = "a (red:1.3) apple on a [yellow] table, " * 10
    ids = ours.ids(text)
    assert ours.ids_within(text, len(ids)) == ids
    with pytest.raises(PromptTooLongError) as caught:
        ours.ids_within(text, 25)
    error = caught.value
    assert (error.tokens, error.limit) == (len(ids), 25)
    assert text.startswith(error.kept)
    assert 20 <= len(ours.ids(error.kept)) <= 25
    with pytest.raises(PromptError, match=r"“apple” comes to a weight of 50"):
        ours.ids_within("an (apple:50)", 300)
    with pytest.raises(PromptTooLongError):  # a cut within brackets makes another weight, which is not the prompt's
        ours.ids_within("((apple:20):0.1) pie", 1)


# Weights


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (cat:1.2) b", [("a ", 1), ("cat", 1.2), (" b", 1)]),
        ("(cat)", [("cat", 1.1)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("((cat))", [("cat", 1.1 * 1.1)]),
        ("(a (b:2) [c]:0.5)", [("a ", 0.5), ("b", 1.0), (" ", 0.5), ("c", 0.5 / 1.1)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:+2.)", [("a", 2)]),
        ("(a:0)b", [("a", 0), ("b", 1)]),
        (r"a \(cat\) \[b\] \\ \d", [(r"a (cat) [b] \ \d", 1)]),
        (r"(a\):2)", [("a)", 2)]),
        (r"(a\:2)", [("a\\", 2)]),
        ("a (cat", [("a (cat", 1)]),
        ("smile :) and (", [("smile :) and (", 1)]),
        ("(a]", [("(a]", 1)]),
        ("([a)]", [("[a", 1.1), ("]", 1)]),
        ("((a:1.5)", [("(", 1), ("a", 1.5)]),
        ("(time: noon)", [("time: noon", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:2]", [("a:2", 1 / 1.1)]),
        ("(:2)", []),
        ("()", []),
        ("(a:2)(b:2)", [("ab", 2)]),
        ("((a:2):2)", [("a", 4)]),
    ],
)  # fmt: skip
def test_emphasis(prompt: str, runs: list[tuple[str, float]]) -> None:
    found = emphasis.parse(prompt)
    assert [run.text for run in found] == [text for text, _ in runs]
    assert [run.weight for run in found] == pytest.approx([weight for _, weight in runs])


@settings(max_examples=100)
@given(text=ANY)
def test_any_brackets(text: str) -> None:
    """Never an error; what is refused is refused by the weight; characters are neither made nor reordered."""
    runs = emphasis.parse(text)
    characters = iter(text)
    assert all(character in characters for run in runs for character in run.text), "not in the prompt's order"
    if not any(bracket in text for bracket in "()[]\\"):
        assert runs == ([Weighted(text, 1.0)] if text else [])
    try:
        emphasis.check(runs)
    except PromptError:
        assert any(not abs(run.weight) <= emphasis.MOST for run in runs)
    else:
        assert all(math.isfinite(run.weight) for run in runs)


@settings(max_examples=80)
@given(text=ANY)
def test_any_prompt_comes_to_windows(text: str, ours: PromptTokenizer) -> None:
    ids = ours.ids(text)
    try:
        one, two = ours.windows(text)
    except PromptError:
        return
    assert len(one.ids) == len(two.ids) >= 1
    for windows in (one, two):
        assert all(len(ids) == 77 for ids in windows.ids)
        assert all(len(weights) == 77 and all(map(math.isfinite, weights)) for weights in windows.weights)
    assert [t for w in one.ids for t in w if t not in (BEGIN, END)] == [t for t in ids if t not in (BEGIN, END)]


@pytest.mark.parametrize(
    "text", ["(" * 20_000 + "a" + ")" * 20_000, "[" * 50_000 + ")" * 50_000, "(a:" + "9" * 50_000 + ")"]
)
def test_many_brackets_take_no_time_to_speak_of(text: str) -> None:
    runs = emphasis.parse(text)
    if "a" in text:
        with pytest.raises(PromptError, match="comes to a weight of"):
            emphasis.check(runs)


def test_weights_stand_at_their_tokens(ours: PromptTokenizer) -> None:
    one, two = ours.windows("a (red:1.3) apple! [pie]")
    assert one.weights[0][:8] == pytest.approx([1, 1, 1.3, 1, 1, 1 / 1.1, 1, 1])
    assert two.weights[0][:8] == pytest.approx([1, 1, 1.3, 1, 1, 1 / 1.1, 1, 1])
    assert one.ids[0][1:6] == ours.ids("a red apple! pie")


# Embeddings


def test_weighted_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, empty = torch.randn(3, 77, 8, generator=generator), torch.randn(77, 8, generator=generator)
    weights = torch.ones(3, 77, dtype=torch.float64)
    assert torch.equal(weighted(embeddings, weights, empty), embeddings.reshape(3 * 77, 8))
    weights[1, 4], weights[2, 70], weights[0, 1] = 1.5, 0.0, -1.0
    found = weighted(embeddings, weights, empty).unflatten(0, (3, 77))
    torch.testing.assert_close(found[1, 4], empty[4] + 1.5 * (embeddings[1, 4] - empty[4]))
    torch.testing.assert_close(found[2, 70], empty[70])
    torch.testing.assert_close(found[0, 1], 2 * empty[1] - embeddings[0, 1])
    untouched = weights == 1
    assert torch.equal(found[untouched], embeddings[untouched])
    half = weighted(embeddings.bfloat16(), weights, empty.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), found.flatten(0, 1), atol=0.1, rtol=0.02)


def test_the_published_merges_are_openais() -> None:
    """Of the words that everybody's prompts begin with, by their published numbers."""
    tokenizer = PromptTokenizer(Path("nowhere"))
    assert tokenizer.ids("a photo of a cat, astronaut riding a horse") == [
        320, 1125, 539, 320, 2368, 267, 18376, 6765, 320, 4558,
    ]  # fmt: skip
    merges = lzma.decompress(PUBLISHED_MERGES.read_bytes()).decode().splitlines()
    assert len(merges) == 49152 - 256 - 2 + 1
    assert all(re.fullmatch(r"\S+ \S+", line) for line in merges[1:])
