"""Forty prompts as they are composed, in a file to be read and judged by people: golden.txt.

After a change of wording, renew it and read the difference:  python tests/prompt/test_golden.py && git diff tests/prompt
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwaga.cards import ASSETS, ModelCard
from hwaga.prompt import Library, Slots, compose
from hwaga.tokens import token_counter

GOLDEN = Path(__file__).with_name("golden.txt")

SDXL = {"family": "sdxl"}
CASES: list[tuple[str | Slots, dict[str, Any]]] = [
    ("A cat asleep on a stack of books", {}),
    ("비 오는 골목의 노란 우산", {}),
    ("A barista pouring a heart into a latte", {"industry": "auto", "use": "feed"}),
    ("딸기 생크림 케이크 신메뉴", {"industry": "auto", "style": "realistic", "use": "feed"}),
    ("퇴근 후 삼겹살 한 판", {"industry": "auto", "style": "realistic", "avoid": ["사람"]}),
    ("A bucket of crispy fried chicken for two", {"industry": "auto", "style": "product_shot", "use": "poster"}),
    ("양념치킨과 시원한 생맥주", {"industry": "fried_chicken", "style": "film_photo", "avoid": ["글자 없이"]}),
    ("봄맞이 단발 레이어드컷", {"industry": "auto", "style": "semi_realistic", "use": "feed"}),
    ("A cherry-blossom gel manicure", {"industry": "네일샵", "style": "realistic", "avoid": ["bad hands", "text"]}),
    ("어버이날 카네이션 꽃바구니", {"industry": "auto", "style": "수채화", "use": "story"}),
    ("A woman lifting a barbell with a determined look", {"industry": "gym", "style": "realistic", "use": "banner"}),
    ("친절한 약사가 영양제를 설명하는 모습", {"industry": "auto", "style": "flat_illustration", "avoid": ["logo"]}),
    ("여름방학 특강에 집중하는 학생들", {"industry": "학원", "style": "anime", "use": "poster"}),
    ("A linen dress in pale sage green", {"industry": "clothes_shop", "style": "minimal", "use": "feed"}),
    ("치즈가 길게 늘어나는 고르곤졸라 피자", {"industry": "auto", "style": "realistic", "use": "feed"}),
    ("Twelve pieces of nigiri sushi", {"industry": "auto", "style": "film_photo"}),
    ("네온 불빛 아래 하이볼 한 잔", {"industry": "pub", "style": "realistic", "use": "story"}),
    ("매콤한 떡볶이와 순대", {"industry": "auto", "style": "3d_render", "avoid": ["텍스트"]}),
    ("A freshly groomed white poodle", {"industry": "auto", "style": "3d_render", "use": "feed"}),
    ("환하게 웃는 어린이 환자와 치과의사", {"industry": "치과", "style": "semi_realistic", "avoid": ["피", "바늘"]}),
    ("Clear skin after a hydrating facial", {"industry": "skin_clinic", "style": "realistic", "avoid": ["AI look"]}),
    ("햇살이 드는 아파트 거실", {"industry": "auto", "style": "realistic", "use": "banner"}),
    ("A mechanic checking the brakes", {"industry": "car_repair", "style": "semi_realistic", "use": "feed"}),
    ("뽀송하게 마른 이불 빨래", {"industry": "auto", "style": "watercolor"}),
    ("A desk planner with stickers", {"industry": "auto", "style": "paper_cut", "use": "feed"}),
    ("동네책방에서 열리는 북토크", {"industry": "auto", "style": "oil_painting", "use": "poster"}),
    ("볼풀에서 노는 아이들", {"industry": "auto", "style": "flat_illustration", "avoid": ["얼굴"]}),
    ("Morning yoga by the window", {"industry": "auto", "style": "film_photo", "use": "story"}),
    ("가족사진 촬영 이벤트", {"industry": "auto", "style": "realistic", "use": "feed"}),
    ("제철 샤인머스캣 선물 상자", {"industry": "과일가게", "style": "product_shot", "avoid": ["풍선", "no watermark"]}),
    ("한우 등심 선물세트", {"industry": "auto", "style": "realistic", "use": "banner"}),
    ("통영 굴과 전복", {"industry": "수산시장", "style": "ink_wash"}),
    ("Round tortoiseshell glasses", {"industry": "optician", "style": "minimal", "use": "feed"}),
    ("새 휴대폰 개통 행사", {"industry": "auto", "style": "3d_render", "use": "poster"}),
    ("한옥스테이의 가을 아침", {"industry": "auto", "style": "auto", "use": "story"}),
    (
        Slots("a grandmother", action="rolling gimbap", lighting="low evening sun", details="sesame seeds on her fingers"),
        {"industry": "snack_bar", "style": "realistic"},
    ),
    (Slots("송편 한 접시", setting="추석 차례상", atmosphere="정겨운 명절"), {"industry": "떡집", "style": "ink_wash"}),
    ("A latte with rosette art", {**SDXL, "industry": "cafe", "style": "realistic", "avoid": ["text", "people"]}),
    ("딸기 케이크", {**SDXL, "industry": "auto", "style": "anime", "avoid": ["글자"]}),
    (Slots("a florist", action="tying a bouquet", style="pastel gouache"), {**SDXL, "industry": "florist", "use": "feed"}),
]  # fmt: skip


def composed() -> str:
    # The bundled model's tokenizer and LoRAs; its card leaves out the packs' wording, which is what there is to read here.
    library, card = Library.load(), replace(ModelCard.read(ASSETS / "mini" / "card.toml"), own_words_only=False)
    count = token_counter(card)
    blocks = []
    for number, (text, options) in enumerate(CASES, 1):
        chosen = {"family": "z_image", "count_tokens": count, "token_limit": card.limits.tokens} | options
        if chosen["family"] == "sdxl":
            del chosen["count_tokens"], chosen["token_limit"]
        done = compose(text, library=library, card=card, **chosen)
        typed = text if isinstance(text, str) else "; ".join(f"{name}: {part}" for name, part in text.filled())
        asked = " ".join(
            f"--{name} {shlex.quote(item) if item.isascii() else repr(item)}"
            for name, value in options.items()
            for item in ([value] if isinstance(value, str) else value)
        )
        lines = [f"{number:02d}  {typed}", f"    {asked}".rstrip(), f"  → {done.text}"]
        if done.negative:
            lines.append(f"  − {done.negative}")
        facts = [
            f"{name} {value}" for name in ("style", "industry", "aspect", "tokens") if (value := getattr(done, name))
        ]
        facts += [f"lora {lora.name}" for lora in done.loras]
        lines += [f"    [{', '.join(facts)}]", *(f"    · {note}" for note in done.notes)]
        blocks.append("\n".join(line for line in lines if line.strip()))
    return "\n\n".join(blocks) + "\n"


def test_the_forty_prompts() -> None:
    assert len(CASES) == 40
    assert composed() == GOLDEN.read_text(encoding="utf-8"), "renew the golden file and read the difference; see above"


if __name__ == "__main__":
    GOLDEN.write_text(composed(), encoding="utf-8")
