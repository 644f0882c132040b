"""Making pictures on the page: words, styles, a picture to start from, progress, cancelling, and coming back."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image

from hwaga.image_file import read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Server

Visit = Callable[..., Any]

LONG = 60_000  # ms that a picture may take on a busy machine


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    return expect(found)


def picture_file(color: str = "orange") -> dict[str, Any]:
    """A picture as a browser's file field takes it."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), color).save(buffer, "PNG")
    return {"name": "start.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def draw(page: Any, prompt: str, **fields: Any) -> None:
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.evaluate("document.getElementById('options').open = true")
        page.fill(f"#{name}", str(value))
    page.click("#draw")
    expect(page.locator("#draw")).not_to_have_attribute("aria-disabled", "true")
    assert not page.locator("#make-error").is_visible(), page.locator("#make-error").inner_text()


def kept(page: Any, text: str) -> None:
    """Waits until what would come back after a reload has a text in it."""
    while text not in (page.evaluate("sessionStorage['hwaga.draft']") or ""):
        page.wait_for_timeout(20)


def tile(page: Any, prompt: str) -> Any:
    """The finished pictures of a prompt, once one is drawn."""
    found = page.locator(".grid li.drawn", has=page.get_by_role("button", name=prompt))
    found.first.wait_for(timeout=LONG)
    return found


def of_prompt(server: Server, prompt: str) -> dict[str, Any]:
    return next(job for job in server.jobs() if job["request"]["prompt"] == prompt)


def test_three_styles(server: Server, visit: Visit) -> None:
    page = visit(server)
    expect(page.locator("#health")).to_have_text("Ready", timeout=LONG)
    titles = {"realistic": "Realistic photograph", "semi_realistic": "Semi-realistic illustration", "anime": "Anime"}
    expect(page.locator(".style-choice")).to_have_count(2 + len(titles))  # those that the model has, none and auto
    for style, title in titles.items():
        expect(page.locator(f".swatch[data-style={style}] img")).to_have_js_property("naturalWidth", 160)
        page.get_by_role("radio", name=title).check(force=True)
        draw(page, f"a red apple on a yellow background, {style}", seed=7, steps=2)
    for style in titles:
        tile(page, f"a red apple on a yellow background, {style}")
    jobs = [of_prompt(server, f"a red apple on a yellow background, {style}") for style in titles]
    assert [job["request"]["style"] for job in jobs] == list(titles)
    assert len({server.picture(job) for job in jobs}) == 3
    tile(page, "a red apple on a yellow background, anime").get_by_role("button").click()
    viewer = page.locator("#viewer")
    expect(viewer.locator(".facts")).to_contain_text("Anime")
    expect(viewer.locator(".facts")).to_contain_text("flat")  # the style's LoRA, which only the picture itself tells of
    expect(viewer.locator(".stage.drawn img").first).to_have_attribute(
        "alt", "a red apple on a yellow background, anime"
    )


def test_a_choice_of_models(server_of_two: Server, visit: Visit) -> None:
    page = visit(server_of_two)
    expect(page.locator("#health")).to_have_text("Ready", timeout=LONG)
    page.get_by_label("Model").select_option("The second")
    expect(page.get_by_label("Model")).to_have_value("second")
    draw(page, "a cat", steps=1)
    kept(page, '"model":"second"')
    page.reload()
    page.locator("body.begun").wait_for()
    expect(page.get_by_label("Model")).to_have_value("second")
    page.get_by_label("Model").select_option("mini")
    draw(page, "a dog", steps=1)
    tile(page, "a cat").get_by_role("button").click()
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Model")).to_have_value("second")
    assert [job["model"] for job in server_of_two.jobs()] == ["mini", "second"]
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.locator(".drawer .plan")).to_have_count(2)


