"""What comes out of a generation: its steps as they are done, and the finished picture with what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hwaga.request import ImageRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Step:
    """One forward of the denoiser is done.

    Attributes:
        index: forwards done so far, from 1.
        total: forwards that this generation takes.
        sigma: noise level now, down to 0, from nearly 1 (Z-Image) or about 15 (SDXL); of the first picture of a batch.
        totals: forwards that each picture of a batch takes. One that takes fewer is done sooner, and waits for the others.
    """

    index: int
    total: int
    sigma: float
    totals: tuple[int, ...]
    _preview: Callable[[int], Image | None] = field(repr=False, compare=False)

    @property
    def preview(self) -> Image | None:
        """A small picture of what is emerging (an eighth of each side), or None where the model's card has no
        preview factors. It is computed when asked for, and only while the generation waits at this step.
        """
        return self.preview_of(0)

    def preview_of(self, picture: int) -> Image | None:
        """The same of another picture of the batch, counted from 0."""
        return self._preview(picture)


@dataclass(frozen=True)
class Timings:
    """Seconds of wall time by phase, without what the consumer of a stream took between steps.

    In a packed batch the phases are shared, so each picture reports the whole.
    """

    encode: float
    denoise: float
    decode: float

    @property
    def total(self) -> float:
        return self.encode + self.denoise + self.decode


@dataclass(frozen=True)
class MemoryUse:
    """Memory of this process at the end of a generation, in bytes.

    Attributes:
        peak_vram: most device memory that the process had allocated during the generation; None on the CPU.
        rss_anon: resident anonymous memory (what the kernel could only free by swapping); None where /proc has none.
        swap: memory of this process in swap; None where /proc has none.
    """

    peak_vram: int | None
    rss_anon: int | None
    swap: int | None


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        image: the picture, RGB.
        seed: the seed that made it.
        request: the request with every default filled in: made again, it gives this picture.
        model: name of the model's card.
        weights: tells the checkpoint from others of that name.
        device: device type and number format that it was made with, such as ("cpu", "float32").
        precision: how the large weights were kept: "full", or in fewer bits.
        loras: for each LoRA that it was drawn with, what tells its file from others of that name.
        tokens: tokens of the prompt, chat template included.
        timings: seconds by phase.
        memory: memory of the process.
    """

    image: Image
    seed: int
    request: ImageRequest
    model: str
    weights: str
    device: tuple[str, str]
    precision: str
    loras: Mapping[str, str]
    tokens: int
    timings: Timings
    memory: MemoryUse
