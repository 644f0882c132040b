"""Whether the server is alive and ready, and what it has done, for whoever watches over it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field

from hwaga.errors import StoreError
from hwaga.server import examples
from hwaga.server.drawing import Owner, TheFront
from hwaga.server.jobs import Job
from hwaga.server.refusals import ANY, RESPONSES, refusal
from hwaga.server.wire import DeviceMemory

router = APIRouter(tags=["health"], responses=ANY)

_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Health(BaseModel):
    """All is well."""

    model_config = examples.HEALTH

    status: str


class Readiness(Health):
    """Jobs are being drawn."""

    model_config = examples.READINESS

    waiting_for_models: dict[str, int] = Field(
        description="How many jobs wait for each model that is not served, until the server is started with it."
    )


class Metrics:
    """What is counted of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.jobs = Gauge("hwaga_jobs", "Jobs that the store holds.", ["status"], registry=registry)
        self.depth = Gauge("hwaga_queue_depth", "Jobs that wait.", registry=registry)
        self.wait = Histogram(
            "hwaga_wait_seconds", "From a job's submission to its last start.", buckets=_BUCKETS, registry=registry
        )
        self.run = Histogram(
            "hwaga_run_seconds", "From a job's last start to its end.", buckets=_BUCKETS, registry=registry
        )
        self.failures = Counter("hwaga_failures", "Jobs that failed.", ["error"], registry=registry)
        self.restarts = Gauge("hwaga_worker_restarts", "Workers that were started again.", registry=registry)
        self.by_model = Counter("hwaga_model_jobs", "Jobs that ended.", ["model", "status"], registry=registry)
        self.weights = Gauge(
            "hwaga_model_weights_bytes",
            "Weights that a model has on a worker's device, as it last said.",
            ["process", "model"],
            registry=registry,
        )
        self.steps = Counter("hwaga_steps", "Steps of the denoiser, each picture's own.", registry=registry)
        self.memory = {
            name: Gauge(f"hwaga_{name}_bytes", text, ["process"], registry=registry)
            for name, text in (
                ("rss_anon", "Anonymous memory that is resident."),
                ("swap", "Memory that was swapped out."),
                ("vram_used", "Memory of the worker's device that tensors hold, as the worker last said."),
                ("vram_reserved", "Memory of the worker's device that the worker holds, as it last said."),
                ("vram_peak", "The most of vram_used since the worker's start."),
            )
        }

    def observe(self, job: Job) -> None:
        """Counts a job that has ended."""
        if (model := job.body.get("model")) is not None:
            self.by_model.labels(model, job.status).inc()
        if job.error is not None:
            self.failures.labels(job.error[0]).inc()
        if job.started is not None and job.finished is not None:
            self.wait.observe(max(job.started - job.created, 0))
            self.run.observe(max(job.finished - job.started, 0))

    def note_memory(self, workers: Mapping[int, tuple[int, DeviceMemory | None]]) -> None:
        """Notes the memory of this process and of the workers by their place: of each, process id and its device's memory."""
        for gauge in self.memory.values():
            gauge.clear()  # a worker that is gone holds nothing
        processes = {"front": os.getpid()} | {f"worker {place}": pid for place, (pid, _) in workers.items()}
        for name, pid in processes.items():
            found = kilobyte_lines(pid)
            for kind, line in (("rss_anon", "RssAnon"), ("swap", "VmSwap")):
                if line in found:
                    self.memory[kind].labels(name).set(found[line])
        for place, (_, device) in workers.items():
            if device is not None:
                for kind, value in dataclasses.asdict(device).items():
                    self.memory[f"vram_{kind}"].labels(f"worker {place}").set(value)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="Whether the server answers")
async def live() -> Health:
    """It does."""
    return Health(status="alive")


@router.head("/health/ready", include_in_schema=False, response_model=Readiness)
@router.get(
    "/health/ready", summary="Whether jobs are being drawn", responses={503: RESPONSES[503]}, response_model=Readiness
)
async def ready(front: TheFront) -> Response | Readiness:
    """Jobs are taken in, and kept, also while none are drawn."""
    if front.dispatcher.ready:
        waiting = {}
        with contextlib.suppress(StoreError):  # who asks for a job hears of that
            waiting = await front.dispatcher.call(front.dispatcher.store.waiting_for_models)
        return Readiness(status="ready", waiting_for_models=waiting)
    reason = (
        front.public(" ".join(front.dispatcher.problems))
        or "The model is being loaded, or the server is being stopped."
    )
    return refusal(503, reason, code="not_ready")


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "hwaga_queue_depth 3.0\n"}},
            "description": "Figures",
        },
        401: RESPONSES[401],
        503: RESPONSES[503],
    },
)
async def figures(request: Request, front: TheFront, _: Owner) -> Response:
    """Of this process since its start, but for the jobs, which are those that the store holds."""
    metrics: Metrics = request.app.state.metrics
    dispatcher = front.dispatcher
    counts = await dispatcher.call(dispatcher.store.counts)
    for status, count in counts.items():
        metrics.jobs.labels(status).set(count)
    metrics.depth.set(counts["queued"])
    metrics.restarts.set(dispatcher.restarts)
    metrics.note_memory(dispatcher.processes)
    metrics.weights.clear()
    for place, plans in dispatcher.plans.items():
        for model, plan in plans.items():
            metrics.weights.labels(f"worker {place}", model).set(plan["held_bytes"])
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def kilobyte_lines(pid: int) -> dict[str, int]:
    """What the kernel says of a process in kilobytes, in bytes; nothing where it has ended, or where this is not Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, _, value in values}
