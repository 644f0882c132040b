"""What tests of the store of jobs ask of it, and of its folder."""

from __future__ import annotations

from pathlib import Path

from hwaga.server.jobs import Job, JobStore


def claimed(store: JobStore) -> Job:
    """The next job, claimed for a worker; there must be one."""
    job = store.claim("worker")
    assert job is not None
    return job


def files(folder: Path) -> set[str]:
    """Names of all pictures' files in the store's folder."""
    return {path.name for role in ("results", "sources") for path in (folder / role).glob("*/*")}
