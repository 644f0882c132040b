from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from shlex import split

import pytest

from hwaga.card_styles import STYLES_FILE, Style
from hwaga.cards import ASSETS, ModelCard
from hwaga.errors import CheckpointError, StyleError
from hwaga.model_lookup import find_card
from hwaga.prompt import Library, compose
from hwaga.prompt.style import RoutedStyle, pick, route
from hwaga.request import LoraUse

LIBRARY = Library.load()
# The bundled model as if it read the packs' wording, which its own card leaves out.
MINI = replace(ModelCard.read(ASSETS / "mini" / "card.toml"), own_words_only=False)


def routed(name: str, card: ModelCard = MINI, family: str = "z_image", *, fallback: bool = False) -> RoutedStyle:
    return route(name, library=LIBRARY, card=card, family=family, fallback=fallback)


@pytest.mark.parametrize("name", ["anime", "ANIME", "애니메이션", "애니", "cel animation", "cel-animation"])
def test_a_style_by_any_of_its_names(name: str) -> None:
    style = routed(name)
    assert style.name == "anime"
    assert style.wording == LIBRARY.styles["anime"].z_image
    assert style.loras == (LoraUse("flat", 1.0),)


def test_a_style_that_the_card_lacks_is_wording_alone() -> None:
    style = routed("watercolor")
    assert (style.loras, style.notes) == ((), ())
    assert style.wording


def test_a_style_that_only_the_card_has_is_its_lora_alone() -> None:
    card = replace(MINI, styles={"house": Style({"en": "House"}, "loras/line.safetensors")})
    style = routed("house", card)
    assert (style.wording, [lora.name for lora in style.loras]) == ("", ["line"])
    assert compose("라떼", family="z_image", library=LIBRARY, card=card, style="house").text == "라떼"


def test_another_family_s_wording_goes_without_the_card_s_loras() -> None:
    style = routed("anime", family="sdxl")
    assert (style.loras, style.negative) == ((), LIBRARY.styles["anime"].negative)


def test_a_style_that_is_another_model(tmp_path: Path) -> None:
    card = replace(MINI, styles={"anime": Style({"en": "Anime"}, None, checkpoint="anime.safetensors")})
    with pytest.raises(
        StyleError, match=r"is a checkpoint of its own\. Draw with that one: --model \S+ .*the model mini:anime"
    ):
        routed("애니", card)
    # The remedy leads there.
    written = (ASSETS / "mini" / "card.toml").read_text()
    path = tmp_path / "my card.toml"
    path.write_text(
        f'{written}\n[styles.house]\ncheckpoint = "house.safetensors"\n[styles.house.title]\nen = "House"\n'
    )
    with pytest.raises(StyleError) as refused:
        routed("house", find_card(path, tmp_path))
    words = split(str(refused.value).replace("style's", ""))
    other = words[words.index("--model") + 1].removesuffix(",")
    assert find_card(other, tmp_path).files == (tmp_path / "house.safetensors",)
    elsewhere = replace(find_card(path, tmp_path), folder=tmp_path / "elsewhere")
    with pytest.raises(StyleError) as refused:
        routed("house", elsewhere)
    assert str(tmp_path) not in str(refused.value), "beyond the model's folder, where a server's clients would see it"
    style = routed("애니", card, fallback=True)
    assert (style.loras, style.wording) == ((), LIBRARY.styles["anime"].z_image)
    assert "goes by its words alone" in style.notes[0]
    assert routed("anime", card.of_style("anime")).notes == (), "there it is the model's own"


def test_sdxl_s_styles_are_words_until_their_weights_are_named(tmp_path: Path) -> None:
    """By the packs for every style, and by a LoRA or another checkpoint where the model's owner says so beside its files."""
    plain = find_card("sdxl", tmp_path)
    for name in ("realistic", "semi_realistic", "anime"):
        style = compose("a cat", family="sdxl", library=LIBRARY, card=plain, style=name)
        pack = LIBRARY.styles[name]
        assert (style.text, style.negative, style.loras) == (f"a cat, {pack.sdxl}", pack.negative, ())
    own = tmp_path / "sdxl" / STYLES_FILE
    (own.parent / "loras").mkdir(parents=True)
    own.write_text(
        """
        [styles.semi_realistic]
        title = { en = "Painterly" }
        lora = "loras/painterly.safetensors"
        weight = 0.8
        steps = 30
        [styles.anime]
        title = { en = "Anime", ko = "애니" }
        checkpoint = "checkpoints/anime.safetensors"
        """
    )
    card = find_card("sdxl", tmp_path)
    turbo = find_card("z-image-turbo", tmp_path).styles.values()
    assert "loras/painterly.safetensors" not in {each.lora for each in turbo}, "of another model"
    with pytest.raises(StyleError, match=r"needs its LoRA, and .*painterly\.safetensors is not there"):
        routed("반실사", card, "sdxl")
    (own.parent / "loras/painterly.safetensors").touch()
    style = compose("a cat", family="sdxl", library=LIBRARY, card=card, style="반실사")
    assert (style.loras, style.steps) == ((LoraUse("painterly", 0.8),), 30)
    assert style.text == f"a cat, {LIBRARY.styles['semi_realistic'].sdxl}"
    with pytest.raises(StyleError, match=r"Draw with that one: --model sdxl:anime, or .*the model sdxl:anime"):
        routed("anime", card, "sdxl")
    other = find_card("sdxl:anime", tmp_path)
    assert (other.family, other.files) == ("sdxl", (own.parent / "checkpoints/anime.safetensors",))
    with pytest.raises(CheckpointError, match=r"Mend `checkpoint` of \[styles\.anime\] in styles\.toml of sdxl\."):
        other.check_present()
    style = compose("a cat", family="sdxl", library=LIBRARY, card=other, style="anime")
    assert (style.text, style.loras) == (f"a cat, {LIBRARY.styles['anime'].sdxl}", ())


