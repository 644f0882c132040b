from __future__ import annotations

import json

from command import Command


def test_models_are_listed(hwaga: Command) -> None:
    shown = hwaga("models").out
    assert "mini (on this machine, the default)" in shown
    assert "z-image-turbo (not on this machine)" in shown
    mini, turbo, *_ = json.loads(hwaga("models", "--json").out)
    assert (mini["present"], turbo["present"]) == (True, False)
    assert turbo["aspects"]["16:9"] == [1344, 768]
    assert list(mini["styles"]) == ["realistic", "semi_realistic", "anime"]
