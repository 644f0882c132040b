"""What the OpenAPI document promises of jobs and pictures, and whether the server keeps it whatever it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import schemathesis
from openapi_examples import CHECKS, OPERATIONS, check_operation

if TYPE_CHECKING:
    from conftest import Running


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
