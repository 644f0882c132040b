"""An embedding whose rows are read from the file when they are asked for.

A prompt needs a hundred rows of a table that takes 0.72 GiB at Qwen3's size, so that the table is kept neither on the device
nor on the host. The rows of tokens that were met last are: each row is a read of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwaga.errors import CheckpointError
from hwaga.weights.reader import Reader
from hwaga.weights.stored import StoredTensor

KEPT = 4096
"""Rows that are kept on the host, 20 MiB of Qwen3's in bfloat16."""


class RowTable(nn.Module):
    """``[rows, width]`` numbers in a file.

    Attributes:
        weight: of that shape, on the meta device for good.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, device="meta"), requires_grad=False)
        self._source: tuple[StoredTensor, Reader] | None = None
        self._kept = OrderedDict[int, Tensor]()
        """Rows ``[width]`` that were asked for last, as they are stored, by place."""

    def connect(self, stored: StoredTensor, reader: Reader) -> None:
        """Says where the rows are read from."""
        self._source = stored, reader
        self._kept.clear()

    def forward(self, rows: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """``[len(rows), width]``.

        Raises:
            CheckpointError: the file ends early, or a row is not finite or not there.
        """
        assert self._source is not None, "not connected with a file"
        stored, reader = self._source
        found = sorted(set(rows))
        if found and not 0 <= found[0] <= found[-1] < stored.shape[0]:
            raise CheckpointError(
                f"{stored.file}: {stored.name} has {stored.shape[0]} rows, and row {found[-1]} was asked for. The tokenizer "
                "belongs to another checkpoint."
            )
        known = {row: value for row in found if (value := self._kept.get(row)) is not None}
        new = [row for row in found if row not in known]
        if new:
            read = reader.rows(stored, new)
            if not torch.isfinite(read).all():
                raise CheckpointError(
                    f"{stored.file}: {stored.name} holds NaN or infinity. The file is damaged: fetch it again."
                )
            # Each with memory of its own, which goes when it goes.
            known.update((row, value.clone()) for row, value in zip(new, read, strict=True))
        for row, value in known.items():
            self._kept.pop(row, None)
            self._kept[row] = value
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        if not rows:
            return torch.empty(0, stored.shape[1], device=device, dtype=dtype)
        return torch.stack([known[row] for row in rows]).to(dtype).to(device)
