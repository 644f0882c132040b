"""Hwaga's own API, and what holds for every answer, over real connections."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from starlette import formparsers

from hwaga.errors import StoreError, StoreFullError
from hwaga.image_file import read_settings
from hwaga.server import drawing, event_stream, security
from hwaga.server.json_log import JsonLines
from hwaga.server.security import Access

if TYPE_CHECKING:
    from conftest import Running

Serve = Callable[..., Any]


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


def plan(**values: Any) -> str:
    """A prompt that tells the worker what to do."""
    return json.dumps(values)


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def refused(answer: Any, status: int, *texts: str, param: str | None = None) -> dict[str, Any]:
    """The error of an answer in the one envelope."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    for text in texts:
        assert text in body["error"]["message"]
    assert body["error"]["param"] == param
    assert answer.headers["x-request-id"]
    return body["error"]  # type: ignore[no-any-return]


def test_a_job_from_words_to_a_picture(server: Running) -> None:
    answer = server.client.post("/v1/jobs", json={"prompt": "a cat", "seed": 7, "size": "336x192", "previews": True})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["request"] == {"prompt": "a cat", "seed": 7, "width": 336, "height": 192}
    told = events(server.client.get(f"/v1/jobs/{job['id']}/events").text)
    kinds = [event["event"] for event in told if event["event"] != "queued"]
    assert kinds == ["started", "step", "step", "succeeded"]
    step = next(event["data"] for event in told if event["event"] == "step")
    assert step["progress"] == {"step": 1, "total": 2}
    assert Image.open(io.BytesIO(base64.b64decode(step["preview"]))).format == "JPEG"
    done = server.client.get(answer.headers["location"]).json()
    assert (done["status"], done["images"]) == ("succeeded", told[-1]["data"]["images"])
    picture = server.client.get(done["images"][0]["url"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (336, 192)


def test_a_picture_in_every_form(server: Running, tmp_path: Path) -> None:
    job = server.ended(server.submit(prompt="a cat")["id"])
    url = job["images"][0]["url"]
    for format in ("png", "jpeg", "webp"):
        answer = server.client.get(url, params={"format": format})
        file = tmp_path / f"picture.{format}"
        file.write_bytes(answer.content)
        assert answer.headers["content-type"] == f"image/{format}"
        with Image.open(file) as picture:
            assert picture.format == format.upper()
        assert read_settings(file)["request"] == {"prompt": "a cat"}
        assert answer.headers["cache-control"] == "private, max-age=300"
        assert answer.headers["referrer-policy"] == "no-referrer"
        for named in (answer.headers["etag"], f'"of another", W/{answer.headers["etag"]}', "*"):
            again = server.client.get(url, params={"format": format}, headers={"If-None-Match": named})
            assert (again.status_code, again.content) == (304, b""), named
            assert again.headers["etag"] == answer.headers["etag"]
        other = server.client.get(url, params={"format": format}, headers={"If-None-Match": '"*"'})
        assert other.status_code == 200, "a tag, and not this one's"
    assert server.client.get(f"{url}0", headers={"If-None-Match": "*"}).status_code == 404
    small = server.client.get(url, params={"thumbnail": 1, "format": "webp"})
    assert max(Image.open(io.BytesIO(small.content)).size) == 256
    assert small.headers["etag"] != answer.headers["etag"]


def test_a_job_from_a_picture(server: Running) -> None:
    as_form = server.client.post(
        "/v1/jobs", files={"image": ("a", png())}, data={"prompt": "a cat", "strength": "0.5", "lora": ["line:0.5"]}
    )
    assert as_form.status_code == 202, as_form.text
    as_json = server.submit(
        prompt="a cat", image=base64.b64encode(png()).decode(), strength=0.5, lora=["line:0.5"], fit="pad"
    )
    for job, fit in ((as_form.json(), "crop"), (as_json, "pad")):
        assert job["kind"] == "image2image"
        assert job["request"]["strength"] == 0.5
        assert job["request"]["fit"] == fit
        assert job["request"]["loras"] == [{"name": "line", "weight": 0.5}]
        assert server.store.source(job["id"]) == png()


def test_the_same_key_gives_the_same_job(server: Running) -> None:
    def post(prompt: str) -> Any:
        return server.client.post("/v1/jobs", json={"prompt": prompt}, headers={"Idempotency-Key": "mine"})

    assert post("a cat").json()["id"] == post("a cat").json()["id"]
    refused(post("a dog"), 409, "stands for another request")


def test_paging(server: Running) -> None:
    made = [server.submit(prompt=f"number {k}", number=2)["id"] for k in range(5)]
    done = server.ended(made[0])
    assert (done["number"], len(done["images"])) == (2, 2)
    seen, cursor = [], None
    while len(seen) < 5:
        page = server.client.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["data"]) == 2
        seen += [job["id"] for job in page["data"]]
        cursor = page["next"]
    assert seen[:5] == made[::-1]
    for bad in ("x", "e30=", base64.b64encode(b'[1, "\\ud800"]').decode(), base64.b64encode(b"[1e999, 1]").decode()):
        assert server.client.get("/v1/jobs", params={"cursor": bad}).status_code in (200, 400)
    refused(server.client.get("/v1/jobs", params={"cursor": "x"}), 400, "cursor")


def test_cancelling(server: Running, tmp_path: Path) -> None:
    running = server.submit(prompt=plan(until=str(tmp_path / "go")))["id"]
    waiting = server.submit(prompt="a cat")
    assert server.client.get(f"/v1/jobs/{waiting['id']}").json()["position"] is not None
    assert server.client.delete(f"/v1/jobs/{waiting['id']}").json()["status"] == "cancelled"
    assert server.client.delete(f"/v1/jobs/{running}").status_code == 200
    assert server.ended(running)["status"] == "cancelled"
    assert server.client.delete(f"/v1/jobs/{running}").json()["status"] == "cancelled"
    assert server.client.get(f"/v1/jobs/{waiting['id']}").json()["position"] is None


def test_a_stream_goes_on_where_it_broke_off(server: Running, tmp_path: Path) -> None:
    job = server.submit(prompt=plan(steps=4, until=str(tmp_path / "go")))["id"]
    lines = []
    with server.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if line == "event: started":
                break
    first = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
    (tmp_path / "go").touch()
    whole = events(server.client.get(f"/v1/jobs/{job}/events").text)
    assert whole[0]["id"] == first
    assert [event["event"] for event in whole][-6:] == ["started", *["step"] * 4, "succeeded"]
    rest = server.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": whole[-3]["id"]})
    assert events(rest.text) == whole[-2:]
    # The job was not cancelled by the client that left: nobody needs to wait for it.
    assert server.store.get(job).status == "succeeded"


def test_silence_is_filled(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.01)
    job = server.submit(prompt=plan(until=str(tmp_path / "go")))["id"]
    with server.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert any(line.startswith(":") for line in stream.iter_lines())
        (tmp_path / "go").touch()


def test_a_failed_job_says_why(server: Running) -> None:
    job = server.ended(server.submit(prompt=plan(way="fail"))["id"])
    assert job["error"] == {
        "message": "No such size.",
        "type": "invalid_request_error",
        "param": "size",
        "code": "size",
    }
    told = events(server.client.get(f"/v1/jobs/{job['id']}/events").text)
    assert told[-1]["data"]["error"] == job["error"]


def test_what_there_is_to_ask_for(server: Running) -> None:
    styles = {style["name"]: style for style in server.client.get("/v1/styles").json()}
    assert styles["anime"]["lora"] == "flat"
    assert styles["realistic"]["lora"] is None
    assert "ko" in styles["watercolor"]["title"]
    assert any(entry["name"] == "cafe" for entry in server.client.get("/v1/industries").json())
    assert {"name": "flat", "model": "mini", "present": True} in server.client.get("/v1/loras").json()
    composed = server.client.post("/v1/prompts/compose", json={"prompt": "사과", "style": "anime"}).json()
    assert composed["prompt"].startswith("사과")
    assert composed["loras"] == [{"name": "flat", "weight": 1.0}]
    assert 0 < composed["tokens"] < composed["token_limit"] == 512


GENERATIONS, EDITS, JOBS = "/v1/images/generations", "/v1/images/edits", "/v1/jobs"
LONG = {"prompt": "word " * 600}


@pytest.mark.parametrize(
    ("path", "body", "texts", "param"),
    [
        (JOBS, {}, ["prompt is missing"], "prompt"),
        (JOBS, {"prompt": " "}, ["The prompt is empty"], "prompt"),
        (JOBS, {"prompt": 3}, ["prompt: "], "prompt"),
        (JOBS, {"prompt": "x" * 40000}, ["prompt: ", "32000"], "prompt"),
        (JOBS, [], ["JSON object"], None),
        (JOBS, {"prompt": "x", "colour": 1}, ["colour is not a field"], "colour"),
        (JOBS, {"prompt": "x", "image": "?"}, ["not base64"], "image"),
        (JOBS, {"prompt": "x", "image": "R0lGODlh"}, ["not a PNG, JPEG or WebP"], "image"),
        (JOBS, {"prompt": "x", "strength": 0.5}, ["strength", "Send one as image"], None),
        (JOBS, {"prompt": "x", "seed": "7"}, ["seed: "], "seed"),
        (JOBS, {"prompt": "x", "lora": ["nobody"]}, ["There is no LoRA 'nobody'"], "lora"),
        (JOBS, {"prompt": "x", "lora": ["../../etc/passwd"]}, ["There is no LoRA"], "lora"),
        (JOBS, {"prompt": "x", "size": "256x256", "aspect": "1:1"}, ["not both"], "size"),
        (JOBS, {"prompt": "x", "aspect": "7:5"}, ["no aspect"], "size"),
        (JOBS, {"prompt": "x", "steps": 900}, ["100 steps at most"], None),
        (JOBS, {"prompt": "x", "max_tokens": 5000}, ["960 at most"], None),
        (JOBS, LONG, ["tokens and the limit is 512"], "prompt"),
        (GENERATIONS, LONG, ["tokens and the limit is 512"], "prompt"),
        (GENERATIONS, {"prompt": "x", "size": "big"}, ["WIDTHxHEIGHT"], "size"),
        (GENERATIONS, {"prompt": "x", "size": "250x250"}, ["only the sizes"], "size"),
        (GENERATIONS, {"prompt": "x", "style": "vivd"}, ["There is no style 'vivd'"], "style"),
        (GENERATIONS, {"prompt": "x", "n": 11}, ["n: ", "10"], "n"),
        (GENERATIONS, {"prompt": "x", "n": True}, ["n: "], "n"),
        (GENERATIONS, {"prompt": "x", "image": "x"}, ["image is not a field"], "image"),
        (GENERATIONS, {"prompt": "x", "output_compression": 50}, ["jpeg and webp"], None),
        (GENERATIONS, {"prompt": "x", "partial_images": 2}, ["Set stream"], None),
        (GENERATIONS, {"prompt": "x", "background": "transparent"}, ["background: "], "background"),
        (GENERATIONS, {"prompt": "\ud800"}, ["prompt: "], "prompt"),
        (GENERATIONS, {"prompt": "x", "\ud800": 1}, [], None),
        ("/v1/prompts/compose", {"prompt": "x", "use": "moon"}, ["moon"], "style"),
    ],
)
def test_bad_requests(server: Running, path: str, body: Any, texts: list[str], param: str | None) -> None:
    before = server.store.counts()
    answer = server.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    refused(answer, 400, *texts, param=param)
    assert server.store.counts() == before


def test_bad_bodies(server: Running) -> None:
    post, json_type = server.client.post, {"Content-Type": "application/json"}
    for path in (JOBS, GENERATIONS):
        for content in ("{", "[" * 100000, '{"prompt": "x", "seed": 1e999}', '{"prompt": "x", "seed": NaN}', b"\xff"):
            refused_any = post(path, content=content, headers=json_type)
            assert refused_any.status_code == 400, (path, content, refused_any.text)
    refused(post(JOBS, content='{"prompt": "x"}', headers={"Content-Type": "text/plain"}), 400, "application/json")
    refused(
        post(GENERATIONS, content='{"prompt": "x"}', headers={"Content-Type": "text/plain"}), 400, "application/json"
    )
    refused(post(EDITS, json={"prompt": "x", "image": "https://elsewhere/a.png"}), 400, "multipart/form-data")
    refused(post(EDITS, data={"prompt": "x"}), 400, "image is missing", param="image")
    refused(post(EDITS, data={"prompt": "x", "image": "x"}), 400, "must be a file", param="image")
    refused(post(EDITS, content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
    two = [("image[]", ("a", png())), ("image[]", ("b", png()))]
    refused(post(EDITS, data={"prompt": "x"}, files=two), 400, "one picture", param="image")
    masked = {"image": ("a", png()), "mask": ("b", png())}
    refused(post(EDITS, data={"prompt": "x"}, files=masked), 400, "mask: Masks are not supported", param="mask")
    other = {"image": ("a", png()), "prompt": ("b", png())}
    refused(post(EDITS, files=other), 400, "must not be a file", param="prompt")
    refused(post(EDITS, data={"prompt": ["x", "y"]}, files={"image": ("a", png())}), 400, "given twice", param="prompt")
    refused(post(EDITS, data={"prompt": "x", "n": "many"}, files={"image": ("a", png())}), 400, "n: ", param="n")
    refused(post(EDITS, data={"prompt": "x"}, files={"image": ("a", b"GIF89a")}), 400, "not a PNG", param="image")
    refused(server.client.get("/v1/nothing"), 404, "There is no GET /v1/nothing")
    refused(server.client.put("/v1/jobs"), 405, "There is no PUT /v1/jobs")


def test_too_much_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"prompt": "x" * (security.MAX_BODY + 1)}
    refused(server.client.post(GENERATIONS, json=words), 413, "too large")

    def in_pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"x" * 2**16

    headers = {"Content-Type": "application/json"}
    refused(server.client.post(GENERATIONS, content=in_pieces(), headers=headers), 413, "too large")
    monkeypatch.setattr(security, "MAX_UPLOAD", 1000)
    for path in (JOBS, EDITS):
        answer = server.client.post(path, data={"prompt": "x"}, files={"image": ("a", png() + bytes(2000))})
        refused(answer, 413, "too large")


def test_ids_are_no_paths(server: Running) -> None:
    for bad in ("..%2F..%2Fjobs.sqlite3", "%00", "x" * 5000, "%ED%A0%80", "' OR 1=1 --"):
        for path in (f"/v1/images/{bad}", f"/v1/jobs/{bad}", f"/v1/jobs/{bad}/events"):
            assert server.client.get(path).status_code == 404, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "LOCALHOST:1234"}, 200),
        ({"Host": "[::1]:1234"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8", "Origin": "http://localhost:9"}, 403),
        ({"Host": "localhost:8", "Origin": "http://localhost:8"}, 200),
    ],
)
def test_pages_of_other_sites(server: Running, headers: dict[str, str], status: int) -> None:
    answer = server.client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 403:
        refused(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_keys_and_whose_a_job_is(serve: Serve) -> None:
    with serve() as running:
        early = running.submit(prompt="a cat")["id"]
        (first, a), (_, b) = (running.store.keys.add(name) for name in "ab")
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {a}"},
                        {"Authorization": "Bearer 한"}):  # fmt: skip
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = running.client.get("/v1/jobs", headers=encoded)
            assert refused(answer, 401, "Authorization: Bearer")["code"] == "invalid_api_key"
        assert running.client.get("/health/live").status_code == 200
        as_a, as_b = {"Authorization": f"Bearer {a}"}, {"Authorization": f"bearer {b}"}
        job = running.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=as_a).json()["id"]
        events(running.client.get(f"/v1/jobs/{job}/events", headers=as_a).text)
        done = running.client.get(f"/v1/jobs/{job}", headers=as_a).json()
        url = done["images"][0]["url"]
        assert running.client.get(url, headers=as_a).status_code == 200
        ours = [f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/jobs/{job}/source"]
        theirs = [running.client.get(path, headers=as_b) for path in ours]
        theirs.append(running.client.delete(f"/v1/jobs/{job}", headers=as_b))
        nothing = [running.client.get(path.replace(path.split("/")[3], "0" * 44), headers=as_b) for path in ours]
        for answer, missing in zip(theirs, [*nothing, nothing[0]], strict=True):
            assert refused(answer, 404) == refused(missing, 404)
        assert running.client.get(f"/v1/jobs/{early}", headers=as_a).status_code == 404
        assert running.client.get("/v1/jobs", headers=as_b).json() == {"data": [], "next": None}
        assert [j["id"] for j in running.client.get("/v1/jobs", headers=as_a).json()["data"]] == [job]
        running.store.keys.remove(first.id)
        refused(running.client.get("/v1/jobs", headers=as_a), 401)
        running.store.keys.remove(running.store.keys.all()[0].id)
        refused(running.client.get("/v1/jobs"), 401, "Authorization: Bearer")  # the last key that goes opens nothing
        running.store.keys.open_to_all()
        assert running.client.get(f"/v1/jobs/{early}").status_code == 200


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB").tobytes()


def test_a_pictures_address_is_enough_to_see_it(serve: Serve) -> None:
    with serve() as running:
        _, secret = running.store.keys.add("a shop")
        key = {"Authorization": f"Bearer {secret}"}
        made = running.openai(secret).images.generate(prompt="a cat", response_format="url", output_format="webp")
        url = made.data[0].url.removeprefix(running.url)  # type: ignore[index, union-attr]
        on_a_page = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        for headers in ({}, on_a_page, {"Authorization": "Bearer nonsense"}):
            answer = running.client.get(url, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"].startswith("private")
            assert "access-control-allow-origin" not in answer.headers
        path = url.partition("?")[0]
        # Its settings are for its owner: not for who has been given the address, nor for others with keys.
        other = {"Authorization": f"Bearer {running.store.keys.add('another shop')[1]}"}
        own = running.client.get(path, headers=key)
        assert (pixels(own.content), own.headers["vary"]) == (pixels(running.client.get(path).content), "Authorization")
        for format in ("png", "jpeg", "webp"):
            whole = running.client.get(f"{path}?format={format}", headers=key)
            assert b"a cat" in whole.content
            for headers in ({}, on_a_page, other):
                shown = running.client.get(f"{path}?format={format}", headers=headers)
                assert (shown.status_code, shown.headers["content-type"]) == (200, f"image/{format}")
                assert b"cat" not in shown.content
                assert b"hwaga" not in shown.content.lower()
                with Image.open(io.BytesIO(shown.content)) as picture:
                    picture.load()
                    assert not picture.getexif()
                asked = {"If-None-Match": whole.headers["etag"]}
                assert running.client.get(f"{path}?format={format}", headers={**headers, **asked}).status_code == 200
        assert len(path.rpartition("/")[2]) * 4 >= 128  # bits, all of them random
        # To see it is all that it is enough for, and it is the only one.
        for answer in (
            running.client.delete(path),
            running.client.post(f"{path}/again", json={}),
            running.client.get("/v1/jobs"),
            running.client.get(f"{path}0"),
            running.client.get("/v1/images/"),
        ):
            assert answer.status_code in (401, 404), answer.url
        refused(running.client.get(path[:-1] + ("0" if path[-1] != "0" else "1")), 404, "no picture of that id")
        refused(running.client.get(path, headers={"Host": "evil.example"}), 403)
        refused(running.client.get(path, headers={"Origin": "https://evil.example"}), 403)
        assert running.client.delete(path, headers=key).status_code == 204
        assert running.client.get(path).status_code == 404


def test_other_machines_need_a_key_and_a_name(serve: Serve) -> None:
    with serve(access=Access(hosts=("pictures.example",), anonymous=False)) as running:
        refused(running.client.get("/v1/models"), 401)
        assert running.client.get("/health/live", headers={"Host": "pictures.example"}).status_code == 200
        refused(running.client.get("/health/live", headers={"Host": "other.example"}), 403, "--allow-host")


def test_a_full_queue(serve: Serve, tmp_path: Path) -> None:
    with serve(queue_limit=1) as running:
        running.ended(running.submit(prompt=plan(delay=0.01))["id"])
        running.submit(prompt=plan(until=str(tmp_path / "go")))
        running.until(lambda: running.store.counts()["running"] == 1)
        running.submit(prompt="a cat")
        answer = running.client.post("/v1/jobs", json={"prompt": "a dog"})
        assert refused(answer, 429, "Try again later")["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "check_picture", None)  # nothing is decoded that cannot be taken in
            refused(running.client.post("/v1/jobs", data={"prompt": "a dog"}, files={"image": png()}), 429)
        # The picture that is being drawn is finished, and what waits is kept; but nothing new is taken.
        running.drain(until=tmp_path / "go")
        refused(running.client.post("/v1/jobs", json={"prompt": "a dog"}), 503, "being stopped")
        counts = running.store.counts()
        assert (counts["succeeded"], counts["queued"], counts["running"]) == (2, 1, 0)
        refused(running.client.get("/health/ready"), 503)


def test_what_goes_wrong_inside(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error, status in (
        (StoreError("The database failed."), 503),
        (StoreFullError("The disk is full."), 507),
        (sqlite3.ProgrammingError("a secret"), 500),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(server.store, "submit", fail)
        answer = server.client.post("/v1/jobs", json={"prompt": "x"})
        body = refused(answer, status)
        assert body["type"] == "server_error"
        assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in body["message"]
    assert answer.headers["x-request-id"] in caplog.text


def test_the_log_says_no_prompt(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answer = server.client.post("/v1/jobs?q=hidden", json={"prompt": "a hidden cat"})
    server.client.post("/v1/jobs", json={"prompt": "a hidden cat", "style": "hidden"})

    def ours() -> list[Any]:
        return [record for record in caplog.records if record.name.startswith("hwaga")]

    server.until(lambda: sum("is succeeded" in record.message for record in ours()) == 1)
    server.until(lambda: sum("method" in vars(record) for record in ours()) == 2)
    lines = [json.loads(JsonLines().format(record)) for record in ours()]
    assert "hidden" not in json.dumps(lines)
    (request,) = [line for line in lines if line.get("status") == 202]
    asked = answer.headers["x-request-id"]
    assert (request["request_id"], request["method"], request["path"]) == (asked, "POST", "/v1/jobs")
    assert request["ms"] > 0
    job = answer.json()["id"]
    told = [line for line in lines if line.get("job") == job]
    assert sorted(line["message"].removeprefix(f"Job {job} is ") for line in told) == [
        "accepted.", "running.", "succeeded."
    ]  # fmt: skip
    by_end = {line["message"].split()[-1]: line for line in told}
    assert by_end["succeeded."]["seconds"] >= 0
    assert (by_end["running."]["request_id"], by_end["succeeded."]["request_id"]) == (asked, asked)


def test_the_log_does_not_tell_where_a_picture_is(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    image = server.ended(server.submit(prompt="a cat")["id"])["images"][0]
    caplog.set_level("INFO")
    assert server.client.get(image["url"]).status_code == 200
    assert server.client.post(f"{image['url']}/again", json={}).status_code == 202
    short = f"/v1/images/{image['id'][:6]}…"
    server.until(lambda: {short, f"{short}/again"} <= {vars(record).get("path") for record in caplog.records})
    ours = [record for record in caplog.records if record.name.startswith("hwaga")]
    assert image["id"] not in "".join(JsonLines().format(record) for record in ours)


def test_the_log_of_a_job_names_the_request_that_it_came_with(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log = logging.getLogger("hwaga")
    before = log.level
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        with serve(log_prompts=True) as running:
            key = {"Idempotency-Key": "mine"}
            body = {"prompt": plan(until=str(tmp_path / "go"), way="fail")}
            first = running.client.post("/v1/jobs", json=body, headers=key)
            again = running.client.post("/v1/jobs", json=body, headers=key)
            (tmp_path / "go").touch()
            job = running.ended(first.json()["id"])["id"]
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    told = {line["message"].removeprefix(f"Job {job} is "): line for line in lines if line.get("job") == job}
    asked = first.headers["x-request-id"]
    assert {told[end]["request_id"] for end in ("accepted.", "running.", "failed.")} == {asked}
    assert told["asked for again."]["request_id"] == again.headers["x-request-id"] != asked
    assert told["accepted."]["prompt"] == body["prompt"]
    assert told["failed."]["error"] == "SizeError"


def test_metrics(serve: Serve) -> None:
    with serve() as running:
        running.ended(running.submit(prompt="a cat")["id"])
        running.ended(running.submit(prompt=plan(way="fail"))["id"])
        running.ended(running.submit(prompt=plan(way="die"))["id"])
        running.ended(running.submit(prompt="a cat")["id"])
        running.until(lambda: "hwaga_vram_used_bytes{" in running.client.get("/metrics").text)
        figures = running.client.get("/metrics").text
    for line in (
        'hwaga_jobs{status="succeeded"} 2.0',
        'hwaga_jobs{status="failed"} 2.0',
        'hwaga_failures_total{error="SizeError"} 1.0',
        'hwaga_failures_total{error="WorkerError"} 1.0',
        "hwaga_queue_depth 0.0",
        "hwaga_run_seconds_count 4.0",
        "hwaga_wait_seconds_count 4.0",
        'hwaga_rss_anon_bytes{process="front"}',
        'hwaga_swap_bytes{process="front"}',
        'hwaga_rss_anon_bytes{process="worker 0"}',
        'hwaga_vram_used_bytes{process="worker 0"} 1000.0',
        'hwaga_vram_reserved_bytes{process="worker 0"} 2000.0',
        'hwaga_vram_peak_bytes{process="worker 0"} 3000.0',
        "hwaga_steps_total ",
    ):
        assert line in figures
    restarts = float(figures.split("\nhwaga_worker_restarts ")[1].split()[0])
    assert restarts >= 2


def test_not_ready_without_a_worker(serve: Serve, tmp_path: Path) -> None:
    # The fake worker says of the first start that there is no such model, dies at the second, and serves from the third on.
    with serve(models=[str(tmp_path / "starts")]) as running:
        seen = set()

        def ready() -> bool:
            answer = running.client.get("/health/ready")
            if answer.status_code != 200:
                seen.add(refused(answer, 503)["message"])
            return bool(answer.status_code == 200)

        running.until(ready)
        assert "There is no such model." in seen


def test_a_body_that_takes_too_long(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.2)
    with serve() as running:
        host, port = running.url.removeprefix("http://").split(":")
        for path, kind in (("/v1/jobs", "application/json"), ("/v1/images/edits", "multipart/form-data; boundary=x")):
            with socket.create_connection((host, int(port))) as connection:
                connection.settimeout(60)
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n\r\n"
                connection.sendall(head.encode() + (b"{" if path == "/v1/jobs" else b"-"))
                said = b""
                while data := connection.recv(10_000):  # up to the end of the connection
                    said += data
            assert said.startswith(b"HTTP/1.1 408 ")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        # Who waits for an answer may wait longer.
        job = running.submit(prompt=plan(delay=0.2, steps=3))["id"]
        assert running.client.get(f"/v1/jobs/{job}/events").text.count("event: step") == 3


def test_a_client_that_stops_in_mid_body(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert server.client.get("/health/live").status_code == 200
    assert "failed" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations", "/v1/prompts/compose"])
def test_bodies_that_would_keep_the_parser_busy(server: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def send(text: str) -> str:
        answer = server.client.post(path, content=text, headers={"Content-Type": "application/json"})
        assert len(answer.content) < 2000
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    few = "".join(f', "a{place}": 1' for place in range(20_000))
    message = send('{"prompt": "a cat"' + few + "}")
    assert "a4 is not a field" in message
    assert "a5 " not in message
    assert len(send('{"' + 900_000 * "a" + '": 1}')) < 300
    assert "lora.0" in send('{"prompt": "a cat", "avoid": [], "lora": [' + "1, " * 10_000 + "1]}") or "compose" in path
    assert "avoid.0" in send('{"prompt": "a cat", "avoid": [' + "1, " * 10_000 + "1]}")
    monkeypatch.setattr(drawing, "json", None)  # what is too much is not parsed at all
    for much in ("[" * 300_000, ", " * 140_000, "\\u0041" * 140_000 + 130_000 * ":", " " * 300_000):
        assert "signs and spaces" in send('{"prompt": "' + much)


def test_the_longest_prompts_and_escaped_base64_are_parsed(server: Running) -> None:
    longest = "\U0001f34e" * 32_000
    for text in (json.dumps({"prompt": longest}), json.dumps({"prompt": longest}, ensure_ascii=False)):
        answer = server.client.post(
            "/v1/prompts/compose", content=text.encode(), headers={"Content-Type": "application/json"}
        )
        assert "signs and spaces" not in answer.text
    text = '{"prompt": "a cat", "image": "' + "\\/" * 400_000 + '"}'
    answer = server.client.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert refused(answer, 400, param="image")["code"] == "source_image"


def test_a_full_disk_of_temporary_files(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
    for path in ("/v1/jobs", "/v1/images/edits"):
        answer = server.client.post(path, data={"prompt": "a cat"}, files={"image": b"a picture"})
        assert "temporary files is full" in refused(answer, 507)["message"]
