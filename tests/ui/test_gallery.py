"""The gallery: endless, filtered, in full view, with what can be made from a picture; and a server that asks for a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from hwaga.server.store import SqliteStore

if TYPE_CHECKING:
    from conftest import Server

Visit = Callable[..., Any]


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    return expect(found)


def captions(page: Any) -> list[str]:
    found: list[str] = page.locator(".grid li:not([hidden]) .caption").all_text_contents()
    return found


def test_newest_first_and_endless(full_server: Server, visit: Visit) -> None:
    page = visit(full_server, viewport={"width": 900, "height": 500})
    page.locator(".grid li.drawn").first.wait_for()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "cursor=" in request.url else None)
    first = captions(page)
    assert first[:3] == ["picture 69", "그림 68", "picture 67"]
    assert len(first) < 70
    while len(captions(page)) < 70:  # each turn brings more, or the test runs into its end
        page.locator("#sentinel").scroll_into_view_if_needed()
        page.mouse.wheel(0, 2000)
        page.wait_for_timeout(50)
    assert asked
    expected = [f"picture {number}" if number % 2 else f"그림 {number}" for number in range(69, -1, -1)]
    assert captions(page) == expected
    page.locator(".grid li").last.scroll_into_view_if_needed()
    page.locator(".grid li.drawn").last.wait_for()
    expect(page.locator(".grid li").last.locator("img")).to_have_js_property("naturalWidth", 256)


def test_filters(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    page.get_by_role("button", name="From a picture", exact=True).click()
    expect(page.locator(".grid li:not([hidden])")).to_have_count(7)  # those further down were asked for
    assert captions(page) == [f"그림 {number}" for number in range(60, -1, -10)]
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_label("Style", exact=True).select_option("anime")
    expect(page.locator(".grid li:not([hidden])")).to_have_count(14)
    page.get_by_label("Search").fill("PICTURE 3")
    expect(page.locator(".grid li:not([hidden])")).to_have_count(1)
    assert captions(page) == ["picture 35"]
    page.get_by_label("Search").fill("nothing of the kind")
    expect(page.locator("#empty")).to_contain_text("No picture matches")
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#empty")).to_be_hidden()
    assert len(captions(page)) == 70


def test_a_picture_in_full(full_server: Server, visit: Visit) -> None:
    page = visit(full_server, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="그림 68").click()
    viewer = page.locator("#viewer")
    viewer.locator(".stage.drawn").wait_for()
    expect(viewer.locator(".panel-prompt")).to_have_text("그림 68")
    for name, value in [("Size", "256 × 256"), ("Seed", "68"), ("Steps", "8"), ("Model", "mini")]:
        expect(viewer.locator(".facts > div", has_text=name).locator("dd").first).to_have_text(value)
    viewer.get_by_role("button", name="Copy settings").click()
    expect(page.locator(".toast")).to_have_text("Settings copied.")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied == {"prompt": "그림 68", "seed": 68, "steps": 8, "size": "256x256"}
    # Zoom by keys, wheel and double click; arrows move a zoomed picture, and turn to another one else.
    level = viewer.locator(".zoom-level")
    page.keyboard.press("+")
    expect(level).to_have_text("140%")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator(".panel-prompt")).to_have_text("그림 68")
    page.keyboard.press("0")
    expect(level).to_have_text("100%")
    viewer.locator(".stage-view").dblclick()
    expect(level).to_have_text("300%")
    page.mouse.wheel(0, 4000)
    expect(level).to_have_text("100%")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator(".panel-prompt")).to_have_text("picture 67")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator(".panel-prompt")).to_have_text("picture 69")
    expect(viewer.get_by_role("button", name="Newer picture")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.get_by_role("button", name="picture 69")).to_be_focused()


def test_again_vary_and_edit(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    sent: list[Any] = []

    def refuse(route: Any) -> None:
        if route.request.method != "POST":
            route.fallback()
            return
        sent.append(route.request)
        body = {"error": {"message": "", "type": "", "param": None, "code": "queue_full"}}
        route.fulfill(status=429, json=body, headers={"Retry-After": "7"})

    page.route("**/v1/images/*/again", refuse)
    page.get_by_role("button", name="picture 65").click()
    page.locator(".stage.drawn").wait_for()
    page.get_by_role("button", name="Again").click()
    expect(page.locator(".toast")).to_have_text("The queue is full. Try again in 7 s.")
    again = sent[-1].post_data_json
    assert again == {"previews": True}
    with page.expect_request(lambda request: request.method == "POST") as varied:
        page.get_by_role("button", name="Vary seed").click()
    assert varied.value.url == sent[0].url
    assert varied.value.post_data_json.keys() == {"seed", "previews"}
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#prompt")).to_have_value("picture 65")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#seed")).to_have_value("65")
    expect(page.get_by_role("radio", name="Anime")).to_be_checked()


def test_the_start_of_a_picture_goes_with_it(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    page.get_by_label("Search").fill("그림 60")
    page.get_by_role("button", name="그림 60").click()
    page.locator(".stage.drawn").wait_for()
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#start img")).to_be_visible()


def test_a_server_that_comes_back_with_another_model(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    page.locator(".grid li.drawn").first.wait_for()
    page.get_by_role("radio", name="Anime").check(force=True)
    page.get_by_role("radio", name="Banner").check(force=True)
    page.fill("#prompt", "kept")
    status, styles = full_server.get("/v1/status"), full_server.get("/v1/styles")
    status["model"] |= {"name": "large", "title": "Large", "steps": 31, "own_words_only": False}
    status["model"]["aspects"] = {name: [4 * w, 4 * h] for name, (w, h) in status["model"]["aspects"].items()}
    status["models"] = [status["model"]]
    others = [style for style in styles if style["name"] != "anime"]
    batik = {"name": "batik", "title": {"en": "Batik", "ko": "바틱"}, "aliases": [], "lora": None}
    page.route("**/v1/styles?*", lambda route: route.fulfill(json=[*others, batik]))
    page.route("**/v1/status", lambda route: route.fulfill(json=status))
    expect(page.locator(".toast")).to_contain_text("another model: Large", timeout=30_000)
    expect(page.get_by_role("radio", name="Batik")).to_have_count(1)
    expect(page.get_by_role("radio", name="Anime")).to_have_count(0)
    expect(page.get_by_role("radio", name="As written")).to_be_checked()
    expect(page.locator(".use-choice:has(:checked) .pixels")).to_have_text("1344×768")
    expect(page.locator("#steps")).to_have_attribute("placeholder", "31")
    expect(page.locator("#prompt")).to_have_value("kept")
    expect(page.get_by_label("Style", exact=True).locator("option[value=batik]")).to_have_count(1)


def test_settings(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    page.get_by_role("button", name="Settings").click()
    drawer = page.locator("#settings")
    expect(drawer.locator(".server")).to_contain_text("Hwaga mini")
    expect(drawer.locator(".server")).to_contain_text("0 waiting, 0 being drawn")
    expect(drawer.locator(".server")).to_contain_text("MiB of")
    drawer.get_by_role("radio", name="Dark").check(force=True)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    drawer.get_by_role("radio", name="한국어").check(force=True)
    expect(drawer.get_by_role("heading", name="설정")).to_be_visible()
    expect(page.locator("#draw")).to_contain_text("그리기")
    page.reload()
    page.locator("body.begun").wait_for()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("html")).to_have_attribute("lang", "ko")


def test_the_plan_of_memory_is_drawn(server: Server, visit: Visit) -> None:
    page = visit(server)
    expect(page.locator("#health")).to_have_text("Ready", timeout=60_000)  # a plan is there once the model is
    page.get_by_role("button", name="Settings").click()
    (plan,) = server.get("/v1/plan")["data"]
    rows = page.locator(".plan li")
    expect(rows).to_have_count(len(plan["phases"]))
    for place, phase in enumerate(plan["phases"]):
        bars = rows.nth(place).locator(".bar i")
        parts = bars.evaluate_all("parts => parts.map((part) => part.getBoundingClientRect().width)")
        sizes = [phase[part] for part in ("weights", "brought", "work", "kept", "others")]
        expected = [size / sum(sizes) for size in sizes]
        assert [width / sum(parts) for width in parts] == pytest.approx(expected, abs=0.02)
    # Names are text, whatever they hold; several workers have a picture each; and without plans there is none.
    plan["phases"][0]["name"] = "<b>odd"
    page.route("**/v1/plan", lambda route: route.fulfill(json={"data": [plan, plan]}))
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    expect(page.locator(".plan")).to_have_count(2)
    expect(page.locator(".plan").first.locator(".phase").first).to_have_text("<b>odd")
    page.unroute("**/v1/plan")
    page.route(
        "**/v1/plan", lambda route: route.fulfill(status=404, json={"error": {"message": "", "code": "not_found"}})
    )
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#settings .server dl")).to_be_visible()
    expect(rows).to_have_count(0)


def test_a_server_that_asks_for_a_key(full_server: Server, visit: Visit) -> None:
    store = SqliteStore(full_server.folder / "server")
    key, secret = store.keys.add("a designer")
    try:
        page = visit(full_server, begun=False)
        drawer = page.locator("#settings")
        expect(drawer.get_by_role("alert")).to_contain_text("asks for an API key")
        expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "hwaga_wrong")
        page.keyboard.press("Enter")
        expect(drawer.get_by_role("alert")).to_have_text("This API key is not known here.")
        page.fill("#key", secret)
        page.keyboard.press("Enter")
        expect(drawer).to_be_hidden()
        page.locator("body.begun").wait_for()
        expect(page.locator("#empty")).to_contain_text("Your pictures will hang here")  # those of others are not shown
        page.reload()
        page.locator("body.begun").wait_for()  # it is kept
    finally:
        store.keys.remove(key.id)
        store.close()
