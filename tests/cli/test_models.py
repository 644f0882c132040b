from __future__ import annotations

import json
from pathlib import Path

from command import Command

from hwaga.cards import ASSETS


def test_models_are_listed(hwaga: Command) -> None:
    shown = hwaga("models").out
    assert "mini (on this machine, the default)" in shown
    assert "z-image-turbo (not on this machine)" in shown
    models = {model["name"]: model for model in json.loads(hwaga("models", "--json").out)}
    mini, turbo = models["mini"], models["z-image-turbo"]
    assert (mini["present"], turbo["present"]) == (True, False)
    assert turbo["aspects"]["16:9"] == [1344, 768]
    assert list(mini["styles"]) == ["realistic", "semi_realistic", "anime"]
    assert mini["style_sources"] == {}
    pixels = turbo["style_sources"]["pixel_art"]
    assert (pixels["license"], pixels["present"]) == ("Apache-2.0", False)
    assert "pixel_art (LoRA of tarn59/pixel_art_style_lora_z_image_turbo, Apache-2.0, not fetched)" in " ".join(
        shown.split()
    )


def test_a_bad_file_of_styles_is_its_own_model_s_alone(hwaga: Command, tmp_path: Path) -> None:
    own = tmp_path / "data" / "models" / "z-image-turbo" / "styles.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[styles")
    shown = hwaga("models")
    assert shown.code == 0
    assert "mini (on this machine, the default)" in shown.out
    assert "styles.tomlcannotberead" in "".join(shown.out.split())  # wherever a table of this width breaks it
    errors = {model["name"]: model["error"] for model in json.loads(hwaga("models", "--json").out)}
    assert f"{own} cannot be read" in errors.pop("z-image-turbo")
    assert set(errors.values()) == {None}
    added = hwaga("lora", "add", ASSETS / "mini/loras/flat.safetensors", "--name", "mine")
    assert (added.code, added.out) == (0, "mine\n")
    assert f"{own}cannotberead" in "".join(added.err.split())
    assert f"{own} cannot be read" in hwaga.refused("prompt", "a fox", "-m", "z-image-turbo")
