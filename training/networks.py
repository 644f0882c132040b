"""The three networks as training runs them: ``hwaga``'s own modules and weights, over batches of equal shapes.

Inference packs pictures of any sizes one behind the other, and fuses what lies between its products; training draws
batches of one size and wants gradients. So the modules are hwaga's, and what is here is how a block and a layer of
theirs are applied to a batch, in plain operations that a compiler can fuse in both directions.
``tests/training/test_networks.py`` holds it against theirs.

Shapes: B pictures, N image tokens, P caption tokens (padded to a multiple of 32), D model width, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.families.z_image import positions as places
from hwaga.families.z_image import text_encoder
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.blocks import QK_NORM_EPS, Attention, Block, BlockModulation
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import Modulation, ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.weights.adapters import plain
from training.recipe import AutoencoderRecipe, Recipe, TextEncoderRecipe, TransformerRecipe

LATENT_CHANNELS = 16
PATCH = 2
POSITIONS = 1024


def transformer_config(recipe: Recipe) -> TransformerConfig:
    sizes: TransformerRecipe = recipe.transformer
    return TransformerConfig(
        dim=sizes.dim,
        layers=sizes.layers,
        refiner_layers=sizes.refiners,
        heads=sizes.heads,
        norm_eps=1e-5,
        qk_norm=True,
        in_channels=LATENT_CHANNELS,
        patch=PATCH,
        caption_dim=recipe.text_encoder.hidden,
        rope_theta=256.0,
        time_scale=1000.0,
        axes_dims=sizes.axes,
        axes_lens=(POSITIONS, 512, 512),
    )


def text_encoder_config(sizes: TextEncoderRecipe) -> TextEncoderConfig:
    return TextEncoderConfig(
        hidden=sizes.hidden,
        intermediate=sizes.intermediate,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.heads,
        head_dim=sizes.hidden // sizes.heads,
        vocabulary=sizes.vocabulary,
        norm_eps=1e-6,
        rope_theta=10000.0,
        attention_bias=False,
        positions=POSITIONS,
    )


def autoencoder_config(sizes: AutoencoderRecipe, scaling: float = 1.0, shift: float = 0.0) -> AutoencoderConfig:
    return AutoencoderConfig(
        channels=sizes.channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        groups=sizes.groups,
        scaling=scaling,
        shift=shift,
        mid_attention=True,
        quant_conv=False,
        post_quant_conv=False,
    )


Product = Callable[[nn.Linear, Tensor], Tensor]
"""Applies a linear layer: as it is, or with what a LoRA adds to it."""


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer as it is."""
    return F.linear(x, layer.weight, layer.bias)


