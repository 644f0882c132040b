"""What pictures ask of memory, in bytes: the weights of each part, and the phases of the work beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartSize:
    """The weights of a part, in bytes on the device.

    Attributes:
        name: of the part.
        rest: outside of the blocks.
        blocks: of each block, in the order that they run in. Empty for a part that only comes as a whole.
        each_step: it is used at every step, and not once for a picture.
        filling: taken beside a unit while that is read from a file in another form than it is kept in.
        quantized: its large weights are kept in fewer bits.
    """

    name: str
    rest: int
    blocks: tuple[int, ...] = ()
    each_step: bool = False
    filling: int = 0
    quantized: bool = False

    @property
    def nbytes(self) -> int:
        return self.rest + sum(self.blocks)


@dataclass(frozen=True)
class Work:
    """What a phase takes beside the weights.

    Attributes:
        nbytes: at most, at one time.
        tile: side of the pieces, in pixels, that the phase works in; None for all at once.
    """

    nbytes: int
    tile: int | None = None


@dataclass(frozen=True)
class Phase:
    """One stage of making pictures.

    Attributes:
        name: "load", "text", "caption", "source", "denoise" or "decode".
        part: whose weights it uses; empty where only those that stay are there.
        work: ways to do it, the best first.
    """

    name: str
    part: str
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Demand:
    """What pictures ask for.

    Attributes:
        parts: in the order that they are first used in.
        phases: in order.
        steps: most passes through the parts that are used at each step.
        kept: device bytes of LoRAs and of what is kept between requests.
        host_work: bytes of the host beside the weights.
    """

    parts: tuple[PartSize, ...]
    phases: tuple[Phase, ...]
    steps: int
    kept: int = 0
    host_work: int = 0
