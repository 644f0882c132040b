"""GET /v1/plan: how the workers use memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from hwaga.server import process

if TYPE_CHECKING:
    from conftest import Running

REAL = process.WORKER


def test_a_worker_that_has_told_nothing_has_no_plan(server: Running) -> None:
    server.ready()
    assert server.client.get("/v1/plan").json() == {"data": []}


def test_the_plan_of_the_last_job(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    with serve(worker=REAL) as running:
        running.ready()
        running.until(lambda: running.client.get("/v1/plan").json()["data"])
        (opened,) = running.client.get("/v1/plan").json()["data"]
        assert (opened["model"], opened["precision"]) == ("mini", "full")
        assert opened["peak_ram_bytes"] == max(phase["peak_ram_bytes"] for phase in opened["phases"])
        assert all(part["reason"] for part in opened["parts"])
        assert "source" not in [phase["name"] for phase in opened["phases"]]
        prompt = "a red apple on a yellow background"
        assert running.ended(running.submit(prompt=prompt, steps=1)["id"])["status"] == "succeeded"

        def text_work() -> int:
            (plan,) = running.client.get("/v1/plan").json()["data"]
            return next(phase["work"] for phase in plan["phases"] if phase["name"] == "text")

        # It was opened for as long a prompt as is usual, and this one is short.
        opened_for = next(phase["work"] for phase in opened["phases"] if phase["name"] == "text")
        running.until(lambda: text_work() < opened_for)