def test_what_only_a_model_with_guidance_takes(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("document.getElementById('options').open = true")
    expect(page.locator("#guided")).to_be_hidden()
    status = server.get("/v1/status")
    status["model"] |= {"guidance": 7, "samplers": ["dpmpp_2m_karras", "euler"]}
    status["models"] = [status["model"]]
    page.route("**/v1/status", lambda route: route.fulfill(json=status))
    expect(page.locator("#guided")).to_be_visible(timeout=30_000)
    expect(page.locator("#guidance")).to_have_attribute("placeholder", "7")
    made = {"prompt": "a cat", "negative": "lettering", "tokens": 3, "token_limit": 77, "loras": [], "notes": []}
    page.route("**/v1/prompts/compose", lambda route: route.fulfill(json=made))
    page.get_by_label("Sampler").select_option("euler")
    page.fill("#negative", "blurry")
    page.fill("#guidance", "31")
    page.fill("#prompt", "a cat")
    page.click("#draw")
    expect(page.locator("#make-error")).to_have_text("Guidance is from 1 to 30.")
    page.evaluate("document.getElementById('reads').open = true")
    expect(page.locator("#notes")).to_have_text("Not in the picture: lettering")  # which a style has brought
    with page.expect_request(lambda request: request.url.endswith("compose") and "3.5" in request.post_data):
        page.fill("#guidance", "3.5")
    page.unroute("**/v1/prompts/compose")
    kept(page, "3.5")
    page.reload()
    page.locator("body.begun").wait_for()
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/v1/jobs")) as sent:
        page.click("#draw")
    assert {"negative": "blurry", "guidance": 3.5, "sampler": "euler"}.items() <= sent.value.post_data_json.items()
    expect(page.locator("#make-error")).to_contain_text(
        "draws without guidance"
    )  # as it is the bundled model after all


def test_korean(server: Server, visit: Visit) -> None:
    page = visit(server, locale="ko-KR")
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    page.evaluate("document.getElementById('steps').value = 2")
    page.locator("#prompt").press_sequentially("노란 배경의 빨간 사과")
    expect(page.locator("#tokens")).to_have_text(re.compile(r"512 토큰 중 \d+"))
    page.click("#reads summary")
    expect(page.locator("#composed")).to_have_text("노란 배경의 빨간 사과")
    page.locator("#prompt").dispatch_event("keydown", {"key": "Enter", "ctrlKey": True, "isComposing": True})
    page.keyboard.press("Control+Enter")  # the one before ended a syllable, and sent nothing
    tile(page, "노란 배경의 빨간 사과").get_by_role("button").click()
    expect(page.locator(".panel-prompt")).to_have_text("노란 배경의 빨간 사과")
    expect(page.get_by_role("button", name="다른 시드로")).to_be_visible()
    assert [job["request"]["prompt"] for job in server.jobs()].count("노란 배경의 빨간 사과") == 1
    assert Image.open(io.BytesIO(server.picture(of_prompt(server, "노란 배경의 빨간 사과")))).size == (256, 256)


def test_what_the_model_reads_follows_the_choices(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.fill("#prompt", "a cup of coffee")
    page.click("#reads summary")
    page.locator("#industry").select_option("cafe")
    expect(page.locator("#notes")).to_contain_text("draws from your own words alone")
    page.get_by_role("radio", name="Banner").check(force=True)
    expect(page.locator(".use-choice:has(:checked) .pixels")).to_have_text("336×192")
    page.fill("#prompt", "word " * 600)
    expect(page.locator("#tokens")).to_have_text(re.compile("too long"))
    page.click("#draw")
    expect(page.locator("#prompt-error")).to_contain_text("tokens")
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "true")


def test_what_cannot_be_meant_is_said_before_it_is_sent(server: Server, visit: Visit) -> None:
    page = visit(server)
    sent = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    page.click("#draw")
    expect(page.locator("#prompt-error")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    page.evaluate("document.getElementById('options').open = true")
    for field, value, message in [
        ("seed", "4294967296", "A seed"),
        ("steps", "101", "steps"),
        ("number", "11", "From 1 to 10"),
    ]:
        page.fill("#prompt", "a cat")
        page.fill(f"#{field}", value)
        page.click("#draw")
        expect(page.locator("#make-error")).to_contain_text(message)
        expect(page.locator(f"#{field}")).to_be_focused()
        page.fill(f"#{field}", "1")
    assert not [request for request in sent if request.url.endswith("/v1/jobs")]


def test_from_a_picture(server: Server, visit: Visit) -> None:
    page = visit(server)
    start = picture_file()
    page.set_input_files("#picture-file", start)
    page.locator("#strength").wait_for()
    page.locator("#strength").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".strength-value")).to_have_text("0.90")
    draw(page, "a green apple on an orange background", steps=4)
    tile(page, "a green apple on an orange background").get_by_role("button").click()
    job = of_prompt(server, "a green apple on an orange background")
    assert (job["kind"], job["request"]["strength"]) == ("image2image", 0.9)
    assert httpx2.get(f"{server.url}/v1/jobs/{job['id']}/source").content == start["buffer"]
    # Before and after, by a wipe that the keyboard moves as well.
    page.locator(".stage.drawn").wait_for()
    page.get_by_role("button", name="Compare").click()
    wipe = page.get_by_role("slider", name="How much of the picture before is shown")
    expect(wipe).to_be_focused()
    expect(page.locator(".stage-before")).to_have_js_property("naturalWidth", 256)
    page.keyboard.press("Home")
    expect(page.locator(".sheet")).to_have_css("--wipe", "0%")
    page.keyboard.press("End")
    assert (
        page.locator(".stage-before").evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0% 0px 0px)"
    )
    # Again is the same picture again, from the same start.
    page.get_by_role("button", name="Again").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(tile(page, "a green apple on an orange background")).to_have_count(2, timeout=LONG)
    again = of_prompt(server, "a green apple on an orange background")
    assert again["id"] != job["id"]
    assert server.picture(again) == server.picture(job)
    # The picture itself becomes the next start.
    tile(page, "a green apple on an orange background").first.get_by_role("button").click()
    page.locator(".stage.drawn").wait_for()
    page.get_by_role("button", name="Use as start").click()
    expect(page.locator("#start img")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#start")).to_be_hidden()


DROP = """async ([data, name, type, kind]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
    : new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
}"""


CUT = """async (data) => {
  const { settingsOf } = await import("/ui/picture_settings.js");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const found = [(await settingsOf(new Blob([bytes]))).request.prompt];
  for (let length = 0; length < 150; length++) found.push(await settingsOf(new Blob([bytes.slice(0, length)])));
  return found;
}"""


def given(page: Any, data: bytes, kind: str, type: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), "given", type, kind])


