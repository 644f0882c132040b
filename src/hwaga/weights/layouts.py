"""How checkpoints spell the names of weights, as data.

A layout takes a name in a file to a name in our networks. Several names of a file can go into one weight of ours, stacked
along the first axis (q, k and v into one product).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Layout:
    """Names of one network in one kind of checkpoint.

    Attributes:
        strip: prefixes of which one at most is taken off the name first.
        renames: (theirs, ours) parts of names, replaced in order wherever they occur; in reverse order, they lead back.
        stacks: our part of a name → their parts, in the order of stacking. Applied after the renames.
        unused: patterns of names, after the strip, that the network has no use for, present or not.
        pointwise: patterns of our names of linear layers' weights that the file keeps as 1×1 convolutions.
    """

    strip: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()

    def below(self, prefix: str) -> Layout:
        """The same names with a prefix before each."""
        return replace(self, strip=tuple(prefix + strip for strip in (*self.strip, "")))

    def is_pointwise(self, name: str) -> bool:
        """Whether the file keeps this weight of ours as a 1×1 convolution."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.pointwise)

    def target(self, name: str) -> tuple[str, int] | None:
        """Our name and the place in its stack for a name in a file, or None where it is unused."""
        for prefix in self.strip:
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.unused):
            return None
        for theirs, ours in self.renames:
            name = name.replace(theirs, ours)
        for ours, pieces in self.stacks.items():
            for place, piece in enumerate(pieces):
                if piece in name:
                    return name.replace(piece, ours), place
        return name, 0

    def sources(self, name: str) -> tuple[str, ...]:
        """Names, up to the stripped prefix, that a file must hold for a weight of ours; for messages."""
        pieces: Iterable[str] = (name,)
        for stack, places in self.stacks.items():
            if stack in name:
                pieces = [name.replace(stack, place) for place in places]
        names = []
        for piece in pieces:
            for theirs, ours in reversed(self.renames):
                piece = piece.replace(ours, theirs)
            names.append(piece)
        return tuple(names)


_Z_IMAGE_SHARED = (
    ("attention_norm1.weight", "attention_norm1"),
    ("attention_norm2.weight", "attention_norm2"),
    ("ffn_norm1.weight", "ffn_norm1"),
    ("ffn_norm2.weight", "ffn_norm2"),
    ("cap_embedder.0.weight", "cap_embedder.norm"),
    ("cap_embedder.1.", "cap_embedder.linear."),
)
"""What both spellings of the transformer call alike, and we do not."""


def z_image_transformer(patch: int) -> Layout:
    """diffusers' ``ZImageTransformer2DModel`` of one patch size and single frames."""
    return Layout(
        renames=(
            (".attention.to_out.0.", ".attention.out."),
            (".attention.norm_q.weight", ".attention.q_norm"),
            (".attention.norm_k.weight", ".attention.k_norm"),
            *_Z_IMAGE_SHARED,
            (f"all_x_embedder.{patch}-1.", "x_embedder."),
            (f"all_final_layer.{patch}-1.", "final_layer."),
            ("final_layer.adaLN_modulation.1.", "final_layer.modulation."),
            (".adaLN_modulation.0.", ".adaLN_modulation."),
        ),
        stacks={
            ".attention.qkv.": (".attention.to_q.", ".attention.to_k.", ".attention.to_v."),
            ".feed_forward.w13.": (".feed_forward.w1.", ".feed_forward.w3."),
        },
    )


Z_IMAGE_ORIGINAL = Layout(
    renames=(
        (".attention.q_norm.weight", ".attention.q_norm"),
        (".attention.k_norm.weight", ".attention.k_norm"),
        *_Z_IMAGE_SHARED,
        ("final_layer.adaLN_modulation.1.", "final_layer.modulation."),
        (".adaLN_modulation.0.", ".adaLN_modulation."),
    ),
    stacks={".feed_forward.w13.": (".feed_forward.w1.", ".feed_forward.w3.")},
    unused=("norm_final.weight",),
)
"""The same transformer as its authors and ComfyUI name it, with q, k and v already one product. Its ``norm_final`` is applied
nowhere: the final layer has a norm without weights."""


def qwen3_encoder(layers: int) -> Layout:
    """transformers' ``Qwen3Model`` or ``Qwen3ForCausalLM`` of so many layers, of which the last is not needed."""
    return Layout(
        strip=("model.",),
        renames=(
            ("input_layernorm.weight", "input_layernorm"),
            ("post_attention_layernorm.weight", "post_attention_layernorm"),
            (".q_norm.weight", ".q_norm"),
            (".k_norm.weight", ".k_norm"),
        ),
        stacks={
            ".self_attn.qkv_proj.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
            ".mlp.gate_up_proj.": (".mlp.gate_proj.", ".mlp.up_proj."),
        },
        unused=(f"layers.{layers - 1}.*", "norm.weight", "lm_head.weight", "*rotary_emb.inv_freq"),
    )


AUTOENCODER = Layout()
"""diffusers' ``AutoencoderKL``, whose names are ours."""


def ldm_autoencoder(blocks: int) -> Layout:
    """The same autoencoder of so many resolutions as latent diffusion, Flux and ComfyUI name it.

    Its up blocks are counted from the pixels, ours from the latents; its attention is made of 1×1 convolutions.
    """
    attention = "mid_block.attentions.0."
    return Layout(
        renames=(
            (".block.", ".resnets."),
            ("encoder.down.", "encoder.down_blocks."),
            (".downsample.", ".downsamplers.0."),
            *((f"decoder.up.{i}.", f"decoder.up_blocks.{blocks - 1 - i}.") for i in range(blocks)),
            (".upsample.", ".upsamplers.0."),
            (".mid.block_1.", ".mid_block.resnets.0."),
            (".mid.block_2.", ".mid_block.resnets.1."),
            (".mid.attn_1.norm.", f".{attention}group_norm."),
            (".mid.attn_1.q.", f".{attention}to_q."),
            (".mid.attn_1.k.", f".{attention}to_k."),
            (".mid.attn_1.v.", f".{attention}to_v."),
            (".mid.attn_1.proj_out.", f".{attention}to_out.0."),
            (".nin_shortcut.", ".conv_shortcut."),
            (".norm_out.", ".conv_norm_out."),
        ),
        pointwise=(f"*.{attention}to_*.weight",),
    )
