"""A table whose rows are read when they are asked for gives what a table in memory gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from hwaga.errors import CheckpointError
from hwaga.weights import row_table
from hwaga.weights.reader import Reader
from hwaga.weights.row_table import RowTable
from hwaga.weights.stored import StoredTensor, stored_tensors

CPU = torch.device("cpu")
TABLE = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reader() -> Iterator[Reader]:
    with closing(Reader(CPU)) as opened:
        yield opened


def connected(table: Tensor, path: Path, reader: Reader) -> RowTable:
    save_file({"before": torch.ones(3), "table": table}, path)
    (stored,) = (each for each in stored_tensors([path]) if each.name == "table")
    made = RowTable(*table.shape)
    made.connect(stored, reader)
    return made


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_those_of_the_table(dtype: torch.dtype, stored: torch.dtype, reader: Reader, tmp_path: Path) -> None:
    table = TABLE.to(stored)
    made = connected(table, tmp_path / "t.safetensors", reader)
    rows = [49, 0, 7, 7, 8, 0]
    assert torch.equal(made(rows, CPU, dtype), table[rows].to(dtype))
    assert made.weight.device.type == "meta"


def test_any_rows(tmp_path: Path, reader: Reader) -> None:
    made = connected(TABLE, tmp_path / "t.safetensors", reader)

    @given(st.lists(st.integers(0, 49), min_size=1, max_size=70))
    def check(rows: list[int]) -> None:
        assert torch.equal(made(rows, CPU, torch.float32), TABLE[rows])

    check()


def test_rows_are_read_once_while_they_are_kept(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_table, "KEPT", 3)
    made, asked = connected(TABLE, tmp_path / "t.safetensors", reader), list[int]()
    plain = reader.rows

    def counted(table: StoredTensor, rows: Sequence[int]) -> Tensor:
        asked.extend(rows)
        return plain(table, rows)

    monkeypatch.setattr(reader, "rows", counted)
    for rows, read in (
        ([4, 2, 4], [2, 4]),
        ([2, 5], [5]),
        ([2, 6], [6]),
        ([4], [4]),
        ([2, 6, 4], []),
        ([9, 8, 7, 6], [7, 8, 9]),
    ):
        asked.clear()
        assert torch.equal(made(rows, CPU, torch.float32), TABLE[rows])
        assert asked == read


def test_nobody_writes_over_what_is_kept(tmp_path: Path, reader: Reader) -> None:
    made = connected(TABLE, tmp_path / "t.safetensors", reader)
    for rows in ([3], [3], [3, 4]):
        made(rows, CPU, torch.float32).zero_()
    assert torch.equal(made([3, 4], CPU, torch.float32), TABLE[[3, 4]])


def test_a_row_that_is_not_there(tmp_path: Path, reader: Reader) -> None:
    """What lies behind the table in the file is no row of it."""
    made = connected(TABLE, tmp_path / "t.safetensors", reader)
    with pytest.raises(CheckpointError, match="table has 50 rows, and row 50 was asked for"):
        made([3, 50], CPU, torch.float32)


def test_a_damaged_row_is_only_met_when_it_is_asked_for(tmp_path: Path, reader: Reader) -> None:
    table = TABLE.clone()
    table[9, 2] = float("nan")
    made = connected(table, tmp_path / "t.safetensors", reader)
    assert torch.equal(made([8, 10], CPU, torch.float32), table[[8, 10]])
    with pytest.raises(CheckpointError, match="table holds NaN or infinity"):
        made([8, 9], CPU, torch.float32)


def test_a_table_whose_file_ends_early(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "t.safetensors"
    made = connected(TABLE, path, reader)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    assert torch.equal(made([0, 48], CPU, torch.float32), TABLE[[0, 48]])
    with pytest.raises(CheckpointError, match=r"table cannot be read from .*: the file ends early"):
        made([49], CPU, torch.float32)
