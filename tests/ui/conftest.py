"""The page in a real Chromium, against a real server with the bundled model. Without a Chromium these tests are skipped,
or fail where ``HWAGA_REQUIRE_BROWSER=1`` says that there must be one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from hwaga.image_file import encode
from hwaga.server.store import SqliteStore

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Server:
    """``hwaga serve`` as a process, on a port that stays the same when it is started again."""

    folder: Path
    port: int
    process: subprocess.Popen[str] | None = None
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "hwaga", "serve", "--port", str(self.port), "--model", "mini"]
        environment = {**os.environ, "HWAGA_DATA_DIR": str(self.folder)}
        self.process = process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if "Serving" in line:
                break
        else:
            pytest.fail("".join(self.log))
        threading.Thread(target=self.log.extend, args=(process.stderr,), daemon=True).start()

    def stop(self) -> None:
        """Ends it as a service manager would: what it is drawing is finished, and the queue kept."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None

    def get(self, path: str, **options: Any) -> Any:
        answer = httpx2.get(self.url + path, timeout=60, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, newest first."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while cursor is not None:
            page = self.get(f"/v1/jobs?limit=100{cursor and f'&cursor={cursor}'}")
            found += page["data"]
            cursor = page["next"]
        return found

    def picture(self, job: dict[str, Any], place: int = 0) -> bytes:
        return httpx2.get(self.url + job["images"][place]["url"], timeout=60).content


def _served(folder: Path) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(folder, port)
    server.start()
    return server


# For a module, not for good: while Playwright runs, no other test of the process can start an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    lacks = pytest.fail if os.environ.get("HWAGA_REQUIRE_BROWSER") == "1" else pytest.skip
    if CHROMIUM is None:
        lacks("No Chromium on the path. Install one (Debian: apt-get install chromium) to test the page.")
    try:
        from playwright import sync_api
    except ImportError:
        lacks("playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that draws, for all tests of a module."""
    found = _served(tmp_path_factory.mktemp("drawing"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def full_server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose gallery is full: 70 jobs, of which every tenth began with a picture."""
    folder = tmp_path_factory.mktemp("full")
    store = SqliteStore(folder / "server")
    for number in range(70):
        prompt = f"picture {number}" if number % 2 else f"그림 {number}"
        request = {"prompt": prompt, "width": 256, "height": 256, "seed": number}
        request |= {"style": "anime"} if number % 5 == 0 else {}
        image = Image.new("RGB", (256, 256), f"hsl({number * 5}, 60%, 60%)")
        png = encode(image, "png", made_with={"model": "mini", "request": {**request, "steps": 8}}, parameters="")
        body = {"request": request, "number": 1, "previews": True}
        store.submit("text2image" if number % 10 else "image2image", body, source=None if number % 10 else png)
        job = store.claim("test")
        assert job is not None
        store.finish(job.id, job.attempt, [png])
    store.close()
    found = _served(folder)
    yield found
    found.stop()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server: ``visit(server, locale="ko-KR", …)`` with the options of a browser's context.

    At the end, the page must have reported no fault, and have asked nobody but its server.
    """
    contexts, faults = [], []

    def visit(server: Server, *, path: str = "/", begun: bool = True, context: Any = None, **options: Any) -> Any:
        if context is None:
            # Without a GPU, what moves takes the time of a core; test_access tells both wishes apart.
            usual = {"viewport": {"width": 1280, "height": 860}, "locale": "en-US", "reduced_motion": "reduce"}
            context = browser.new_context(**{**usual, **options})
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on(
            "request",
            lambda request: (
                None
                if urlsplit(request.url).netloc in ("", urlsplit(server.url).netloc)
                else faults.append(f"external: {request.url}")
            ),
        )
        page.goto(server.url + path)
        if begun:
            page.locator("body.begun").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    # Chromium itself notes answers that are refusals, and connections that fail, which some tests are about.
    assert [fault for fault in faults if not re.match(r"Failed to load resource", fault)] == []