class TrainedTransformer(nn.Module):
    """The Z-Image transformer over batches. ``net`` holds the weights under hwaga's names."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.net = ZImageTransformer(config)
        self._run = _run_block
        self._compiled = (0, 0)
        _initialise_transformer(self.net)

    def compile_blocks(self, words: int, tokens: int) -> None:
        """Compiles one function for every block, where the whole network would take minutes; for captions of at most so many
        tokens, and so many with their pictures: longer ones are rare, and a graph for each of their lengths would take
        longer to make than it saves.
        """
        self._run = torch.compile(_run_block, dynamic=False)
        self._compiled = (words, tokens)

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Without compiled functions, for a batch of a shape that comes too rarely to compile anything for."""
        run, self._run = self._run, _run_block
        yield
        self._run = run

    def forward(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        times: Tensor,
        captions: Sequence[tuple[Tensor, Tensor]],
        linear: Product = product,
    ) -> list[Tensor]:
        """Velocities from noise to picture, for each of several sets of captions of the same pictures.

        What comes before image and caption meet is computed once. Only the first set's velocities are followed by
        gradients: the others are what they are compared with.

        Args:
            tokens: noisy latents ``[B, N, p * p * C]``, see ``patchify``.
            size: (rows, columns) of the tokens; N is their product.
            times: float32 ``[B]``, 0 at noise and 1 at the picture.
            captions: the text encoder's output ``[B, P, caption_dim]``, of one P, and the tokens of each caption ``[B]``; what
                follows those is padding.
            linear: applies the blocks' linear layers.

        Returns:
            Float32, each of the shape of ``tokens``.
        """
        net = self.net
        modulation = net.modulate(times)
        x = net.x_embedder(tokens.to(net.x_pad_token.dtype))
        if missing := -tokens.shape[1] % places.TOKEN_MULTIPLE:
            x = torch.cat([x, net.x_pad_token.expand(len(x), missing, -1)], dim=1)
        image_rotation, _ = _rotations(net, size, captions[0][0].shape[1], x.device)
        words = captions[0][0].shape[1]
        short = words <= self._compiled[0] and x.shape[1] + words <= self._compiled[1]
        run = self._run if short else _run_block
        for block, factors in zip(net.noise_refiner, modulation.noise_refiner, strict=True):
            x = run(block, x, image_rotation, _rows(factors), linear)
        velocities = []
        for place, (caption, lengths) in enumerate(captions):
            with torch.set_grad_enabled(torch.is_grad_enabled() and place == 0):
                velocities.append(self._joint(run, x, caption, lengths, size, tokens.shape[1], modulation, linear))
        return velocities

    def _joint(
        self,
        run: Callable[..., Tensor],
        x: Tensor,
        captions: Tensor,
        lengths: Tensor,
        size: tuple[int, int],
        count: int,
        modulation: Modulation,
        linear: Product,
    ) -> Tensor:
        net, words = self.net, captions.shape[1]
        image_rotation, caption_rotation = _rotations(net, size, words, x.device)
        caption = net.cap_embedder(captions.to(x.dtype), plain)
        padding = torch.arange(words, device=x.device) >= lengths[:, None]
        caption = torch.where(padding[..., None], net.cap_pad_token, caption)
        for block in net.context_refiner:
            caption = _run_block(block, caption, caption_rotation, _rows(block.unmodulated()), linear)
        x = torch.cat([x, caption], dim=1)
        rotation = torch.cat([image_rotation, caption_rotation], dim=1)
        for block, factors in zip(net.layers, modulation.layers, strict=True):
            x = run(block, x, rotation, _rows(factors), linear)
        return cast(Tensor, net.final_layer(x[:, :count], modulation.final_scale[:, None], plain)).float()


def _run_block(block: Block, x: Tensor, rotation: Tensor, factors: tuple[Tensor, ...], linear: Product) -> Tensor:
    """A block over ``[B, tokens, D]``.

    Args:
        rotation: cosines and sines, ``[2, tokens, head_dim / 2]``.
        factors: what its four norms multiply with, ``[B, 1, D]`` or ``[1, 1, D]``.
    """
    attention_gain, attention_gate, ffn_gain, ffn_gate = factors
    update = _attend(block.attention, _normed(x, block.eps) * attention_gain, rotation, linear)
    x = x + _normed(update, block.eps) * attention_gate
    gate, up = linear(block.feed_forward.w13, _normed(x, block.eps) * ffn_gain).chunk(2, dim=-1)
    update = linear(block.feed_forward.w2, F.silu(gate) * up)
    return x + _normed(update, block.eps) * ffn_gate


def _attend(layer: Attention, x: Tensor, rotation: Tensor, linear: Product) -> Tensor:
    """Rotations are real numbers here: compilers fuse nothing that is complex."""
    qk, v = linear(layer.qkv, x).unflatten(-1, (3, layer.heads, -1)).split((2, 1), dim=2)
    assert layer.q_norm is not None, "always trained with norms"
    assert layer.k_norm is not None
    qk = _normed(qk, QK_NORM_EPS) * torch.stack((layer.q_norm, layer.k_norm))[:, None]
    cos, sin = rotation[:, :, None, None]
    even, odd = qk.float().unflatten(-1, (-1, 2)).unbind(-1)
    qk = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(v.dtype)
    q, k = (each.transpose(1, 2) for each in qk.unbind(2))
    mixed = F.scaled_dot_product_attention(q, k, v[:, :, 0].transpose(1, 2))
    return linear(layer.out, mixed.transpose(1, 2).flatten(2))


