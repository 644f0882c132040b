from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwaga.cards import ASSETS, ModelCard
from hwaga.errors import PromptError, RequestError, SizeError, StyleError
from hwaga.prompt import Composition, Library, Slots, compose
from hwaga.prompt.compose import DROPPED_FIRST
from hwaga.prompt.template import FAMILIES, ORDER
from hwaga.tokens import token_counter

LIBRARY = Library.load()
# The bundled model as if it read the packs' wording, which its own card leaves out.
MINI = replace(ModelCard.read(ASSETS / "mini" / "card.toml"), own_words_only=False)
COUNT = token_counter(MINI)

families = st.sampled_from(FAMILIES)
korean = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=6)
# Hangul that reads as words, and then anything at all: quotes, emoji, braces, line ends.
texts = st.one_of(
    st.lists(st.one_of(korean, st.sampled_from(["latte", "빵집", "치킨을", "night", "(x:1.2)", "{}", "“OPEN”."])), min_size=1)
    .map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
).filter(str.strip)  # fmt: skip
slots = st.builds(Slots, **{name: texts if name == "subject" else st.one_of(st.just(""), texts) for name in ORDER})
options = st.fixed_dictionaries(
    {
        "style": st.sampled_from([None, "auto", *LIBRARY.styles]),
        "industry": st.sampled_from([None, "auto", *LIBRARY.industries]),
        "avoid": st.lists(st.sampled_from(["text", "no people", "글자 없이", "풍선", "hands, blur"]), max_size=3),
        "use": st.sampled_from([None, *LIBRARY.uses]),
    }
)


def composed(text: str | Slots, *, family: str = "z_image", card: ModelCard = MINI, **chosen: object) -> Composition:
    return compose(text, family=family, library=LIBRARY, card=card, **chosen)  # type: ignore[arg-type]


@given(texts, families, options)
def test_what_was_typed_stands_first_and_whole(text: str, family: str, chosen: dict[str, object]) -> None:
    done = composed(text, family=family, **chosen)
    assert done.text.startswith(text.rstrip())
    if done.style is None and done.industry is None and not (chosen["avoid"] and family == "z_image"):
        assert done.text == text


@given(slots, families, options)
def test_slots_are_kept_whole_and_in_order(parts: Slots, family: str, chosen: dict[str, object]) -> None:
    done = composed(parts, family=family, **chosen).text
    at = 0
    for _, text in parts.filled():
        at = done.index(text.strip(), at) + len(text.strip())


@given(texts, families, options)
def test_the_same_twice(text: str, family: str, chosen: dict[str, object]) -> None:
    assert composed(text, family=family, **chosen) == composed(text, family=family, **chosen)


@given(texts, families, options, st.integers(10, 300))
def test_the_token_limit_is_kept_by_the_packs_wording(
    text: str, family: str, chosen: dict[str, object], limit: int
) -> None:
    done = composed(text, family=family, count_tokens=COUNT, token_limit=limit, **chosen)
    assert done.tokens == COUNT(done.text)
    if COUNT(text) > limit:
        assert done.text == text  # too long alone: left to the engine to refuse
    assert COUNT(done.text) <= max(limit, COUNT(text))
    full = composed(text, family=family, **chosen)
    if COUNT(full.text) <= limit:
        assert done.text == full.text
    else:
        assert any(str(limit) in note for note in done.notes) or full.text == text


