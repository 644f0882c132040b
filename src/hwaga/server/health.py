"""Whether the server is alive and ready, and what it has done, for whoever watches over it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel

from hwaga.server.drawing import Owner, TheFront
from hwaga.server.jobs import Job
from hwaga.server.refusals import RESPONSES, refusal

router = APIRouter(tags=["health"])

_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Health(BaseModel):
    """All is well."""

    status: str


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
        self.memory = Gauge("hwaga_rss_anon_bytes", "Anonymous memory.", ["process"], registry=registry)

    def observe(self, job: Job) -> None:
        """Counts a job that has ended."""
        if job.error is not None:
            self.failures.labels(job.error[0]).inc()
        if job.started is not None and job.finished is not None:
            self.wait.observe(max(job.started - job.created, 0))
            self.run.observe(max(job.finished - job.started, 0))


@router.get("/health/live", summary="Whether the server answers")
async def live() -> Health:
    """It does."""
    return Health(status="alive")


@router.get(
    "/health/ready", summary="Whether jobs are being drawn", responses={503: RESPONSES[503]}, response_model=Health
)
async def ready(front: TheFront) -> Response | Health:
    """Jobs are taken in, and kept, also while none are drawn."""
    if front.dispatcher.ready:
        return Health(status="ready")
    reason = " ".join(front.dispatcher.problems) or "The model is being loaded, or the server is being stopped."
    return refusal(503, reason, code="not_ready")


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Figures"}},
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
    processes = {"front": os.getpid()} | {f"worker {place}": pid for place, pid in enumerate(dispatcher.worker_pids)}
    for name, pid in processes.items():
        if (size := rss_anon(pid)) is not None:
            metrics.memory.labels(name).set(size)
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def rss_anon(pid: int) -> int | None:
    """Anonymous memory of a process in bytes, where the system tells."""
    with contextlib.suppress(OSError):  # it has ended, or this is not Linux
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None
