"""What a job is, and what the server asks of whatever keeps them.

A job's way:

    submit ─→ queued ─ claim ─→ running ─ finish, fail, confirm_cancel ─→ succeeded, failed, cancelled
                ↑ └─ cancel ─→ cancelled │
                └──── release, reap ─────┘

Whoever claims a job holds it by a lease, and reports on it with the number of the attempt. Once the lease is over, the job may
be another's, and reports with the old number are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from hwaga.server.keys import KeyStore

Kind = Literal["text2image", "image2image"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

TERMINAL = ("succeeded", "failed", "cancelled")
"""States that a job never leaves."""

LEASE = 15.0
"""Seconds that a claim or renewal holds. The jobs of a server that was killed wait no longer than that for the next one."""

MAX_RETRIES = 2
"""How often a job is tried again after its worker was lost: a request that brings workers down must not do so for ever."""


@dataclass(frozen=True)
class Job:
    """What the store knows of a job.

    Attributes:
        id: unguessable; ids sort by the time of submission.
        owner: id of the API key that it came with, or "" where the server asks for none.
        body: what to draw, as JSON values; the store does not look inside.
        created, started, finished: wall times, in seconds since the epoch. ``started`` is that of the last attempt.
        attempt: how often it was claimed.
        progress: steps done and steps in all, of this attempt.
        cancel_requested: whoever holds the job should stop.
        error: name of the error's class and message, of a failed job.
        images: ids of the finished pictures.
        request_id: of the request that it came with, as the log has it; None where it came by none.
    """

    id: str
    kind: Kind
    owner: str
    body: dict[str, Any]
    created: float
    started: float | None
    finished: float | None
    status: Status
    attempt: int
    progress: tuple[int, int]
    cancel_requested: bool
    error: tuple[str, str] | None
    images: tuple[str, ...]
    request_id: str | None = None


def not_served(model: str) -> str:
    """Why the jobs of a model that the server was started without wait, and the remedy."""
    return f"The model {model!r} is not served, and its jobs wait. Start the server with --model {model} to draw them."


class JobStore(Protocol):
    """What the server asks of a store. Any thread may call it. Every method raises StoreError when the store itself fails.

    Attributes:
        keys: the API keys, which are kept in the same place.
        served: names of the models that are there, the default first. Jobs that name another one wait until it is there
            again: they are claimed by nobody here, and in nobody's way. None: all there are.
    """

    keys: KeyStore
    served: Sequence[str] | None

    def submit(
        self,
        kind: Kind,
        body: dict[str, Any],
        *,
        owner: str = "",
        source: bytes | None = None,
        key: str | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Takes a job in. Once this returns, the job is on the disk.

        Args:
            kind, body, owner, request_id: see ``Job``.
            source: the picture to start from.
            key: an idempotency key of the owner. The same key and request give the same job again.

        Raises:
            QueueFullError: as many jobs of the served models wait as may wait, in all or of one owner who has a key.
            IdempotencyConflictError: the key stands for another request.
            StoreFullError: the disk is full, or pictures to start from take as much room as they may.
        """

    def check_room(self, owner: str, size: int = 0, *, key: str | None = None) -> None:
        """Raises what ``submit`` would for want of room, of a job with so many bytes to start from, before work goes into it.
        A job that is there already, by its idempotency key, needs none.
        """

    def get(self, job: str) -> Job:
        """The job of that id, or UnknownJobError."""

    def jobs(self, *, owner: str | None = None, before: tuple[float, str] | None = None, limit: int = 50) -> list[Job]:
        """Jobs, newest first; ``before`` is (created, id) of the last one of the page before."""

    def queue(self) -> list[str]:
        """Ids of the jobs that wait, of models that are served, in the order in which they will be claimed if nothing else
        arrives.
        """

    def counts(self) -> dict[Status, int]:
        """How many jobs there are of each status."""

    def expected_wait(self, workers: int) -> float | None:
        """Seconds until a job that is submitted now would start, by the run times of recent ones; None before there are any."""

    def cancel(self, job: str) -> Job:
        """Cancels a job that waits, and asks the holder of one that runs to stop. A job that has ended stays as it is."""

    def models_waiting(self) -> set[str | None]:
        """The names of the served models that jobs wait for; None for jobs that name none."""

    def waiting_for_models(self) -> dict[str, int]:
        """How many jobs wait for each model that is not served."""

    def claim(
        self, worker: str, *, suits: Callable[[Job], bool] = lambda _: True, model: str | None = None
    ) -> Job | None:
        """The next job of the served models, by turns of its owners, now running and held for ``LEASE`` seconds; None if none
        waits, or if the next one does not suit: nobody is passed over, but for jobs of other models where ``model`` names one.
        """

    def renew(self, job: str, attempt: int, progress: tuple[int, int] | None = None) -> bool:
        """Holds on to a job, and notes its progress. True if it should be stopped. StaleAttemptError if it is lost."""

    def finish(self, job: str, attempt: int, pictures: Sequence[bytes]) -> Job:
        """Keeps the finished pictures, PNG, and ends the job as succeeded. StaleAttemptError or StoreFullError."""

    def fail(self, job: str, attempt: int, error: tuple[str, str]) -> Job:
        """Ends a job as failed. StaleAttemptError."""

    def confirm_cancel(self, job: str, attempt: int) -> Job:
        """Ends a job that has been stopped as cancelled. StaleAttemptError."""

    def release(self, job: str, attempt: int, *, lost: str | None) -> Job:
        """Gives a job back unfinished. It waits again, unless it was to be cancelled or was lost too often. StaleAttemptError.

        Args:
            job, attempt: what is given back.
            lost: what happened to the worker, which counts as a loss; None if nothing did.
        """

    def reap(self) -> list[Job]:
        """Releases, as lost, the jobs whose leases are over. Returns them as they are now."""

    def source(self, job: str) -> bytes | None:
        """The picture that a job starts from, if it has one."""

    def picture(self, image: str) -> tuple[str, bytes]:
        """A finished picture's job, and the bytes of its PNG. UnknownJobError if it is not there any more."""

    def remove_picture(self, image: str) -> None:
        """Removes a finished picture for good; with the last one its job, and what that started from. UnknownJobError."""

    def expire(self, max_age: float, max_bytes: int) -> int:
        """Removes ended jobs with their pictures, oldest first: those older than ``max_age`` seconds, and as many as it takes
        for the pictures of ended jobs to fit into ``max_bytes``, though none that ended in the last ten minutes.
        Returns how many.
        """

    def close(self) -> None:
        """Closes the database."""
