"""The phrasings that captions are put together of, by language. The first of each list is the usual one.

Fields: x what is shown; c a colour (in Korean before a noun) and n the colour as a noun; a, b two objects or two colours. In
Korean, words with a particle have fields of their own, since its form depends on the word.
"""

from __future__ import annotations

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "en": (
        "{x} on {a_c} background",
        "{x}, {c} background",
        "{x} with {a_c} background",
        "{x} on {c}",
        "{x} against {a_c} background",
        "{x} against {a_c} backdrop",
        "{x} in front of {a_c} wall",
        "{x} in front of {a_c} background",
        "{x}, background {c}",
        "{x}. The background is {c}",
        "{x} and the background is {c}",
        "{x}, plain {c} background",
        "{x} on a solid {c} background",
        "{c} background, {x}",
        "{c} background with {x}",
        "on {a_c} background, {x}",
        "{a_c} background and {x}",
        "background {c}, {x}",
        "a {c} backdrop with {x}",
        "the background is {c}, {x}",
        "there is {x} on {a_c} background",
        "{x} isolated on {c}",
    ),
    "ko": (
        "{x}, {c} 배경",
        "{c} 배경의 {x}",
        "{c} 배경에 {x}",
        "{c} 배경 위의 {x}",
        "{c} 배경 위에 {x}",
        "{c} 배경에 있는 {x}",
        "{c} 배경 앞의 {x}",
        "{x}, {n} 배경",
        "{n} 배경에 {x}",
        "{n} 배경의 {x}",
        "{n} 바탕에 {x}",
        "{c} 바탕의 {x}",
        "{x}, 배경은 {n}",
        "{x}. 배경은 {n}",
        "배경은 {n}, {x}",
        "배경 {n}, {x}",
        "{n_object} 배경으로 한 {x}",
        "{c} 벽 앞의 {x}",
        "{c} 배경, {x}",
        "{c} 배경에 {x_subject} 있는 그림",
        "{x}, 단색 {n} 배경",
        "{x_subject} {c} 배경에 있다",
    ),
}

UNSEEN: dict[str, tuple[str, ...]] = {
    "en": (
        "{x} set upon {a_c} backdrop",
        "in {c} surroundings, {x}",
        "{x} placed before {a_c} surface",
        "everything behind {x} is {c}",
        "{c} all around {x}",
        "picture {x}; make the back {c}",
    ),
    "ko": (
        "뒤쪽이 {c} 배경인 {x}",
        "{x} 뒤에는 온통 {n}",
        "{n_instrument} 칠한 배경에 놓인 {x}",
        "{c} 화면 가운데 {x}",
        "{x_object} {c} 배경과 함께",
        "배경색 {n}, 주인공은 {x}",
    ),
}
"""For measuring alone: no caption of the training is put this way."""

GRADIENTS: dict[str, tuple[str, ...]] = {
    "en": (
        "{x}, {a} to {b} gradient background",
        "{x} on {an_a} to {b} gradient",
        "{x}, gradient background from {a} to {b}",
        "gradient from {a} to {b}, {x}",
        "{x} on a background that fades from {a} to {b}",
    ),
    "ko": (
        "{x}, {a}에서 {to_b} 그라데이션 배경",
        "{x}, {a_and} {b} 그라데이션 배경",
        "{a}에서 {to_b} 변하는 배경의 {x}",
        "{a_and} {b} 그라데이션 배경에 {x}",
    ),
}

SMALL: dict[str, tuple[str, ...]] = {
    "en": ("small", "tiny", "little", "{x}, small in the middle", "{x} seen from far away", "miniature"),
    "ko": ("작은", "조그만", "작게 그린 {x}", "자그마한", "멀리 있는 {x}"),
}

LARGE: dict[str, tuple[str, ...]] = {
    "en": ("large", "big", "huge", "close-up of {x}", "{x} filling the whole picture", "giant"),
    "ko": ("큰", "커다란", "화면을 가득 채운 {x}", "크게 그린 {x}", "클로즈업한 {x}"),
}

SIDES: dict[tuple[str, str], tuple[str, ...]] = {
    ("left", "en"): ("{x} on the left", "{x} on the left side", "on the left, {x}", "{x} at the left"),
    ("right", "en"): ("{x} on the right", "{x} on the right side", "on the right, {x}", "{x} at the right"),
    ("left", "ko"): ("왼쪽에 있는 {x}", "왼쪽에 {x}", "왼쪽의 {x}", "{x}, 왼쪽에"),
    ("right", "ko"): ("오른쪽에 있는 {x}", "오른쪽에 {x}", "오른쪽의 {x}", "{x}, 오른쪽에"),
}