def test_the_least_important_wording_goes_first() -> None:
    chosen = {"style": "watercolor", "industry": "cafe", "avoid": ["text"]}
    kept = []
    for limit in range(400, 10, -1):
        done = composed("a latte", count_tokens=COUNT, token_limit=limit, **chosen)
        leads = ("Details", "atmosphere", "light is", "composition", "setting", "watercolour", "lettering")
        kept.append(tuple(slot for slot, lead in zip(DROPPED_FIRST, leads, strict=True) if lead in done.text))
    assert list(dict.fromkeys(kept)) == [DROPPED_FIRST[n:] for n in range(len(DROPPED_FIRST) + 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_composes(family: str) -> None:
    for style in LIBRARY.styles:
        done = composed("a shop sign", family=family, style=style)
        assert (done.style, done.negative is None) == (style, family == "z_image")
        assert len(done.text) > 80
    for name, industry in LIBRARY.industries.items():
        for use in LIBRARY.uses:
            done = composed("신메뉴 출시", family=family, industry=industry.titles["ko"], use=use)
            assert (done.industry, done.aspect) == (name, industry.aspects[use])
            assert all(wording in done.text for wording in industry.wording.values())
    for rule in LIBRARY.avoid.values():
        for word in rule.words:
            done = composed("a shop sign", family=family, avoid=[word])
            assert rule.z_image in done.text if family == "z_image" else done.negative == rule.negative


SDXL = ModelCard.read(ASSETS / "cards" / "sdxl.toml")
UNWANTED = {"style": "watercolor", "avoid": ["text", "balloons"]}


@pytest.mark.parametrize(
    ("card", "guidance", "why"),
    [
        (SDXL, 1.0, "no negative prompt at guidance 1"),
        (replace(SDXL, guidance=1.0), None, "no negative prompt at guidance 1"),
        (replace(SDXL, guidance=None), None, "sdxl has no negative prompt"),
    ],
)
def test_what_has_no_negative_prompt_to_go_to_is_told_of(card: ModelCard, guidance: float | None, why: str) -> None:
    whole = composed("a cat", family="sdxl", card=SDXL, **UNWANTED)
    assert whole.negative is not None
    assert not any("Left out" in note for note in whole.notes)
    done = composed("a cat", family="sdxl", card=card, guidance=guidance, **UNWANTED)
    assert (done.negative, done.text) == (None, whole.text)
    assert f"Left out: {whole.negative} ({why})." in done.notes
    assert composed("a cat", family="sdxl", card=card, guidance=guidance).notes == (), "nothing was asked for"


def test_what_is_unwanted_where_guidance_can_be_had() -> None:
    led = composed("a cat", family="sdxl", card=replace(SDXL, guidance=1.0), guidance=4.0, **UNWANTED)
    assert led == composed("a cat", family="sdxl", card=SDXL, **UNWANTED)
    # Worded for another family than the card's, whose model is not known.
    assert composed("a cat", family="sdxl", guidance=1.0, **UNWANTED).negative == led.negative
    assert "(" not in composed("a cat", guidance=1.0, **UNWANTED).text, "sentences need none"


def test_z_image_gets_no_weights_and_no_quality_tags() -> None:
    for style in LIBRARY.styles:
        for industry in LIBRARY.industries:
            text = composed("x", style=style, industry=industry).text.lower()
            for tag in ("masterpiece", "best quality", "8k", "high detail", "high quality", "(", "trending"):
                assert tag not in text, (style, industry, tag)


def test_an_industry_leaves_to_the_text_what_the_text_speaks_of() -> None:
    done = composed("네온 조명 아래 치킨", industry="fried_chicken")
    assert "The light is" not in done.text
    assert 'The lighting is left to your own words ("조명").' in done.notes
    done = composed(Slots("a latte", lighting="neon"), industry="cafe")
    assert done.text.startswith("a latte. The light is neon. The setting is a small neighbourhood café")
    assert done.text.count("The light is") == 1


def test_a_style_that_decides_the_setting_keeps_it() -> None:
    done = composed("a linen dress", industry="clothes_shop", style="minimal")
    assert "The setting" not in done.text
    assert "The composition" in done.text


def test_an_industry_s_wording_gives_way_to_what_is_to_be_avoided() -> None:
    done = composed("볼풀에서 노는 아이들", industry="kids_cafe", avoid=["얼굴"])
    assert "laughing faces" not in done.text
    assert "Left out, to avoid faces: the wording of kids_cafe for details." in done.notes
    done = composed("a latte", industry="cafe", avoid=["steam"])
    assert done.text.count("steam") == 1


def test_a_place_shapes_the_composition() -> None:
    done = composed("라떼", industry="cafe", use="story").text
    assert "out of focus. The frame is upright, with calm empty space in the top and bottom fifths. The light" in done


def test_punctuation_is_put_only_where_it_is_missing() -> None:
    for text, start in (
        ("라떼", "라떼. It is"), ("라떼!", "라떼! It is"), ("라떼,", "라떼, It is"), ("  라떼 \n", "  라떼. It is"),
        ('a sign "OPEN"', 'a sign "OPEN". It is'), ('it says "Hi."', 'it says "Hi." It is'),
    ):  # fmt: skip
        assert composed(text, style="anime").text.startswith(start)


def test_what_is_asked_for_is_not_worked_against() -> None:
    """A style's negative prompt is for what the style is usually without."""
    done = composed("a cartoon on a birthday cake", family="sdxl", style="realistic")
    usual = composed("a birthday cake", family="sdxl", style="realistic")
    assert "cartoon" in (usual.negative or "").split(", ")
    assert (done.negative or "").split(", ") == [
        part for part in (usual.negative or "").split(", ") if part != "cartoon"
    ]
    assert "Left out of the negative prompt, as your own words speak of it: cartoon." in done.notes
    assert composed("a text", family="sdxl", avoid=["text"]).negative, "what is to be avoided is not guessed at"


def test_the_packs_hold_no_emphasis() -> None:
    """Brackets in their wording would weigh it."""
    for entry in LIBRARY.styles.values():
        assert not set(entry.sdxl + entry.negative) & set("()[]\\")
    for wordings in LIBRARY.industries.values():
        assert not set("".join(wordings.wording.values())) & set("()[]\\")


@pytest.mark.parametrize(
    ("avoid", "text", "negative"),
    [
        ("no text", "a clean image free of lettering", "text, letters, captions, typography"),
        ("글자 없이", "a clean image free of lettering", "text, letters, captions, typography"),
        ("글자는 빼고", "a clean image free of lettering", "text, letters, captions, typography"),
        ("Extra Fingers", "relaxed natural hands with five well-formed fingers", None),
        ("watermarks", "plain, unmarked surfaces and untouched corners", None),
        ("no balloons", "a scene free of balloons", "balloons"),
        ("dark hair", "a scene free of dark hair", "dark hair"),
        ("풍선 금지", "a scene free of 풍선", "풍선"),
    ],
)
def test_what_is_not_wanted(avoid: str, text: str, negative: str | None) -> None:
    done = composed("a cake", avoid=[avoid])
    assert (done.text, done.negative) == (f"a cake. The finished picture shows {text}.", None)
    assert bool(done.notes) == ("free of" in text and "lettering" not in text)
    sdxl = composed("a cake", family="sdxl", avoid=[avoid])
    assert sdxl.text == "a cake"
    assert negative in (None, sdxl.negative)


def test_a_use_alone_gives_a_shape_and_no_words() -> None:
    assert (composed("라떼", use="story").text, composed("라떼", use="story").aspect) == ("라떼", "9:16")
    assert composed("라떼", use="feed", industry="hair_salon").aspect == "3:4"


@pytest.mark.parametrize(
    ("error", "chosen", "message"),
    [
        (RequestError, {"family": "flux"}, "There is z_image, sdxl."),
        (StyleError, {"industry": "caffe"}, "Did you mean cafe"),
        (StyleError, {"industry": "미용시"}, "Did you mean hair_salon"),
        (StyleError, {"use": "tv"}, "feed, story, banner, poster"),
        (PromptError, {"text": " \n"}, "is empty"),
        (PromptError, {"avoid": ["text,"]}, "nothing to avoid"),
    ],
)
def test_refusals_name_what_exists(error: type[Exception], chosen: dict[str, object], message: str) -> None:
    with pytest.raises(error, match=message):
        composed(**{"text": "라떼", **chosen})  # type: ignore[arg-type]


def test_an_aspect_that_the_card_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uses.toml").write_text(
        '[feed]\ntitle = { en = "Feed", ko = "피드" }\naspect = "5:4"\ncomposition = "x"\n'
    )
    with pytest.raises(SizeError, match=r"mini has no aspect '5:4'"):
        compose("라떼", family="z_image", library=Library.load(tmp_path), card=MINI, use="feed")
