"""What the OpenAPI document shows as examples of requests, answers and events. Those of requests are good as they stand."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from hwaga.server.event_stream import frame

_JOB, _IMAGE = "01a207836ca3db69c3f7c10b29d92ced5b6909b47ddb", "0f3c8a5e0f3c8a5e0f3c8a5e0f3c8a5e"
_IMAGES = [{"id": _IMAGE, "url": f"/v1/images/{_IMAGE}"}]
_EVENT = {
    "b64_json": "/9j/4AAQ…",
    "created_at": 1795422389,
    "size": "256x256",
    "quality": "auto",
    "background": "opaque",
}
_USAGE = {
    "input_tokens": 15,
    "output_tokens": 0,
    "total_tokens": 15,
    "input_tokens_details": {"text_tokens": 15, "image_tokens": 0},
}


def _shown(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


WORDS = _shown({"prompt": "아이스 아메리카노, 여름 신메뉴", "industry": "auto", "avoid": ["text"]})
JOB_REQUEST = _shown(
    {"prompt": "a red apple on a yellow background", "size": "256x256", "number": 2, "previews": True},
    {"prompt": "오늘의 커피", "style": "anime", "industry": "cafe", "seed": 7},
)
GENERATION = _shown(
    {"prompt": "a red apple on a yellow background", "size": "256x256", "n": 2},
    {"prompt": "고양이", "style": "anime", "seed": 7, "stream": True, "partial_images": 2},
)
EDIT = _shown({"prompt": "a peach", "strength": 0.9, "output_format": "webp"})
AGAIN = _shown({"seed": 8}, {})

JOB = _shown(
    {
        "id": _JOB,
        "kind": "text2image",
        "status": "succeeded",
        "cancel_requested": False,
        "created": 1795422383.27,
        "started": 1795422387.36,
        "finished": 1795422389.67,
        "position": None,
        "reason": None,
        "progress": {"step": 8, "total": 8},
        "error": None,
        "images": _IMAGES,
        "model": "mini",
        "request": {"prompt": "a fox"},
        "number": 1,
    }
)
ENTRY = _shown({"name": "anime", "title": {"en": "Anime", "ko": "애니메이션"}, "aliases": ["애니"], "lora": None})
LORA = _shown({"name": "line", "model": "mini", "present": True})
COMPOSED = _shown(
    {
        "prompt": "아이스 아메리카노",
        "negative": None,
        "tokens": 15,
        "token_limit": 512,
        "style": None,
        "industry": "cafe",
        "aspect": None,
        "loras": [],
        "notes": ['Picked the industry cafe (카페) because of "아메리카노".'],
    }
)
PICTURES = _shown(
    {
        "created": 1795422389,
        "data": [{"b64_json": "iVBORw0KGgo…", "url": None}],
        "background": "opaque",
        "output_format": "png",
        "size": "256x256",
        "usage": _USAGE,
    }
)
MODEL = _shown({"id": "mini", "object": "model", "created": 0, "owned_by": "hwaga"})
HEALTH = _shown({"status": "alive"})
READINESS = _shown({"status": "ready", "waiting_for_models": {"sdxl": 2}})
ERROR = _shown(
    {
        "error": {
            "message": "The size must be WIDTHxHEIGHT, as in 1024x768, or auto, not 'large'.",
            "type": "invalid_request_error",
            "param": "size",
            "code": "size",
        }
    }
)

JOB_EVENTS = (
    frame("queued", {"job": _JOB, "status": "queued", "position": 1}, id=1795422383000),
    frame("started", {"job": _JOB, "status": "running"}, id=1795422383001),
    frame(
        "step", {"job": _JOB, "status": "running", "progress": {"step": 1, "total": 8}, "picture": 0}, id=1795422383002
    ),
    frame("succeeded", {"job": _JOB, "status": "succeeded", "images": _IMAGES}, id=1795422383003),
)
PICTURE_EVENTS = tuple(
    frame(kind, {"type": kind, **_EVENT, **more})
    for kind, more in (
        ("image_generation.partial_image", {"output_format": "jpeg", "partial_image_index": 0}),
        ("image_generation.completed", {"output_format": "png", "usage": _USAGE}),
    )
)
