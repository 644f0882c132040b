"""The images API of OpenAI, for its clients: pictures in the answer itself, or as a stream with partial images.

Who asks here waits for the answer, so a job whose client has gone is cancelled, unless another one waits for it or the client
sent an idempotency key, to ask again with.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from hwaga.errors import HwagaError, RequestError, ServerStoppingError, SourceImageError
from hwaga.image_file import Format
from hwaga.server import examples
from hwaga.server.drawing import (
    Drawing,
    FromPicture,
    Front,
    IdempotencyKey,
    Name,
    Owner,
    TheFront,
    body_schema,
    read_form,
    read_json,
)
from hwaga.server.event_stream import EventStream, content, frame, left
from hwaga.server.jobs import Job
from hwaga.server.picture_formats import converted, size_of
from hwaga.server.refusals import RESPONSES, answer, described, of_job

router = APIRouter(prefix="/v1", responses=RESPONSES, tags=["openai"])


class Generation(Drawing):
    """Pictures to make from words. ``prompt``, ``model`` and ``n`` to ``partial_images`` are OpenAI's, others Hwaga's."""

    model_config = examples.GENERATION

    n: int = Field(1, ge=1, le=10)
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] = Field("auto", description="Has no effect.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Format = "png"
    output_compression: int | None = Field(None, ge=1, le=100, description="The quality of JPEG and WebP.")
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = Field("auto", description="Has no effect.")
    user: Name | None = Field(None, description="Has no effect.")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)


class Edit(Generation, FromPicture):
    """Pictures to make from a picture and words."""

    model_config = examples.EDIT


class TextAndImageTokens(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt and the negative prompt as the model was given them. Pictures count none."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TextAndImageTokens


class Picture(BaseModel):
    """A finished picture: its bytes as base64, or where it is."""

    b64_json: str | None = None
    url: str | None = None


class Pictures(BaseModel):
    """Finished pictures."""

    model_config = examples.PICTURES

    created: int
    data: list[Picture]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str
    usage: Usage


class Model(BaseModel):
    """A model that pictures can be asked of."""

    model_config = examples.MODEL

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "hwaga"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Pictures,
        "content": content(*examples.PICTURE_EVENTS),
        "description": "The pictures; with `stream`, server-sent events.",
    }
}


@router.get("/models", summary="The models there are")
async def list_models(front: TheFront, _: Owner) -> Models:
    """Those that this server was started with, its default first."""
    return Models(data=[Model(id=name) for name in front.models])


@router.get("/models/{model}", summary="A model")
async def get_model(model: str, front: TheFront, _: Owner) -> Model:
    """The model of that name."""
    return Model(id=front.model(model).card.name)


@router.post(
    "/images/generations",
    summary="Make pictures from words",
    responses=STREAMED,
    response_model=None,
    openapi_extra=body_schema(json=Generation),
)
async def generate(
    request: Request, front: TheFront, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Response | Pictures:
    """As OpenAI's."""
    body = await read_json(request, Generation)
    return await _answer(front, request, body, owner, None, idempotency_key)


