"""Who can use the page: by keyboard alone, on a phone, with a screen reader, with motion reduced; and what it takes to load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Server

Visit = Callable[..., Any]

ROOT = Path(__file__).parents[2]
UI = ROOT / "src" / "hwaga" / "ui"
AXE = (ROOT / "tests" / "data" / "axe" / "axe.min.js").read_text("utf-8")
LONG = 60_000
FIRST_LOAD = 150_000  # bytes


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    return expect(found)


def faults(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"]
    return [
        f"{fault['id']} ({fault['impact']}): {node['html'][:120]} {node['failureSummary'][:300]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "width"), [("en-US", 1280), ("ko-KR", 360)])
def test_axe_finds_no_serious_fault(full_server: Server, visit: Visit, scheme: str, locale: str, width: int) -> None:
    options = {"locale": locale, "color_scheme": scheme, "reduced_motion": "reduce"}
    page = visit(full_server, viewport={"width": width, "height": 800}, **options)
    page.locator(".grid li.drawn").first.wait_for()
    page.fill("#prompt", "a cup of coffee 커피")
    for fold in ("reads", "options"):
        page.evaluate("fold => document.getElementById(fold).open = true", fold)
    expect(page.locator("#tokens")).to_be_visible()
    page.locator(".swatch[data-style=realistic]").click()
    page.evaluate("document.getElementById('fewer').click()")
    assert faults(page) == []
    page.fill("#seed", "-")
    page.click("#draw")
    expect(page.locator("#make-error")).to_be_visible()
    assert faults(page) == []
    page.locator(".tile", has_text="68").click()
    page.locator(".stage.drawn").wait_for()
    assert faults(page) == []
    page.locator(".delete").click()
    expect(page.locator("#ask")).to_be_visible()
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    page.click("#open-settings")
    expect(page.locator("#settings .server dl")).to_be_visible()
    assert faults(page) == []


def test_a_browser_that_is_required_and_absent_is_a_failure(tmp_path: Path) -> None:
    test = f"{Path(__file__).relative_to(ROOT)}::test_axe_can_find_one"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "of"), test]
    environment = {**os.environ, "PATH": str(tmp_path), "HWAGA_REQUIRE_BROWSER": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert "No Chromium on the path" in found.stdout


def test_axe_can_find_one(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    page.evaluate(
        "document.getElementById('prompt').labels[0].remove(); document.getElementById('prompt').placeholder = ''"
    )
    assert any("label" in fault for fault in faults(page))


def test_by_keyboard_alone(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("document.getElementById('steps').value = 1")
    press = page.keyboard.press
    press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a strawberry on a pink background")
    press("Tab")
    expect(page.locator("#pick-picture")).to_be_focused()
    press("Tab")
    expect(page.get_by_role("radio", name="As written")).to_be_focused()
    for _ in range(2):
        press("ArrowRight")
    expect(page.get_by_role("radio", name="Realistic photograph")).to_be_checked()
    press("Tab")
    press("ArrowRight")
    expect(page.get_by_role("radio", name="Feed")).to_be_checked()
    expect(page.get_by_role("radio", name="Feed")).to_be_focused()
    # What the server makes of it comes in, and takes the focus from nothing.
    expect(page.locator("#tokens")).to_be_visible()
    expect(page.get_by_role("radio", name="Feed")).to_be_focused()
    press("Control+Enter")
    tile = page.locator(".grid li.drawn", has=page.get_by_role("button", name="a strawberry on a pink background"))
    tile.first.wait_for(timeout=LONG)
    # Going on by Tab alone comes to the picture.
    reached = False
    for _ in range(60):
        press("Tab")
        reached = page.evaluate("document.activeElement.matches('.tile')")
        if reached:
            break
    assert reached
    press("Enter")
    viewer = page.locator("#viewer")
    viewer.locator(".stage.drawn").wait_for()
    expect(viewer.locator(".viewer-close")).to_be_focused()
    for _ in range(30):  # the focus stays within
        press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('#viewer') !== null"
        )
    press("Escape")
    expect(viewer).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('.tile')")
    page.locator("#open-settings").focus()
    press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    press("Escape")
    expect(page.locator("#open-settings")).to_be_focused()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_on_a_phone(full_server: Server, visit: Visit, width: int) -> None:
    page = visit(full_server, viewport={"width": width, "height": 700}, locale="ko-KR", has_touch=True, is_mobile=True)
    page.locator(".grid li.drawn").first.wait_for()
    for fold in ("reads", "options"):
        page.evaluate("fold => document.getElementById(fold).open = true", fold)
    fits = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(fits) == [width, width]
    fields = "button:visible, select:visible, input:visible:not([type=radio], [type=checkbox])"
    small = page.locator(fields).evaluate_all(
        """found => found.map((one) => [one.id || one.className, one.getBoundingClientRect()])
           .filter(([, box]) => box.height < 24 || box.width < 24).map(([name]) => name)"""
    )
    assert small == []
    page.locator(".grid li.drawn .tile").first.tap()
    page.locator(".stage.drawn").wait_for()
    assert page.evaluate(fits) == [width, width]
    sheet, panel = page.locator(".sheet").bounding_box(), page.locator(".panel").bounding_box()
    assert sheet["y"] + sheet["height"] <= panel["y"]
    page.locator(".viewer-close").tap()
    page.locator("#open-settings").tap()
    expect(page.locator("#settings .server dl")).to_be_visible()
    assert page.evaluate(fits) == [width, width]


def test_motion_is_reduced_where_that_is_wished(full_server: Server, visit: Visit) -> None:
    for wish, some in (("no-preference", True), ("reduce", False)):
        page = visit(full_server, reduced_motion=wish)
        page.locator(".grid li.drawn").first.wait_for()
        page.click("#open-settings")
        moving = page.evaluate("getComputedStyle(document.getElementById('settings')).animationName !== 'none'")
        assert moving == some


def test_the_first_load_is_small(full_server: Server, visit: Visit) -> None:
    page = visit(full_server, begun=False)
    page.locator("body.begun").wait_for()
    sizes = page.evaluate(
        """performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
           .map((entry) => [new URL(entry.name).pathname, entry.transferSize])"""
    )
    page_alone = {name: size for name, size in sizes if not name.startswith("/v1/images")}
    assert {"/", "/ui/app.js", "/ui/base.css", "/v1/styles"} <= page_alone.keys()
    assert sum(page_alone.values()) < FIRST_LOAD, page_alone
    # Without compression, as a proxy may ask for it, the files of the page keep to it as well.
    assert sum(path.stat().st_size for path in UI.rglob("*") if path.is_file()) < FIRST_LOAD


def test_no_markup_is_made_of_strings_and_nothing_is_fetched_elsewhere() -> None:
    for path in UI.rglob("*"):
        if path.suffix in (".js", ".html", ".css", ".svg"):
            text = path.read_text("utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), path
            addresses = set(re.findall(r"""(?:https?:)?//[^\s"'`)]+""", re.sub(r"(?m)^\s*//.*$| // .*$", "", text)))
            assert addresses <= {"http://www.w3.org/2000/svg"}, (path, addresses)
    page = (UI / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_all_words_are_there_in_both_languages() -> None:
    words = (UI / "words.js").read_text("utf-8")
    known = dict(re.findall(r"^  (\w+): \[(.*)\],$", words, re.MULTILINE))
    assert len(known) > 100
    for key, pair in known.items():
        english, korean = re.findall(r'"((?:[^"\\\\]|\\\\.)*)"', pair)
        assert korean, key
        assert english or key.startswith("refused_"), key  # where the server's own message is in English already
        assert set(re.findall(r"\{\w+\}", korean)) == set(re.findall(r"\{\w+\}", english)) or not english, key
    used = set(re.findall(r'data-t(?:-\w+)?="(\w+)"', (UI / "index.html").read_text("utf-8")))
    for path in UI.glob("*.js"):
        used |= set(re.findall(r'\bt\("(\w+)"', path.read_text("utf-8")))
    assert used <= known.keys()
