"""What there is to ask for, and what words come to before anything is drawn."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from hwaga.request import ImageRequest, LoraUse
from hwaga.server import examples
from hwaga.server.drawing import Name, Owner, TheFront, Words, body_schema, read_json
from hwaga.server.refusals import RESPONSES

router = APIRouter(prefix="/v1", tags=["words"], responses=RESPONSES)

OfModel = Annotated[Name | None, Query(description="Of one of the models (GET /v1/models); of the first unless given.")]


class Entry(BaseModel):
    """A style or an industry."""

    model_config = examples.ENTRY

    name: str
    title: dict[str, str]
    aliases: list[str]
    lora: str | None = Field(description="The LoRA that the model has for a style.")


class LoraView(BaseModel):
    """A LoRA that can be asked for."""

    model_config = examples.LORA

    name: str
    model: str | None = Field(description="The model that it comes with; none for one of your own.")
    present: bool


class Weighted(BaseModel):
    """A LoRA and its weight."""

    name: str
    weight: float


class Composed(BaseModel):
    """What words come to, and its length by the model's own tokenizer."""

    model_config = examples.COMPOSED

    prompt: str
    negative: str | None = Field(description="What the picture should not show, for a model with a negative prompt.")
    tokens: int
    token_limit: int
    style: str | None
    industry: str | None
    aspect: str | None
    loras: list[Weighted]
    notes: list[str]


@router.get("/styles", summary="The styles there are")
async def list_styles(front: TheFront, _: Owner, model: OfModel = None) -> list[Entry]:
    """Those of the packs and of the model. One that is nothing but a LoRA that is not there is left out."""
    served = front.model(model)
    packs, own = served.library.styles, served.own_styles
    entries = []
    for name in dict.fromkeys([*packs, *own]):
        lora = own[name].lora if name in own else None
        titles = packs[name].titles if name in packs else own[name].title
        aliases = list(packs[name].aliases) if name in packs else []
        entries.append(Entry(name=name, title=dict(titles), aliases=aliases, lora=Path(lora).stem if lora else None))
    return entries


@router.get("/industries", summary="The industries there are")
async def list_industries(front: TheFront, _: Owner) -> list[Entry]:
    """Kinds of business whose pictures the packs know."""
    entries = front.model(None).library.industries.values()
    return [
        Entry(name=entry.name, title=dict(entry.titles), aliases=list(entry.aliases), lora=None) for entry in entries
    ]


@router.get("/loras", summary="The LoRAs there are")
async def list_loras(front: TheFront, _: Owner, model: OfModel = None) -> list[LoraView]:
    """Those of the model and the server's own."""
    served = front.model(model)
    entries = served.loras.entries(served.card).values()
    return [LoraView(name=entry.name, model=entry.model, present=entry.file.is_file()) for entry in entries]


@router.post(
    "/prompts/compose",
    summary="What words come to; nothing is drawn",
    openapi_extra=body_schema(json=Words),
)
async def compose_prompt(request: Request, front: TheFront, _: Owner) -> Composed:
    """The prompt that the model would be given, and its length."""
    words = await read_json(request, Words)
    model = front.model(words.model)
    limit = model.card.limits.tokens
    if words.guidance is not None:
        model.card.check_guidance(ImageRequest(words.prompt, guidance=words.guidance))
    composition = await asyncio.to_thread(model.composed, words, limit)
    return Composed(
        prompt=composition.text,
        negative=composition.negative,
        tokens=composition.tokens or 0,
        token_limit=limit,
        style=composition.style,
        industry=composition.industry,
        aspect=composition.aspect,
        loras=[_weighted(lora) for lora in composition.loras],
        notes=list(composition.notes),
    )


def _weighted(lora: LoraUse) -> Weighted:
    return Weighted(name=lora.name, weight=lora.weight)
