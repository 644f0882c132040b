"""What is remembered of jobs: all steps of those that go on, and of the others as much as there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hwaga.server import events
from hwaga.server.events import Event, Feeds
from hwaga.server.jobs import Job
from hwaga.server.wire import Progress

PICTURES, STEPS = 10, 100


def job(id: str = "a", **values: Any) -> Job:
    known: dict[str, Any] = {
        "kind": "text2image", "owner": "", "body": {}, "created": 1.0, "started": None, "finished": None,
        "status": "queued", "attempt": 1, "progress": (0, 0), "cancel_requested": False, "error": None, "images": (),
    }  # fmt: skip
    return Job(id=id, **known | values)


def take_steps(feeds: Feeds, running: Job, *, preview: Callable[[int], bytes] = lambda _: b"") -> None:
    """All steps of a job with many pictures."""
    total = PICTURES * STEPS
    for done in range(1, total + 1):
        picture, own = divmod(done - 1, STEPS)
        step = Progress(running.id, done, total, picture, own + 1, preview(done))
        feeds.publish(replace(running, progress=(done, total)), step=step)


def heard(feeds: Feeds, id: str, *, after: int = 0) -> list[Event]:
    async def listen() -> list[Event]:
        feed = feeds.find(id)
        assert feed is not None
        return [event async for event in feeds.listen(feed, after)]

    return asyncio.run(listen())


def drawn(feeds: Feeds, id: str, **options: Any) -> None:
    running = job(id, status="running")
    feeds.publish(running)
    take_steps(feeds, running, **options)
    feeds.publish(replace(running, status="succeeded"))


def test_a_stream_can_be_resumed_anywhere_in_a_long_job() -> None:
    feeds = Feeds()
    drawn(feeds, "a")
    whole = heard(feeds, "a")
    assert [event.kind for event in whole] == ["started", *["step"] * PICTURES * STEPS, "succeeded"]
    assert [event.job.progress[0] for event in whole[1:-1]] == list(range(1, PICTURES * STEPS + 1))
    ids = [event.id for event in whole]
    assert ids == sorted(set(ids))
    for place in (0, 1, 500, 1000, len(whole) - 1):
        assert heard(feeds, "a", after=ids[place]) == whole[place + 1 :]


def test_a_job_that_is_tried_again_is_told_of_from_its_first_step_on() -> None:
    feeds = Feeds()
    first = job(status="running")
    feeds.publish(first)
    take_steps(feeds, first)
    feeds.publish(job(), position=0)
    drawn(feeds, "a")
    kinds = [event.kind for event in heard(feeds, "a")]
    assert kinds.count("started") == 2
    assert kinds.count("step") == 2 * PICTURES * STEPS


def test_the_oldest_previews_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_KEPT_PREVIEWS", 500 * 7)
    feeds = Feeds()
    drawn(feeds, "a", preview=lambda _: b"an old1")
    drawn(feeds, "b", preview=lambda done: b"%07d" % done)
    assert [event.preview for event in heard(feeds, "a") if event.preview] == []
    steps = [event for event in heard(feeds, "b") if event.kind == "step"]
    assert len(steps) == PICTURES * STEPS
    assert [event.preview for event in steps] == [b""] * 500 + [b"%07d" % done for done in range(501, 1001)]


def test_of_places_in_the_queue_the_last_one_counts() -> None:
    feeds = Feeds()
    for position in (5, 4, 7, 3):
        feeds.publish(job(), position=position)
    feeds.publish(job(status="running"))
    feeds.publish(job(), position=0)
    feeds.publish(job(status="cancelled"))
    told = [(event.kind, event.position) for event in heard(feeds, "a")]
    assert told == [("queued", 3), ("started", None), ("queued", 0), ("cancelled", None)]


@pytest.mark.parametrize(
    ("limit", "value", "left"), [("_KEPT_FEEDS", 2, 2), ("_KEPT_EVENTS", 2500, 2), ("_KEPT_EVENTS", 1, 1)]
)
def test_of_jobs_that_ended_only_so_much_is_kept(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, left: int
) -> None:
    monkeypatch.setattr(events, limit, value)
    feeds = Feeds()
    feeds.publish(job("waits"), position=0)
    for name in "abcde":
        drawn(feeds, name)
    assert [name for name in "abcde" if feeds.find(name)] == list("abcde")[-left:]
    assert len(heard(feeds, "e")) == PICTURES * STEPS + 2
    assert feeds.find("waits") is not None