def test_an_absent_lora(tmp_path: Path) -> None:
    card = replace(MINI, folder=tmp_path)
    with pytest.raises(StyleError) as refused:
        routed("anime", card)
    for part in (str(tmp_path / "loras/flat.safetensors"), "Put the file there", "--style-fallback"):
        assert part in str(refused.value)
    with pytest.raises(StyleError, match=r"Put the file there; or go on"):
        routed("anime", replace(card, source=""))
    style = routed("anime", card, fallback=True)
    assert style.loras == ()
    assert "goes without its LoRA" in style.notes[0]
    # A style that was only guessed does not stand in the way.
    done = compose("웹툰 고양이", family="z_image", library=LIBRARY, card=card, style="auto")
    assert (done.style, done.loras) == ("anime", ())
    assert "goes without its LoRA" in done.notes[1]


@pytest.mark.parametrize(
    ("name", "near"), [("anme", "anime"), ("water color", None), ("watercolr", "watercolor"), ("수체화", "watercolor")]
)
def test_an_unknown_style_lists_near_names(name: str, near: str | None) -> None:
    if near is None:
        assert routed(name).name == "watercolor"
        return
    with pytest.raises(StyleError, match=f"Did you mean {near}") as refused:
        routed(name)
    assert "Styles are realistic, semi_realistic, anime" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "industry"),
    [
        ("a barista pouring a latte", "cafe"),
        ("라떼를 따르는 바리스타", "cafe"),
        ("카페에서 책 읽는 사람", "cafe"),
        ("북카페에서 책 읽는 사람", "bookshop"),
        ("strawberry cake on a stand", "bakery"),
        ("딸기 생크림 케이크 신메뉴", "bakery"),
        ("갓 구운 빵이 가득한 진열대", "bakery"),
        ("삼겹살에 소주 한잔", "korean_bbq"),
        ("바삭한 후라이드치킨", "fried_chicken"),
        ("crispy fried chicken with two beers", "fried_chicken"),
        ("키즈카페 생일파티", "kids_cafe"),
        ("우리동네미용실 봄맞이 펌 할인", "hair_salon"),
        ("애견 미용실 오픈 이벤트", "pet_grooming"),
        ("젤네일 신상 디자인", "nail_salon"),
        ("어버이날 카네이션 꽃다발", "florist"),
        ("a bouquet of peonies", "florist"),
        ("피아노 학원 수강생 모집", "music_academy"),
        ("수학 학원 여름방학 특강", "academy"),
        ("핸드폰가게 개업", "mobile_phone"),
        ("a new smartphone on a table", "mobile_phone"),
        ("한우 선물세트", "butcher"),
        ("도미와 광어 모둠회", "raw_fish"),
        ("임플란트 상담하는 치과의사", "dental"),
        ("pilates reformer class", "yoga_pilates"),
        ("안경점 누진다초점 렌즈 행사", "optician"),
        ("신혼부부를 위한 아파트 매매", "real_estate"),
        ("새우튀김 한 접시", "snack_bar"),
        ("카페트 세탁", "laundry"),
        ("커피와 케이크", "cafe"),
        ("two cats on a roof", None),
        ("파란 배경의 고양이", None),
        ("책상 위의 노트북", None),
        ("바나나와 바다", None),
        ("회의에 참석한 사람들", None),
        ("a barn and a bookmark", None),
    ],
)
def test_the_industry_that_a_text_speaks_of(text: str, industry: str | None) -> None:
    for form in (text, text.upper(), unicodedata.normalize("NFD", text)):
        picked = pick(form, LIBRARY.industries)
        assert (picked and picked.name) == industry, picked


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("수채화풍의 꽃병", "watercolor"),
        ("a watercolour of a street", "watercolor"),
        ("an aquarelle of a street", "watercolor"),
        ("웹툰 스타일 주인공", "anime"),
        ("35mm film grain portrait", "film_photo"),
        ("레트로 간판", "film_photo"),
        ("isometric clay miniature shop", "3d_render"),
        ("종이접기 학", "paper_cut"),
        ("수묵화로 그린 산", "ink_wash"),
        ("실사 고양이", "realistic"),
        ("a flat white coffee", None),
    ],
)
def test_the_style_that_a_text_speaks_of(text: str, style: str | None) -> None:
    picked = pick(text, LIBRARY.styles)
    assert (picked and picked.name) == style, picked


def test_auto_says_what_it_picked_and_why() -> None:
    chosen = {"family": "z_image", "library": LIBRARY, "card": MINI, "style": "auto", "industry": "auto"}
    done = compose("수채화 느낌의 라떼와 커피", **chosen)
    assert (done.style, done.industry) == ("watercolor", "cafe")
    assert done.notes == (
        'Picked the industry cafe (카페) because of "라떼", "커피".',
        'Picked the style watercolor (수채화) because of "수채화".',
    )
    done = compose("two cats", **chosen)
    assert (done.text, done.style, done.industry) == ("two cats", None, None)
    assert done.notes[0] == "No industry was picked: no word of the prompt speaks of one."
