"""The memory of a device that several models of a process share: one is used, and the others give way when it needs room."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwaga.families.family import Model
from hwaga.memory.budget import CONTEXT, STEP, budget, host_memory, process_memory, rounded
from hwaga.memory.device import device_memory, give_back, limit_allocator
from hwaga.memory.plan import Budget, Neighbour, Plan
from hwaga.memory.residency import Residency
from hwaga.memory.sharing import Holding, give_way, neighbours
from hwaga.memory.trim import trim_host_memory
from hwaga.settings import Settings, bytes_of


@dataclass(frozen=True)
class Caps:
    """What a process may take of a GPU and of the host, in bytes; None for what there is."""

    vram: int | None = None
    ram: int | None = None

    @classmethod
    def of(cls, vram: int | str | None, ram: int | str | None, settings: Settings) -> Caps:
        """What was asked for, as bytes or as "8 GiB"; what the settings say where that is nothing. Raises SettingsError."""
        return cls(bytes_of("vram", vram or settings.vram), bytes_of("ram", ram or settings.ram))


@dataclass(frozen=True, eq=False)
class Tenant:
    """A model that holds memory of the device."""

    name: str
    model: Model
    residency: Residency

    def holding(self) -> Holding:
        """What it holds now; what it keeps besides weights in whole steps, so that plans are not made anew for each prompt."""
        return Holding(self.name, -(-self.model.kept_bytes // STEP) * STEP, self.residency.held())


class Room:
    """A device, how much of it and of the host may be taken, and the models that share that.

    Attributes:
        device: where their networks run.
        caps: of all of them together.
    """

    def __init__(self, device: torch.device, caps: Caps) -> None:
        self.device = device
        self.caps = caps
        self._tenants: list[Tenant] = []
        """Whoever was used longest ago is first."""

    def admit(self, tenant: Tenant) -> None:
        """Lets a model in, as one that was never used."""
        if not self._tenants and self.caps.vram is not None:
            limit_allocator(self.device, self.caps.vram - CONTEXT)
        self._tenants.insert(0, tenant)

    def dismiss(self, tenant: Tenant) -> None:
        """Lets a model go, which holds nothing any more."""
        self._tenants.remove(tenant)
        if not self._tenants and self.caps.vram is not None:
            limit_allocator(self.device, None)

    def budget(self) -> Budget:
        """What the models may take now, what they have taken already included."""
        found = budget(
            self.device.type,
            device_memory(self.device),
            host_memory(),
            process_memory(),
            held=sum(each.residency.device_bytes + each.model.kept_bytes for each in self._tenants),
            pinned=sum(each.residency.pinned_bytes for each in self._tenants),
            vram=self.caps.vram,
            ram=self.caps.ram,
        )
        return rounded(found)

    def foreseen(self, tenant: Tenant, plan: Plan) -> tuple[Neighbour, ...]:
        """What would become of the others under a plan for one of the models."""
        before = [other.holding() for other in self._others(tenant)]
        return neighbours(before, self._after(before, tenant, plan)) if before else ()

    def clear(self, tenant: Tenant, plan: Plan | None = None) -> None:
        """Notes that a model is used, and has the others give way to its plan; all that they hold where there is none."""
        if self._tenants[-1] is not tenant:
            self._tenants.remove(tenant)
            self._tenants.append(tenant)
        others = self._others(tenant)
        if not others:
            return
        before = [other.holding() for other in others]
        after = give_way(before, 0, 0) if plan is None else self._after(before, tenant, plan)
        if after == before:
            return
        for other, was, now in zip(others, before, after, strict=True):
            if now.kept < was.kept:
                other.model.forget()
            other.residency.hold(now.units)
        give_back(self.device)
        trim_host_memory()

    def _others(self, tenant: Tenant) -> list[Tenant]:
        return [other for other in self._tenants if other is not tenant]

    def _after(self, before: list[Holding], tenant: Tenant, plan: Plan) -> list[Holding]:
        copies = plan.pinned_bytes + tenant.residency.copies_besides(plan)
        return give_way(before, plan.budget.device_bytes - plan.device_bytes, plan.budget.pinned_bytes - copies)
