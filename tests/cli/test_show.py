from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command
from PIL import Image

from hwaga.image_file import encode, read_settings


def test_settings_are_shown(hwaga: Command) -> None:
    hwaga("text2image", "파란 배경의 고양이", "--seed", 3, "--steps", 2, "-o", "cat.png")
    shown = hwaga("show", "cat.png").out
    assert "파란 배경의 고양이" in shown
    assert "mini" in shown
    settings = json.loads(hwaga("show", "cat.png", "--json").out)
    assert settings["request"] == {"prompt": "파란 배경의 고양이", "width": 256, "height": 256, "steps": 2, "seed": 3}
    with Image.open("cat.png") as picture:
        first, second = picture.info["parameters"].splitlines()
    assert first == "파란 배경의 고양이"
    assert "Steps: 2" in second
    assert "Seed: 3" in second
    assert "Size: 256x256" in second


def test_a_rerun_is_identical(hwaga: Command) -> None:
    hwaga("text2image", "a fox", "--steps", 3, "-o", "fox.png")
    done = hwaga("show", "fox.png", "--rerun")
    assert done.out == "fox-rerun.png\n"
    assert "Identical" in done.err
    assert Path("fox.png").read_bytes() == Path("fox-rerun.png").read_bytes()


def test_a_rerun_keeps_to_the_precision(hwaga: Command) -> None:
    hwaga("text2image", "a fox", "--steps", 2, "--precision", "int8", "-o", "fox.png")
    assert read_settings("fox.png")["precision"] == "int8"
    assert "Identical" in hwaga("show", "fox.png", "--rerun").err
    hwaga("text2image", "a fox", "--steps", 2, "-o", "whole.png")
    assert "precision" not in read_settings("whole.png")
    assert Image.open("fox.png").tobytes() != Image.open("whole.png").tobytes()


def test_a_rerun_finds_the_source_picture_by_its_content(hwaga: Command) -> None:
    Path("out").mkdir()
    hwaga("text2image", "a fox", "--seed", 1, "--steps", 2, "-o", "fox.png")
    hwaga("image2image", "fox.png", "a cat", "--steps", 3, "--strength", "0.45", "-o", "out/cat.png")
    assert json.loads(hwaga("show", "out/cat.png", "--json").out)["request"]["image"]["name"] == "fox.png"
    assert "Identical" in hwaga("show", "out/cat.png", "--rerun", "-o", "again.png").err
    Path("fox.png").rename("moved.png")
    assert "--image" in hwaga.refused("show", "out/cat.png", "--rerun", "-o", "third.png")
    assert "Identical" in hwaga("show", "out/cat.png", "--rerun", "-o", "third.png", "--image", "moved.png").err
    said = hwaga.refused("show", "out/cat.png", "--rerun", "-o", "no.png", "--image", "again.png")
    assert "not the picture" in said
    assert not Path("no.png").exists()


def test_what_cannot_be_shown(hwaga: Command) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    assert "carries no Hwaga settings" in hwaga.refused("show", "plain.png")
    assert "There is no file" in hwaga.refused("show", "missing.png")
    hwaga("text2image", "a fox", "--steps", 1, "-o", "fox.png")
    assert "add --rerun" in hwaga.refused("show", "fox.png", "-o", "zzz.png")
    assert "written over" in hwaga.refused("show", "fox.png", "--rerun", "-o", "fox.png")


@pytest.mark.parametrize(
    "change",
    [{"model": 5}, {"request": {"prompt": "x", "image": "foo"}}, {"request": []}, {"weights": None}, {"device": []}],
)
def test_settings_of_a_strange_form_are_refused(hwaga: Command, change: dict[str, Any]) -> None:
    made = {
        "version": "0",
        "model": "mini",
        "weights": "0",
        "device": "cpu",
        "dtype": "float32",
        "request": {"prompt": "x"},
    }
    picture = encode(Image.new("RGB", (8, 8)), "png", made_with={**made, **change}, parameters="")
    Path("odd.png").write_bytes(picture)
    assert "Give the picture as it was made" in hwaga.refused("show", "odd.png")
    assert "Give the picture as it was made" in hwaga.refused("show", "odd.png", "--rerun")


@pytest.mark.parametrize("request_values", [{"prompt": "x", "aspect": ["1:1"]}, {"prompt": "x", "size": 3}, {}])
def test_requests_of_a_strange_form_are_refused(hwaga: Command, request_values: dict[str, Any]) -> None:
    made = {"version": "0", "model": "mini", "weights": "0", "device": "cpu", "dtype": "float32"}
    picture = encode(Image.new("RGB", (8, 8)), "png", made_with={**made, "request": request_values}, parameters="")
    Path("odd.png").write_bytes(picture)
    hwaga.refused("show", "odd.png", "--rerun")


def test_other_weights_of_the_same_name_are_told(hwaga: Command) -> None:
    hwaga("text2image", "a fox", "--steps", 1, "-o", "fox.png")
    made = read_settings("fox.png")
    with Image.open("fox.png") as picture:
        data = encode(picture.convert("RGB"), "png", made_with={**made, "weights": "f" * 16}, parameters="")
    Path("fox.png").write_bytes(data)
    assert "other weights" in hwaga.refused("show", "fox.png", "--rerun")
    assert [path.name for path in Path().iterdir()] == ["fox.png"]
    again = hwaga("show", "fox.png", "--rerun", "--model", "mini")
    assert again.code == 1
    assert "Not identical" in again.err


@pytest.mark.parametrize("change", [{"loras": 3}, {"request": {"prompt": "x", "loras": 3}},
                                    {"request": {"prompt": "x", "composed": [1]}}, {"request": {"prompt": "x", "avoid": [1]}},
                                    {"request": {"prompt": "x", "loras": [{"name": "a", "weight": "b"}]}},
                                    {"request": {"prompt": "x", "composed": [["prompt", "b"]], "loras": [{}]}}])  # fmt: skip
def test_loras_of_a_strange_form_are_refused(hwaga: Command, change: dict[str, Any]) -> None:
    made = {
        "version": "0",
        "model": "mini",
        "weights": "0",
        "device": "cpu",
        "dtype": "float32",
        "request": {"prompt": "x"},
    }
    Path("odd.png").write_bytes(encode(Image.new("RGB", (8, 8)), "png", made_with={**made, **change}, parameters=""))
    assert "are damaged" in hwaga.refused("show", "odd.png")