def _normed(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def _rows(factors: BlockModulation) -> tuple[Tensor, ...]:
    """A row for each picture, ``[B, 1, D]``."""
    each = (factors.attention_gain, factors.attention_gate, factors.ffn_gain, factors.ffn_gate)
    return tuple(factor[:, None] for factor in each)


def _rotations(
    net: ZImageTransformer, size: tuple[int, int], words: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of image and caption positions, ``[2, tokens, head_dim / 2]`` each."""
    config = net.config
    return _rotation_tables(config.axes_dims, config.axes_lens, config.rope_theta, size, words, device)


@cache
def _rotation_tables(
    dims: tuple[int, int, int],
    lens: tuple[int, int, int],
    theta: float,
    size: tuple[int, int],
    words: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    tables = places.rotation_tables(dims, lens, theta)
    found = []
    for positions in (places.image_positions(*size, words + 1), places.caption_positions(words)):
        angles = torch.cat([table[positions[:, axis]] for axis, table in enumerate(tables)], dim=-1)
        found.append(torch.stack((angles.real, angles.imag)).to(device))
    return found[0], found[1]


class TrainedTextEncoder(nn.Module):
    """The Qwen3 encoder with its embedding in memory. The checkpoint's last layer, which nothing hears, is not built."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        encoder = Qwen3Encoder(config)
        self.layers = encoder.layers
        self._rotation = encoder._rotation
        _initialise_text_encoder(self)

    def forward(self, ids: Tensor) -> Tensor:
        """``[B, P]`` token ids to ``[B, P, hidden]``.

        Attention is causal, so padding behind a caption changes nothing of it.
        """
        x = self.embedding(ids)
        rotation = self._rotation(ids.shape[1])
        cos, sin = (part.repeat(1, 2).to(x) for part in (rotation.real, rotation.imag))
        for layer in self.layers:
            x = _run_layer(cast(text_encoder.Layer, layer), x, cos, sin)
        return x


def _run_layer(layer: text_encoder.Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A layer over ``[B, P, hidden]``, with cosines and sines ``[P, head_dim]``."""
    attention, sizes = layer.self_attn, layer.self_attn.config
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    qkv = product(attention.qkv_proj, _normed(x, layer.eps) * layer.input_layernorm)
    q, k, v = (each.transpose(1, 2) for each in qkv.unflatten(-1, (sum(heads), -1)).split(heads, dim=2))
    q, k = (
        rotate_halves(_normed(each, layer.eps) * gain, cos, sin)
        for each, gain in ((q, attention.q_norm), (k, attention.k_norm))
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=sizes.heads != sizes.kv_heads)
    x = x + product(attention.o_proj, mixed.transpose(1, 2).flatten(2))
    normed = _normed(x, layer.eps) * layer.post_attention_layernorm
    gate, up = product(layer.mlp.gate_up_proj, normed).chunk(2, dim=-1)
    return x + product(layer.mlp.down_proj, F.silu(gate) * up)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channels i and i + head_dim / 2 of ``[B, heads, P, head_dim]`` together."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder with fresh weights. Each residual branch starts at nothing, as in a network that is already trained."""
    autoencoder = Autoencoder(config)
    for name, parameter in autoencoder.named_parameters():
        if name.endswith("conv2.weight") or ".to_out.0.weight" in name:
            nn.init.zeros_(parameter)
    return autoencoder


def patchify(latents: Tensor) -> Tensor:
    """``[B, C, h, w]`` to ``[B, h/p * w/p, p * p * C]``."""
    count, channels, height, width = latents.shape
    x = latents.reshape(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse, for (rows, columns) of tokens."""
    rows, columns = size
    x = tokens.reshape(len(tokens), rows, columns, PATCH, PATCH, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows * PATCH, columns * PATCH)


def _initialise_transformer(net: ZImageTransformer) -> None:
    """Matrices of unit gain; nothing comes out at first, and the blocks' gates are a little open, whatever the time."""
    for name, parameter in net.named_parameters():
        if "pad_token" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "modulation" in name or name.startswith("final_layer.linear"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for blocks in (net.noise_refiner, net.layers):
        for block in blocks:
            bias = cast(nn.Linear, block.adaLN_modulation).bias
            with torch.no_grad():
                bias.view(4, -1)[1::2] = 0.2


def _initialise_text_encoder(encoder: TrainedTextEncoder) -> None:
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2:
            into_residual = "o_proj" in name or "down_proj" in name
            std = 0.02 if "embedding" in name else parameter.shape[1] ** -0.5
            nn.init.normal_(parameter, std=std / math.sqrt(2 * len(encoder.layers)) if into_residual else std)
