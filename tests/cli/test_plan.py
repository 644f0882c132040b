from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

from hwaga.cards import ASSETS

TURBO = ("plan", "--model", "z-image-turbo")
GIB = 2**30


def test_a_table_and_a_bar_for_each_phase(hwaga: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "230")
    outcome = hwaga(*TURBO, "--vram", "8GiB", "--ram", "16GiB")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert "1024x1024" in lines[0]
    modes = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("text_enc", "denoiser", "vae"))}
    assert modes == {"text_encoder": "streamed", "denoiser": "streamed", "vae": "resident"}
    bars = {line.split()[0]: line for line in lines if "█" in line and "weights" not in line}
    assert list(bars) == ["load", "text", "caption", "denoise", "decode"]
    assert "▓" in bars["denoise"]
    assert "▓" not in bars["decode"]
    assert "published sizes" in outcome.out


@pytest.mark.parametrize("columns", [80, 120, 230])
@pytest.mark.parametrize("vram", ["22.5GiB", "8GiB"])
def test_all_of_it_can_be_read_in_any_width(
    hwaga: Command, monkeypatch: pytest.MonkeyPatch, columns: int, vram: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options = (*TURBO, "--vram", vram, "--ram", "16GiB", "--dtype", "bfloat16")
    printed, made = hwaga(*options).out, json.loads(hwaga(*options, "--json").out)
    lines = printed.splitlines()
    assert "…" not in printed
    assert all(len(line) <= columns for line in lines)
    assert all(each["reason"] in " ".join(printed.split()) for each in (*made["parts"], *made["phases"]))
    rows = {name: [line for line in lines if line.startswith(name)] for name in ("text_encoder", "denoiser", "vae")}
    beside = columns == 230 or vram == "22.5GiB"
    for part in made["parts"]:
        if part["name"] in rows:
            assert len(rows[part["name"]]) == (1 if beside else 2), "a row, and a reason below where it is too long"
            assert rows[part["name"]][0].split()[1:3] == [part["mode"], "bfloat16"]
            assert (part["reason"] in rows[part["name"]][0]) == beside
    if vram == "8GiB":
        assert "193 MiB   1 of 35  locked RAM, files" in rows["text_encoder"][0]
        assert "5.2 GiB  15 of 32  locked RAM" in rows["denoiser"][0]


def test_as_json(hwaga: Command) -> None:
    made = json.loads(hwaga(*TURBO, "--vram", "8GiB", "--ram", "16GiB", "--size", "1024x768", "-n", 2, "--json").out)
    assert made["peak_vram_bytes"] == max(phase["peak_vram_bytes"] for phase in made["phases"])
    assert made["peak_ram_bytes"] == max(phase["peak_ram_bytes"] for phase in made["phases"])
    assert made["peak_vram_bytes"] <= made["budget"]["device_bytes"] < 8 * GIB
    assert made["moved_bytes"] == sum(part["moved_bytes"] for part in made["parts"])
    assert made["precision"] == "full"
    assert [(each["width"], each["height"]) for each in made["pictures"]] == [(1024, 768)] * 2
    assert all(part["reason"] for part in made["parts"])
    for phase in made["phases"]:
        assert phase["peak_vram_bytes"] == phase["weights"] + phase["brought"] + phase["work"] + phase["kept"]


def test_from_a_picture_there_is_one_more_phase(hwaga: Command) -> None:
    made = json.loads(hwaga("plan", "--image2image", "--json").out)
    assert "source" in [phase["name"] for phase in made["phases"]]


def test_the_default_model_on_this_machine(hwaga: Command) -> None:
    made = json.loads(hwaga("plan", "--device", "cpu", "--json").out)
    assert (made["model"], made["device"], made["present"], made["imagined"]) == ("mini", "cpu", True, False)
    assert made["peak_vram_bytes"] == 0
    assert made["peak_ram_bytes"] > 100 * 2**20


def test_guidance_takes_a_second_row_of_the_batch(hwaga: Command) -> None:
    pytest.importorskip("diffusers")
    options = ("plan", "--model", "sdxl", "--vram", "24GiB", "--ram", "16GiB")
    led, plain = (json.loads(hwaga(*options, *more, "--json").out) for more in ((), ("--guidance", "1")))
    assert [[each["guided"] for each in made["pictures"]] for made in (led, plain)] == [[True], [False]]
    work = [next(each["work"] for each in made["phases"] if each["name"] == "denoise") for made in (led, plain)]
    assert work[1] < work[0] * 0.7
    assert "with guidance" in hwaga(*options, "--guidance", "7").out.splitlines()[0]
    assert "with guidance" not in hwaga(*options, "--guidance", "1").out.splitlines()[0]
    assert "draws without guidance" in hwaga.refused(*TURBO, "--guidance", "5")


def test_what_cannot_fit(hwaga: Command) -> None:
    said = hwaga.refused(*TURBO, "--vram", "3GiB", "--ram", "16GiB", "--size", "1536x1536")
    assert "This needs" in said
    assert "would fit" in said


def test_models_that_take_turns(hwaga: Command, tmp_path: Path) -> None:
    card = (ASSETS / "mini" / "card.toml").read_text()
    for path in (ASSETS / "mini").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "card.toml").unlink()
    (tmp_path / "card.toml").write_text(card.replace('name = "mini"', 'name = "second"', 1))
    options = ("plan", "-m", "mini", "-m", tmp_path, "--vram", "1.15GiB", "--ram", "8GiB", "--device", "cpu")
    first, second = json.loads(hwaga(*options, "--json").out)["data"]
    assert (first["model"], second["model"]) == ("mini", "second")
    for made, other in ((first, "second"), (second, "mini")):
        (neighbour,) = made["neighbours"]
        assert (neighbour["model"], neighbour["leaves_bytes"]) == (other, 0)
        assert {phase["others"] for phase in made["phases"]} == {neighbour["stays_bytes"]}
    table = hwaga(*options).out
    assert "▚ others" in table
    assert "GiB of second stay beside this" in table


@pytest.mark.parametrize("options", [("--vram", "much"), ("--size", "12"), ("--precision", "none")])
def test_what_is_not_understood(hwaga: Command, options: tuple[str, ...]) -> None:
    hwaga.refused(*TURBO, *options)
