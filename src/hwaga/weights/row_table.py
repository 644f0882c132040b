"""An embedding whose rows are read from the file when they are asked for.

A prompt needs a hundred rows of a table that takes 0.72 GiB at Qwen3's size. They are read in a millisecond, so that the table
is kept neither on the device nor on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights.reader import Reader
from hwaga.weights.stored import StoredTensor


class RowTable(nn.Module):
    """``[rows, width]`` numbers in a file.

    Attributes:
        weight: of that shape, on the meta device for good.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, device="meta"), requires_grad=False)
        self._source: tuple[StoredTensor, Reader] | None = None
        self._sound = set[int]()
        """Rows that were looked at and are numbers."""

    def connect(self, stored: StoredTensor, reader: Reader) -> None:
        """Says where the rows are read from."""
        self._source = stored, reader

    def forward(self, rows: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """``[len(rows), width]``.

        Raises:
            CheckpointError: the file ends early, or a row is not finite or not there.
        """
        assert self._source is not None, "not connected with a file"
        stored, reader = self._source
        found, place = sorted(set(rows)), {}
        for index, row in enumerate(found):
            place[row] = index
        if found and not 0 <= found[0] <= found[-1] < stored.shape[0]:
            raise CheckpointError(
                f"{stored.file}: {stored.name} has {stored.shape[0]} rows, and row {found[-1]} was asked for. The tokenizer "
                "belongs to another checkpoint."
            )
        values = reader.rows(stored, found)
        new = [index for index, row in enumerate(found) if row not in self._sound]
        if new:
            if not torch.isfinite(values[torch.tensor(new, device="cpu")]).all():
                raise CheckpointError(
                    f"{stored.file}: {stored.name} holds NaN or infinity. The file is damaged: fetch it again."
                )
            self._sound.update(found)
        values = values.to(dtype)
        return values[torch.tensor([place[row] for row in rows], device="cpu")].to(device)
