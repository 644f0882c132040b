"""API keys, beside the jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hwaga.errors import StoreError, UnknownJobError
from hwaga.server.store import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "server")) as opened:
        yield opened


def test_api_keys(store: SqliteStore, tmp_path: Path) -> None:
    key, secret = store.keys.add("studio")
    other, _ = store.keys.add("studio")
    assert store.keys.all() == sorted([key, other], key=lambda k: (k.created, k.id))
    assert store.keys.owner_of(secret) == key.id
    for wrong in ("", secret[:-1], secret + "x", secret.replace(key.id, other.id), "hwaga_", "열쇠", "\ud800"):
        assert store.keys.owner_of(wrong) is None
    store.keys.remove(key.id)
    assert store.keys.owner_of(secret) is None
    with pytest.raises(UnknownJobError):
        store.keys.remove(key.id)
    store.close()
    random_part = secret.rpartition("_")[2].encode()
    assert not any(random_part in path.read_bytes() for path in (tmp_path / "server").glob("jobs.sqlite3*"))


def test_a_store_that_had_keys_stays_closed(store: SqliteStore, tmp_path: Path) -> None:
    assert not store.keys.required()
    key, _ = store.keys.add("studio")
    with pytest.raises(StoreError, match="Remove them first"):
        store.keys.open_to_all()
    store.keys.remove(key.id)
    assert (store.keys.all(), store.keys.required()) == ([], True)
    with closing(SqliteStore(tmp_path / "server")) as again:
        assert again.keys.required()
        again.keys.open_to_all()
    assert not store.keys.required()
