"""Pictures on the disk and in the database: neither a row without its file, nor for long a file without its row."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stored import claimed, files

from hwaga.errors import StoreError, StoreFullError
from hwaga.image_file import write
from hwaga.server.store import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "server")) as opened:
        yield opened


def test_files_that_were_never_recorded_go_at_the_next_start(store: SqliteStore, tmp_path: Path) -> None:
    job = store.submit("image2image", {}, source=b"source")
    kept = files(tmp_path / "server") | {store.finish(claimed(store).id, 1, [b"png"]).images[0] + ".png"}
    store.close()
    for name in ("results/00/00ff.png", "results/ab/.hwaga-1-ab.tmp", "sources/ff/ff00"):
        (tmp_path / "server" / name).write_bytes(b"orphan")
    with closing(SqliteStore(tmp_path / "server")) as again:
        assert files(tmp_path / "server") == kept
        assert again.source(job.id) == b"source"


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreError)])
def test_a_full_disk_under_the_pictures(
    store: SqliteStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    error: type[StoreError],
) -> None:
    job = store.submit("text2image", {})
    claimed(store)

    def fail(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr("hwaga.image_file.os.fsync", fail)
        else:
            patch.setattr(Path, "open", fail)
        with pytest.raises(error) as caught:
            store.finish(job.id, 1, [b"png"])
        with pytest.raises(error):
            store.submit("image2image", {}, source=b"source")
    assert type(caught.value) is error
    assert files(tmp_path / "server") == set()
    assert store.get(job.id).status == "running"
    assert store.counts()["queued"] == 0
    assert store.finish(job.id, 1, [b"png"]).status == "succeeded"


def test_a_disk_that_fills_up_between_two_pictures(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.submit("text2image", {})
    claimed(store)
    writes = iter([write])
    monkeypatch.setattr("hwaga.server.pictures.write", lambda path, data: next(writes)(path, data))
    with pytest.raises(StopIteration):
        store.finish(job.id, 1, [b"one", b"two"])
    assert files(tmp_path / "server") == set()
    assert store.get(job.id).status == "running"


def test_the_disk_has_the_picture_before_the_row(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = store.submit("text2image", {})
    claimed(store)
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("fsync")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr("hwaga.image_file.os.fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    store._db.set_trace_callback(lambda statement: calls.append(statement.split()[0]))
    store.finish(job.id, 1, [b"png"])
    assert [call for call in calls if call in ("fsync", "rename", "COMMIT")] == ["fsync", "rename", "fsync", "COMMIT"]
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
