from __future__ import annotations

import json
from pathlib import Path

import torch
from command import Command
from lora_files import save
from PIL import Image
from safetensors.torch import load_file

from hwaga.cards import ASSETS
from hwaga.image_file import read_settings

FLAT = ASSETS / "mini/loras/flat.safetensors"
APPLE = "a red apple on a yellow background"


def test_add_list_draw_remove(hwaga: Command) -> None:
    added = hwaga("lora", "add", FLAT, "--name", "내것")
    assert (added.code, added.out) == (0, "내것\n")
    assert "It fits mini." in added.err
    listed = {row["name"]: row for row in json.loads(hwaga("lora", "list", "--json").out)}
    assert {name: row["model"] for name, row in listed.items()} == {"flat": "mini", "line": "mini", "내것": None}
    assert "내것" in hwaga("lora", "list").out
    draw = ("text2image", APPLE, "--seed", 7, "--steps", 2)
    assert hwaga(*draw, "--lora", "내것:0.9", "-o", "own.png").code == 0
    assert hwaga(*draw, "--lora", "flat:0.9", "-o", "flat.png").code == 0
    assert Image.open("own.png").tobytes() == Image.open("flat.png").tobytes()
    assert hwaga("lora", "remove", "내것").code == 0
    assert "There is no LoRA '내것'" in hwaga.refused(*draw, "--lora", "내것")
    assert "There is no LoRA 'flat' of your own" in hwaga.refused("lora", "remove", "flat")


def test_a_name_that_a_model_has_no_file_for(hwaga: Command, tmp_path: Path) -> None:
    """It is the user's until the model's own is fetched."""
    name = "pixel_art_style_z_image_turbo"
    assert hwaga("lora", "add", FLAT, "--name", name).code == 0
    listed = {row["name"]: row for row in json.loads(hwaga("lora", "list", "--json", "-m", "z-image-turbo").out)}
    assert (listed[name]["model"], listed[name]["bytes"]) == (None, FLAT.stat().st_size)
    assert hwaga("lora", "remove", name).code == 0
    fetched = tmp_path / "data" / "models" / "z-image-turbo" / "loras" / f"{name}.safetensors"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"theirs")
    assert f"A model has a LoRA {name} of its own" in hwaga.refused("lora", "add", FLAT, "--name", name)


def test_what_is_added_is_a_lora(hwaga: Command) -> None:
    save(Path("base.safetensors"), {"layers.0.attention.to_q.weight": torch.ones(4, 4)})
    assert "is no LoRA" in hwaga.refused("lora", "add", "base.safetensors")
    Path("x.safetensors").write_bytes(FLAT.read_bytes()[:5000])
    assert "truncated" in hwaga.refused("lora", "add", "x.safetensors")
    assert "There is no file none.safetensors" in hwaga.refused("lora", "add", "none.safetensors")
    listed = json.loads(hwaga("lora", "list", "--json", "--model", "z-image-turbo").out)
    assert {entry["model"] for entry in listed} == {"z-image-turbo"}


def test_values_are_looked_at_before_a_file_is_taken(hwaga: Command) -> None:
    tensors = load_file(FLAT)
    key = next(iter(tensors))
    tensors[key][0, 0] = torch.nan
    save(Path("nan.safetensors"), tensors)
    assert f"{key} holds NaN or infinity" in hwaga.refused("lora", "add", "nan.safetensors")


def test_a_style_that_changes_nothing_says_so(hwaga: Command) -> None:
    said = hwaga("text2image", APPLE, "--steps", 1, "--style", "수채화", "-o", "a.png").err
    assert "The style watercolor changes nothing: mini draws from your own words alone" in said
    assert "realistic, semi_realistic, anime" in said
    assert hwaga("text2image", APPLE, "--steps", 1, "--style", "anime", "-o", "b.png").err == ""


def test_one_for_another_model_is_kept_and_said_so(hwaga: Command) -> None:
    save(Path("other.safetensors"), {key.replace("attention", "attn"): value for key, value in load_file(FLAT).items()})
    added = hwaga("lora", "add", "other.safetensors", "--json")
    assert json.loads(added.out)["fits"] == {"mini": False}
    assert "holds transformer.context_refiner.0.attn" in hwaga.refused(
        "text2image", APPLE, "--lora", "other", "-o", "a.png"
    )
    assert not Path("a.png").exists()


def test_a_picture_in_a_style_and_its_rerun(hwaga: Command) -> None:
    draw = ("text2image", "웹툰 속 빨간 사과", "--seed", 7, "--steps", 3)
    done = hwaga(*draw, "--style", "auto", "--industry", "auto", "-o", "apple.png", "--json")
    assert 'Picked the style anime (애니메이션) because of "웹툰".' in done.err
    values = json.loads(done.out)["images"][0]
    assert values["prompt"] == "웹툰 속 빨간 사과"
    assert list(values["loras"]) == ["flat"]
    made = read_settings("apple.png")
    assert made["request"]["style"] == "auto"
    assert made["request"]["composed"]["style"] == "anime"
    assert made["request"]["composed"]["loras"] == [{"name": "flat", "weight": 1.0}]
    shown = hwaga("show", "apple.png").out
    assert f"flat:1 ({made['loras']['flat']})" in shown
    with Image.open("apple.png") as picture:
        assert picture.info["parameters"].splitlines()[0] == "웹툰 속 빨간 사과 <lora:flat:1>"
    assert "Identical" in hwaga("show", "apple.png", "--rerun").err
    by_name = hwaga(*draw, "--style", "애니", "-o", "named.png")
    assert by_name.code == 0
    assert Image.open("named.png").tobytes() == Image.open("apple.png").tobytes()


def test_a_rerun_with_another_file_of_the_lora_s_name(hwaga: Command) -> None:
    hwaga("lora", "add", FLAT, "--name", "mine")
    hwaga("text2image", APPLE, "--steps", 1, "--lora", "mine", "-o", "apple.png")
    hwaga("lora", "remove", "mine")
    assert "There is no LoRA 'mine'" in hwaga.refused("show", "apple.png", "--rerun")
    hwaga("lora", "add", ASSETS / "mini/loras/line.safetensors", "--name", "mine")
    assert "another file than the LoRA that is called mine" in hwaga.refused("show", "apple.png", "--rerun")
    assert not Path("apple-rerun.png").exists()


def test_image_to_image_in_a_style(hwaga: Command) -> None:
    hwaga("text2image", APPLE, "--seed", 7, "--steps", 2, "-o", "apple.png")
    again = ("image2image", "apple.png", APPLE, "--steps", 3, "--seed", 1)
    assert hwaga(*again, "--style", "semi_realistic", "-o", "line.png").code == 0
    assert hwaga(*again, "-o", "plain.png").code == 0
    assert Image.open("line.png").tobytes() != Image.open("plain.png").tobytes()


def test_refusals(hwaga: Command) -> None:
    assert "Did you mean anime?" in hwaga.refused("text2image", APPLE, "--style", "anme")
    assert "NAME or NAME:WEIGHT" in hwaga.refused("text2image", APPLE, "--lora", "flat:heavy")
    assert "from -10 to 10" in hwaga.refused("text2image", APPLE, "--lora", "flat:99")
    assert "Give each LoRA once" in hwaga.refused("text2image", APPLE, "--lora", "flat", "--lora", "flat:2")
    assert "hwaga lora add" in hwaga.refused("text2image", APPLE, "--lora", "../flat")
