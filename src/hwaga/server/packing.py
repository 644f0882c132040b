"""Which jobs that wait may be drawn together, as far as that is known without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hwaga.server.jobs import Job


def joins(taken: Sequence[Job], job: Job, most: int) -> bool:
    """Whether the next job of the queue is drawn along with those just taken, if there are any.

    A batch is of one model, and takes as long as its longest, so that all have as many steps. A job that was tried before is
    drawn alone: it may be what ended its worker. So is one that starts from a picture, which may take hundreds of megabytes
    until it is drawn.

    Args:
        taken: they run, so that their attempts are counted from 1.
        job: its attempts are those before this one.
        most: pictures at once.
    """
    if not taken:
        return True
    if job.attempt or any(other.attempt > 1 for other in taken):
        return False
    if job.body.get("model") != taken[0].body.get("model"):
        return False
    if any(other.kind != "text2image" for other in (job, *taken)):
        return False
    return sum(_pictures(other) for other in (job, *taken)) <= most and _steps(job) == _steps(taken[0])


def _pictures(job: Job) -> int:
    number = job.body.get("number", 1)
    return number if isinstance(number, int) else 1


def _steps(job: Job) -> Any:
    request = job.body.get("request")
    return request.get("steps") if isinstance(request, dict) else None
