"""What this machine's owner has set, once: environment variables over a configuration file over defaults.

    HWAGA_MODEL       model       the model used when none is named; "mini", the bundled one, unless set
    HWAGA_DEVICE      device      "cuda", "cuda:1", "mps" or "cpu"; the fastest present unless set
    HWAGA_DTYPE       dtype       "bfloat16", "float32" or, for SDXL, "float16"; what suits the device unless set
    HWAGA_PRECISION   precision   "full" or "bf16"; "int8", "fp8" or "int4" to keep the large weights in fewer bits; "auto", the
                                  default, is "full" wherever that fits in any way
    HWAGA_VRAM        vram        most that Hwaga may take of the GPU, such as "8 GiB"; what is free unless set
    HWAGA_RAM         ram         most that it may take of the machine's memory; what is free unless set
    HWAGA_DATA_DIR    data_dir    where models are kept; the platform's data folder unless set
    HWAGA_PACKS_DIR   packs_dir   a folder of your own styles and industries; only the built-in ones unless set
    HWAGA_LORA_CACHE  lora_cache  memory for LoRAs that wait to be used again, such as "512 MiB"; 1 GiB unless set

The file is TOML at ``$HWAGA_CONFIG``, or ``hwaga/config.toml`` in the platform's configuration folder.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from hwaga.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """See the module's docstring."""

    model: str = "mini"
    device: str | None = None
    dtype: str | None = None
    precision: str = "auto"
    vram: str = ""
    ram: str = ""
    data_dir: str = ""
    packs_dir: str = ""
    lora_cache: str = "1 GiB"

    def __post_init__(self) -> None:
        _ = self.lora_bytes
        for name in ("vram", "ram"):
            bytes_of(name, getattr(self, name))

    @property
    def models(self) -> Path:
        """The folder that fetched models lie in, one folder each."""
        return _home(self.data_dir or str(_platform_folder("DATA", os.environ))) / "models"

    @property
    def loras(self) -> Path:
        """The folder of the user's own LoRAs."""
        return _home(self.data_dir or str(_platform_folder("DATA", os.environ))) / "loras"

    @property
    def server(self) -> Path:
        """The folder of the server's jobs and pictures."""
        return _home(self.data_dir or str(_platform_folder("DATA", os.environ))) / "server"

    @property
    def lora_bytes(self) -> int:
        """Bytes of device memory for LoRAs that wait to be used again."""
        try:
            return parse_bytes(self.lora_cache)
        except ValueError as error:
            raise SettingsError(f"HWAGA_LORA_CACHE (lora_cache) {error}") from None

    @property
    def packs(self) -> Path | None:
        """The folder of the user's own prompt packs, if there is one."""
        return _home(self.packs_dir) if self.packs_dir else None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Settings from the environment and the configuration file.

        Raises:
            SettingsError: the file is missing where the environment names it, is no TOML, or holds an unknown key.
        """
        named = environment.get("HWAGA_CONFIG")
        path = _home(named) if named else _platform_folder("CONFIG", environment) / "config.toml"
        names = [field.name for field in fields(cls)]
        values: dict[str, str] = {}
        if named or _is_file(path):
            try:
                table = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
                raise SettingsError(f"The configuration file {path} cannot be read: {error}.") from error
            for name, value in table.items():
                if name not in names:
                    raise SettingsError(f"{path}: {name} is not a setting. Settings are {', '.join(names)}.")
                if not isinstance(value, str):
                    raise SettingsError(f"{path}: {name} must be a text in quotes, not {value!r}.")
                values[name] = value
        for name in names:
            value = environment.get(f"HWAGA_{name.upper()}")
            if value:
                values[name] = value
        return cls(**{"data_dir": str(_platform_folder("DATA", environment)), **values})


def bytes_of(name: str, size: int | str | None) -> int | None:
    """Bytes of a limit that may be left out.

    Raises:
        SettingsError: it is no size.
    """
    if not size:
        return None
    try:
        return size if isinstance(size, int) else parse_bytes(size)
    except ValueError as error:
        raise SettingsError(f"--{name} (HWAGA_{name.upper()}) {error}") from None


def parse_bytes(text: str) -> int:
    """Bytes of "512 MiB", "8GiB", "20G" or "1000000"; K, M, G and T are powers of 1024.

    Raises:
        ValueError: the text is of another form.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT])(?:i?B)?|B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"must be a size such as 512 MiB or 8 GiB, not {text!r}.")
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def _platform_folder(kind: str, environment: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/hwaga").expanduser()
    default = {"DATA": "~/.local/share", "CONFIG": "~/.config"}[kind]
    return Path(environment.get(f"XDG_{kind}_HOME") or default).expanduser() / "hwaga"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a home that this process may not look into, as a service's; before Python 3.14 that is raised
        return False


def _home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"The folder {path} is in a home that cannot be told: {error}. Write it out.") from error
