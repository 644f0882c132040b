"""A few thousand damaged files; benchmarks/fuzz.py reads many more, with a limit on memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage import READERS, fuzz


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(reader: str, tmp_path: Path) -> None:
    found = fuzz(reader, 1500, 1, tmp_path)
    assert found["read"] > 30, "nothing but damage teaches nothing"
    assert len(found) > 1
