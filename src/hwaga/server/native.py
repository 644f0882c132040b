"""Hwaga's own API: jobs that go on whether anyone waits for them or not, and their pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Collection
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field

from hwaga.errors import RequestError, SourceImageError
from hwaga.image_file import Format
from hwaga.request import Fit
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
from hwaga.server.entity_tags import ETAG, is_named
from hwaga.server.event_stream import EventStream, content, frame
from hwaga.server.events import Event
from hwaga.server.jobs import Job, Kind, Status, not_served
from hwaga.server.picture_formats import bare, converted, thumbnail
from hwaga.server.refusals import RESPONSES, ErrorDetails, of_job

CACHE_SECONDS = 300
"""How long a client may show a picture without asking again: what was deleted is soon gone there too."""

MADE: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"description": "Where the job is.", "required": True, "schema": {"type": "string"}}}}
}

router = APIRouter(prefix="/v1", responses=RESPONSES)


class JobForm(Drawing, FromPicture):
    """A job to make, as a form."""

    model_config = examples.JOB_REQUEST

    fit: Fit | None = Field(None, description="How a picture of another shape meets the size.")
    steps_scale: bool = Field(False, description="Let strength drop steps, as the reference pipeline does.")
    number: int = Field(1, ge=1, le=10, description="How many pictures.")
    previews: bool = Field(False, description="Let each step bring a small JPEG of what emerges.")


class JobBody(JobForm):
    """A job to make, as JSON."""

    image: str | None = Field(None, description="A picture to start from, as base64: PNG, JPEG or WebP.")


class Progress(BaseModel):
    """Steps done and steps in all."""

    step: int
    total: int


class PictureView(BaseModel):
    """A finished picture."""

    id: str
    url: str


class JobView(BaseModel):
    """A job as its owner sees it. Times are seconds since the epoch."""

    model_config = examples.JOB

    id: str
    kind: Kind
    status: Status
    cancel_requested: bool
    created: float
    started: float | None
    finished: float | None
    position: int | None = Field(description="How many jobs are before it, while it waits.")
    reason: str | None = Field(description="Why it waits and has no place in the line: its model is not served now.")
    progress: Progress
    error: ErrorDetails | None
    images: list[PictureView]
    model: str | None = Field(description="The model that draws it; none for a job of before there were several.")
    request: dict[str, Any]
    number: int


class JobPage(BaseModel):
    """Jobs, newest first."""

    data: list[JobView]
    next: str | None = Field(description="The cursor of the next page, if there is one.")


def _view(job: Job, queue: list[str], served: Collection[str] | None = None) -> JobView:
    model = job.body.get("model")
    waits = job.status == "queued" and served is not None and model is not None and model not in served
    return JobView(
        id=job.id,
        kind=job.kind,
        status=job.status,
        cancel_requested=job.cancel_requested,
        created=job.created,
        started=job.started,
        finished=job.finished,
        position=queue.index(job.id) if job.status == "queued" and job.id in queue else None,
        reason=not_served(str(model)) if waits else None,
        progress=Progress(step=job.progress[0], total=job.progress[1]),
        error=None if job.error is None else ErrorDetails(**of_job(job.error)[1]["error"]),
        images=[PictureView(id=image, url=f"/v1/images/{image}") for image in job.images],
        model=model,
        request=job.body.get("request", {}),
        number=job.body.get("number", 1),
    )


async def view_of(front: Front, job: Job) -> JobView:
    """A job as its owner sees it, with its place in the queue."""
    return _view(job, await front.dispatcher.call(front.dispatcher.store.queue), front.models)


@router.post(
    "/jobs",
    status_code=202,
    tags=["jobs"],
    summary="Make a job, from words or from a picture and words",
    openapi_extra=body_schema(json=JobBody, form=JobForm),
    responses=MADE,
)
async def make_job(
    request: Request, response: Response, front: TheFront, owner: Owner, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Answers once the job is on the disk; it is then drawn even if nobody asks for it again."""
    body: JobForm
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body, source = await read_form(request, JobForm)
    else:
        body = parsed = await read_json(request, JobBody)
        source = None if parsed.image is None else await asyncio.to_thread(_decoded, parsed.image)
    given = {name: getattr(body, name) for name in ("strength", "fit") if getattr(body, name) is not None}
    if source is None and (given or body.steps_scale):
        raise RequestError("strength, fit and steps_scale are about a picture to start from. Send one as image.")
    job, _ = await front.submit(
        body.request(steps_scale=body.steps_scale, **given),
        front.model(body.model),
        owner=owner,
        number=body.number,
        previews=body.previews,
        source=source,
        key=idempotency_key,
    )
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return await view_of(front, job)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceImageError("The image is not base64. Send the bytes of a picture as base64, or a form.") from error


