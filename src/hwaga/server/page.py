"""The page for a browser: its files at / and /ui, and what the API says and does for it beside jobs and words."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import mimetypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from hwaga.errors import UnknownJobError, UnknownModelError
from hwaga.request import MAX_SEED, ImageRequest
from hwaga.server import examples
from hwaga.server.drawing import IdempotencyKey, Owner, TheFront, body_schema, read_json
from hwaga.server.entity_tags import ETAG, is_named
from hwaga.server.health import kilobyte_lines
from hwaga.server.native import MADE, JobView, view_of
from hwaga.server.picture_formats import made_by
from hwaga.server.refusals import RESPONSES
from hwaga.server.served import Served
from hwaga.server.wire import DeviceMemory
from hwaga.version import __version__

router = APIRouter()

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What the page may load and do. No markup is made of strings: the browser itself refuses ``innerHTML``."""

_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".webp": "image/webp", ".webmanifest": "application/json"}


@dataclass(frozen=True)
class File:
    """A file of the page as it is sent."""

    data: bytes
    packed: bytes | None
    type: str
    tag: str


@cache
def page_files() -> dict[str, File]:
    """All files of the page, by their paths below ``hwaga/ui``. No other path can be asked for."""
    folder = Path(str(files("hwaga") / "ui"))
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            data = path.read_bytes()
            kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            packed = None if path.suffix == ".webp" else gzip.compress(data, mtime=0)
            charset = "; charset=utf-8" if kind.startswith("text/") else ""
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = File(data, packed, kind + charset, tag)
    return found


def _sent(name: str, request: Request) -> Response:
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404)
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    headers |= {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    if is_named(file.tag, request.headers.get("if-none-match")):
        return Response(status_code=304, headers=headers)
    if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.type)
    return Response(file.data, headers=headers, media_type=file.type)


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page."""
    return _sent("index.html", request)


@router.head("/ui/{name:path}", include_in_schema=False)
@router.get("/ui/{name:path}", include_in_schema=False)
async def page_file(name: str, request: Request) -> Response:
    """What it consists of."""
    return _sent(name, request)


class ModelView(BaseModel):
    """A model that is served, and what it takes."""

    name: str
    title: str
    steps: int
    max_steps: int
    token_limit: int
    aspects: dict[str, tuple[int, int]] = Field(description="Width and height in pixels by the name of the shape.")
    styles: list[str] = Field(description="The styles that it has of its own, and that can be asked for.")
    own_words_only: bool = Field(description="Styles and industries beyond its own change nothing.")
    guidance: float | None = Field(
        description="Of a model that is drawn with guidance: how much, unless a request says so."
    )
    samplers: list[str] = Field(description="That may be chosen from, its default first.")


class UseView(BaseModel):
    """A place where pictures are shown."""

    name: str
    title: dict[str, str]
    aspect: str


class ProcessMemory(BaseModel):
    """Memory of a process of the server, in bytes: its own, and its device's."""

    process: str
    rss_anon_bytes: int | None
    vram_used_bytes: int | None
    vram_reserved_bytes: int | None


class StatusView(BaseModel):
    """The server at a glance."""

    version: str
    ready: bool
    problem: str | None = Field(description="Why jobs are not being drawn, where that is known.")
    model: ModelView = Field(description="The default.")
    models: list[ModelView] = Field(description="All of them, the default first.")
    uses: list[UseView]
    queued: int
    running: int
    workers: int
    expected_wait_seconds: float | None = Field(description="Until a job sent now would start; none before any ended.")
    memory: list[ProcessMemory]
    host_memory_bytes: int | None


