"""Takes the screenshots of the page in docs/images: a server with the bundled model, a few pictures, and a headless Chromium.

python examples/page_screenshots.py            # needs playwright, Chromium and a font with Korean (Debian: fonts-noto-cjk)
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs" / "images"
PICTURES: list[dict[str, Any]] = [
    {"prompt": "a red apple on a yellow background"},
    {"prompt": "하늘색 배경의 펭귄"},
    {"prompt": "a slice of pizza on a purple background"},
    {"prompt": "노란 배경 위의 토끼"},
    {"prompt": "a tulip on a mint background", "use": "poster"},
    {"prompt": "초록 배경에 자동차", "use": "banner"},
    {"prompt": "딸기, 분홍색 배경", "style": "anime"},
    {"prompt": "a sunflower on white"},
    {"prompt": "햄버거, 주황색 배경", "style": "realistic"},
    {"prompt": "a hamburger, orange background", "style": "semi_realistic"},
    {"prompt": "파란 배경의 고양이"},
    {"prompt": "a cup of coffee on a mint background", "style": "anime"},
    {"prompt": "보라색 배경에 왕관"},
    {"prompt": "a house on a yellow background"},
]
WAIT = 120_000  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder: Path = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as data:
        log = Path(data) / "log"
        command = [sys.executable, "-m", "hwaga", "serve", "--port", "0", "--model", "mini"]
        with log.open("w") as written:  # a pipe that nobody reads would fill up, and stop the server
            server = subprocess.Popen(command, stderr=written, env={**os.environ, "HWAGA_DATA_DIR": data})
        try:
            while (found := re.search(r"http://[\d.:]*\d", log.read_text())) is None:
                time.sleep(0.1)
            url = found[0]
            finished = [make(url, seed=100, **picture) for picture in PICTURES]
            apple = fetch(f"{url}{finished[0]['images'][0]['url']}")
            start = base64.b64encode(apple).decode()
            make(url, prompt="a peach on a yellow background", image=start, strength=0.85, seed=4)
            with sync_playwright() as playwright:
                path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
                take_all(browser, url, folder)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def fetch(url: str, **body: Any) -> bytes:
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        content: bytes = answer.read()
        return content


def make(url: str, **body: Any) -> dict[str, Any]:
    """A finished job."""
    job: dict[str, Any] = json.loads(fetch(f"{url}/v1/jobs", **body))
    while job["status"] in ("queued", "running"):
        time.sleep(0.1)
        job = json.loads(fetch(f"{url}/v1/jobs/{job['id']}"))
    assert job["status"] == "succeeded", job
    return job


def opened(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator(".grid li.drawn").nth(5).wait_for(timeout=WAIT)
    page.get_by_text(re.compile("^(Ready|준비됨)$")).wait_for(timeout=WAIT)
    return page


def draw(page: Page, prompt: str, style: str, number: int) -> None:
    page.fill("#prompt", prompt)
    page.locator(f".swatch[data-style={style}]").click()
    for _ in range(number - 1):
        page.locator("#more").click()
    page.locator("#tokens").wait_for()
    page.click("#draw")
    page.mouse.move(0, 0)
    page.locator(".frame img:not([hidden])").nth(number - 1).wait_for(timeout=WAIT)


def drawn(page: Page) -> None:
    page.locator("#work").wait_for(state="hidden", timeout=WAIT)


def take(page: Page) -> Image.Image:
    page.wait_for_timeout(700)  # until what moves has come to rest
    return Image.open(io.BytesIO(page.screenshot()))


def save(image: Image.Image, path: Path) -> None:
    image.convert("RGB").save(path, quality=82, method=6)
    print(f"{path}: {path.stat().st_size} bytes")


def take_all(browser: Browser, url: str, folder: Path) -> None:
    desktop = {"viewport": {"width": 1440, "height": 900}}
    page = opened(browser, url, **desktop, locale="en-US")
    draw(page, "a red apple on a cream background", "anime", 3)
    save(take(page), folder / "page-desktop.webp")
    drawn(page)

    page = opened(browser, url, viewport={"width": 1440, "height": 1000}, locale="ko-KR")
    page.fill("#prompt", "노란 배경의 빨간 사과, 카페 신메뉴 포스터")
    page.locator(".use-choice").nth(4).click()
    page.locator("#industry").select_option("cafe")
    page.locator("#reads summary").click()
    page.locator("#notes li").first.wait_for()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    save(take(page), folder / "page-korean.webp")

    page = opened(browser, url, **desktop, locale="en-US", color_scheme="dark")
    page.get_by_role("button", name="a peach on a yellow background").click()
    page.locator(".stage.drawn").wait_for()
    page.get_by_role("button", name="Compare").click()
    save(take(page), folder / "page-dark.webp")

    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    page = opened(browser, url, **phone, locale="ko-KR")
    page.fill("#prompt", "분홍색 배경의 딸기")
    page.locator(".swatch[data-style=realistic]").click()
    page.locator("#tokens").wait_for()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    shots = [take(page)]
    page.locator("#draw").click()
    page.locator(".frame img:not([hidden])").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(300)
    shots.append(Image.open(io.BytesIO(page.screenshot())))
    drawn(page)
    page.evaluate("document.querySelector('.gallery-head').scrollIntoView()")
    shots.append(take(page))
    page.locator(".tile").nth(3).tap()
    page.locator(".stage.drawn").wait_for()
    shots.append(take(page))
    gap = 40
    sheet = Image.new("RGB", (4 * 780 + 5 * gap, 1688 + 2 * gap), "#cfc6b8")
    for place, shot in enumerate(shots):
        sheet.paste(shot, (gap + place * (780 + gap), gap))
    save(sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS), folder / "page-phone.webp")

    page = opened(browser, url, viewport={"width": 1440, "height": 1160}, locale="en-US")
    page.locator("#open-settings").click()
    page.locator(".plan li").first.wait_for()
    drawer = page.locator("#settings").bounding_box()
    assert drawer is not None
    save(take(page).crop((int(drawer["x"]) - 240, 0, 1440, 1160)), folder / "page-settings.webp")

    page = opened(browser, url, viewport={"width": 1600, "height": 1000}, locale="en-US", color_scheme="dark")
    save(take(page), folder / "page-gallery.webp")


if __name__ == "__main__":
    main()
