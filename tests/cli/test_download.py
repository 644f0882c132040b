"""`hwaga download` and `hwaga models verify` from the outside; what a download withstands is tested in tests/weights."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from hub import Fault, HubServer

from hwaga.cards import ASSETS
from hwaga.cli.download import parse_rate
from hwaga.errors import DownloadError
from hwaga.model_lookup import built_in_cards

REPO = "Tongyi-MAI/Z-Image-Turbo"
PINNED = "f332072aa78be7aecdf3ee76d5c247082da564a6"
MODEL = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/model.safetensors": b"t" * 3000,
    "transformer/model.safetensors": b"d" * 5000,
    "vae/model.safetensors": b"v" * 2000,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with HubServer() as server:
        server.push(REPO, {**MODEL, "vae/model.bin": b"x"}, commit=PINNED)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


def test_a_model_from_nothing_to_verified(hwaga: Command, server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "models" / "z-image-turbo"
    assert "`hwaga download z-image-turbo` fetches" in hwaga.refused("text2image", "a fox", "-m", "z-image-turbo")
    assert "hwaga download z-image-turbo" in hwaga("doctor").out
    done = hwaga("download")
    assert (done.code, done.out) == (0, f"{folder}\n")
    assert "transformer/model.safetensors" in done.err
    assert "never fetched" in done.err
    assert "Licence of z-image-turbo (Tongyi-MAI/Z-Image-Turbo): Apache-2.0" in done.err
    assert "z-image-turbo (on this machine, verified)" in hwaga("models").out
    states = {model["name"]: model["state"] for model in json.loads(hwaga("models", "--json").out)}
    assert states["z-image-turbo"] == "on this machine, verified"
    assert hwaga("models", "verify").out.endswith(f"\n{folder}: 5 files checked, good.\n")
    assert "Nothing to fetch" in hwaga("download").err


def test_verify_ends_with_1_when_something_is_wrong(hwaga: Command, server: HubServer, tmp_path: Path) -> None:
    hwaga("download", "--to", "model")
    assert hwaga("models", "verify", "model").code == 0
    Path("model/vae/model.safetensors").write_bytes(b"w" * 2000)
    Path("model/model_index.json").unlink()
    done = hwaga("models", "verify", "model", "--json")
    assert done.code == 1
    assert "hwaga download" in done.err
    (report,) = json.loads(done.out)
    assert (report["damaged"], report["missing"]) == (["vae/model.safetensors"], ["model_index.json"])
    again = hwaga("models", "verify", "model")
    assert "missing  model/model_index.json" in again.out
    assert hwaga("download", "--to", "model").code == 0
    assert hwaga("models", "verify", "model").code == 0
    assert server.sent("vae/model.safetensors") == 4000
    assert server.sent("transformer/model.safetensors") == 5000


def test_a_dry_run_fetches_nothing(hwaga: Command, server: HubServer) -> None:
    shown = hwaga("download", "--dry-run", "--to", "model")
    assert "vae/model.safetensors" in shown.out
    plan = json.loads(hwaga("download", "--dry-run", "--to", "model", "--json", "--parts", "vae").out)
    assert plan["revision"] == PINNED
    assert [file["path"] for file in plan["files"]] == ["model_index.json", "vae/model.safetensors"]
    assert plan["to_fetch_bytes"] == 2002
    assert not Path("model").exists()
    assert server.content_requests() == []


def test_a_style_with_its_licence(hwaga: Command, server: HubServer, tmp_path: Path) -> None:
    """A built-in card's style, and one of a user's card: fetched, and listed with what its author allows."""
    path = "tokenizer/tokenizer.json"
    server.push(REPO, {**MODEL, path: (ASSETS / "mini" / path).read_bytes()}, commit=PINNED)
    shown = hwaga("download")
    assert "The style pixel_art is left out: " in shown.err
    assert "tarn59/pixel_art_style_lora_z_image_turbo is not there, or private" in shown.err
    wanted = ("prompt", "a fox", "-m", "z-image-turbo", "--style", "pixel_art")
    assert "`hwaga download z-image-turbo --parts styles` fetches it" in hwaga.refused(*wanted)
    for style in built_in_cards(Path("models"))["z-image-turbo"].styles.values():
        assert style.source is not None
        server.push(style.source.repo, {style.source.file: b"lora"}, commit=style.source.revision)
    done = hwaga("download", "--parts", "styles", "--json")
    assert {entry["license"] for entry in json.loads(done.out)["licenses"]} == {"Apache-2.0"}
    assert "Licence of pixel_art (tarn59/pixel_art_style_lora_z_image_turbo): Apache-2.0" in done.err
    pixels = json.loads(hwaga("lora", "list", "-m", "z-image-turbo", "--json").out)[0]
    assert (pixels["name"], pixels["license"], pixels["bytes"]) == ("pixel_art_style_z_image_turbo", "Apache-2.0", 4)
    (turbo,) = [model for model in json.loads(hwaga("models", "--json").out) if model["name"] == "z-image-turbo"]
    assert turbo["style_sources"]["pixel_art"]["present"] is True
    composed = hwaga(*wanted)
    assert "Pixel art style." in composed.out
    assert "LoRA: pixel_art_style_z_image_turbo at 1" in composed.err

    text = (ASSETS / "cards" / "z-image-turbo.toml").read_text(encoding="utf-8").partition("# Styles")[0]
    source = 'source = { repo = "somebody/ink", file = "ink.safetensors", license = "CC-BY-4.0" }'
    Path("mine.toml").write_text(f'{text}\n[styles.ink]\ntitle = {{ en = "Ink" }}\nwording = "Inked."\n{source}\n')
    server.push("somebody/ink", {"ink.safetensors": b"ink"})
    assert "Licence of ink (somebody/ink): CC-BY-4.0" in hwaga("download", "mine.toml").err
    assert Path("loras/ink.safetensors").read_bytes() == b"ink"
    assert "CC-BY-4.0" in hwaga("lora", "list", "-m", "mine.toml").out
    assert "LoRA: ink at 1" in hwaga("prompt", "a fox", "-m", "mine.toml", "--style", "ink").err


def test_a_style_that_is_given_out_on_conditions(hwaga: Command, server: HubServer, tmp_path: Path) -> None:
    """The model is there, with a note; `--parts styles` says why not."""
    for style in built_in_cards(Path("models"))["z-image-turbo"].styles.values():
        assert style.source is not None
        server.push(style.source.repo, {style.source.file: b"lora"}, commit=style.source.revision)
        server.gated[style.source.repo] = (403, "GatedRepo")
    done = hwaga("download", "--json")
    assert done.code == 0
    assert "The style pixel_art is left out: tarn59/pixel_art_style_lora_z_image_turbo is given out on" in done.err
    told = json.loads(done.out)
    assert {entry["style"] for entry in told["unavailable_styles"]} == {"pixel_art", "childrens_drawing"}
    assert "z-image-turbo (on this machine, verified)" in hwaga("models").out
    assert "is given out on conditions" in hwaga.refused("download", "--parts", "styles")
    assert "left out" not in hwaga("download", "--parts", "vae").err
    server.gated.clear()
    assert "left out" not in hwaga("download").err
    lora = tmp_path / "data" / "models" / "z-image-turbo" / "loras" / "pixel_art_style_z_image_turbo.safetensors"
    lora.unlink()
    checked = hwaga("models", "verify")
    assert checked.code == 0
    assert f"absent   {lora}, of a style. The model is whole without.\n" in checked.out
    (report,) = json.loads(hwaga("models", "verify", "--json").out)
    assert (report["good"], report["absent_styles"]) == (True, [f"loras/{lora.name}"])


def test_a_folder_has_the_styles_that_lie_there(hwaga: Command, server: HubServer) -> None:
    """A model that was fetched to another place is named by its folder."""
    source = built_in_cards(Path("models"))["z-image-turbo"].styles["pixel_art"].source
    assert source is not None
    server.push(source.repo, {source.file: b"lora"}, commit=source.revision)
    index = {**MODEL, "model_index.json": b'{"_class_name": "ZImagePipeline"}'}
    server.push(REPO, index, commit=PINNED)
    hwaga("download", "--to", "model")
    (own,) = json.loads(hwaga("lora", "list", "-m", "model", "--json").out)
    assert (own["name"], own["model"], own["license"]) == ("pixel_art_style_z_image_turbo", "model", "Apache-2.0")


def test_parts_and_json(hwaga: Command, server: HubServer) -> None:
    done = hwaga("download", "--parts", "vae, transformer", "--connections", 1, "--limit-rate", "1G", "--json")
    values = json.loads(done.out)
    assert values["verified"] is True
    assert values["left_out"] == ["vae/model.bin"]
    assert "still to be fetched: 1." in done.err
    assert "z-image-turbo (partly fetched)" in hwaga("models").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["download", "mini"], "comes with Hwaga"),
        (["download", "z-image"], "Did you mean z-image-turbo"),
        (["download", "--parts", "unet"], "no part 'unet'"),
        (["download", "--parts", " ,"], "names no part"),
        (["download", "--limit-rate", "fast"], "500K"),
        (["download", "--connections", "0"], "connections"),
        (["download", "--revision", "nowhere"], "no such revision"),
        (["models", "verify"], "No model was fetched yet"),
        (["models", "verify", "mini"], "mini was not fetched"),
        (["models", "verify", "minni"], "Did you mean mini"),
        (["models", "verify", "x" * 300], "There is no model"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(
    hwaga: Command, server: HubServer, arguments: list[str], words: str
) -> None:
    assert words in hwaga.refused(*arguments)
    assert list(Path().iterdir()) == []


def test_offline_and_damaged_are_said(hwaga: Command, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults["vae/model.safetensors"].extend([Fault(corrupt_at=1)] * 2)
    assert "arrived damaged twice" in hwaga.refused("download")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "Unset it" in hwaga.refused("download")


def test_a_terminal_sees_the_bar(server: HubServer, tmp_path: Path) -> None:
    server.pause = 0.3
    command = [sys.executable, "-c", "from hwaga.cli import main; main()", "download", "--to", str(tmp_path / "model")]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True, check=True)
    os.close(follower)
    shown = os.read(leader, 65536).decode(errors="replace")
    os.close(leader)
    assert done.stdout == f"{tmp_path / 'model'}\n"
    assert "Fetching" in shown
    assert "KiB" in shown


@pytest.mark.parametrize(("text", "rate"), [("500", 500), ("20M", 20 * 2**20), ("1.5g", 3 * 2**29), ("8KB", 8192)])
def test_rates_are_read(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "M", "1T", "1e9", "20 M/s"])
def test_other_rates_are_not(text: str) -> None:
    with pytest.raises(DownloadError):
        parse_rate(text)
