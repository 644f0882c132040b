from __future__ import annotations

import json

from command import Command


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
