"""The small tokenizer: byte-level BPE with Qwen2's way of splitting text and the chat tokens, learnt from captions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hwaga.families.z_image.tokenizer import AFTER, BEFORE
from training.additions import additions
from training.captions import Captioner
from training.pack import Thing
from training.scenes import SceneMaker

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, END_ID = 0, 2

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text before it merges bytes; a tokenizer for its architecture has to split alike."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

NAME_WEIGHT = 20
"""Each name counts as so many captions, so that no object's word is spelt letter by letter."""


def train_tokenizer(folder: Path, things: tuple[Thing, ...], vocabulary: int, captions: int, seed: int) -> int:
    """Writes the checkpoint's ``tokenizer`` folder and returns the number of entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(things, captions, seed), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 1024,
        "pad_token": SPECIAL[PAD_ID],
        "eos_token": SPECIAL[END_ID],
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "extra_special_tokens": list(SPECIAL[1:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def token_ids(tokenizer: Tokenizer, captions: list[str], limit: int) -> list[list[int]]:
    """Token ids of captions inside the chat template. One of more than ``limit`` loses its middle, never the template's end."""
    found = tokenizer.encode_batch([BEFORE + caption + AFTER for caption in captions], add_special_tokens=False)
    tail = len(tokenizer.encode(AFTER, add_special_tokens=False).ids)
    return [e.ids if len(e.ids) <= limit else e.ids[: limit - tail] + e.ids[-tail:] for e in found]


def _texts(things: tuple[Thing, ...], captions: int, seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer {seed}")
    maker, captioner = SceneMaker(things), Captioner(things)
    for _ in range(captions):
        yield captioner.caption(rng, maker.scene(rng, 256, 256))
    for thing in things:
        for names in (thing.english, thing.korean):
            for word in (names.name, *names.words, *(word for word, _ in names.keywords)):
                yield from [f" {word}"] * NAME_WEIGHT
    for text in additions():
        yield from [text] * max(captions // 20000, 1)
    yield from (BEFORE, AFTER)
