"""OpenAI's images API, spoken by OpenAI's own client; and clients that leave."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from PIL import Image

from hwaga.image_file import read_settings
from hwaga.model_lookup import find_card
from hwaga.request import ImageRequest
from hwaga.server import process
from hwaga.tokens import token_counter

if TYPE_CHECKING:
    from conftest import Running

REAL = process.WORKER
Serve = Callable[..., Any]


def picture(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


def plan(**values: Any) -> str:
    return json.dumps(values)


def tokens(prompt: str) -> int:
    return token_counter(find_card("mini", Path("nowhere")))(prompt)


def test_generate(server: Running) -> None:
    made = server.openai().images.generate(
        model="mini", prompt="a red apple", n=2, size="336x192", quality="hd", user="somebody"
    )
    assert [picture(image.b64_json).getpixel((0, 0)) for image in made.data or []] == [(0, 0, 0), (1, 0, 0)]
    assert (made.size, made.output_format, made.background) == ("336x192", "png", "opaque")
    assert made.usage is not None
    assert made.usage.input_tokens == made.usage.total_tokens == tokens("a red apple")
    assert made.usage.input_tokens_details.text_tokens == made.usage.input_tokens


def test_extensions_reach_the_engine(server: Running) -> None:
    extensions = {"style": "anime", "seed": 7, "steps": 3, "lora": ["line:0.5"], "aspect": "16:9", "avoid": ["text"]}
    made = server.openai().images.generate(prompt="사과", size="auto", extra_body=extensions)
    request = server.store.jobs(limit=1)[0].body["request"]
    assert request == {
        "prompt": "사과", "style": "anime", "seed": 7, "steps": 3, "aspect": "16:9", "avoid": ["text"],
        "loras": [{"name": "line", "weight": 0.5}],
    }  # fmt: skip
    composed = server.client.post("/v1/prompts/compose", json={"prompt": "사과", "style": "anime", "avoid": ["text"]})
    assert made.usage is not None
    assert made.usage.input_tokens == composed.json()["tokens"]


def test_formats_and_links(server: Running) -> None:
    tables = []
    for compression in (10, 92, openai.omit):
        made = server.openai().images.generate(prompt="a cat", output_format="jpeg", output_compression=compression)
        tables.append(picture(made.data[0].b64_json).quantization)  # type: ignore[index, attr-defined]
    assert tables[0] != tables[1] == tables[2]
    linked = server.openai().images.generate(prompt="a cat", response_format="url", output_format="jpeg")
    url = linked.data[0].url or ""  # type: ignore[index]
    assert url.startswith(server.url)
    assert linked.data[0].b64_json is None  # type: ignore[index]
    answer = server.client.get(url)
    assert Image.open(io.BytesIO(answer.content)).format == "JPEG"
    proxied = server.openai(default_headers={"X-Forwarded-Proto": "https"})
    behind = proxied.images.generate(prompt="a cat", response_format="url").data[0].url  # type: ignore[index]
    assert (behind or "").startswith(server.url.replace("http:", "https:"))


@pytest.mark.parametrize("several", [False, True])
def test_edit(server: Running, several: bool) -> None:
    made = server.openai().images.edit(
        image=[png()] if several else png(),
        prompt="a green apple",
        n=1,
        extra_body={"strength": 0.4, "lora": ["line", "flat:0.2"], "style_fallback": True},
    )
    assert made.usage is not None
    assert made.usage.input_tokens == tokens("a green apple")
    job = server.store.jobs(limit=1)[0]
    assert job.kind == "image2image"
    assert job.body["request"]["strength"] == 0.4
    assert [lora["name"] for lora in job.body["request"]["loras"]] == ["line", "flat"]
    assert server.store.source(job.id) == png()


def test_a_stream_with_partial_images(server: Running) -> None:
    stream = server.openai().images.generate(prompt=plan(steps=8), n=2, stream=True, partial_images=3)
    told = list(stream)
    assert [event.type for event in told] == [
        *["image_generation.partial_image"] * 6,
        *["image_generation.completed"] * 2,
    ]
    partial = [event for event in told if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1, 2, 0, 1, 2]
    # The fake worker's preview is of the shade of its step: 2, 4 and 6 of 8, for each of both pictures.
    shades = [round(picture(event.b64_json).getpixel((0, 0))[0]) for event in partial]  # type: ignore[index]
    assert shades == pytest.approx([2, 4, 6, 10, 12, 14], abs=1)
    assert (partial[0].size, partial[0].output_format) == ("32x24", "jpeg")
    last = told[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.input_tokens == tokens(plan(steps=8))
    assert (last.size, last.output_format, last.quality, last.background) == ("336x192", "png", "auto", "opaque")
    assert picture(last.b64_json).size == (336, 192)


def test_partial_images_of_few_steps_and_of_a_second_attempt(server: Running, tmp_path: Path) -> None:
    def indices(count: int, **told: Any) -> list[int]:
        stream = server.openai().images.generate(prompt=plan(**told), stream=True, partial_images=count)
        *partial, last = stream
        assert last.type == "image_generation.completed"
        return [event.partial_image_index for event in partial]  # type: ignore[union-attr]

    assert indices(3, steps=1) == []  # the last step is the picture itself
    assert indices(3, steps=2) == [0]
    assert indices(2, steps=6, way="die once", mark=str(tmp_path / "mark")) == [0, 1, 0, 1]


def test_the_packs_wording_is_counted(server: Running) -> None:
    served = server.app.state.front.models["mini"]
    served = dataclasses.replace(served, card=dataclasses.replace(served.card, own_words_only=False))
    plain, styled = (served.check(ImageRequest("a cake", style=style)) for style in (None, "watercolor"))
    assert plain == tokens("a cake") < styled


def test_a_stream_of_an_edit(server: Running) -> None:
    told = list(server.openai().images.edit(image=png(), prompt="a cat", stream=True, output_format="webp"))
    assert [event.type for event in told] == ["image_edit.completed"]
    assert picture(told[0].b64_json).format == "WEBP"


def test_models(server: Running) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "hwaga"
    with pytest.raises(openai.NotFoundError, match=r"There is no model 'dall-e-3' here. There is mini"):
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-image-1'"):
        client.images.generate(prompt="a cat", model="gpt-image-1")


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"size": "100x100"}, "only the sizes that it was trained on", "size"),
        ({"prompt": "word " * 600}, "tokens and the limit is 512", "prompt"),
        ({"extra_body": {"style": "water"}}, "There is no style 'water'", "style"),
        ({"extra_body": {"colour": "red"}}, "colour is not a field", "colour"),
        ({"prompt": plan(way="fail")}, "No such size", "size"),
        ({"prompt": plan(way="fail"), "n": 2}, "No such size", "size"),
    ],
)
def test_what_is_refused(server: Running, options: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.openai().images.generate(**{"prompt": "a cat", **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None


def test_failures_of_the_server_and_in_a_stream(server: Running) -> None:
    out_of_memory = plan(way="fail", error="DeviceMemoryError")
    before = sum(server.store.counts().values())
    with pytest.raises(openai.InternalServerError, match="No such size"):
        server.openai().with_options(max_retries=2).images.generate(prompt=out_of_memory)
    assert sum(server.store.counts().values()) == before + 1  # the client does not try again what takes long and fails
    with pytest.raises(openai.APIError, match="No such size") as caught:
        list(server.openai().images.generate(prompt=out_of_memory, stream=True))
    assert caught.value.code == "device_memory"


def test_a_wrong_key_and_a_full_queue(serve: Serve, tmp_path: Path) -> None:
    with serve(queue_limit=1) as running:
        _, secret = running.store.keys.add("mine")
        with pytest.raises(openai.AuthenticationError, match=r"no API key of this server.*hwaga keys add"):
            running.openai("sk-wrong").images.generate(prompt="a cat")
        client = running.openai(secret)
        assert client.images.generate(prompt="a cat").data
        headers = {"Authorization": f"Bearer {secret}"}
        wait = plan(until=str(tmp_path / "go"))
        running.client.post("/v1/jobs", json={"prompt": wait}, headers=headers)
        running.until(lambda: running.store.counts()["running"] == 1)
        running.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)
        with pytest.raises(openai.RateLimitError, match="jobs wait already") as caught:
            client.images.generate(prompt="a cat")
        assert int(caught.value.response.headers["retry-after"]) >= 1


def leave(server: Running, prompt: str, *, stream: bool, key: str = "") -> socket.socket:
    """A connection that asks for a picture, once the job is there."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": prompt, "stream": stream})
    before = sum(server.store.counts().values())
    connection = socket.create_connection((host, int(port)))
    keyed = f"Idempotency-Key: {key}\r\n" if key else ""
    connection.sendall(
        f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{keyed}"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    server.until(lambda: sum(server.store.counts().values()) > before)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_job_along(server: Running, tmp_path: Path, stream: bool) -> None:
    running = leave(server, plan(until=str(tmp_path / "go")), stream=stream)
    first = server.store.jobs(limit=1)[0].id
    server.until(lambda: server.store.get(first).status == "running")
    waiting = leave(server, "a cat", stream=stream)
    second = server.store.jobs(limit=1)[0].id
    native = server.submit(prompt="a cat")["id"]
    waiting.close()
    server.until(lambda: server.store.get(second).status == "cancelled")
    running.close()
    server.until(lambda: server.store.get(first).status == "cancelled")
    assert server.ended(native)["status"] == "succeeded"


def test_a_job_that_another_waits_for_goes_on(server: Running, tmp_path: Path) -> None:
    front = server.app.state.front
    leaver = leave(server, plan(until=str(tmp_path / "go")), stream=False)
    job = server.store.jobs(limit=1)[0].id
    with server.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        server.until(lambda: front.waiting[job] == 2)
        leaver.close()
        server.until(lambda: front.waiting[job] == 1)
        (tmp_path / "go").touch()
        assert "event: succeeded" in list(stream.iter_lines())
    server.until(lambda: not front.waiting)


def test_a_client_may_come_back_with_its_key(server: Running, tmp_path: Path) -> None:
    prompt, front = plan(until=str(tmp_path / "go")), server.app.state.front
    leaver = leave(server, prompt, stream=False, key="mine")
    job = server.store.jobs(limit=1)[0].id
    server.until(lambda: front.waiting[job] == 1)
    leaver.close()
    server.until(lambda: front.waiting[job] == 0)
    (tmp_path / "go").touch()
    before = server.store.counts()
    made = server.openai().images.generate(prompt=prompt, extra_headers={"Idempotency-Key": "mine"})
    assert picture(made.data[0].b64_json).size == (336, 192)  # type: ignore[index]
    assert sum(server.store.counts().values()) == sum(before.values())


def test_stopping_gives_up_what_nobody_will_fetch(serve: Serve, tmp_path: Path) -> None:
    with serve() as running:
        running.submit(prompt=plan(until=str(tmp_path / "go")))
        running.until(lambda: running.store.counts()["running"] == 1)
        asked = leave(running, "a cat", stream=False)
        job = running.store.jobs(limit=1)[0].id
        streaming = leave(running, "a cat", stream=True)
        running.drain(until=tmp_path / "go")
        with asked, streaming:
            assert b"503 Service Unavailable" in asked.recv(1000)
            running.until(lambda: b"being stopped" in streaming.recv(1000))
        running.until(lambda: running.store.counts()["cancelled"] == 2)
        assert running.store.get(job).status == "cancelled"
        assert running.store.counts()["succeeded"] == 1


def test_pictures_of_the_bundled_model(serve: Serve, tmp_path: Path) -> None:
    with serve(worker=REAL) as running:
        client = running.openai()
        told = list(
            client.images.generate(
                prompt="a red apple", stream=True, partial_images=1, extra_body={"steps": 2, "seed": 7}
            )
        )
        assert [event.type for event in told] == ["image_generation.partial_image", "image_generation.completed"]
        assert picture(told[0].b64_json).size == (32, 32)
        apple = base64.b64decode(told[1].b64_json)
        (tmp_path / "apple.png").write_bytes(apple)
        settings = read_settings(tmp_path / "apple.png")["request"]
        assert (settings["seed"], settings["steps"], settings["prompt"]) == (7, 2, "a red apple")
        edited = client.images.edit(
            image=apple,
            prompt="an orange",
            n=2,
            output_format="webp",
            extra_body={"steps": 1, "strength": 0.9, "seed": 7},
        )
        assert edited.size == "256x256"
        first, second = (picture(image.b64_json) for image in edited.data or [])
        assert first.tobytes() != second.tobytes()
        # The number of tokens that is told is the engine's own.
        assert edited.usage is not None
        assert edited.usage.input_tokens == tokens("an orange")
        with pytest.raises(openai.BadRequestError, match="damaged") as caught:
            client.images.edit(image=apple[:1000], prompt="an orange")
        assert caught.value.param == "image"
