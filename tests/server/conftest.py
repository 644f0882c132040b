"""A server in a thread, on a port of its own, with a worker that draws nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from hwaga.cards import ModelCard
from hwaga.model_lookup import find_card
from hwaga.server import dispatcher as dispatching
from hwaga.server import process, supervisor
from hwaga.server.api import create_app
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.jobs import TERMINAL
from hwaga.server.listener import bind
from hwaga.server.security import Access
from hwaga.server.store import SqliteStore
from hwaga.settings import Settings

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatchers start the fake worker, and start it again at once."""
    monkeypatch.setattr(process, "WORKER", FAKE)
    monkeypatch.setattr(supervisor, "BACK_OFF", (0.01, 0.05))
    for module in (dispatching, supervisor):
        monkeypatch.setattr(module, "POLL", 0.05)


def until(condition: Callable[[], Any]) -> None:
    """Waits for what must happen; a minute is no limit that a machine's speed decides about."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@dataclass
class Running:
    """A server that answers."""

    app: Any
    dispatcher: Dispatcher
    store: SqliteStore
    url: str
    client: httpx2.Client
    loop: asyncio.AbstractEventLoop

    until = staticmethod(until)

    def openai(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def ready(self) -> None:
        until(lambda: self.client.get("/health/ready").status_code == 200)

    def submit(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def drain(self, *, until: Path) -> None:
        """Stops the drawing; what runs goes on once the file ``until`` is there."""
        drained = asyncio.run_coroutine_threadsafe(self.dispatcher.drain(60), self.loop)
        self.until(self.dispatcher._stopping.is_set)
        until.touch()
        drained.result(60)

    def ended(self, job: str) -> dict[str, Any]:
        until(lambda: self.store.get(job).status in TERMINAL)
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{job}").json()
        return found


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    models: Sequence[str] = (),
    cards: Sequence[ModelCard] = (),
    batch: int = 1,
    access: Access | None = None,
    worker: tuple[str, ...] = FAKE,
    log_prompts: bool = False,
    **options: Any,
) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "WORKER", worker)
        for module in (dispatching, supervisor):
            patch.setattr(module, "POLL", 0.05)
        patch.setattr(supervisor, "BACK_OFF", (0.05, 0.05))
        store = SqliteStore(folder / "server", **options)
        dispatcher = Dispatcher(store, models=models, batch=batch)
        settings = Settings(data_dir=str(folder))
        served = cards or [find_card("mini", settings.models)]
        app = create_app(dispatcher, served, settings, access or Access(), log_prompts=log_prompts)
        listening = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([listening])

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            until(lambda: server.started or not thread.is_alive())
            with httpx2.Client(base_url=url, timeout=60) as client:
                yield Running(app, dispatcher, store, url, client, loops[0])
        finally:
            server.should_exit = True
            thread.join()
            listening.close()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Makes a server of its own for a test; see ``running``."""
    return functools.partial(running, tmp_path)


@pytest.fixture(scope="module")
def serve_from() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """As ``serve``, from a folder that is given."""
    return running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests of a file."""
    with running(tmp_path_factory.mktemp("served")) as found:
        yield found
