"""What clients ask for, whichever of the two APIs they speak: its fields, its check before a job is made of it, and the job."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from hwaga.errors import (
    RequestError,
    SizeError,
    SourceImageError,
    StoreFullError,
    UnknownJobError,
    UnknownModelError,
)
from hwaga.request import MAX_GUIDANCE, MAX_SEED, SAMPLERS, ImageRequest
from hwaga.server import examples
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.folders import without_folders
from hwaga.server.jobs import Job, Kind
from hwaga.server.json_log import request_id
from hwaga.server.served import Served
from hwaga.server.strange_pictures import MAX_PICTURE, check_picture

DECODERS = 2
"""How many pictures from strangers are decoded at once: each may take gigabytes for a moment."""

MAX_PROMPT = 32_000
"""Most characters of a prompt: several times what any limit of tokens admits."""

MAX_MARKS = 2**18
"""Most bytes of a body of JSON that are not letters, digits or signs of base64. What parsing takes grows with those, and the
longest prompt, in any script, has half as many."""

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_TOLD = 5  # unknown fields that a refusal may name

Name = Annotated[str, Field(max_length=200)]

_log = logging.getLogger(__name__)


class Words(BaseModel):
    """What becomes the prompt."""

    # A number in quotes is no number. Forms, where all is text, are read without this.
    model_config = ConfigDict(extra="forbid", strict=True, **examples.WORDS)

    prompt: str = Field(
        max_length=MAX_PROMPT,
        description="What to draw, in your own words.",
        examples=["a red apple"],
        json_schema_extra={"minLength": 1},  # said by an error of ours, which has the remedy
    )
    model: Name | None = Field(None, description="One of the models (GET /v1/models); the first unless given.")
    style: Name | None = Field(None, description="A style (GET /v1/styles), or auto.")
    industry: Name | None = Field(None, description="A business (GET /v1/industries), or auto.")
    avoid: list[Name] = Field([], max_length=32, fail_fast=True, description="Things not wanted, as text or people.")
    use: Name | None = Field(None, description="Where it will be shown: feed, story, banner or poster.")
    style_fallback: bool = Field(False, description="Go on without the style's LoRA where it is absent.")
    guidance: float | None = Field(
        None,
        ge=1,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="How much the picture follows the prompt, for a model with guidance; its default unless given. At 1 there "
        "is no negative prompt.",
        examples=[7.0],
    )


class Drawing(Words):
    """What every request for pictures may say."""

    size: Name | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto.", examples=["256x256"])
    aspect: Name | None = Field(None, description="A shape of the model's, as 16:9, in place of a size.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Makes a picture repeatable. Each next one counts it up."
    )
    steps: int | None = Field(
        None, ge=1, le=1000, description="Forwards of the denoiser; the model's default unless given."
    )
    negative: str | None = Field(
        None,
        max_length=MAX_PROMPT,
        description="What the picture should not show, for a model with guidance. Others take `avoid`.",
        examples=["blurry, text"],
    )
    sampler: Name | None = Field(
        None, description=f"{' or '.join(SAMPLERS)}, for a model with a choice; its default unless given."
    )
    lora: list[Name] = Field(
        [], max_length=16, fail_fast=True, description="LoRAs as NAME or NAME:WEIGHT (GET /v1/loras)."
    )
    max_tokens: int | None = Field(None, ge=1, description="Raises the prompt's limit, as far as the model goes.")

    def request(self, **more: Any) -> ImageRequest:
        """As the engine knows it. Raises RequestError."""
        width, height = _parsed_size(self.size)
        return ImageRequest(
            self.prompt, style=self.style, industry=self.industry, avoid=self.avoid, use=self.use,
            style_fallback=self.style_fallback, loras=self.lora, width=width, height=height, aspect=self.aspect,
            steps=self.steps, seed=self.seed, max_tokens=self.max_tokens, negative=self.negative, guidance=self.guidance,
            sampler=self.sampler, **more,
        )  # fmt: skip


class FromPicture(BaseModel):
    """What a request with a picture to start from may say besides."""

    strength: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="The noise level that the picture is taken to. 1 ignores it."
    )


@dataclass
class Front:
    """What the side that answers requests works with.

    Attributes:
        models: by their names; the first is the default.
        folders: which no client is told of.
        log_prompts: the log has the words of each job.
        waiting: how many clients wait for each job.
        decoders: threads that wait for processes that decode pictures: so many at a time.
    """

    dispatcher: Dispatcher
    models: Mapping[str, Served]
    folders: Sequence[str] = ()
    log_prompts: bool = False
    waiting: Counter[str] = field(default_factory=Counter)
    decoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(DECODERS, "decoders"))

    def model(self, name: str | None) -> Served:
        """A model by its name, or the default. Raises UnknownModelError."""
        found = self.models.get(next(iter(self.models)) if name is None else name)
        if found is None:
            names = ", ".join(self.models)
            raise UnknownModelError(
                f"There is no model {name!r} here. There is {names}; leave model out to use the first."
            )
        return found

    def public(self, message: str) -> str:
        """A message as clients may read it."""
        return without_folders(message, self.folders)

    async def submit(
        self,
        request: ImageRequest,
        model: Served,
        *,
        owner: str,
        number: int,
        previews: bool,
        source: bytes | None,
        key: str | None,
    ) -> tuple[Job, int]:
        """Checks a request and takes it in as a job. Returns it and the number of the prompt's tokens."""
        await self.dispatcher.check_room(owner, len(source or b""), key=key)  # before pictures are decoded
        tokens = await asyncio.to_thread(model.check, request)
        if source is not None:
            await asyncio.get_running_loop().run_in_executor(self.decoders, check_picture, source)
        fields = request.to_json()
        if source is not None:  # the request was made without its picture, which the worker decodes
            fields |= {name: getattr(request, name) for name in ("strength", "fit", "steps_scale")}
        body = {"model": model.card.name, "request": fields, "number": number, "previews": previews}
        kind: Kind = "text2image" if source is None else "image2image"
        asked = request_id.get()
        job = await self.dispatcher.submit(kind, body, owner=owner, source=source, key=key, request_id=asked)
        said = {"job": job.id} | ({"prompt": request.prompt} if self.log_prompts else {})
        _log.info("Job %s is %s.", job.id, "accepted" if job.request_id == asked else "asked for again", extra=said)
        return job, tokens

    async def job(self, job: str, owner: str) -> Job:
        """A job of that owner's. Those of others are not there: UnknownJobError."""
        with contextlib.suppress(UnknownJobError):
            found = await self.dispatcher.call(self.dispatcher.store.get, job)
            if found.owner == owner:
                return found
        raise UnknownJobError("There is no job of that id. It may have been removed by its age.")

    async def picture(self, image: str, owner: str | None = None) -> bytes:
        """The PNG of a finished picture, of that owner's where one is named, or UnknownJobError."""
        data, own = await self.shown(image, owner)
        if owner is not None and not own:
            raise UnknownJobError("There is no picture of that id. It may have been removed by its age.")
        return data

    async def shown(self, image: str, owner: str | None) -> tuple[bytes, bool]:
        """The PNG of a finished picture, and whether it is that owner's. Raises UnknownJobError."""
        with contextlib.suppress(UnknownJobError):
            job, data = await self.dispatcher.call(self.dispatcher.store.picture, image)
            return data, (await self.dispatcher.call(self.dispatcher.store.get, job)).owner == owner
        raise UnknownJobError("There is no picture of that id. It may have been removed by its age.")

    @asynccontextmanager
    async def attending(self, job: Job, *, cancels: bool) -> AsyncIterator[None]:
        """While a client waits for a job. Where it ``cancels`` and leaves as the last one, a job that goes on is cancelled."""
        self.waiting[job.id] += 1
        try:
            yield
        finally:
            self.waiting[job.id] -= 1
            if not self.waiting[job.id]:
                del self.waiting[job.id]
                if cancels:
                    with contextlib.suppress(UnknownJobError):
                        await self.dispatcher.cancel(job.id)


