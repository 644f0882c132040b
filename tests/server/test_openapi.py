"""What the OpenAPI document promises of jobs and pictures, and whether the server keeps it whatever it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
import schemathesis
from openapi_examples import CHECKS, OPERATIONS, check_operation, picture_file

from hwaga.server import health, native, openai_images, refusals, words

if TYPE_CHECKING:
    from conftest import Running

    Serve = Callable[..., AbstractContextManager[Running]]

AGAIN = "/v1/images/{image}/again"


def test_the_document_is_complete(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    found = {
        f"{method.upper()} {path}": made for path, ways in document["paths"].items() for method, made in ways.items()
    }
    assert sorted(found) == sorted(name for names in OPERATIONS.values() for name in names)
    for name, operation in found.items():
        assert operation["summary"], name
        assert any(status.startswith("2") for status in operation["responses"]), name
    body = found["POST /v1/images/edits"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"prompt", "image", "strength", "n", "lora"} <= body["properties"].keys()
    assert "$ref" not in str(body)
    assert {"security"} <= found["POST /v1/jobs"].keys()
    # What FastAPI says of every app: ours answers 400, in its own envelope.
    assert not any("422" in operation["responses"] for operation in found.values())
    assert "ValidationError" not in str(document)
    assert all("x-request-id" in answer["headers"] for each in found.values() for answer in each["responses"].values())


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/images/generations", "/v1/images/edits", "/v1/prompts/compose", AGAIN]
)
def test_its_examples_of_requests_are_good(server: Running, path: str) -> None:
    server.ready()
    picture = server.ended(server.submit(prompt="a cat")["id"])["images"][0]["id"]
    body = server.client.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
    for kind, described in body.items():
        assert described["schema"]["examples"]
        for example in described["schema"]["examples"]:
            form = {"data": example, "files": {"image": picture_file()}}
            sent = form if kind == "multipart/form-data" else {"json": example}
            answer = server.client.post(path.format(image=picture), **sent)
            assert answer.status_code in (200, 202), answer.text


def test_its_examples_of_answers_are_such_answers() -> None:
    for model in (
        *(native.JobView, words.Entry, words.LoraView, words.Composed),
        *(openai_images.Pictures, openai_images.Model, refusals.ErrorBody, health.Health, health.Readiness),
    ):
        (example,) = model.model_json_schema()["examples"]
        assert model.model_validate(example, strict=True).model_dump() == example


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer no"}, {"Host": "elsewhere"}])
def test_who_is_not_let_in_is_told_so_as_it_is_described(serve: Serve, headers: dict[str, str]) -> None:
    with serve() as server:
        server.store.keys.add("a key")
        paths = server.client.get("/openapi.json").json()["paths"]
        for path, ways in paths.items():
            for method, operation in ways.items():
                url = path.format(job="a", image="a", model="a")
                answer = server.client.request(method, url, headers=headers)
                described = operation["responses"][str(answer.status_code)]
                assert all(name in answer.headers for name in described["headers"]), path
                assert answer.status_code != 200 or path.startswith("/health"), path


def test_pictures_and_health_can_be_asked_after_without_a_body(server: Running) -> None:
    server.ready()
    picture = server.ended(server.submit(prompt="a cat")["id"])["images"][0]["url"]
    for path in ("/health/live", "/health/ready", picture, "/"):
        there, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "etag"):
            assert head.headers.get(name) == there.headers.get(name), (path, name)


@pytest.mark.parametrize("name", OPERATIONS["jobs"])
def test_nothing_breaks_it(
    server: Running, name: str, examples: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("answers", json.dumps(check_operation(server, name, examples)))


def test_a_stream_is_as_it_is_described(server: Running) -> None:
    server.ready()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    job = server.submit(prompt="a cat")["id"]
    events = schema["/v1/jobs/{job}/events"]["GET"].Case(path_parameters={"job": job})
    made = schema["/v1/images/generations"]["POST"].Case(
        body={"prompt": "a cat", "stream": True}, media_type="application/json"
    )
    for case in (events, made):
        assert "event: " in case.call_and_validate(checks=CHECKS, timeout=60).text
