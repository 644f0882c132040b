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

from hwaga.cli.download import parse_rate
from hwaga.errors import DownloadError

REPO = "Tongyi-MAI/Z-Image-Turbo"
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
        server.push(REPO, {**MODEL, "vae/model.bin": b"x"})
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
    assert hwaga("models", "verify").out == f"{folder}: 5 files checked, good.\n"
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
    assert plan["revision"] == server.branches[REPO, "main"]
    assert [file["path"] for file in plan["files"]] == ["model_index.json", "vae/model.safetensors"]
    assert plan["to_fetch_bytes"] == 2002
    assert not Path("model").exists()
    assert server.content_requests() == []


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
        (["models", "verify", "mini"], "no verified.json to compare with"),
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
