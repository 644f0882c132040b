from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

TEA_ROOM = """
[tea_room]
title = { en = "Tea room", ko = "찻집" }
keywords = { ko = ["녹차"] }
setting = "a hanok"
composition = "a close view"
lighting = "dim"
atmosphere = "still"
details = "steam"
"""


def test_the_prompt_goes_to_standard_output_and_the_rest_beside_it(hwaga: Command, reader: Path) -> None:
    done = hwaga(
        "prompt", "라떼 한 잔", "--style", "애니", "--industry", "auto", "--use", "story", "--avoid", "no text",
        "--model", reader,
    )  # fmt: skip
    assert done.code == 0
    assert done.out.startswith("라떼 한 잔. It is an anime illustration")
    assert done.out.endswith("a clean image free of lettering.\n")
    for part in ('because of "라떼"', "LoRA: flat at 1", "Aspect: 9:16", "Tokens: "):
        assert part in done.err
    assert hwaga("prompt", "라떼 한 잔").out == "라떼 한 잔\n"


def test_a_model_that_does_not_read_the_packs_gets_the_typed_words(hwaga: Command) -> None:
    done = hwaga(
        "prompt", "라떼 한 잔", "--style", "anime", "--industry", "auto", "--avoid", "no text", "--model", "mini"
    )
    assert done.out == "라떼 한 잔\n"
    assert "the packs' wording for setting, composition, lighting, atmosphere, details, avoid. mini draws" in done.err
    assert "LoRA: flat at 1" in done.err


def test_json(hwaga: Command, reader: Path) -> None:
    values = json.loads(hwaga("prompt", "라떼", "--style", "anime", "--json", "--model", reader).out)
    assert values["text"].startswith("라떼. ")
    assert values["loras"][0]["name"] == "flat"
    assert values["tokens"] > 20


def test_another_family(hwaga: Command) -> None:
    done = hwaga("prompt", "a latte", "--family", "sdxl", "--style", "realistic")
    assert done.out.startswith("a latte, photograph, ")
    assert "Negative prompt: painting, " in done.err
    assert "Tokens: 2" in done.err
    assert " of 225" in done.err
    emphasised = hwaga("prompt", "a (latte:1.2)", "--family", "sdxl", "--json")
    assert json.loads(emphasised.out)["tokens"] == 2
    assert "Tokens are not counted" in hwaga("prompt", "a latte", "--family", "z_image", "--model", "sdxl").err


def test_slots(hwaga: Command) -> None:
    done = hwaga("prompt", "a latte", "--slot", "lighting=dawn", "--slot", "action=on a tray")
    assert done.out == "a latte on a tray. The light is dawn.\n"
    assert "There is no slot 'mood'. Slots are subject" in hwaga.refused("prompt", "a", "--slot", "mood=b")
    assert "--slot takes name=text" in hwaga.refused("prompt", "a", "--slot", "lighting")
    assert "--slot takes name=text" in hwaga.refused("prompt", "a", "--slot", "subject=b")


def test_refusals(hwaga: Command) -> None:
    assert "Did you mean anime?" in hwaga.refused("prompt", "a", "--style", "anme")
    assert "is empty" in hwaga.refused("prompt", " ")


def test_listings(hwaga: Command) -> None:
    styles = {row["name"]: row for row in json.loads(hwaga("styles", "--json").out)}
    assert styles["anime"]["lora"] == "loras/flat.safetensors"
    assert (styles["watercolor"]["lora"], styles["watercolor"]["title"]["ko"]) == (None, "수채화")
    assert "수채화" in hwaga("styles").out
    assert "미용실" in hwaga("industries").out


def test_packs_of_ones_own(hwaga: Command, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "industries.toml").write_text(TEA_ROOM, encoding="utf-8")
    monkeypatch.setenv("HWAGA_PACKS_DIR", str(packs))
    assert "The setting is a hanok." in hwaga("prompt", "녹차 한 잔", "--industry", "auto", "--model", reader).out
    (packs / "industries.toml").write_text(TEA_ROOM.replace("details", "detail"), encoding="utf-8")
    assert "industries.toml:2: [tea_room] has no details." in hwaga.refused("prompt", "a")