def _front(request: Request) -> Front:
    front: Front = request.app.state.front
    return front


def _owner(request: Request, _: Annotated[Any, Depends(HTTPBearer(auto_error=False))]) -> str:
    owner: str = request.state.owner  # found out by the gate; the scheme is here for the OpenAPI document
    return owner


TheFront = Annotated[Front, Depends(_front)]
Owner = Annotated[str, Depends(_owner)]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="The same key and request give the same job again.")
]


Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, model: type[Body]) -> Body:
    """A body of JSON, which says that it is: a page of another site can send other types unasked. RequestValidationError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestValidationError([{"type": "model_type", "loc": ("body",), "msg": ""}])
    return await asyncio.to_thread(_parsed, await request.body(), model)


def _parsed(body: bytes, model: type[Body]) -> Body:
    # Threads take turns but between calls of C code, and the parser is one: a body that it is long at stops everyone. So that
    # is told beforehand, by what is cheap to count. Some encoders write \/ for the / of base64.
    marks = len(body.translate(None, _BASE64)) - body.count(b"\\/")
    if marks > MAX_MARKS:
        raise RequestError(
            f"The body has {marks:,} bytes of signs and spaces, and {MAX_MARKS:,} are the most. Send less."
        )
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": ""}]) from error
    if isinstance(values, dict):  # each unknown field is an error, and the first few say it all
        unknown = [name for name in values if name not in model.model_fields]
        for name in unknown[_TOLD:]:
            del values[name]
    return _validated(model, values, strict=True)


async def read_form(request: Request, model: type[Body]) -> tuple[Body, bytes | None]:
    """A multipart body, whose list fields may be written as ``name`` or ``name[]``, and the picture in its field ``image``.

    Raises:
        RequestValidationError: a field that is not the model's, a bad value, a value twice, or a file in another field.
        RequestError: no form.
        SourceImageError: several pictures, or one that is no file.
        StoreFullError: the disk of temporary files, where large parts wait, is full.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):  # the latter lacks but the picture
        raise RequestError("The body must be a form: multipart/form-data with the picture as a file in image.")
    try:
        return await _read_form(request, model)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFullError("The disk of temporary files is full, so that no upload fits. Free some space.") from error


