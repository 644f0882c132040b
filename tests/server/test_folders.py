"""Messages to clients name no folder of the server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dispatching import REAL, dispatching, ended, run

from hwaga.errors import StoreError
from hwaga.model_lookup import find_card
from hwaga.server import process
from hwaga.server.folders import own_folders, without_folders
from hwaga.server.keys import SqliteKeys
from hwaga.server.pictures import SqlitePictures
from hwaga.server.store import SqliteStore
from hwaga.settings import Settings

if TYPE_CHECKING:
    from conftest import Running

    Serve = Callable[..., contextlib.AbstractContextManager[Running]]


def test_files_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=str(tmp_path / "our data"), packs_dir="packs")
    folders = own_folders(settings, find_card("mini", settings.models))
    for said, told in (
        (f"{settings.loras / 'line.safetensors'} is not there.", "line.safetensors is not there."),
        (f"'{settings.server}' cannot be used.", "'the server's folder' cannot be used."),
        (f"packs/a.toml, and {Path.home() / 'x' / 'y'}", "a.toml, and x/y"),
        ("Send it to /v1/jobs, or 1/2 of it.", "Send it to /v1/jobs, or 1/2 of it."),
    ):
        assert without_folders(said, folders) == told


def test_a_lora_that_is_damaged_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the front looked."""
    monkeypatch.setattr(process, "WORKER", REAL)
    monkeypatch.setenv("HWAGA_DATA_DIR", str(tmp_path))
    loras = Settings.read().loras
    loras.mkdir(parents=True)
    (loras / "broken.safetensors").write_bytes(b"no such format")
    (loras / "gone.safetensors").symlink_to(tmp_path / "nowhere")

    async def test() -> None:
        async with dispatching(tmp_path / "server", models=["mini"], devices=("cpu",)) as dispatcher:
            for name in ("broken", "gone", "../../etc/passwd", "missing"):
                request = {"prompt": "a cat", "steps": 1, "loras": [{"name": name, "weight": 1.0}]}
                job = await ended(dispatcher, await dispatcher.submit("text2image", {"request": request}))
                assert job.error is not None
                assert job.error[0] == "LoraError"
                assert str(tmp_path) not in job.error[1]
                assert Path(name).name in job.error[1]

    run(test)


def test_what_the_front_says(serve: Serve, tmp_path: Path) -> None:
    with serve() as running:
        loras = tmp_path / "loras"
        loras.mkdir()
        (loras / "gone.safetensors").symlink_to(tmp_path / "nowhere")
        for path, body in (
            ("/v1/jobs", {}),
            ("/v1/images/generations", {}),
            ("/v1/images/generations", {"stream": True}),
        ):
            answer = running.client.post(path, json={"prompt": "a cat", "lora": ["gone"], **body})
            assert answer.status_code == 400
            assert "gone" in answer.text
            assert str(tmp_path) not in answer.text


def test_a_store_that_fails(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"'{tmp_path}/server/jobs.sqlite3' cannot be used: Input/output error. Choose another folder.")

    with serve() as running:
        done = running.submit(prompt="a cat")["id"]
        running.ended(done)
        of_jobs = [(SqliteStore, method) for method in ("submit", "get", "jobs", "check_room", "counts")]
        for kept_by, method in [*of_jobs, (SqliteKeys, "required")]:
            with monkeypatch.context() as patch:
                patch.setattr(kept_by, method, fail)
                answers = [
                    running.client.post("/v1/jobs", json={"prompt": "a cat"}),
                    running.client.get(f"/v1/jobs/{done}"),
                    running.client.get("/v1/jobs"),
                    running.client.get("/metrics"),
                ]
            broken = [answer for answer in answers if answer.status_code == 503]
            assert broken, method
            for answer in broken:
                assert str(tmp_path) not in answer.text
                assert "log says why" in answer.json()["error"]["message"]


def test_a_job_that_the_store_could_not_keep(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"{tmp_path} is broken.")

    with serve() as running:
        with monkeypatch.context() as patch:
            patch.setattr(SqlitePictures, "keep", fail)
            shown = running.ended(running.submit(prompt="a cat")["id"])
        assert shown["status"] == "failed"
        assert str(tmp_path) not in json.dumps(shown)


def test_a_model_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    with serve(models=[str(tmp_path / "no model")], worker=REAL) as running:
        said: list[str] = []

        def told() -> bool:
            said.append(running.client.get("/health/ready").text)
            return "no model" in said[-1]

        running.until(told)
        assert not any(str(tmp_path) in text for text in said)
