"""Batches go through hwaga's own networks: the numbers are those of the packed way that pictures are made in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from training.assemble import stored
from training.low_rank import add_lora, merged, remove_lora
from training.networks import (
    TrainedTextEncoder,
    TrainedTransformer,
    _run_block,
    autoencoder_config,
    patchify,
    text_encoder_config,
    transformer_config,
    unpatchify,
)
from training.recipe import Recipe

from hwaga.families.z_image.autoencoder import Autoencoder
from hwaga.families.z_image.text_encoder import Qwen3Encoder
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.weights.layouts import z_image_transformer

TINY = Recipe.load("tiny")


def _transformer() -> TrainedTransformer:
    """With no weight that is neutral."""
    torch.manual_seed(1)
    network = TrainedTransformer(transformer_config(TINY))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def _batched(network: TrainedTransformer, latents: Tensor, captions: list[Tensor], times: Tensor) -> Tensor:
    words = -(-max(map(len, captions)) // 32) * 32
    padded = torch.stack([F.pad(caption, (0, 0, 0, words - len(caption))) for caption in captions])
    lengths = torch.tensor([len(caption) for caption in captions])
    grid = latents.shape[2] // 2, latents.shape[3] // 2
    (velocity,) = network(patchify(latents), grid, times, [(padded, lengths)])
    return unpatchify(velocity, grid)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 64)])
@pytest.mark.parametrize("lengths", [(5, 30), (40, 64)])
def test_the_transformer_is_hwagas(size: tuple[int, int], lengths: tuple[int, int]) -> None:
    network = _transformer()
    reference = ZImageTransformer(network.net.config)
    reference.load_state_dict(network.net.state_dict())
    latents, times = torch.randn(2, 16, *size), torch.tensor([0.2, 0.9])
    captions = [torch.randn(length, TINY.text_encoder.hidden) for length in lengths]
    with torch.no_grad():
        refined = reference.refine_captions(captions, [None, None])
        pack = reference.pack([size] * 2, [len(caption) for caption in refined])
        wanted = torch.stack(reference(list(latents), refined, pack, reference.modulate(times), [0, 1]))
        found = _batched(network, latents, captions, times)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_text_encoder_is_hwagas() -> None:
    network = TrainedTextEncoder(text_encoder_config(TINY.text_encoder))
    reference = Qwen3Encoder(network.config)
    reference.layers.load_state_dict(network.layers.state_dict())
    reference.embed_tokens = _Rows(network.embedding.weight)  # type: ignore[assignment]
    prompts = [[1, 7, 9, 2], [1, 300, 5, 6, 8, 2, 3]]
    ids = torch.zeros(2, 32, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    with torch.no_grad():
        wanted = reference(prompts, [None, None], torch.device("cpu"), torch.float32)
        found = network(ids)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(found[row, : len(prompt)], wanted[row], atol=1e-5, rtol=1e-4)


class _Rows(torch.nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: list[int], _device: torch.device, _dtype: torch.dtype) -> Tensor:
        return self.table[torch.tensor(rows)]


def test_a_second_set_of_captions_shares_the_start_and_has_no_gradient() -> None:
    network = _transformer()
    tokens, times = torch.randn(2, 16, 64), torch.tensor([0.2, 0.9])
    first, second = torch.randn(2, 2, 32, TINY.text_encoder.hidden)
    lengths = torch.tensor([9, 32])
    both = network(tokens, (4, 4), times, [(first, lengths), (second, lengths)])
    (alone,) = network(tokens, (4, 4), times, [(second, lengths)])
    torch.testing.assert_close(both[1], alone.detach())
    assert both[0].requires_grad
    assert not both[1].requires_grad


def test_blocks_compile_whole_and_once_for_all_layers() -> None:
    """A graph for each of: image tokens alone, image and caption, and the latter without gradients. None for a second layer."""
    recipe = replace(TINY, transformer=replace(TINY.transformer, layers=4))
    network, counter = TrainedTransformer(transformer_config(recipe)), CompileCounter()
    network._run = torch.compile(_run_block, dynamic=False, backend=counter, fullgraph=True)
    network._compiled = (32, 1024)
    lengths = torch.tensor([5, 9])
    for _ in range(2):
        captions = torch.randn(2, 32, TINY.text_encoder.hidden)
        both = network(torch.randn(2, 16, 64), (4, 4), torch.rand(2), [(captions, lengths), (captions, lengths)])
        both[0].mean().backward()
    assert counter.frame_count == 3


def test_a_lora_begins_as_nothing_and_is_taken_away_again() -> None:
    network = _transformer()
    latents, captions, times = torch.randn(1, 16, 8, 8), torch.randn(1, 32, TINY.text_encoder.hidden), torch.rand(1)
    given = [(captions, torch.tensor([20]))]
    names = set(dict(network.named_parameters()))
    before = network(patchify(latents), (4, 4), times, given)[0]
    added = dict(add_lora(network, 4))
    torch.testing.assert_close(network(patchify(latents), (4, 4), times, given, merged)[0], before)
    with torch.no_grad():
        for parameter in added.values():
            parameter.add_(torch.randn_like(parameter))
    assert (network(patchify(latents), (4, 4), times, given, merged)[0] - before).abs().max() > 1e-3
    assert (network(patchify(latents), (4, 4), times, given)[0] - before).abs().max() == 0
    remove_lora(network)
    assert set(dict(network.named_parameters())) == names


def test_stacked_weights_are_stored_apart() -> None:
    weights = {"layers.0.attention.qkv.weight": torch.arange(12.0).view(6, 2)}
    found = stored(weights, z_image_transformer(2))
    assert set(found) == {f"layers.0.attention.to_{part}.weight" for part in "qkv"}
    assert found["layers.0.attention.to_k.weight"].tolist() == [[4, 5], [6, 7]]


def test_patches_go_there_and_back() -> None:
    latents = torch.randn(2, 16, 6, 10)
    assert torch.equal(unpatchify(patchify(latents), (3, 5)), latents)
    reference = ZImageTransformer(transformer_config(TINY))
    assert torch.equal(patchify(latents)[0], reference._patchify(latents[0]))


def test_the_bundled_models_recipe_keeps_to_its_size() -> None:
    recipe = Recipe.load("mini")
    text = text_encoder_config(recipe.text_encoder)
    with torch.device("meta"):
        transformer = TrainedTransformer(transformer_config(recipe))
        encoder = TrainedTextEncoder(text)

    autoencoder = Autoencoder(autoencoder_config(recipe.autoencoder))
    networks = (transformer, encoder, autoencoder)
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    unused = sum(parameter.numel() for parameter in encoder.layers[0].parameters())
    assert 2 * (count + unused) <= 39.5e6  # the tokenizer takes the rest of 40 MB
    added = add_lora(transformer, recipe.loras.rank)
    assert 2 * sum(parameter.numel() for _, parameter in added) <= 2e6
