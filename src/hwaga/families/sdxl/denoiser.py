"""A step of SDXL's denoiser for a batch of pictures: passes of the U-Net, and guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hwaga.families.family import Course
from hwaga.families.sdxl.captions import Adapting, Caption
from hwaga.families.sdxl.noise import Prediction


@dataclass(frozen=True)
class _Row:
    """One picture with one prompt, as the U-Net takes them.

    Attributes:
        embeddings: ``[tokens, D]``.
        pooled: ``[P]``.
        sizes: height and width as they were, cut off at the top and on the left, and wanted.
        adapters: of LoRAs, or None.
    """

    embeddings: Tensor
    pooled: Tensor
    sizes: Tensor
    adapters: Any


class Denoiser:
    """The derivative of a batch's latents; see ``sampling.walk.Derivative``.

    Pictures whose latents and prompts are of one shape go through the U-Net together, others in turn. A picture that is guided
    has two rows there: with its negative prompt, and with its prompt.
    """

    def __init__(
        self,
        unet: Any,
        courses: Sequence[Course],
        prediction: Prediction,
        *,
        scale: int,
        dtype: torch.dtype,
        adapting: Adapting,
    ) -> None:
        self.unet = unet
        self.prediction = prediction
        self.dtype = dtype
        self.adapting = adapting
        self.courses = courses
        self.rows = [_rows(course, scale) for course in courses]

    def groups(self, active: Sequence[int]) -> list[list[int]]:
        """Places in ``active`` of the pictures that go together."""
        found: dict[Any, list[int]] = {}
        for place, i in enumerate(active):
            found.setdefault((self.courses[i].shape, len(self.rows[i][0].embeddings)), []).append(place)
        return list(found.values())

    @property
    def passes(self) -> int:
        """How often all blocks of the U-Net run until the last picture is done."""
        lengths = [len(course.schedule) - 1 for course in self.courses]
        return sum(
            len(self.groups([i for i, length in enumerate(lengths) if step < length])) for step in range(max(lengths))
        )

    def __call__(self, latents: Sequence[Tensor], sigmas: Sequence[float], active: Sequence[int]) -> list[Tensor]:
        slopes: list[Tensor | None] = [None] * len(active)
        for group in self.groups(active):
            outputs = self._pass(
                [latents[place] for place in group],
                [sigmas[place] for place in group],
                [active[place] for place in group],
            )
            for place, output in zip(group, outputs, strict=True):
                slopes[place] = self.prediction.slope(output, latents[place], sigmas[place])
        return [slope for slope in slopes if slope is not None]

    def _pass(self, latents: Sequence[Tensor], sigmas: Sequence[float], pictures: Sequence[int]) -> list[Tensor]:
        """The U-Net's output for each picture, guided, float32."""
        # All negative prompts first and all prompts after them, so that rows which share adapters are neighbours.
        rows = [
            (place, row) for turn in (0, 1) for place, i in enumerate(pictures) for row in self.rows[i][turn : turn + 1]
        ]
        scaled = [latent / math.hypot(sigma, 1) for latent, sigma in zip(latents, sigmas, strict=True)]
        times = [
            self.prediction.time_of(sigma, self.courses[i].sampler) for sigma, i in zip(sigmas, pictures, strict=True)
        ]
        device = latents[0].device
        with self.adapting(self.unet, [row.adapters for _, row in rows]):
            (output,) = self.unet(
                torch.stack([scaled[place] for place, _ in rows]).to(self.dtype),
                torch.tensor([times[place] for place, _ in rows], dtype=torch.float32).to(device),
                encoder_hidden_states=torch.stack([row.embeddings for _, row in rows]),
                added_cond_kwargs={
                    "text_embeds": torch.stack([row.pooled for _, row in rows]),
                    "time_ids": torch.stack([row.sizes for _, row in rows]),
                },
                return_dict=False,
            )
        outputs: list[list[Tensor]] = [[] for _ in pictures]
        for (place, _), each in zip(rows, output.float(), strict=True):
            outputs[place].append(each)
        return [
            own[0] if len(own) == 1 else own[0] + self.courses[i].guidance * (own[1] - own[0])
            for own, i in zip(outputs, pictures, strict=True)
        ]


def _rows(course: Course, scale: int) -> list[_Row]:
    """A picture's rows: the negative prompt's, if it is guided, and the prompt's."""
    captions: list[Caption] = [course.conditioning]
    if course.negative is not None:
        captions.insert(0, course.negative)
    tokens = max(len(caption.embeddings) for caption in captions)
    height, width = (side * scale for side in course.shape[1:])
    place = course.conditioning.pooled.device
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32).to(place)
    return [_Row(caption.filled(tokens), caption.pooled, sizes, course.adapters) for caption in captions]
