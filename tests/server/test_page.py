"""The page's files over HTTP, and the parts of the API that are there for it."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from hwaga.server.page import POLICY, page_files
from hwaga.server.process import WORKER
from hwaga.server.security import Access

if TYPE_CHECKING:
    from conftest import Running

Serve = Callable[..., AbstractContextManager[Any]]


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


def made(server: Running, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = server.ended(server.submit(**body)["id"])
    assert found["status"] == "succeeded", found["error"]
    return found


def test_the_page_is_there_whole(server: Running) -> None:
    page = server.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    for name, file in page_files().items():
        answer = server.client.get(f"/ui/{name}")
        assert (answer.status_code, answer.content) == (200, file.data), name
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert {"index.html", "app.js", "base.css", "styles/anime.webp"} <= page_files().keys()
    assert server.client.get("/ui/app.js").headers["content-type"].startswith("text/javascript")
    head = server.client.head("/ui/app.js")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == server.client.get("/ui/app.js").headers["content-length"]
    assert server.client.head("/ui/none.js").status_code == 404


def test_its_files_are_packed_and_known_again(server: Running) -> None:
    plain = server.client.get("/ui/app.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with server.client.stream("GET", "/ui/app.js", headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["content-encoding"] == "gzip"
        raw = b"".join(packed.iter_raw())
    assert gzip.decompress(raw) == plain.content
    for named in (plain.headers["etag"], "*"):
        again = server.client.get("/ui/app.js", headers={"If-None-Match": named})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/nothing.js", "/ui/../errors.py", "/ui/%2e%2e/errors.py", "/ui//etc/passwd", "/ui/__init__.py"]
)
def test_nothing_else_is(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 404


def test_the_api_keeps_the_stricter_policy(server: Running) -> None:
    assert server.client.get("/v1/styles").headers["content-security-policy"].startswith("default-src 'none'; frame")


def test_the_page_asks_for_no_key_and_the_rest_does(serve: Serve) -> None:
    with serve(access=Access(anonymous=False)) as server:
        assert server.client.get("/").status_code == 200
        assert server.client.get("/ui/app.js").status_code == 200
        for path in ("/v1/status", "/uix", "/v1/jobs/x/source"):
            assert server.client.get(path).status_code == 401, path
        assert server.client.delete("/v1/images/x").status_code == 401
        assert server.client.post("/").status_code == 401


def test_a_link_on_another_site_may_lead_to_it(server: Running) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert server.client.get("/", headers=followed).status_code == 200
    assert server.client.get("/", headers={**followed, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert server.client.get("/v1/jobs", headers=followed).status_code == 403
    assert server.client.get("/", headers={**followed, "Host": "evil.example"}).status_code == 403


def test_the_server_at_a_glance(server: Running) -> None:
    server.ready()
    status = server.client.get("/v1/status").json()
    assert (status["ready"], status["problem"], status["workers"]) == (True, None, 1)
    assert status["model"]["name"] == "mini"
    assert status["model"]["aspects"]["16:9"] == [336, 192]
    assert [use["name"] for use in status["uses"]] == ["feed", "story", "banner", "poster"]
    assert {use["aspect"] for use in status["uses"]} <= status["model"]["aspects"].keys()
    assert {"front", "worker 0"} == {process["process"] for process in status["memory"]}
    assert 0 < sum(process["rss_anon_bytes"] for process in status["memory"]) < status["host_memory_bytes"]


def test_the_picture_that_a_job_starts_from(server: Running) -> None:
    sent = png("blue")
    job = made(server, prompt="a cat", image=base64.b64encode(sent).decode(), strength=0.5)
    answer = server.client.get(f"/v1/jobs/{job['id']}/source")
    assert (answer.status_code, answer.content) == (200, sent)
    assert answer.headers["content-type"] == "image/png"
    for named in (answer.headers["etag"], "*"):
        again = server.client.get(f"/v1/jobs/{job['id']}/source", headers={"If-None-Match": named})
        assert (again.status_code, again.headers["etag"]) == (304, answer.headers["etag"])
    words_alone = made(server, prompt="a cat")
    for headers in ({}, {"If-None-Match": "*"}):
        assert server.client.get(f"/v1/jobs/{words_alone['id']}/source", headers=headers).status_code == 404


def test_a_picture_is_made_again_byte_for_byte(serve: Serve) -> None:
    words = {
        "prompt": "a red apple on a yellow background",
        "style": "anime",
        "style_fallback": True,
        "steps": 2,
        "size": "256x256",
    }
    start = {"image": base64.b64encode(png("blue")).decode(), "strength": 0.7, "steps_scale": True}
    with serve(worker=WORKER) as server:  # one that draws
        for more in ({}, start):
            job = made(server, **words, **more, max_tokens=600, number=2)  # its seeds are drawn at random
            second = job["images"][1]["url"]
            answer = server.client.post(f"{second}/again", json={})
            assert (answer.status_code, answer.json()["request"]["style"]) == (202, "anime")
            # What the packs made of the words goes with it: they may have changed since.
            assert answer.json()["request"]["composed"]["style"] == "anime"
            again = server.ended(answer.json()["id"])
            assert again["kind"] == job["kind"]
            assert server.client.get(again["images"][0]["url"]).content == server.client.get(second).content
            varied = server.ended(server.client.post(f"{second}/again", json={"seed": 99}).json()["id"])
            assert varied["request"] == {**again["request"], "seed": 99}
            assert server.client.get(varied["images"][0]["url"]).content != server.client.get(second).content


def test_again_takes_a_seed_and_nothing_that_is_not_there(server: Running) -> None:
    assert server.client.post("/v1/images/none/again", json={}).status_code == 404
    url = made(server, prompt="a cat", steps=1)["images"][0]["url"]
    assert server.client.post(f"{url}/again", json={"prompt": "a dog"}).status_code == 400
    key = {"Idempotency-Key": "once more"}
    ids = {server.client.post(f"{url}/again", json={}, headers=key).json()["id"] for _ in range(2)}
    assert len(ids) == 1


def test_a_picture_is_deleted_and_with_the_last_one_its_job(server: Running) -> None:
    job = made(server, prompt="a cat", number=2, seed=1, image=base64.b64encode(png("green")).decode())
    kept, gone = (image["id"] for image in job["images"])
    folder = server.store._pictures._folder
    assert server.client.delete(f"/v1/images/{gone}").status_code == 204
    assert server.client.get(f"/v1/images/{gone}").status_code == 404
    assert server.client.delete(f"/v1/images/{gone}").status_code == 404
    assert not list(folder.glob(f"results/*/{gone}.png"))
    assert [image["id"] for image in server.client.get(f"/v1/jobs/{job['id']}").json()["images"]] == [kept]
    sources = set(folder.glob("sources/*/*"))
    assert server.client.delete(f"/v1/images/{kept}").status_code == 204
    assert server.client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert len(sources - set(folder.glob("sources/*/*"))) == 1


def test_others_pictures_are_neither_shown_nor_deleted(serve: Serve) -> None:
    with serve() as server:
        (_, one), (_, other) = server.store.keys.add("one"), server.store.keys.add("other")
        server.client.headers["Authorization"] = f"Bearer {one}"
        job = made(server, prompt="a cat", image=base64.b64encode(png()).decode())
        server.client.headers["Authorization"] = f"Bearer {other}"
        assert server.client.get(f"/v1/jobs/{job['id']}/source").status_code == 404
        assert server.client.delete(job["images"][0]["url"]).status_code == 404
        assert server.client.post(f"{job['images'][0]['url']}/again", json={}).status_code == 404
        server.client.headers["Authorization"] = f"Bearer {one}"
        assert server.client.get(job["images"][0]["url"]).status_code == 200
