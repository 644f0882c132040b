"""What an error looks like over HTTP: one envelope, which is that of the OpenAI API, for whatever goes wrong anywhere."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hwaga import errors
from hwaga.errors import HwagaError, QueueFullError, RequestError
from hwaga.server import examples

_log = logging.getLogger(__name__)

STATUS: dict[type[HwagaError], int] = {
    RequestError: 400,
    errors.ImageFileError: 400,
    errors.UnknownJobError: 404,
    errors.UnknownModelError: 404,
    errors.IdempotencyConflictError: 409,
    QueueFullError: 429,
    errors.ServerStoppingError: 503,
    errors.StoreFullError: 507,
    errors.StoreError: 503,
}
"""Status by class of error; the nearest base counts, and 500 is for all others."""

PARAMETERS: dict[type[HwagaError], str] = {
    errors.PromptError: "prompt",
    errors.StyleError: "style",
    errors.LoraError: "lora",
    errors.SizeError: "size",
    errors.SourceImageError: "image",
    errors.UnknownModelError: "model",
}
"""The field that an error is about, where its class tells."""

CODES: dict[type[BaseException], str] = {errors.UnknownModelError: "model_not_found"}
"""Codes that OpenAI has a word of its own for; others are the names of our classes."""

MAX_RETRY_AFTER = 3600
MAX_FIELD = 100


class ErrorDetails(BaseModel):
    """What went wrong: a message for people, the field that it is about, and a code for programs."""

    model_config = ConfigDict(title="Error")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    model_config = examples.ERROR

    error: ErrorDetails


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 408, 409, 413, 429, 500, 503, 507)
}
RESPONSES[429]["headers"] = {
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
}
RESPONSES[401]["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}}

ANY: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (403, 413, 500)}
"""Of them, those of a request that needs no key, no body and no store."""


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The envelope."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer that is an error."""
    return answer(status, error_body(status, message, param=param, code=code), headers)


def answer(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """The same of an envelope. It is sent as ASCII, as what it quotes may be no text."""
    return Response(json.dumps(body), status, headers, "application/json")


def described(kind: type[BaseException], message: str) -> tuple[int, dict[str, Any]]:
    """Status and envelope of one of our errors."""
    bases = [base for base in kind.__mro__ if base in STATUS]
    status = STATUS[bases[0]] if bases else 500
    param = next((PARAMETERS[base] for base in kind.__mro__ if base in PARAMETERS), None)
    if issubclass(kind, errors.StoreError) and not issubclass(kind, errors.StoreFullError):
        message = "The server's store of jobs failed, and its log says why. Try again later."
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).lower()
    code = CODES.get(kind, code)
    return status, error_body(status, message, param=param, code=code)


def of_job(error: tuple[str, str]) -> tuple[int, dict[str, Any]]:
    """The same of an error that a worker reported, by the name of its class."""
    name, message = error
    kind = getattr(errors, name, None)
    return described(kind if isinstance(kind, type) else type(name, (Exception,), {}), message)


def readable(failures: list[Any]) -> tuple[str, str | None]:
    """A message of what pydantic found, and the first field that it is about."""
    lines, first = [], None
    for failure in failures[:5]:
        place = [str(part) for part in failure["loc"] if part not in ("body", "query", "path", "header")]
        field = ".".join(place)
        if len(field) > MAX_FIELD:  # a client's own text: it need not all come back
            field = f"{field[:MAX_FIELD]}…"
        if failure["type"] == "json_invalid":
            lines.append("The body is not valid JSON.")
            continue
        if not place:
            lines.append("The body must be a JSON object, sent as application/json.")
            continue
        first = first or field
        if failure["type"] == "extra_forbidden":
            lines.append(f"{field} is not a field of this request. Leave it out.")
        elif failure["type"] == "missing":
            lines.append(f"{field} is missing.")
        else:
            lines.append(f"{field}: {failure['msg'].removeprefix('Value error, ')}.".replace("..", "."))
    return " ".join(lines), first


def add_to(app: FastAPI) -> None:
    """Has an app answer with the envelope, whatever is raised."""

    async def on_ours(request: Request, error: Exception) -> Response:
        headers = {}
        if isinstance(error, QueueFullError):
            dispatcher = request.app.state.front.dispatcher
            wait = await dispatcher.call(dispatcher.store.expected_wait, dispatcher.workers)
            headers["Retry-After"] = str(min(max(1, math.ceil(wait or 1)), MAX_RETRY_AFTER))
        status, body = described(type(error), request.app.state.front.public(str(error)))
        if status >= 500:
            _log.error("%s: %s", type(error).__name__, error)
        return answer(status, body, headers)

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = readable(list(error.errors()))
        return refusal(400, message, param=param, code="invalid_value")

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code in (404, 405) and message == HTTPStatus(error.status_code).phrase:
            message = f"There is no {request.method} {request.url.path} here. GET /openapi.json lists what there is."
        code = "not_found" if error.status_code == 404 else None
        return refusal(error.status_code, message, code=code, headers=error.headers)

    app.add_exception_handler(HwagaError, on_ours)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