def test_drop_and_paste(full_server: Server, visit: Visit) -> None:
    page = visit(full_server)
    plain = picture_file("teal")["buffer"]
    given(page, plain, "dragenter")
    expect(page.locator("#drop")).to_be_visible()
    given(page, plain, "drop")
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#start img")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    given(page, plain, "paste")
    expect(page.locator("#start img")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    given(page, b"no picture", "drop")
    expect(page.locator(".toast")).to_contain_text("not a PNG")
    given(page, b"<svg/>", "drop", "image/svg+xml")
    expect(page.locator("#start")).to_be_hidden()
    # One of ours brings its settings back, however it comes, and can still be what to start from.
    ours = next(job for job in full_server.jobs() if job["request"].get("style") == "anime")
    url = full_server.url + ours["images"][0]["url"]
    for kind in ("png", "jpeg", "webp"):
        data = httpx2.get(url, params={"format": kind}).content
        for way in ("drop", "choose"):
            page.fill("#prompt", "")
            if way == "drop":
                given(page, data, "drop", f"image/{kind}")
            else:
                file = {"name": f"ours.{kind}", "mimeType": f"image/{kind}", "buffer": data}
                page.set_input_files("#picture-file", file)
            expect(page.locator("#prompt")).to_have_value(ours["request"]["prompt"])
            expect(page.locator("#seed")).to_have_value(str(ours["request"]["seed"]))
            expect(page.get_by_role("radio", name="Anime")).to_be_checked()
            expect(page.locator("#start")).to_be_hidden()
        # Cut short before the end of its settings, it is none of ours, and no fault of the page either.
        found = page.evaluate(CUT, base64.b64encode(data).decode())
        assert found[0] == ours["request"]["prompt"]
        assert found[1:] == [None] * 150
    given(page, full_server.picture(ours), "drop")
    page.get_by_role("button", name="Start from it instead").click()
    expect(page.locator("#start img")).to_be_visible()


def test_progress_and_cancel(server: Server, visit: Visit) -> None:
    page = visit(server)
    draw(page, "a cat on a blue background", number=10)
    draw(page, "it waits", number=1, steps=1)
    card = page.locator(".job", has_text="a cat on a blue background")
    card.locator(".frame img:not([hidden])").first.wait_for(timeout=LONG)
    expect(card.locator(".frame")).to_have_count(10)
    expect(card.locator(".state")).to_have_text(re.compile(r"Step \d+ of 80 · about .* left"), timeout=LONG)
    blurs = []
    for _ in range(40):  # it sharpens: less blur, the nearer the end of its steps
        blurs.append(
            float(card.locator(".frame").first.evaluate("frame => parseFloat(frame.style.getPropertyValue('--blur'))"))
        )
        if blurs[-1] == 0:
            break
        page.wait_for_timeout(100)
    assert blurs == sorted(blurs, reverse=True)
    assert blurs[-1] < 7
    expect(page.locator(".job", has_text="it waits").locator(".state")).to_have_text("Next in line")
    page.evaluate(  # the job that waits may be done, and told of, before this could be looked at
        """() => {
            const live = document.querySelector("#live");
            window.told = [];
            const observer = new MutationObserver(() => window.told.push(live.textContent));
            observer.observe(live, {childList: true, subtree: true, characterData: true});
        }"""
    )
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_count(0, timeout=LONG)
    page.wait_for_function("window.told.includes('Cancelled.')")
    assert of_prompt(server, "a cat on a blue background")["status"] == "cancelled"
    tile(page, "it waits")


def test_reload_in_mid_job(server: Server, visit: Visit) -> None:
    page = visit(server)
    draw(page, "a fish on a green background", number=2)
    card = page.locator(".job", has_text="a fish on a green background")
    card.locator(".frame img:not([hidden])").first.wait_for(timeout=LONG)
    page.reload()
    page.locator("body.begun").wait_for()
    card.locator(".frame img:not([hidden])").first.wait_for(timeout=LONG)
    expect(page.locator("#prompt")).to_have_value("a fish on a green background")  # the draft is there too
    expect(tile(page, "a fish on a green background")).to_have_count(2, timeout=LONG)
    expect(card).to_have_count(0)
    assert [job["request"]["prompt"] for job in server.jobs()].count("a fish on a green background") == 1


def test_what_was_typed_a_moment_ago_outlives_a_reload(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("""() => {
        const prompt = document.getElementById("prompt");
        prompt.value = "a whale on a white background";
        prompt.dispatchEvent(new Event("input", { bubbles: true }));
        location.reload();
    }""")
    page.locator("body.begun").wait_for()
    expect(page.locator("#prompt")).to_have_value("a whale on a white background")


def test_two_tabs(server: Server, visit: Visit) -> None:
    one = visit(server)
    other = visit(server, context=one.context)
    draw(one, "a tulip on a mint background", number=2)
    other.locator(".job", has_text="a tulip on a mint background").wait_for(timeout=LONG)
    expect(tile(one, "a tulip on a mint background")).to_have_count(2, timeout=LONG)
    expect(tile(other, "a tulip on a mint background")).to_have_count(2, timeout=LONG)
    tile(one, "a tulip on a mint background").first.get_by_role("button").click()
    one.locator("#viewer").get_by_role("button", name="Delete").click()
    one.locator("#ask").get_by_role("button", name="Delete").click()
    expect(tile(other, "a tulip on a mint background")).to_have_count(1)
    expect(one.locator(".grid li", has=one.get_by_role("button", name="a tulip"))).to_have_count(1)
    assert len(of_prompt(server, "a tulip on a mint background")["images"]) == 1


def test_a_prompt_of_markup_is_text(server: Server, visit: Visit) -> None:
    prompt = '<img src=x onerror="document.title=1"><script>document.title=2</script><b>cat</b>'
    page = visit(server)
    draw(page, prompt, steps=1)
    expect(page.locator(".job-prompt, .tile .caption").first).to_have_text(prompt, timeout=LONG)
    tile(page, prompt).get_by_role("button").click()
    expect(page.locator(".panel-prompt")).to_have_text(prompt)
    page.get_by_role("button", name="Edit").click()
    page.click("#reads summary")
    expect(page.locator("#composed")).to_have_text(prompt)
    assert page.title() == "Hwaga"
    assert page.locator("img[src=x], main script, main b").count() == 0
    other = page.context.new_page()  # of whose complaints no fault is made
    other.goto(server.url)
    refused = other.evaluate("() => { try { document.body.innerHTML = '<p>'; return false; } catch { return true; } }")
    assert refused  # the browser itself would not take markup from a string


def test_a_lost_connection_loses_no_words_and_makes_no_second_job(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.fill("#prompt", "a house on a pink background")
    page.evaluate("document.getElementById('steps').value = 1")
    page.context.set_offline(True)
    page.click("#draw")
    expect(page.locator("#make-error")).to_contain_text("cannot be reached")
    expect(page.locator("#offline")).to_be_visible()
    expect(page.locator("#prompt")).to_have_value("a house on a pink background")
    page.context.set_offline(False)
    expect(page.locator("#offline")).to_be_hidden(timeout=LONG)
    # The answer to this one is lost, though the server took the job in: the second try gets the same job.
    page.route(
        "**/v1/jobs",
        lambda route: (route.fetch(), route.abort()) if route.request.method == "POST" else route.fallback(),
    )
    page.click("#draw")
    expect(page.locator("#make-error")).to_contain_text("cannot be reached")
    page.unroute("**/v1/jobs")
    page.click("#draw")
    tile(page, "a house on a pink background")
    assert [job["request"]["prompt"] for job in server.jobs()].count("a house on a pink background") == 1


def test_a_restart_of_the_server(server: Server, visit: Visit) -> None:
    page = visit(server)
    draw(page, "a crown on a purple background")
    for prompt in ("it waits meanwhile", "it waits as well"):
        draw(page, prompt, steps=1)
    page.locator(".job .frame img:not([hidden])").first.wait_for(timeout=LONG)
    server.stop()  # it finishes what it is at, and keeps the queue
    expect(page.locator("#offline")).to_contain_text("No connection", timeout=LONG)
    expect(page.locator(".job", has_text="it waits as well")).to_be_visible()
    server.start()
    expect(page.locator("#offline")).to_be_hidden(timeout=LONG)
    expect(tile(page, "it waits as well")).to_have_count(1, timeout=LONG)
    expect(tile(page, "a crown on a purple background")).to_have_count(1)
    expect(page.locator(".job")).to_have_count(0)


def test_a_job_that_fails_says_so_and_can_be_tried_again(server: Server, visit: Visit) -> None:
    loras = server.folder / "loras"
    loras.mkdir(exist_ok=True)
    (loras / "damaged.safetensors").write_bytes(bytes(64))  # what only the worker finds out
    before = httpx2.post(f"{server.url}/v1/jobs", json={"prompt": "a ball", "number": 10, "seed": 1}).json()
    broken = {"prompt": "of a damaged LoRA", "lora": ["damaged"]}
    httpx2.post(f"{server.url}/v1/jobs", json=broken).raise_for_status()
    page = visit(server)
    page.locator(".job", has_text="of a damaged LoRA").wait_for()
    httpx2.delete(f"{server.url}/v1/jobs/{before['id']}").raise_for_status()
    failed = page.locator(".job.failed", has_text="of a damaged LoRA")
    expect(failed.get_by_role("alert")).to_contain_text("This one failed", timeout=LONG)
    failed.get_by_role("button", name="Try again").click()
    expect(failed).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("of a damaged LoRA")
    page.get_by_role("button", name="Remove: LoRA damaged").click()
    expect(page.locator("#loras button")).to_have_count(0)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_download(full_server: Server, visit: Visit, tmp_path: Path, format: str) -> None:
    page = visit(full_server)
    page.get_by_role("button", name="picture 69").click()
    page.locator(".stage.drawn").wait_for()
    with page.expect_download() as info:
        page.get_by_role("button", name="WebP" if format == "webp" else format.upper(), exact=True).click()
    assert info.value.suggested_filename == f"picture-69-69.{'jpg' if format == 'jpeg' else format}"
    saved = tmp_path / info.value.suggested_filename
    info.value.save_as(saved)
    assert Image.open(saved).format == format.upper()
    assert read_settings(saved)["request"]["prompt"] == "picture 69"
