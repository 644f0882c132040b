"""What the OpenAPI document promises, and whether the server keeps it whatever it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

if TYPE_CHECKING:
    from conftest import Running

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    "GET /health/live", "GET /health/ready", "GET /metrics",
    "POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{job}", "DELETE /v1/jobs/{job}", "GET /v1/jobs/{job}/events",
    "GET /v1/images/{image}", "GET /v1/styles", "GET /v1/industries", "GET /v1/loras", "POST /v1/prompts/compose",
    "GET /v1/status", "GET /v1/jobs/{job}/source", "DELETE /v1/images/{image}",
    "POST /v1/images/generations", "POST /v1/images/edits", "GET /v1/models", "GET /v1/models/{model}",
]  # fmt: skip


def test_the_document_is_complete(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    found = {
        f"{method.upper()} {path}": made for path, ways in document["paths"].items() for method, made in ways.items()
    }
    assert sorted(found) == sorted(OPERATIONS)
    for name, operation in found.items():
        assert operation["summary"], name
        assert any(status.startswith("2") for status in operation["responses"]), name
    body = found["POST /v1/images/edits"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"prompt", "image", "strength", "n", "lora"} <= body["properties"].keys()
    assert "$ref" not in str(body)
    assert {"security"} <= found["POST /v1/jobs"].keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_breaks_it(server: Running, name: str) -> None:
    server.ready()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    method, path = name.split()
    operation = schema[path][method]

    @settings(
        max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(case=strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
    def holds(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    holds()
