"""How the workers use memory: for a page that shows it, and for whoever chooses a machine."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hwaga.server.drawing import Owner, TheFront
from hwaga.server.refusals import RESPONSES

router = APIRouter(prefix="/v1", responses=RESPONSES)


class PartView(BaseModel):
    """Where a part of the model lives. Blocks are counted from 0, in the order that they run in."""

    name: str
    mode: Literal["resident", "streamed", "turn"] = Field(
        description="It stays on the device; some blocks stay and the others come when it is their turn; it comes as a whole."
    )
    blocks: int
    quantized: bool = Field(description="Its large weights are kept in fewer bits.")
    stays: list[int] = Field(description="Blocks that never leave.")
    pinned: list[int] = Field(description="Blocks that come back from page-locked memory; others come from the files.")
    rest_pinned: bool
    stays_bytes: int
    slots: int
    slot_bytes: int
    moved_bytes: int = Field(description="Brought to the device for a request.")
    pinned_bytes: int
    reason: str
    source: str


class PhaseView(BaseModel):
    """The most that a stage takes of the device, in bytes, by what it is for."""

    name: str
    part: str
    tile: int | None = Field(description="Side of the pieces in pixels that it works in; none for all at once.")
    weights: int = Field(description="That stay, of all parts.")
    brought: int = Field(description="Of its own part, for the time of the stage.")
    work: int
    kept: int = Field(description="LoRAs and prompts that may come again.")
    others: int = Field(description="Of other models, which stay beside it.")
    reason: str
    peak_vram_bytes: int
    peak_ram_bytes: int


class BudgetView(BaseModel):
    """What the worker may take, in bytes."""

    device: str
    device_bytes: int
    pinned_bytes: int
    host_base: int


class NeighbourView(BaseModel):
    """Another model of the worker, in bytes."""

    model: str
    leaves_bytes: int = Field(description="Of the device, that it gives up when this model is used.")
    stays_bytes: int = Field(description="Of the device, that it keeps then.")
    pinned_bytes: int = Field(description="Of the host, for its weights that are away.")


class PlanView(BaseModel):
    """Where a model's weights lie in a worker, as its last job wanted it."""

    model: str
    device: str
    dtype: str
    precision: str
    peak_vram_bytes: int
    peak_ram_bytes: int
    moved_bytes: int
    pinned_bytes: int
    budget: BudgetView
    parts: list[PartView]
    phases: list[PhaseView]
    neighbours: list[NeighbourView] = Field(
        description="The other models, and what they do for this one when it is used."
    )
    held_bytes: int = Field(description="Weights that are on the device now.")
    away_bytes: int = Field(description="Weights that have left since for other models, or wait for their first job.")


class Plans(BaseModel):
    """One plan for each model of each worker that is ready."""

    data: list[PlanView]


@router.get("/plan", tags=["models"], summary="Where weights lie, and what each stage takes of memory")
async def list_plans(front: TheFront, _: Owner) -> Plans:
    """As `hwaga plan --json` foresees it."""
    plans = [plan for models in front.dispatcher.plans.values() for plan in models.values()]
    return Plans.model_validate({"data": plans})