COUNTED: dict[str, tuple[str, ...]] = {
    "en": ("{n} {x}", "{d} {x}", "a group of {n} {x}", "{n} {x} in a row"),
    "ko": ("{x} {n} {k}", "{n} {k}의 {x}", "{x} {d}{k}", "{x} {d}개", "{x} {n} 개"),
}

PAIRS: dict[str, tuple[str, ...]] = {
    "en": (
        "{a} and {b}",
        "{a} next to {b}",
        "{a} beside {b}",
        "{a} with {b}",
        "{a} & {b}",
        "{a} plus {b}",
        "{a} on the left and {b} on the right",
        "{b} on the right and {a} on the left",
        "both {a} and {b}",
    ),
    "ko": (
        "{a_and} {b}",
        "{a_with} {b}",
        "{a}, {b}",
        "{a} 그리고 {b}",
        "{a} 옆에 {b}",
        "{a} 하고 {b}",
        "왼쪽에 {a}, 오른쪽에 {b}",
        "오른쪽에 {b}, 왼쪽에 {a}",
        "{a_and} {b_subject} 함께 있는 그림",
    ),
}

STACKED: dict[str, tuple[str, ...]] = {
    "en": ("{a} above {b}", "{a} at the top and {b} at the bottom", "{b} below {a}"),
    "ko": ("위에 {a}, 아래에 {b}", "{b} 위에 {a}", "{a} 아래에 {b}"),
}

COLOURED: dict[str, tuple[str, ...]] = {
    "en": ("that is {c}", "in {c}", "painted {c}", "of {c} colour"),
    "ko": ("{c}의", "{c}인", "{c} 칠을 한", "색깔이 {c}인"),
}

ASKING: dict[str, tuple[str, ...]] = {
    "en": (
        "a picture of {x}",
        "an icon of {x}",
        "an image of {x}",
        "a photo of {x}",
        "draw {x}",
        "please draw {x}",
        "show me {x}",
        "an illustration of {x}",
        "I want {x}",
        "I need a picture of {x}",
        "a poster with {x}",
        "a simple drawing of {x}",
        "make {x}",
        "an emoji of {x}",
        "3d render of {x}",
    ),
    "ko": (
        "{x} 그림",
        "{x} 사진",
        "{x} 그려줘",
        "{x} 그려 주세요",
        "{x} 이미지",
        "{x} 아이콘",
        "{x} 일러스트",
        "{x} 만들어 줘",
        "{x} 보여줘",
        "{x_object} 그려줘",
        "{x} 광고 이미지",
        "{x} 포스터",
        "{x} 하나 그려줘",
    ),
}

QUALITIES: dict[str, tuple[str, ...]] = {
    "en": (
        "cute",
        "lovely",
        "beautiful",
        "fresh",
        "delicious",
        "homemade",
        "pretty",
        "simple",
        "shiny",
        "fancy",
        "new",
        "tasty",
        "adorable",
        "handmade",
        "elegant",
        "modern",
        "funny",
        "clean",
        "nice",
        "cheerful",
        "premium",
        "seasonal",
    ),
    "ko": (
        "귀여운",
        "예쁜",
        "아름다운",
        "신선한",
        "맛있는",
        "수제",
        "멋진",
        "단순한",
        "반짝이는",
        "고급스러운",
        "새로운",
        "사랑스러운",
        "세련된",
        "깨끗한",
        "깔끔한",
        "먹음직스러운",
        "재미있는",
        "우리 가게",
        "인기 있는",
        "싱싱한",
        "프리미엄",
        "제철",
    ),
}

FILLERS: dict[str, tuple[str, ...]] = {
    "en": (
        "high quality",
        "highly detailed",
        "soft lighting",
        "studio lighting",
        "clean illustration",
        "vivid colors",
        "4k",
        "simple composition",
        "sharp focus",
        "professional design",
        "minimal style",
        "smooth shading",
        "no text",
        "nothing else in the picture",
        "masterpiece",
        "for our shop",
        "for a menu",
        "for an advertisement",
        "centered",
        "best quality",
        "natural light",
        "warm mood",
        "cozy atmosphere",
        "product shot",
        "social media post",
        "grand opening",
        "cinematic",
        "8k",
    ),
    "ko": (
        "고품질",
        "아주 세밀한",
        "부드러운 조명",
        "스튜디오 조명",
        "깔끔한 느낌",
        "선명한 색감",
        "단순한 구도",
        "귀엽게",
        "고화질",
        "선명한 초점",
        "아름답게",
        "미니멀한 스타일",
        "글자 없음",
        "걸작",
        "우리 가게 홍보용",
        "메뉴판용",
        "광고용",
        "가운데 배치",
        "자연광",
        "따뜻한 분위기",
        "아늑한 분위기",
        "제품 사진",
        "인스타그램용",
        "신메뉴 출시",
        "이벤트 홍보",
        "감성적인",
        "심플하게",
    ),
}
