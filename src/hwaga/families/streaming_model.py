"""What the models of all families do alike: weights that come and go, LoRAs beside them, prompts that may come again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hwaga.families.family import Picture, Tokenizer, Tokens
from hwaga.memory.demand import Demand, PartSize, Phase
from hwaga.weights.adapters import Adapters
from hwaga.weights.lora import LoraCache, LoraTarget
from hwaga.weights.reader import CHUNK, THREADS, Reader
from hwaga.weights.recent import RecentlyUsed
from hwaga.weights.unit import Unit

CAPTION_BYTES = 64 * 2**20
"""For prompts that may come again. At full size one of 120 tokens takes 0.6 MiB in Z-Image, one of 75 as much in SDXL, and each
saves the text encoder's work."""

OnDevice = Callable[[str, int], AbstractContextManager[None]]

Parts = Mapping[str, tuple[Unit, Sequence[Unit]]]


class Sized(Protocol):
    """What a text encoder makes of a prompt."""

    @property
    def nbytes(self) -> int: ...


TokensT = TypeVar("TokensT", bound=Tokens)
CaptionT = TypeVar("CaptionT", bound=Sized)
TokenizerT = TypeVar("TokenizerT", bound=Tokenizer)


class StreamingModel(ABC, Generic[TokenizerT, TokensT, CaptionT]):
    """Base of a family's model; see ``families.family.Model`` for the methods.

    Args:
        tokenizer: None for an outline, which reads no prompts.
        reader: of the files.
        parts: see ``families.family.Model``; one of them is called "denoiser", one "vae".
        encoders: the networks that read prompts.
        lora_targets: where LoRAs may go, by the names that they use.
        lora_bytes: of LoRAs that are kept on the device.

    Attributes:
        captions: what the encoders made of recent prompts.
        loras: those that were used recently.
    """

    def __init__(
        self,
        tokenizer: TokenizerT | None,
        reader: Reader,
        parts: Parts,
        *,
        encoders: Collection[nn.Module],
        lora_targets: Mapping[str, LoraTarget],
        lora_bytes: int,
        weights_digest: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._tokenizer = tokenizer
        self.reader = reader
        self.parts = parts
        self.on_device: OnDevice = _already_there
        self.weights_digest = weights_digest
        self.device = device
        self.dtype = dtype
        self.captions: RecentlyUsed[TokensT, CaptionT] = RecentlyUsed(CAPTION_BYTES, lambda caption: caption.nbytes)
        self.loras = LoraCache(lora_targets, device=device, dtype=dtype, limit=lora_bytes)
        self._reads = {module for encoder in encoders for module in encoder.modules()}

    @property
    def tokenizer(self) -> TokenizerT:
        assert self._tokenizer is not None, "an outline reads no prompts"
        return self._tokenizer

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer.ids(prompt))

    @property
    def kept_bytes(self) -> int:
        return self.loras.kept.nbytes + self.captions.nbytes

    def new_bytes(self, loras: Sequence[tuple[Path, float]]) -> int:
        return self.loras.new_bytes(loras)

    def adapters(self, loras: Sequence[tuple[Path, float]]) -> Adapters | None:
        return self.loras.adapters(loras)

    def forget(self) -> None:
        self.captions.clear()
        self.loras.kept.clear()

    def ready(self) -> None:
        """Nothing is prepared."""

    def bring(self, unit: Unit, memory: Tensor, progress: Callable[[int], None] | None = None) -> None:
        unit.bring(memory, self.reader, progress)

    def close(self) -> None:
        self.ready()
        self.forget()
        self.reader.close()

    def decoding(self) -> AbstractContextManager[None]:
        return self.on_device("vae", 1)

    def demand(self, pictures: Sequence[Picture], steps: int, kept: int) -> Demand:
        units = {name: (rest, *blocks) for name, (rest, blocks) in self.parts.items()}
        sizes = tuple(
            PartSize(
                name,
                rest.nbytes,
                tuple(block.nbytes for block in blocks),
                each_step=name == "denoiser",
                filling=max(unit.filling_bytes for unit in units[name]),
                quantized=any(unit.quantized for unit in units[name]),
            )
            for name, (rest, blocks) in self.parts.items()
        )
        writing = {name: max(unit.writing_bytes for unit in own) for name, own in units.items()}
        stages = self._phases(pictures, steps, max(size.filling for size in sizes), writing)
        # The picture on its way to the file, and the one it starts from; and the ring that weights are read through.
        host = sum(16 * picture.width * picture.height for picture in pictures) + CHUNK * THREADS
        return Demand(sizes, stages, self._passes(pictures, steps), kept, host)

    def _captions(self, prompts: Sequence[TokensT], adapters: Sequence[Adapters | None]) -> list[CaptionT]:
        """What the encoders make of prompts, or made of them before. A prompt that is read with a LoRA is not kept."""
        # LoRAs that change nothing here are no reason to read a prompt twice.
        used = [own if own is not None and not self._reads.isdisjoint(own.by_layer) else None for own in adapters]
        found: dict[int, CaptionT] = {}
        for i, (prompt, own) in enumerate(zip(prompts, used, strict=True)):
            known = None if own is not None else self.captions.get(prompt)
            if known is not None:
                found[i] = known
        unknown = [i for i in range(len(prompts)) if i not in found]
        if unknown:
            read = self._read([prompts[i] for i in unknown], [used[i] for i in unknown])
            for i, caption in zip(unknown, read, strict=True):
                found[i] = caption if used[i] is not None else self.captions.put(prompts[i], caption)
        return [found[i] for i in range(len(prompts))]

    @abstractmethod
    def _read(self, prompts: Sequence[TokensT], adapters: Sequence[Adapters | None]) -> Iterable[CaptionT]:
        """Runs the encoders on prompts; adapters are given where they change what comes of it."""

    @abstractmethod
    def _phases(
        self, pictures: Sequence[Picture], steps: int, filling: int, writing: Mapping[str, int]
    ) -> tuple[Phase, ...]:
        """The stages of a batch, and what each of them takes beside the weights.

        Args:
            filling: bytes taken beside a unit of weights while it is read.
            writing: by part, bytes taken while a weight is written out for a product.
        """

    def _passes(self, pictures: Sequence[Picture], steps: int) -> int:  # noqa: ARG002
        """How often the denoiser's weights are gone through."""
        return steps


def _already_there(_part: str, _passes: int) -> AbstractContextManager[Any]:
    return nullcontext()
