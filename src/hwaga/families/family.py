"""What the engine asks of a model family, and nothing else.

Tensors: pixels ``[3, H, W]`` float32 in [-1, 1]; latents ``[C, h, w]`` float32; sigmas float32 ``[steps + 1]`` on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hwaga.memory.demand import Demand
    from hwaga.sampling.walk import Derivative
    from hwaga.weights.conversion import Conversion

Progress = Callable[[int, int], None]
"""(bytes loaded, bytes in all)."""


@dataclass(frozen=True)
class Picture:
    """What a picture's size asks of memory.

    Attributes:
        width, height: pixels.
        tokens: of the prompt, see ``Model.length``.
        source: it starts from a picture.
        guided: the denoiser runs for it twice a step, with its prompt and with what it is led away from.
    """

    width: int
    height: int
    tokens: int
    source: bool = False
    guided: bool = False


class Tokens(Hashable, Protocol):
    """What a family makes of a prompt before any network runs. Its length is the number of tokens."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Course:
    """How one picture of a batch is denoised.

    Attributes:
        conditioning: what the family made of the prompt.
        shape: of the latents, ``[C, h, w]``.
        schedule: sigmas, falling.
        adapters: what LoRAs add, or None.
        negative: what the family made of the negative prompt, for a picture that is guided.
        guidance: 1 for a picture that is not.
        sampler: of the model's ``samplers``.
    """

    conditioning: Any
    shape: tuple[int, int, int]
    schedule: Tensor
    adapters: Any = None
    negative: Any = None
    guidance: float = 1.0
    sampler: str = "euler"


class Model(Protocol):
    """The networks of one checkpoint. ``Conditioning`` is what it makes of a prompt; the engine only hands it on.

    Weights come and go: a model says what parts it has, and uses each of them within ``on_device``.
    """

    @property
    def parts(self) -> Mapping[str, tuple[Any, Sequence[Any]]]:
        """For each part, the unit of what lies outside of its blocks, and the blocks' units; see ``memory.residency.Unit``."""

    on_device: Callable[[str, int], AbstractContextManager[None]]
    """Given by the engine: within it a part may be run, so many times."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that the networks have positions for."""

    @property
    def weights_digest(self) -> str:
        """Tells this checkpoint from others of its name."""

    @property
    def size_multiple(self) -> int:
        """Sides are multiples of this many pixels."""

    @property
    def max_side(self) -> int:
        """Pixels along a side that the networks have positions for."""

    @property
    def guided(self) -> bool:
        """Whether it can be drawn with guidance: with negative prompts, and twice as many passes of the denoiser."""

    @property
    def samplers(self) -> Sequence[str]:
        """That its schedules are made for, of ``hwaga.request.SAMPLERS``."""

    def tokenize(self, prompt: str, limit: int) -> Tokens:
        """What the networks are given of a prompt, template included. An empty one stands for no negative prompt.

        Raises:
            PromptTooLongError: above the limit.
        """

    def length(self, tokens: Any) -> int:
        """How many tokens' room in the networks a prompt takes that went through ``tokenize``; padding may count."""

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, template included, however many they are."""

    def adapters(self, loras: Sequence[tuple[Path, float]]) -> Any:
        """What LoRA files add at their weights: the same object for the same ones, None for none. Raises LoraError."""

    @property
    def kept_bytes(self) -> int:
        """Of the device, for whatever is kept in case it is used again."""

    def new_bytes(self, loras: Sequence[tuple[Path, float]]) -> int:
        """About the most that ``adapters`` would take of the device for them, beside what is kept."""

    def demand(self, pictures: Sequence[Picture], steps: int, kept: int) -> Demand:
        """What a batch asks of memory.

        Args:
            steps: most of a picture.
            kept: bytes of LoRAs and of what is kept between requests.
        """

    def bring(self, unit: Any, memory: Tensor, progress: Callable[[int], None] | None = None) -> None:
        """Writes a unit's weights to memory of the device. Raises CheckpointError."""

    def ready(self) -> None:
        """Waits for whatever is prepared beside the reading of weights."""

    def forget(self) -> None:
        """Gives back the memory of whatever is kept in case it is used again."""

    def close(self) -> None:
        """Lets go of everything that is not weights on the device."""

    def encode_prompts(self, prompts: Sequence[Any], adapters: Sequence[Any]) -> list[Any]:
        """Conditioning for each of what ``tokenize`` made of prompts, with its adapters."""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latents of a picture."""

    def schedule(self, steps: int, strength: float, *, steps_scale: bool, sampler: str) -> Tensor:
        """Sigmas for a start at a noise level of ``strength``; with ``steps_scale``, the full schedule less its first part."""

    def begin(self, noise: Tensor, sigma: float, sampler: str) -> Tensor:
        """Latents at the first sigma of a picture that is made of noise alone."""

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Latents taken to a noise level."""

    def denoising(self, courses: Sequence[Course]) -> AbstractContextManager[Derivative]:
        """The denoiser for a batch, with all that does not depend on the step computed."""

    def encode_pixels(self, pixels: Tensor, posterior_noise: Tensor | None, tile: int | None = None) -> Tensor:
        """Latents of one picture: the encoder's mean, or a sample of its posterior. In pieces of ``tile`` pixels if set."""

    def decoding(self) -> AbstractContextManager[None]:
        """Within it, several calls of ``decode_latents`` bring their weights once."""

    def decode_latents(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """Pixels of one picture's latents, not clamped. In pieces of ``tile`` pixels if set."""


class Tokenizer(Protocol):
    """Counts a prompt before any network is loaded."""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, template included, however many they are."""

    def ids_within(self, prompt: str, limit: int) -> list[int]:
        """The same, or PromptTooLongError if there are more than ``limit``."""


class Family(Protocol):
    """Opens checkpoints of one architecture."""

    @property
    def dtypes(self) -> Sequence[str]:
        """Number formats that the networks may run in, the one for GPUs first."""

    @property
    def precisions(self) -> Sequence[str]:
        """Fewer bits that the large weights may be kept in, the best first."""

    @property
    def sound_precisions(self) -> Sequence[str]:
        """Of these, the ones that may be chosen where whole weights don't fit."""

    def open(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),
        device: torch.device,
        dtype: torch.dtype,
        lora_bytes: int,
        precision: str | None = None,
    ) -> Model:
        """Opens a checkpoint by the headers of its files; its weights are still to be brought in. Raises CheckpointError for
        whatever is wrong with it.

        Args:
            folder: the checkpoint, in diffusers' layout.
            files: the files that hold the networks, where it is in another layout.
            device, dtype: where the networks run, and in which number format. On the meta device they can only say what they
                would ask of a GPU.
            lora_bytes: of LoRAs that are kept on the device.
            precision: how the large weights are kept, of ``precisions``; as the dtype where None.
        """

    @property
    def layouts(self) -> Sequence[str]:
        """Layouts that checkpoints can be written in, diffusers' first."""

    def conversion(self, folder: Path, *, files: Sequence[Path] = (), precision: str | None, layout: str) -> Conversion:
        """What is to be written to have a checkpoint in another layout or precision. Its weights are not read yet.

        Raises:
            CheckpointError: the checkpoint is damaged, or cannot be written like that.
        """

    def outline(self, *, device: torch.device, dtype: torch.dtype, precision: str | None = None) -> Model:
        """The published model without any files: it can say what it would ask of memory, and nothing else. As ``open``."""

    def check_lora(self, folder: Path, lora: Path, *, files: Sequence[Path] = ()) -> None:
        """Raises LoraError where a LoRA file is not for a checkpoint, of which no weights are read. As ``open``."""
