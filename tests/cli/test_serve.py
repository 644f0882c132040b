"""``hwaga serve`` as a process of its own, and ``hwaga keys``."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from hwaga.families import FAMILIES

if TYPE_CHECKING:
    from command import Command


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWAGA_DATA_DIR", str(tmp_path))


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process and its address, once it listens."""
    with log.open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-m", "hwaga", "serve", "--port", "0", *arguments], stderr=errors)
    try:
        while not (said := re.search(r"http://\S+:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        yield process, said[0]
    finally:
        process.kill()
        process.wait()


def test_what_may_be_asked_for_at_once(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--batch", "2", "--rate-limit", "2", "--job-timeout", "300")
    with serving(tmp_path / "log", *options) as (_, url), httpx2.Client(base_url=url, timeout=60) as client:
        body = {"prompt": "a red apple", "steps": 1, "seed": 7}
        jobs = [client.post("/v1/jobs", json=body).json()["id"] for _ in range(2)]
        assert client.post("/v1/jobs", json=body).status_code == 429
        events = []
        for job in jobs:  # they waited for the model to be loaded, so that both were there
            with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
                events.append(
                    [line.removeprefix("id: ") for line in stream.iter_lines() if line.startswith(("id", "event"))]
                )
        numbers = {(kind.removeprefix("event: "), place): int(id) for place, own in enumerate(events)
                   for id, kind in zip(own[::2], own[1::2], strict=True)}  # fmt: skip
        assert max(numbers["started", 0], numbers["started", 1]) < min(numbers["step", 0], numbers["step", 1])
        assert {("succeeded", 0), ("succeeded", 1)} <= numbers.keys()


def test_from_a_start_to_an_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(log, "--device", "cpu") as (process, url), httpx2.Client(base_url=url, timeout=60) as client:
        body = {"prompt": "a red apple", "steps": 2, "seed": 7}
        first = client.post("/v1/jobs", json=body).json()["id"]  # it waits for the model to be loaded
        with client.stream("GET", f"/v1/jobs/{first}/events") as stream:
            assert "event: succeeded" in list(stream.iter_lines())
        assert client.get("/health/ready").status_code == 200
        running = client.post("/v1/jobs", json=body | {"steps": 20}).json()["id"]
        waiting = client.post("/v1/jobs", json=body).json()["id"]
        while client.get(f"/v1/jobs/{running}").json()["status"] != "running":
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while client.post("/v1/jobs", json=body).status_code != 503:
            time.sleep(0.01)
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/v1/jobs" and line["status"] == 503 for line in lines)
    assert "apple" not in log.read_text()
    # The job that ran was finished; the other is drawn after the next start.
    with serving(tmp_path / "second log") as (process, url), httpx2.Client(base_url=url, timeout=60) as client:
        assert client.get(f"/v1/jobs/{running}").json()["status"] == "succeeded"
        with client.stream("GET", f"/v1/jobs/{waiting}/events") as stream:
            assert "event: succeeded" in list(stream.iter_lines())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded shows in /proc")
def test_the_process_that_answers_never_loads_torch(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "log", "--device", "cpu") as (process, url),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        asked = {"prompt": "a red apple", "style": "anime", "industry": "auto", "lora": ["line:0.5"]}
        picture = client.post("/v1/images/generations", json={**asked, "steps": 1, "response_format": "url"}).json()[
            "data"
        ][0]
        assert client.post("/v1/prompts/compose", json={"prompt": "a cat"}).status_code == 200
        edited = client.post(
            "/v1/images/edits",
            data={"prompt": "a cat", "steps": 1},
            files={"image": client.get(picture["url"]).content},
        )
        assert edited.status_code == 200
        for path in ("/v1/plan", "/v1/status", "/v1/styles", "/v1/loras", "/v1/jobs", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200
        proc = Path("/proc")
        (worker,) = (proc / f"{process.pid}/task/{process.pid}/children").read_text().split()
        has_torch = ["libtorch" in (proc / f"{pid}/maps").read_text() for pid in (process.pid, worker)]
        assert has_torch == [False, True]


def test_workers_keep_to_what_they_are_given(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--precision", "int8", "--ram", "1MiB")
    with serving(tmp_path / "log", *arguments) as (_, url), httpx2.Client(base_url=url, timeout=60) as client:
        end = time.monotonic() + 60
        while "This needs" not in (said := client.get("/health/ready").text):
            assert time.monotonic() < end, said
            time.sleep(0.05)
    with serving(tmp_path / "log", *arguments[:4]) as (_, url), httpx2.Client(base_url=url, timeout=60) as client:
        end = time.monotonic() + 60
        while not (plans := client.get("/v1/plan").json()["data"]):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert plans[0]["precision"] == "int8"
        assert {part["name"] for part in plans[0]["parts"] if part["quantized"]} >= {"denoiser", "text_encoder"}


def test_what_keeps_it_from_starting(hwaga: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be listened on" in hwaga.refused("serve", "--port", port)
    assert "cannot be listened on" in hwaga.refused("serve", "--host", "203.0.113.9", "--port", 0)
    assert "hwaga keys add" in hwaga.refused("serve", "--host", "0.0.0.0", "--port", 0)
    assert "There is no model" in hwaga.refused("serve", "--model", "nothing")
    assert "`hwaga download z-image-turbo` fetches" in hwaga.refused("serve", "--model", "z-image-turbo", "--port", 0)
    assert "Two of the models are called 'mini'" in hwaga.refused("serve", "--model", "mini", "--model", "mini")
    assert "--keep-bytes must be a size" in hwaga.refused("serve", "--keep-bytes", "much")
    assert "--vram (HWAGA_VRAM) must be a size" in hwaga.refused("serve", "--vram", "much")
    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, "z_image", FAMILIES["z_image"]._replace(packages=("json", "no_such_package")))
        said = hwaga.refused("serve", "--port", 0)
        assert "mini is drawn with no_such_package, not installed here" in said
        assert "pip install '.[server,z_image]'" in said
    monkeypatch.delitem(sys.modules, "hwaga.server.api", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install '.[server]'" in hwaga.refused("serve")


def test_keys(hwaga: Command) -> None:
    assert "hwaga keys add" in hwaga("keys", "list").err
    added = hwaga("keys", "add", "for the shop")
    secret = added.out.strip()
    key = secret.split("_")[1]
    assert key in added.err
    assert secret not in added.err
    listed = hwaga("keys", "list").out
    assert key in listed
    assert "for the shop" in listed
    assert secret not in listed
    assert "Remove them first" in hwaga.refused("keys", "open")
    removed = hwaga("keys", "remove", key)
    assert removed.code == 0
    assert "hwaga keys open" in removed.err
    assert "hwaga keys open" in hwaga("keys", "list").err
    assert key not in hwaga("keys", "list").out
    assert "There is no API key" in hwaga.refused("keys", "remove", key)
    assert "Everyone on this machine is let in" in hwaga("keys", "open").err
    assert "hwaga keys open" not in hwaga("keys", "list").err


def test_another_address_asks_for_the_key(hwaga: Command, tmp_path: Path) -> None:
    secret = hwaga("keys", "add", "mine").out.strip()
    options = ("--host", "0.0.0.0", "--allow-host", "pictures.example")
    with serving(tmp_path / "log", *options) as (_, url):
        port = url.rpartition(":")[2]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            named = {"Host": "pictures.example"}
            assert client.get("/v1/models", headers=named).status_code == 401
            allowed = {"Authorization": f"Bearer {secret}"} | named
            assert client.get("/v1/models", headers=allowed).status_code == 200
            assert client.get("/v1/models", headers=allowed | {"Host": "other.example"}).status_code == 403
