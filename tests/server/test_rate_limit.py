"""How often a key may ask for work, and what it is told beyond that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwaga.server.rate_limit import RateLimit
from hwaga.server.security import Access

if TYPE_CHECKING:
    from conftest import Running

    Serve = Callable[..., contextlib.AbstractContextManager[Running]]


def test_a_bucket_fills_again() -> None:
    now = 100.0
    limit = RateLimit(30, clock=lambda: now)
    assert [limit.take("a") for _ in range(30)] == [0] * 30
    assert limit.take("a") == pytest.approx(2)
    assert limit.take("b") == 0
    now += 1.5
    assert limit.take("a") == pytest.approx(0.5)
    now += 0.5
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(2)
    now += 1e6
    assert [limit.take("a") for _ in range(31)][-1] == pytest.approx(2)


def test_less_than_one_a_minute() -> None:
    now = 0.0
    limit = RateLimit(0.5, clock=lambda: now)
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(120)


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 100), max_size=50))
def test_never_more_than_it_says(per_minute: float, pauses: list[float]) -> None:
    now = 0.0
    limit, taken = RateLimit(per_minute, clock=lambda: now), 0
    for pause in pauses:
        now += pause
        wait = limit.take("a")
        taken += wait == 0
        assert wait >= 0
    assert taken <= max(per_minute, 1) + now * per_minute / 60 + 1e-6


def test_each_key_has_its_own(serve: Serve) -> None:
    with serve(access=Access(per_minute=2)) as running:
        keys = [running.store.keys.add(name)[1] for name in ("a shop", "another one")]
        body = {"prompt": "a cat"}
        for key in keys:
            headers = {"Authorization": f"Bearer {key}"}
            assert [running.client.post("/v1/jobs", json=body, headers=headers).status_code for _ in range(2)] == [
                202
            ] * 2
            refused = running.client.post("/v1/jobs", json=body, headers=headers)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limited"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 30
            # Looking is no work.
            for path in ("/v1/jobs", "/v1/models", "/metrics"):
                assert running.client.get(path, headers=headers).status_code == 200
            with pytest.raises(openai.RateLimitError, match="2 times a minute"):
                running.openai(key).images.generate(prompt="a cat")
        # Who has no key is told so, however often.
        assert [running.client.post("/v1/jobs", json=body).status_code for _ in range(5)] == [401] * 5


def test_without_keys_all_share_one(serve: Serve) -> None:
    with serve(access=Access(per_minute=1)) as running:
        assert running.client.post("/v1/jobs", json={"prompt": "a cat"}).status_code == 202
        assert running.client.post("/v1/jobs", json={"prompt": "a cat"}).status_code == 429
        for _ in range(3):  # the page asks at each pause of who types
            assert running.client.post("/v1/prompts/compose", json={"prompt": "a cat"}).status_code == 200
        assert running.client.get("/health/live").status_code == 200
