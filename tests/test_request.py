"""The words of a request: style, industry, things to avoid and LoRAs. Sizes and pictures are tested with the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hwaga import Composed, ImageRequest, LoraError, LoraUse, PromptError, RequestError, StyleError

WORDS: dict[str, Any] = {"style": "anime", "industry": "카페", "avoid": ("text", "사람"), "use": "feed"}
COMPOSED = Composed("a cat. Drawn.", (LoraUse("flat", 0.8),), "anime", "cafe", ("Because.",))


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("flat", LoraUse("flat", 1.0)),
        ("flat:0.7", LoraUse("flat", 0.7)),
        ("수묵:-1", LoraUse("수묵", -1.0)),
        ("a:1e0", LoraUse("a")),
    ],
)
def test_a_lora_as_text(text: str, use: LoraUse) -> None:
    assert LoraUse.parse(text) == use
    assert ImageRequest("a cat", loras=[text]).loras == (use,)


@pytest.mark.parametrize("text", ["", ":1", "flat:", "flat:much", "flat:1:2", "flat:nan", "flat:inf", "flat:11"])
def test_a_lora_as_wrong_text(text: str) -> None:
    with pytest.raises(LoraError):
        LoraUse.parse(text)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("loras", "flat", LoraError),
        ("loras", 3, LoraError),
        ("loras", None, LoraError),
        ("avoid", 3, RequestError),
        ("composed", {"prompt": "a"}, RequestError),
        ("loras", [3], LoraError),
        ("loras", ["flat", "flat:0.5"], LoraError),
        ("loras", [f"l{k}" for k in range(17)], LoraError),
        ("loras", [("flat", 1)], LoraError),
        ("style", 3, StyleError),
        ("style", " ", StyleError),
        ("industry", "", StyleError),
        ("use", 1.0, StyleError),
        ("avoid", "text", RequestError),
        ("avoid", [1], RequestError),
        ("style_fallback", 1, RequestError),
        ("negative", " ", PromptError),
        ("negative", 3, PromptError),
        ("negative", "a \ud800", PromptError),
        ("guidance", 0.5, RequestError),
        ("guidance", 31, RequestError),
        ("guidance", float("nan"), RequestError),
        ("guidance", float("inf"), RequestError),
        ("guidance", True, RequestError),
        ("guidance", "5", RequestError),
        ("sampler", "heun", RequestError),
        ("sampler", 1, RequestError),
    ],
)
def test_what_is_refused(field: str, value: Any, error: type[RequestError]) -> None:
    with pytest.raises(error):
        ImageRequest("a cat", **{field: value})


def test_json_and_back() -> None:
    for request in [
        ImageRequest("a cat"),
        ImageRequest("a cat", **WORDS, loras=["flat", "line:0.5"], style_fallback=True),
        ImageRequest("a cat", **WORDS, composed=COMPOSED, seed=4),
        ImageRequest("a cat", composed=Composed("b")),
        ImageRequest("a cat", negative="fog", guidance=7, sampler="dpmpp_2m_karras"),
        ImageRequest("a cat", negative="fog", composed=Composed("b", negative="text")),
    ]:
        values = json.loads(json.dumps(request.to_json()))
        assert ImageRequest.from_json(values) == request
    assert ImageRequest("a cat").to_json() == {"prompt": "a cat"}


@pytest.mark.parametrize(
    "values",
    [
        {"loras": 3}, {"loras": [3]}, {"loras": [{"file": "x"}]}, {"loras": [{"name": "a", "weight": "b"}]}, {"composed": 3},
        {"composed": {}}, {"composed": {"prompt": 3}}, {"composed": {"prompt": "a", "loras": [1]}},
        {"composed": {"prompt": "a", "x": 1}}, {"composed": {"prompt": "a", "notes": 1}},
    ],
)  # fmt: skip
def test_json_of_a_strange_form(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        ImageRequest.from_json({"prompt": "a cat", **values})


def test_what_the_model_is_given() -> None:
    plain = ImageRequest("a cat", loras=["line:0.5"])
    assert (plain.model_prompt, plain.model_loras) == ("a cat", (LoraUse("line", 0.5),))
    assert not plain.composes
    asked = ImageRequest("a cat", **WORDS, loras=["line:0.5"])
    assert asked.composes
    done = asked.replace(composed=COMPOSED)
    assert not done.composes
    assert done.model_prompt == "a cat. Drawn."
    assert done.model_loras == (LoraUse("flat", 0.8), LoraUse("line", 0.5))
    assert done.replace(loras=["flat:0.2"]).model_loras == (LoraUse("flat", 0.2),), "what is asked for by name counts"


def test_the_negative_prompt_that_the_model_is_given() -> None:
    unwanted = Composed("b", negative="text, logo")
    assert ImageRequest("a").model_negative is None
    assert ImageRequest("a", composed=Composed("b")).model_negative is None
    assert ImageRequest("a", composed=unwanted).model_negative == "text, logo"
    assert ImageRequest("a", negative="fog", composed=unwanted).model_negative == "fog, text, logo"
    assert ImageRequest("a", composed=unwanted).replace(negative="fog").composed == unwanted


def test_other_words_are_composed_anew() -> None:
    done = ImageRequest("a cat", **WORDS, composed=COMPOSED)
    assert done.replace(seed=8).composed == COMPOSED
    assert done.variations(1)[0].composed == COMPOSED
    for change in ({"prompt": "a dog"}, {"style": None}, {"industry": "auto"}, {"avoid": ()}, {"use": "story"}):
        assert done.replace(**change).composed is None


@pytest.mark.parametrize("prompt", [" ", 3, "a \ud800"])
def test_a_composed_prompt_is_text(prompt: Any) -> None:
    with pytest.raises(PromptError):
        Composed(prompt)


@pytest.mark.parametrize(
    "part", [{"loras": "xyz"}, {"loras": ("flat",)}, {"style": 5}, {"industry": []}, {"notes": "abc"}]
)
def test_a_composition_of_a_strange_form(part: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Composed("a cat", **part)
