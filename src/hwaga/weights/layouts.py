"""How checkpoints spell the names of weights, as data.

A layout takes a name in a file to a name in our networks. Several names of a file can go into one weight of ours, stacked
along the first axis (q, k and v into one product).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Layout:
    """Names of one network in one kind of checkpoint.

    Attributes:
        strip: prefixes of which one at most is taken off the name first.
        beginnings: (theirs, ours) beginnings of names, of which one at most is replaced next; in reverse, they lead back.
        renames: (theirs, ours) parts of names, replaced in order wherever they occur; in reverse order, they lead back.
        stacks: our part of a name → their parts, in the order of stacking. Applied after the renames.
        unused: patterns of names, after the strip, that the network has no use for, present or not.
        pointwise: patterns of our names of linear layers' weights that the file keeps as 1×1 convolutions.
        splits: their part of a name → our parts, of which the tensor holds equally many rows each, one behind the other.
            Applied before everything else.
        transposed: names in the file, after the strip, of matrices that are ours with rows and columns exchanged.
    """

    strip: tuple[str, ...] = ()
    beginnings: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()

    def below(self, prefix: str) -> Layout:
        """The same names with a prefix before each."""
        return replace(self, strip=tuple(prefix + strip for strip in (*self.strip, "")))

    def is_pointwise(self, name: str) -> bool:
        """Whether the file keeps this weight of ours as a 1×1 convolution."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.pointwise)

    def target(self, name: str) -> tuple[str, int] | None:
        """Our name and the place in its stack for a name in a file, or None where it is unused."""
        name = self._stripped(name)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.unused):
            return None
        for theirs, ours in self.beginnings:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
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
            for theirs, ours in self.beginnings:
                if piece.startswith(ours):
                    piece = theirs + piece.removeprefix(ours)
                    break
            for whole, parts in self.splits.items():
                for part in parts:
                    piece = piece.replace(part, whole)
            names.append(piece)
        return tuple(names)

    def pieces(self, name: str) -> tuple[str, ...]:
        """The names that a tensor of a file would have if each of the parts that it holds were one; most hold one."""
        for whole, parts in self.splits.items():
            if whole in name:
                return tuple(name.replace(whole, part) for part in parts)
        return (name,)

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix in a file has its rows and columns exchanged."""
        return self._stripped(name) in self.transposed

    def _stripped(self, name: str) -> str:
        for prefix in self.strip:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name


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


def llama_cpp_qwen3(layers: int) -> Layout:
    """The same language model as llama.cpp names it in GGUF files. Its rows are in the order of the original's."""
    return Layout(
        renames=(
            ("blk.", "layers."),
            ("token_embd.weight", "embed_tokens.weight"),
            ("output_norm.weight", "norm.weight"),
            (".attn_norm.weight", ".input_layernorm"),
            (".ffn_norm.weight", ".post_attention_layernorm"),
            (".attn_q_norm.weight", ".self_attn.q_norm"),
            (".attn_k_norm.weight", ".self_attn.k_norm"),
            (".attn_output.", ".self_attn.o_proj."),
            (".ffn_down.", ".mlp.down_proj."),
        ),
        stacks={
            ".self_attn.qkv_proj.": (".attn_q.", ".attn_k.", ".attn_v."),
            ".mlp.gate_up_proj.": (".ffn_gate.", ".ffn_up."),
        },
        unused=(f"blk.{layers - 1}.*", "output_norm.weight", "output.weight", "rope_freqs.weight"),
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


_RESNET = (
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
)
"""Parts of a residual block: latent diffusion's names and diffusers'."""


def ldm_unet(attentions: Sequence[bool], resnets: int = 2) -> Layout:
    """diffusers' ``UNet2DConditionModel`` as latent diffusion, SDXL's authors, kohya and ComfyUI name it.

    There all blocks on the way down are counted through, and so are those on the way up.

    Args:
        attentions: whether the blocks of each resolution have attention, from the pixels on.
        resnets: residual blocks of a resolution on the way down. On the way up it has one more.
    """
    residual: list[tuple[str, str]] = [
        ("middle_block.0.", "mid_block.resnets.0."),
        ("middle_block.2.", "mid_block.resnets.1."),
    ]
    others = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("middle_block.1.", "mid_block.attentions.0."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ]
    count, last = 1, len(attentions) - 1
    for block, attention in enumerate(attentions):
        for each in range(resnets):
            residual.append((f"input_blocks.{count}.0.", f"down_blocks.{block}.resnets.{each}."))
            if attention:
                others.append((f"input_blocks.{count}.1.", f"down_blocks.{block}.attentions.{each}."))
            count += 1
        if block < last:
            others.append((f"input_blocks.{count}.0.op.", f"down_blocks.{block}.downsamplers.0.conv."))
            count += 1
    count = 0
    for block, attention in enumerate(reversed(attentions)):
        for each in range(resnets + 1):
            residual.append((f"output_blocks.{count}.0.", f"up_blocks.{block}.resnets.{each}."))
            if block < last and each == resnets:
                others.append((f"output_blocks.{count}.{1 + attention}.conv.", f"up_blocks.{block}.upsamplers.0.conv."))
            if attention:
                others.append((f"output_blocks.{count}.1.", f"up_blocks.{block}.attentions.{each}."))
            count += 1
    parts = [(theirs + inner, ours + own) for theirs, ours in residual for inner, own in _RESNET]
    return Layout(beginnings=(*others, *parts))


def clip_encoder(prefix: str = "text_model.") -> Layout:
    """transformers' CLIP text encoder as checkpoints of all its versions name it.

    Args:
        prefix: before our names, but for the projection's.
    """
    return Layout(
        beginnings=(
            ("text_projection.", "text_projection."),
            *((f"text_model.{part}.", f"{prefix}{part}.") for part in _CLIP_PARTS),
            *((f"{part}.", f"{prefix}{part}.") for part in _CLIP_PARTS),
        ),
        unused=("*embeddings.position_ids",),
    )


_CLIP_PARTS = ("embeddings", "encoder", "final_layer_norm")


def open_clip_encoder(prefix: str = "text_model.") -> Layout:
    """The same as OpenCLIP names it, with q, k and v in one tensor and the projection to be multiplied from the right.

    Args:
        prefix: before our names, but for the projection's.
    """
    return Layout(
        beginnings=(
            ("transformer.resblocks.", f"{prefix}encoder.layers."),
            ("token_embedding.", f"{prefix}embeddings.token_embedding."),
            ("positional_embedding", f"{prefix}embeddings.position_embedding.weight"),
            ("ln_final.", f"{prefix}final_layer_norm."),
            ("text_projection.weight", "text_projection.weight"),
            ("text_projection", "text_projection.weight"),
        ),
        renames=(
            (".attn.", ".self_attn."),
            (".ln_1.", ".layer_norm1."),
            (".ln_2.", ".layer_norm2."),
            (".mlp.c_fc.", ".mlp.fc1."),
            (".mlp.c_proj.", ".mlp.fc2."),
        ),
        splits={
            f".attn.in_proj_{kind}": tuple(f".attn.{each}_proj.{kind}" for each in "qkv") for kind in ("weight", "bias")
        },
        transposed=("text_projection",),
        unused=("logit_scale", "attn_mask", "*embeddings.position_ids"),
    )
