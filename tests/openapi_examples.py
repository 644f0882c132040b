"""Requests made from the OpenAPI document, good and bad, and what must be true of every answer."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings, strategies
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
OPERATIONS = {
    "jobs": [
        "GET /health/live", "GET /health/ready", "GET /metrics",
        "POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{job}", "DELETE /v1/jobs/{job}", "GET /v1/jobs/{job}/events",
        "GET /v1/images/{image}", "GET /v1/status", "GET /v1/jobs/{job}/source", "DELETE /v1/images/{image}",
        "POST /v1/images/{image}/again",
    ],
    "images": [
        "GET /v1/styles", "GET /v1/industries", "GET /v1/loras", "GET /v1/plan", "POST /v1/prompts/compose",
        "POST /v1/images/generations", "POST /v1/images/edits", "GET /v1/models", "GET /v1/models/{model}",
    ],
}  # fmt: skip


@strategies.composite
def drawn(draw: strategies.DrawFn, cases: strategies.SearchStrategy[Any]) -> Any:
    """A case, but for those that schemathesis stumbles over while it makes them: forms with a wrong field beside a file."""
    try:
        return draw(cases)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        return reject()


@cache
def described(url: str) -> Any:
    """The document of a server, which takes a while to read. Whichever of our servers has that port, it is the same."""
    return schemathesis.openapi.from_url(url)


def check_operation(server: Running, name: str, examples: int) -> None:
    """Sends an operation ("GET /v1/jobs") so many different requests, or all there are where it takes nothing."""
    server.ready()
    schema = described(f"{server.url}/openapi.json")
    method, path = name.split()
    operation = schema[path][method]

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=drawn(strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))))
    def holds(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    holds()
