"""Settings: the environment over the file over the defaults."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwaga import Engine, Settings, SettingsError


def config_file(folder: Path, text: str) -> dict[str, str]:
    """An environment whose configuration file holds that text."""
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return {"HWAGA_CONFIG": str(path)}


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "share")}
    settings = Settings.read(environment)
    assert replace(settings, data_dir="") == Settings()
    assert settings.models == tmp_path / "share" / "hwaga" / "models"
    assert Settings().model == "mini"
    assert Settings().device is None
    assert Settings().dtype is None


def test_environment_over_file_over_defaults(tmp_path: Path) -> None:
    environment = config_file(tmp_path, 'model = "z-image-turbo"\ndevice = "cuda:1"\n')
    assert replace(Settings.read(environment), data_dir="") == Settings(model="z-image-turbo", device="cuda:1")
    environment |= {"HWAGA_DEVICE": "cpu", "HWAGA_DTYPE": "float32", "HWAGA_DATA_DIR": str(tmp_path)}
    expected = Settings(model="z-image-turbo", device="cpu", dtype="float32", data_dir=str(tmp_path))
    assert Settings.read(environment) == expected


@pytest.mark.parametrize("name", ["model", "device", "dtype", "data_dir"])
def test_every_setting_from_both_places(tmp_path: Path, name: str) -> None:
    environment = config_file(tmp_path, f'{name} = "from the file"')
    assert getattr(Settings.read(environment), name) == "from the file"
    assert getattr(Settings.read(environment | {f"HWAGA_{name.upper()}": "from outside"}), name) == "from outside"
    # An empty variable is how a shell spells "not set".
    assert getattr(Settings.read(environment | {f"HWAGA_{name.upper()}": ""}), name) == "from the file"


def test_file_in_the_platforms_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    folder = tmp_path / "hwaga"
    folder.mkdir()
    (folder / "config.toml").write_text('model = "파일"', encoding="utf-8")
    assert Settings.read({"XDG_CONFIG_HOME": str(tmp_path)}).model == "파일"

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    support = tmp_path / "Library" / "Application Support" / "hwaga"
    support.mkdir(parents=True)
    (support / "config.toml").write_text('model = "mac"')
    assert Settings.read({}).model == "mac"
    assert Settings.read({}).models == support / "models"


def test_the_process_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HWAGA_MODEL", "from the process")
    assert Settings.read().model == "from the process"


def test_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(data_dir=str(tmp_path / "data")).models == tmp_path / "data" / "models"
    assert Settings(data_dir="~/data").models == tmp_path / "data" / "models"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert Settings().models == tmp_path / "share" / "hwaga" / "models"


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model = ", "cannot be read"),
        ("[engine]\nmodel = 3", "engine is not a setting"),
        ('modle = "mini"', "modle is not a setting. Settings are model, device, dtype, precision, vram, ram, data_dir"),
        ("model = 3", "model must be a text in quotes, not 3"),
        ("dtype = true", "dtype must be a text in quotes, not True"),
        ('device = ["cpu"]', "device must be a text in quotes"),
        ("model = " + "[" * 5000 + "]" * 5000, "cannot be read"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read(config_file(tmp_path, text))
    assert says in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_a_file_that_the_environment_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml cannot be read"):
        Settings.read({"HWAGA_CONFIG": str(tmp_path / "nowhere.toml")})
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.read({"HWAGA_CONFIG": str(tmp_path)})


def test_a_home_that_nobody_has() -> None:
    with pytest.raises(SettingsError, match="~nobody-of-that-name"):
        Settings.read({"HWAGA_CONFIG": "~nobody-of-that-name/config.toml"})
    with pytest.raises(SettingsError, match="~nobody-of-that-name"):
        Engine.open(settings=Settings(data_dir="~nobody-of-that-name/data"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    environment = config_file(tmp_path, "")
    (tmp_path / "config.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(SettingsError, match=r"config\.toml cannot be read"):
        Settings.read(environment)


def test_the_engine_opens_the_settings_model(tmp_path: Path) -> None:
    with Engine.open(settings=Settings(dtype="bf16", device="cpu")) as engine:
        assert engine.card.name == "mini"
        assert str(engine.dtype) == "torch.bfloat16"
        assert engine.device.type == "cpu"
    with Engine.open(dtype="float32", settings=Settings(dtype="bfloat16", device="cpu")) as engine:
        assert str(engine.dtype) == "torch.float32", "an argument goes over the settings"


def test_a_home_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's home may be hidden from it, and nobody has set anything there. A file that was named is another matter."""

    def hidden(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", hidden)
    assert Settings.read({"HOME": str(tmp_path), "HWAGA_MODEL": "mini"}).model == "mini"
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.read({"HWAGA_CONFIG": str(tmp_path / "nothing.toml")})


def test_the_unit_looks_into_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    unit = (Path(__file__).parents[1] / "deploy/hwaga.service").read_text()
    lines = [line.removeprefix("Environment=") for line in unit.splitlines() if line.startswith("Environment=")]
    environment = dict(item.split("=", 1) for line in lines for item in line.split())
    settings = Settings.read(environment)
    assert settings.server == Path("/var/lib/hwaga/server")
    assert replace(settings, data_dir="") == Settings(model="z-image-turbo")
    assert environment["XDG_CONFIG_HOME"] == "/etc"
    assert Settings.read({**environment, "HWAGA_DATA_DIR": ""}).server == settings.server