@router.get("/jobs", tags=["jobs"], summary="Your jobs, newest first")
async def list_jobs(
    front: TheFront,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[Name | None, Query(description="`next` of the page before.")] = None,
) -> JobPage:
    """A page of jobs."""
    before = None
    if cursor is not None:
        try:
            created, last = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
            before = (float(created), str(last))
            str(last).encode()
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise RequestError("The cursor is none of ours. Leave it out to begin with the newest job.") from error
    store = front.dispatcher.store
    jobs = await front.dispatcher.call(store.jobs, owner=owner, before=before, limit=limit + 1)
    queue = await front.dispatcher.call(store.queue)
    shown, rest = jobs[:limit], jobs[limit:]
    following = json.dumps([shown[-1].created, shown[-1].id]).encode() if rest else None
    return JobPage(
        data=[_view(job, queue, front.models) for job in shown],
        next=None if following is None else base64.urlsafe_b64encode(following).decode(),
    )


@router.get("/jobs/{job}", tags=["jobs"], summary="A job")
async def get_job(job: str, front: TheFront, owner: Owner) -> JobView:
    """A job as it is now."""
    return await view_of(front, await front.job(job, owner))


@router.delete("/jobs/{job}", tags=["jobs"], summary="Cancel a job")
async def cancel_job(job: str, front: TheFront, owner: Owner) -> JobView:
    """One that is being drawn stops after the step that it is at. One that has ended stays as it is."""
    await front.job(job, owner)
    return await view_of(front, await front.dispatcher.cancel(job))


@router.get(
    "/jobs/{job}/events",
    tags=["jobs"],
    summary="What happens to a job, as server-sent events",
    response_class=Response,
    responses={
        200: {
            "content": content(*examples.JOB_EVENTS),
            "description": "Events",
        }
    },
)
async def job_events(
    job: str,
    front: TheFront,
    owner: Owner,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was seen.")] = None,
) -> EventStream:
    """Events are queued, started, step, succeeded, failed and cancelled; the stream ends with one of the last three.

    A step says how many of all steps are done, and which of the job's pictures, from 0, it was one of; so is the preview.

    A client that comes back names the last event that it has seen, and gets what it has missed since.
    """
    found = await front.job(job, owner)
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 19 else 0

    async def frames() -> AsyncGenerator[bytes, None]:
        async with front.attending(found, cancels=False):
            async for event in front.dispatcher.events(job, after=after):
                yield frame(event.kind, _described(event), id=event.id)

    return EventStream(frames())


def _described(event: Event) -> dict[str, Any]:
    view = _view(event.job, []).model_dump()
    names = {"queued": (), "started": (), "step": ("progress",), "succeeded": ("images",), "failed": ("error",)}
    data: dict[str, Any] = {"job": event.job.id, "status": event.job.status}
    data |= {name: view[name] for name in names.get(event.kind, ())}
    if event.position is not None:
        data["position"] = event.position
    if event.kind == "step":
        data["picture"] = event.picture
    if event.preview:
        data["preview"] = base64.b64encode(event.preview).decode()
    return data


@router.head("/images/{image}", include_in_schema=False)
@router.get(
    "/images/{image}",
    tags=["images"],
    summary="A finished picture",
    response_class=Response,
    responses={
        200: {
            "content": {
                f"image/{format}": {"schema": {"type": "string", "format": "binary"}}
                for format in ("png", "jpeg", "webp")
            },
            "description": "The picture",
            "headers": ETAG,
        },
        304: {"description": "The picture that If-None-Match names"},
    },
)
async def get_image(
    image: str,
    request: Request,
    front: TheFront,
    format: Format = "png",
    quality: Annotated[int, Query(ge=1, le=100, description="Of JPEG and WebP.")] = 92,
    small: Annotated[bool, Query(alias="thumbnail", description="At most 256 pixels a side.")] = False,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The picture with the settings that made it inside. A thumbnail is without, and so is what others than its owner get: who
    knows the address needs no key.
    """
    owner: str | None = request.state.owner
    data, own = await front.shown(image, owner)
    whole = not small and (own or owner == "")  # who needs no key is everyone
    tag = f'"{image}-{format}-{quality}-{small:d}{whole:d}"'
    headers = {
        "ETag": tag,
        "Vary": "Authorization",
        "Cache-Control": f"private, max-age={CACHE_SECONDS}",
        "Referrer-Policy": "no-referrer",
    }
    if is_named(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    if small:
        data = await asyncio.to_thread(thumbnail, data, format)
    else:
        data = await asyncio.to_thread(converted if whole else bare, data, format, quality)
    return Response(data, media_type=f"image/{format}", headers=headers)
