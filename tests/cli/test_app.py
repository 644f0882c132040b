from __future__ import annotations

from command import Command

from hwaga.version import __version__


def test_version(hwaga: Command) -> None:
    assert hwaga("--version").out == f"{__version__}\n"


def test_no_command_shows_the_commands(hwaga: Command) -> None:
    shown = hwaga()
    for name in ("text2image", "image2image", "prompt", "styles", "industries", "show", "models", "download", "doctor"):
        assert name in shown.out


def test_an_unknown_command_is_a_usage_error(hwaga: Command) -> None:
    assert "text3image" in hwaga.refused("text3image")
