"""Where each part of a model lives while a picture is made, and what every phase then takes.

Weights lie in units: the blocks of a part, and what is outside of its blocks. A part is

    resident   all of it stays on the device
    streamed   some blocks stay; each of the others is brought into one of two slots just before its turn, while the one
               before it computes
    turn       all of it is brought in for its phase, and leaves again

What is away comes back from page-locked memory of the host while that lasts, and from the files beyond it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SLOTS = 2
"""Blocks of a streamed part that are on the device for a while: one computes, one arrives."""


@dataclass(frozen=True)
class Budget:
    """Memory that an engine may take.

    Attributes:
        device: "cuda", "mps" or "cpu".
        device_bytes: for weights and work, on the device; on the CPU that is the host.
        pinned_bytes: of the host, for weights that are away from a GPU.
        host_base: what the process takes of the host in any case.
        host_bytes: of the host, for all that the process takes.
    """

    device: str
    device_bytes: int
    pinned_bytes: int = 0
    host_base: int = 0
    host_bytes: int = 2**50


@dataclass(frozen=True)
class PartPlan:
    """Where a part lives.

    Attributes:
        mode: "resident", "streamed" or "turn"; see the module's docstring.
        blocks: how many it has.
        quantized: its large weights are kept in fewer bits.
        stays: blocks that never leave.
        pinned: of those that do, the ones that come back from page-locked memory; the others come from the files.
        rest_pinned: the same of what is outside of the blocks, where that leaves.
        stays_bytes: on the device at any time.
        slots, slot_bytes: for streaming, in the part's phases.
        moved_bytes: brought to the device for a request.
        pinned_bytes: of the host.
        file_bytes: of weights that come from the files at each request.
        reason: of the mode, for people.
    """

    name: str
    mode: str
    blocks: int
    quantized: bool
    stays: tuple[int, ...]
    pinned: tuple[int, ...]
    rest_pinned: bool
    stays_bytes: int
    slots: int
    slot_bytes: int
    moved_bytes: int
    pinned_bytes: int
    file_bytes: int
    reason: str

    @property
    def source(self) -> str:
        """What the weights that leave come back from: "pinned", "files" or "pinned and files"; "" if none leave."""
        if self.mode == "resident":
            return ""
        locked = bool(self.pinned) or self.rest_pinned
        filed = len(self.stays) + len(self.pinned) < self.blocks or (self.mode == "turn" and not self.rest_pinned)
        return " and ".join(name for name, some in (("pinned", locked), ("files", filed)) if some)


@dataclass(frozen=True)
class PhasePlan:
    """The most that a phase takes of the device, by what it is for.

    Attributes:
        weights: that stay, of all parts.
        brought: of its own part, for the time of the phase.
        work: everything that is computed.
        kept: LoRAs and embeddings.
    """

    name: str
    part: str
    tile: int | None
    weights: int
    brought: int
    work: int
    kept: int
    reason: str

    @property
    def nbytes(self) -> int:
        return self.weights + self.brought + self.work + self.kept


@dataclass(frozen=True)
class Neighbour:
    """Another model of the process, which holds some of the same budget.

    Attributes:
        model: its name.
        leaves_bytes: of the device, that it gives up when the plan is carried out.
        stays_bytes: of the device, that it keeps.
        pinned_bytes: of the host, for its weights that are away.
    """

    model: str
    leaves_bytes: int
    stays_bytes: int
    pinned_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """See the module's docstring.

    Attributes:
        budget: of all models of the process together.
        neighbours: the others.
    """

    budget: Budget
    parts: tuple[PartPlan, ...]
    phases: tuple[PhasePlan, ...]
    host_work: int
    neighbours: tuple[Neighbour, ...] = ()

    def part(self, name: str) -> PartPlan:
        return next(part for part in self.parts if part.name == name)

    def tile(self, phase: str) -> int | None:
        """Side of a phase's pieces in pixels; None for all at once, or where there is no such phase."""
        return next((each.tile for each in self.phases if each.name == phase), None)

    @property
    def device_bytes(self) -> int:
        """The most at one time, on the device, for this model."""
        return max(phase.nbytes for phase in self.phases)

    @property
    def others_bytes(self) -> int:
        """Of the device, that other models keep meanwhile."""
        return sum(neighbour.stays_bytes for neighbour in self.neighbours)

    @property
    def moved_bytes(self) -> int:
        """Weights brought to the device for a request."""
        return sum(part.moved_bytes for part in self.parts)

    @property
    def pinned_bytes(self) -> int:
        """Weights kept in page-locked memory of the host."""
        return sum(part.pinned_bytes for part in self.parts)

    @property
    def file_bytes(self) -> int:
        """Weights that come from the files at each request."""
        return sum(part.file_bytes for part in self.parts)

    @property
    def page_cache_bytes(self) -> int:
        """What is left of the host for the page cache, which files are read through."""
        return max(self.budget.host_bytes - self.peak_ram_bytes, 0)

    def vram_bytes(self, phase: PhasePlan) -> int:
        """Of a GPU, in a phase."""
        return 0 if self.budget.device == "cpu" else phase.nbytes + self.others_bytes

    def ram_bytes(self, phase: PhasePlan) -> int:
        """Of the host, in a phase."""
        own = phase.nbytes + self.others_bytes if self.budget.device == "cpu" else self.pinned_bytes
        copies = sum(neighbour.pinned_bytes for neighbour in self.neighbours)
        return self.budget.host_base + self.host_work + own + copies

    @property
    def peak_vram_bytes(self) -> int:
        return max(self.vram_bytes(phase) for phase in self.phases)

    @property
    def peak_ram_bytes(self) -> int:
        return max(self.ram_bytes(phase) for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values: bytes, and fields by the names that they have here."""
        return {
            "peak_vram_bytes": self.peak_vram_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
            "moved_bytes": self.moved_bytes,
            "pinned_bytes": self.pinned_bytes,
            "file_bytes": self.file_bytes,
            "page_cache_bytes": self.page_cache_bytes,
            "budget": asdict(self.budget),
            "parts": [asdict(part) | {"source": part.source} for part in self.parts],
            "phases": [
                asdict(phase)
                | {"others": self.others_bytes}
                | {"peak_vram_bytes": self.vram_bytes(phase), "peak_ram_bytes": self.ram_bytes(phase)}
                for phase in self.phases
            ],
            "neighbours": [asdict(neighbour) for neighbour in self.neighbours],
        }