async def _read_form(request: Request, model: type[Body]) -> tuple[Body, bytes | None]:
    values: dict[str, Any] = {}
    pictures = []
    async with request.form(max_files=4, max_fields=200) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                if name == "mask":
                    raise _bad_field(name, "Masks are not supported, as the whole picture is drawn anew. Leave it out")
                if name != "image":
                    raise _bad_field(name, "It must not be a file")
                pictures.append(await value.read(MAX_PICTURE + 1))
            elif name == "image":
                raise SourceImageError("image must be a file of the form.")
            elif name in model.model_fields and model.model_fields[name].annotation == list[Name]:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise _bad_field(name, "It is given twice")
            else:
                values[name] = value
    if len(pictures) > 1:
        raise SourceImageError("Give one picture to start from: several are not supported.")
    return _validated(model, values, strict=False), pictures[0] if pictures else None


def _bad_field(name: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("body", name), "msg": message}])


def _validated(model: type[Body], values: Any, *, strict: bool) -> Body:
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_context=False, include_url=False, include_input=False)
        ) from None


def body_schema(**kinds: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a body that ``read_json`` or ``read_form`` reads; ``form`` also holds a picture."""
    content = {}
    for kind, model in kinds.items():
        schema = model.model_json_schema()
        if kind == "form":
            schema["properties"]["image"] = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
        content["multipart/form-data" if kind == "form" else "application/json"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def _parsed_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size)
    if match is None:
        raise SizeError(f"The size must be WIDTHxHEIGHT, as in 1024x768, or auto, not {size!r}.")
    return int(match[1]), int(match[2])