@router.post(
    "/images/edits",
    summary="Make pictures from a picture and words",
    responses=STREAMED,
    response_model=None,
    openapi_extra=body_schema(form=Edit),
)
async def edit(
    request: Request, front: TheFront, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Response | Pictures:
    """As OpenAI's, of one picture and without a mask."""
    body, source = await read_form(request, Edit)
    if source is None:
        raise SourceImageError("image is missing. Send a PNG, JPEG or WebP picture as multipart/form-data.")
    return await _answer(front, request, body, owner, source, idempotency_key)


async def _answer(
    front: Front, request: Request, body: Generation, owner: str, source: bytes | None, key: str | None
) -> Response | Pictures:
    model = front.model(body.model)
    if body.output_compression is not None and body.output_format == "png":
        raise RequestError("output_compression is for jpeg and webp. Leave it out, or choose one as output_format.")
    if body.partial_images and not body.stream:
        raise RequestError("partial_images come in a stream. Set stream to true, or leave them out.")
    strength = body.strength if isinstance(body, Edit) else None
    wanted = body.request(**({} if strength is None else {"strength": strength}))
    job, tokens = await front.submit(
        wanted, model, owner=owner, number=body.n, previews=body.partial_images > 0, source=source, key=key
    )
    usage = Usage(
        input_tokens=tokens,
        output_tokens=0,
        total_tokens=tokens,
        input_tokens_details=TextAndImageTokens(text_tokens=tokens, image_tokens=0),
    )
    cancels = key is None  # who sends a key means to come back
    if body.stream:
        kind = "image_generation" if source is None else "image_edit"
        return EventStream(_streamed(front, job, body, kind, usage, cancels))
    ended = await _ended(front, request, job, cancels)
    if ended.error is not None:
        return answer(*of_job(ended.error), {"x-should-retry": "false"})  # it would fail again, after as long a time
    _refuse_unfinished(ended)
    pictures = [await _encoded(front, image, body, owner) for image in ended.images]
    size = await asyncio.to_thread(size_of, pictures[0])
    format, quality = body.output_format, body.output_compression or 92
    links = [
        f"{request.base_url}v1/images/{image}?format={format}&quality={quality}".replace("&quality=92", "")
        for image in ended.images
    ]
    as_links = body.response_format == "url"
    return Pictures(
        created=int(ended.finished or time.time()),
        data=[
            Picture(url=link) if as_links else Picture(b64_json=base64.b64encode(data).decode())
            for link, data in zip(links, pictures, strict=True)
        ],
        output_format=format,
        size=size,
        usage=usage,
    )


async def _ended(front: Front, request: Request, job: Job, cancels: bool) -> Job:
    """The job once it has ended, or as it is when the server stops. Raises ClientDisconnect if the client leaves first."""
    async with front.attending(job, cancels=cancels):
        waiting = asyncio.create_task(_last(front, job))
        leaving = asyncio.create_task(left(request.receive))
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        finally:
            for task in (waiting, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _last(front: Front, job: Job) -> Job:
    async for event in front.dispatcher.events(job.id):
        job = event.job
    return job


def _refuse_unfinished(job: Job) -> None:
    if job.status == "cancelled":
        raise RequestError("The job was cancelled while you waited for it.")
    if job.status != "succeeded":
        raise ServerStoppingError("The server is being stopped before the job is done. Try again when it is back.")


async def _streamed(
    front: Front, job: Job, body: Generation, kind: str, usage: Usage, cancels: bool
) -> AsyncGenerator[bytes, None]:
    def shown(name: str, data: bytes, format: str, **more: Any) -> bytes:
        event: dict[str, Any] = {
            "type": f"{kind}.{name}",
            "b64_json": base64.b64encode(data).decode(),
            "created_at": int(time.time()),
            "size": size_of(data),
            "quality": "auto",
            "background": "opaque",
            "output_format": format,
        }
        return frame(event["type"], event | more)

    try:
        async with front.attending(job, cancels=cancels):
            async for event in front.dispatcher.events(job.id):
                job = event.job
                if event.kind == "step" and event.preview:
                    due = _due(job.progress[1] // body.n, body.partial_images)
                    if event.own_step in due:
                        index = due.index(event.own_step)
                        yield shown("partial_image", event.preview, "jpeg", partial_image_index=index)
        if job.error is not None:
            yield frame("error", of_job(job.error)[1])
            return
        _refuse_unfinished(job)
        for image in job.images:
            data = await _encoded(front, image, body, job.owner)
            yield shown("completed", data, body.output_format, usage=usage.model_dump())
    except HwagaError as error:
        yield frame("error", described(type(error), front.public(str(error)))[1])


def _due(steps: int, count: int) -> list[int]:
    """The steps, from 1, after which partial images are shown: spaced evenly, and none after the last step."""
    return sorted({math.ceil(steps * k / (count + 1)) for k in range(1, count + 1)} - {steps})


async def _encoded(front: Front, image: str, body: Generation, owner: str) -> bytes:
    data = await front.picture(image, owner)
    return await asyncio.to_thread(converted, data, body.output_format, body.output_compression or 92)
