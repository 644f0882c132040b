"""Requests made from the OpenAPI document, good and bad, and what must be true of every answer."""

from __future__ import annotations

import io
import json
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings, strategies
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
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
    response_headers_conformance,
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


def picture_file() -> bytes:
    """A picture to start from."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


class There:
    """What a server has, for requests to be about. A made-up name is of nothing, and nearly every made-up request refused."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._pictures: list[str] = []
        self._picture = picture_file()
        made = server.client.post("/v1/jobs", data={"prompt": "an orange"}, files={"image": self._picture})
        waiting = server.submit(prompt=json.dumps({"until": "/never"}))["id"]
        server.client.delete(f"/v1/jobs/{waiting}")
        failing = server.submit(prompt=json.dumps({"way": "fail"}))["id"]
        self._ended = [made.json()["id"], waiting, failing]
        assert [server.ended(job)["status"] for job in self._ended] == ["succeeded", "cancelled", "failed"]

    def fill_in(self, case: Any, *, chosen: int) -> None:
        """Has a request be about what is there, wherever it names something."""
        if "job" in case.path_parameters:
            jobs = [*self._ended, None]
            job = jobs[chosen % len(jobs)]
            case.path_parameters["job"] = job or self._server.submit(prompt="an apple")["id"]
        if "image" in case.path_parameters:
            case.path_parameters["image"] = self._image(gone=case.method == "DELETE")
        if "model" in case.path_parameters:
            case.path_parameters["model"] = "mini"
        if chosen % 3 == 0 and case.media_type is not None:  # whatever else is made up
            shown = case.operation.definition.raw["requestBody"]["content"][case.media_type]["schema"]["examples"]
            case.body = dict(shown[chosen % len(shown)])
        if isinstance(case.body, dict):
            for name in (
                "negative",
                "guidance",
                "sampler",
                "aspect",
            ):  # what this model has not, and what excludes a size
                case.body.pop(name, None)
            named = {
                "model": "mini",
                "style": ("anime", "auto", "realistic")[chosen % 3],
                "industry": ("cafe", "auto")[chosen % 2],
                "use": "feed",
                "size": ("256x256", "auto", "336x192")[chosen % 3],
                "steps": 1 + chosen % 8,
                "number": 1 + chosen % 3,
                "n": 1 + chosen % 3,
                "lora": ["line:0.5"][: chosen % 2],
                "max_tokens": 512,
            }
            case.body |= {name: value for name, value in named.items() if name in case.body}
            if case.media_type == "multipart/form-data":
                case.body["image"] = self._picture

    def _image(self, *, gone: bool) -> str:
        if not self._pictures:
            made = self._server.submit(prompt="an apple", number=10)["id"]
            self._pictures = [picture["id"] for picture in self._server.ended(made)["images"]]
        return self._pictures.pop() if gone else self._pictures[0]


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


def check_operation(server: Running, name: str, examples: int) -> Counter[int]:
    """Sends an operation ("GET /v1/jobs") so many different requests, or all there are where it takes nothing. Every second one
    is about what is there. Returns how often it was answered with each status.
    """
    server.ready()
    schema = described(f"{server.url}/openapi.json")
    method, path = name.split()
    operation = schema[path][method]
    there, answers = There(server), Counter[int]()

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=drawn(strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))),
        filled=strategies.booleans(),
        chosen=strategies.integers(0, 11),
    )
    def holds(case: Any, filled: bool, chosen: int) -> None:
        if filled:
            there.fill_in(case, chosen=chosen)
        answers[case.call_and_validate(checks=CHECKS, timeout=60).status_code] += 1

    holds()
    assert any(status < 300 for status in answers), f"No request was a good one: {answers}"
    return answers