@router.get("/v1/status", tags=["health"], summary="The server at a glance", responses=RESPONSES)
async def status(front: TheFront, _: Owner) -> StatusView:
    """The models, the queue and memory."""
    dispatcher, models = front.dispatcher, [_view(served) for served in front.models.values()]
    uses = front.model(None).library.uses
    counts = await dispatcher.call(dispatcher.store.counts)
    processes: dict[str, tuple[int, DeviceMemory | None]] = {"front": (os.getpid(), None)}
    processes |= {f"worker {place}": held for place, held in dispatcher.processes.items()}
    return StatusView(
        version=__version__,
        ready=dispatcher.ready,
        problem=None if dispatcher.ready else " ".join(dispatcher.problems) or None,
        model=models[0],
        models=models,
        uses=[UseView(name=use.name, title=dict(use.titles), aspect=use.aspect) for use in uses.values()],
        queued=counts["queued"],
        running=counts["running"],
        workers=dispatcher.workers,
        expected_wait_seconds=await dispatcher.call(dispatcher.store.expected_wait, dispatcher.workers),
        memory=[
            ProcessMemory(
                process=name,
                rss_anon_bytes=kilobyte_lines(pid).get("RssAnon"),
                vram_used_bytes=None if device is None else device.used,
                vram_reserved_bytes=None if device is None else device.reserved,
            )
            for name, (pid, device) in processes.items()
        ],
        host_memory_bytes=_host_memory(),
    )


def _view(served: Served) -> ModelView:
    card = served.card
    return ModelView(
        name=card.name,
        title=card.title,
        steps=card.steps,
        max_steps=card.limits.max_steps,
        token_limit=card.limits.tokens,
        aspects={name: (width, height) for name, (width, height) in card.aspects.items()},
        styles=list(served.own_styles),
        own_words_only=card.own_words_only,
        guidance=card.guidance,
        samplers=list(card.samplers),
    )


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not tell
        return None


_PICTURE = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/v1/jobs/{job}/source",
    tags=["jobs"],
    summary="The picture that a job starts from",
    response_class=Response,
    responses={
        **RESPONSES,
        200: {
            "content": dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _PICTURE),
            "description": "As sent",
            "headers": ETAG,
        },
        304: {"description": "The picture that If-None-Match names"},
    },
)
async def job_source(
    job: str, front: TheFront, owner: Owner, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The very bytes that were sent."""
    await front.job(job, owner)
    headers = {"ETag": f'"{job}"', "Cache-Control": "private, max-age=31536000, immutable"}
    data = await front.dispatcher.call(front.dispatcher.store.source, job)
    if data is None:
        raise UnknownJobError("That job starts from words alone.")
    if is_named(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    kind = "image/png" if data[:1] == b"\x89" else "image/jpeg" if data[:1] == b"\xff" else "image/webp"
    return Response(data, media_type=kind, headers=headers)


class Again(BaseModel):
    """What is to be different."""

    model_config = ConfigDict(extra="forbid", strict=True, **examples.AGAIN)

    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Another seed; the picture's own unless given.")
    previews: bool = Field(False, description="Let each step bring a small JPEG of what emerges.")


@router.post(
    "/v1/images/{image}/again",
    status_code=202,
    tags=["images"],
    summary="Make a picture again, or with another seed",
    openapi_extra=body_schema(json=Again),
    responses=RESPONSES | MADE,
)
async def make_again(
    image: str,
    request: Request,
    response: Response,
    front: TheFront,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """A job from the settings inside the picture, of the model that they name. It is not composed anew, also where the packs'
    wording has changed since.
    """
    body = await read_json(request, Again)
    model, carried = await asyncio.to_thread(made_by, await front.picture(image, owner))
    of, _ = await front.dispatcher.call(front.dispatcher.store.picture, image)
    model = model or (await front.job(of, owner)).body.get("model")
    if model is not None and model not in front.models:
        raise UnknownModelError(
            f"The picture was drawn by the model {model!r}, which is not served. Start the server with --model {model}."
        )
    source = await front.dispatcher.call(front.dispatcher.store.source, of)
    wanted = ImageRequest.from_json(carried)
    made, _ = await front.submit(
        wanted if body.seed is None else wanted.replace(seed=body.seed),
        front.model(model),
        owner=owner,
        number=1,
        previews=body.previews,
        source=source,
        key=idempotency_key,
    )
    response.headers["Location"] = f"/v1/jobs/{made.id}"
    return await view_of(front, made)


@router.delete(
    "/v1/images/{image}",
    status_code=204,
    tags=["images"],
    summary="Delete a finished picture",
    response_class=Response,
    responses=RESPONSES,
)
async def delete_image(image: str, front: TheFront, owner: Owner) -> Response:
    """For good. With the last of its pictures a job goes too, and the picture that it started from."""
    await front.picture(image, owner)  # says that it is not there where it is another's
    await front.dispatcher.call(front.dispatcher.store.remove_picture, image)
    return Response(status_code=204)
