"""What is compiled while weights are read is all that a picture runs. Networks have their full size, on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MethodType

import pytest
import torch
from launches import noted
from placed import model_of, open_small
from torch import Tensor

from hwaga.families import find_family
from hwaga.families.family import Course
from hwaga.families.z_image.model import ZImageModel
from hwaga.sampling.schedule import flow_match
from hwaga.weights.quantize import QuantizedLinear

pytest.importorskip("triton", reason="Triton has no build for this machine")
META = torch.device("meta")
DTYPE = torch.bfloat16


@pytest.fixture(params=[None, "int8", "fp8"], ids=str)
def model(request: pytest.FixtureRequest) -> ZImageModel:
    found = find_family("z_image").outline(device=META, dtype=DTYPE, precision=request.param)
    assert isinstance(found, ZImageModel)
    for network in (found.text_encoder, found.transformer):
        network.layers = network.layers[:3]  # the others are like these
    for network in (found.text_encoder, found.transformer, found.autoencoder):
        network.to(DTYPE)
        for module in network.modules():
            if isinstance(module, QuantizedLinear):
                module.dtype = DTYPE

    def rows(self: object, ids: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(len(ids), found.networks.text_encoder.hidden, device=device, dtype=dtype)

    found.text_encoder.embed_tokens.forward = MethodType(rows, found.text_encoder.embed_tokens)
    return found


@torch.inference_mode()
def test_a_picture_compiles_nothing_more(model: ZImageModel) -> None:
    """Of a usual size, from a prompt and from a picture, alone and beside another."""
    with noted() as ahead:
        model.transformer.try_operations(META, DTYPE)
        model.text_encoder.try_operations(META, DTYPE)
        model.autoencoder.try_operations(META, DTYPE)
    with noted() as needed:
        for sizes in ([(1024, 1024)], [(1344, 768), (880, 1104)]):
            shapes = [model.latent_shape(*size) for size in sizes]
            captions = model.encode_prompts([range(57 + 20 * i) for i in range(len(sizes))], [None] * len(sizes))
            schedule = flow_match(8, 3.0)
            latents = [
                model.encode_pixels(torch.empty(3, height, width, device=META), None).expand(shape)
                for (width, height), shape in zip(sizes, shapes, strict=True)
            ]
            courses = [Course(caption, shape, schedule) for caption, shape in zip(captions, shapes, strict=True)]
            with model.denoising(courses) as velocity:
                outputs = velocity(latents, [schedule[1].item()] * len(sizes), range(len(sizes)))
            for output in outputs:
                model.decode_latents(output)
    names = {name for name, _ in needed}
    assert names == {"_rows_kernel", "_swiglu_kernel", "_turn_kernel", "_sum", "_join", "_apply", "_place", "_softmax"}
    assert not needed - ahead, "\n".join(str(variant) for variant in sorted(needed - ahead, key=str))


def test_it_runs_anywhere() -> None:
    """Also where there is nothing to compile, and without touching anybody's random numbers."""
    cpu, before = torch.device("cpu"), torch.get_rng_state()
    with open_small() as engine, torch.inference_mode():
        mini = model_of(engine)
        for network in (mini.transformer, mini.text_encoder, mini.autoencoder):
            network.try_operations(cpu, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_narrow_network_has_groups_of_the_same_width() -> None:
    found = find_family("z_image").outline(device=META, dtype=DTYPE)
    assert isinstance(found, ZImageModel)
    full = found.networks.autoencoder
    narrow = full.narrowed()
    assert narrow.channels == (16, 32, 64, 64)
    assert [width // narrow.groups for width in narrow.channels] == [width // full.groups for width in full.channels]
    uneven = replace(full, channels=(24, 40), groups=4)
    assert uneven.narrowed().channels == (6, 10)
    assert replace(full, channels=(16, 40), groups=4).narrowed().channels == (16, 40)
