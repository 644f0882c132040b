"""Model cards: the built-in ones, how one is found, and every way in which one can be wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config

from hwaga import (
    CardError,
    CheckpointError,
    Engine,
    ImageRequest,
    ModelCard,
    RequestError,
    SizeError,
    StyleError,
    UnknownModelError,
)
from hwaga.card_toml import card_toml
from hwaga.cards import ASSETS, Limits, Part
from hwaga.families.z_image.autoencoder import Autoencoder, AutoencoderConfig
from hwaga.families.z_image.family import ZImageModel
from hwaga.families.z_image.text_encoder import Qwen3Encoder, TextEncoderConfig
from hwaga.families.z_image.transformer import ZImageTransformer
from hwaga.families.z_image.transformer_config import TransformerConfig
from hwaga.hub_sources import Download, LoraSource
from hwaga.model_lookup import built_in_cards, find_card

MODELS = Path("/models")
MINI = built_in_cards(MODELS)["mini"]
TURBO = built_in_cards(MODELS)["z-image-turbo"]

Values = dict[str, Any]

WHOLE: Values = {
    "name": "test",
    "family": "z_image",
    "title": "A card to test with",
    "license": "MIT",
    "source": "nowhere",
    "steps": 4,
    "aspects": {"1:1": [64, 64], "2:1": [96, 48]},
    "limits": {
        "multiple": 16,
        "min_side": 48,
        "max_side": 128,
        "max_pixels": 8192,
        "max_steps": 20,
        "tokens": 64,
        "max_tokens": 96,
    },
    "parts": {"vae": {"parameters": 3}},
    "styles": {"plain": {"title": {"en": "Plain", "ko": "기본"}}, "flat": {"title": {"en": "Flat"}, "lora": "flat.st"}},
    "preview": [[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]],
}


def toml(values: Values) -> str:
    """TOML for nested tables of JSON values."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item, ensure_ascii=False)

    return "".join(f"{json.dumps(key)} = {value(item)}\n" for key, item in values.items())


def card_file(folder: Path, values: Values, name: str = "card.toml") -> Path:
    path = folder / name
    path.write_text(toml(values), encoding="utf-8")
    return path


# The built-in cards


def test_built_in_cards() -> None:
    cards = built_in_cards(MODELS)
    assert list(cards) == ["mini", "sdxl", "z-image-turbo", "z-image-turbo-bf16", "z-image-turbo-comfyui"]
    assert all(name == card.name for name, card in cards.items())
    sdxl = cards.pop("sdxl")
    assert (sdxl.family, sdxl.steps, sdxl.default_size) == ("sdxl", 40, (1024, 1024))
    assert "openrail++" in sdxl.license
    assert all(card.family == "z_image" and card.steps == 8 for card in cards.values())


def test_built_in_cards_pin_what_they_fetch() -> None:
    """All but one repository, no commit of which is known."""
    unpinned = set()
    for card in built_in_cards(MODELS).values():
        own = (card.download, *card.download.also) if card.download else ()
        sources = [style.source for style in card.styles.values() if style.source is not None]
        assert all(source.license == "Apache-2.0" for source in sources)
        unpinned |= {each.repo for each in (*own, *sources) if not re.fullmatch(r"[0-9a-f]{40}", each.revision)}
    assert unpinned == {"dimitribarbot/Z-Image-Turbo-BF16"}
    turbo = [card for name, card in built_in_cards(MODELS).items() if name.startswith("z-image-turbo")]
    assert all(
        card.styles == TURBO.styles and list(card.styles) == ["pixel_art", "childrens_drawing"] for card in turbo
    )


def test_z_image_turbo() -> None:
    assert dict(TURBO.aspects) == {
        "1:1": (1024, 1024), "3:4": (896, 1152), "4:3": (1152, 896), "16:9": (1344, 768), "9:16": (768, 1344),
    }  # fmt: skip
    assert TURBO.default_size == (1024, 1024)
    assert (TURBO.limits.multiple, TURBO.limits.tokens, TURBO.limits.max_tokens) == (16, 512, 960)
    assert not TURBO.limits.listed_sizes_only
    assert TURBO.folder == MODELS / "z-image-turbo"
    assert not TURBO.present


def test_mini() -> None:
    assert MINI.folder == (ASSETS / "mini").resolve()
    assert MINI.present
    assert MINI.default_size == (256, 256)
    assert list(MINI.aspects) == [*TURBO.aspects, *(f"{name} large" for name in TURBO.aspects)]
    assert MINI.limits.listed_sizes_only
    for style in MINI.styles.values():
        assert set(style.title) == {"en", "ko"}
        assert style.lora is None or (MINI.folder / style.lora).is_file()


def test_parameters_of_the_mini() -> None:
    with Engine.open("mini", device="cpu") as engine:
        model = cast(ZImageModel, engine._opened().model)
        networks = {"text_encoder": model.text_encoder, "transformer": model.transformer, "vae": model.autoencoder}
        counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert {name: part.parameters for name, part in MINI.parts.items()} == counts
    assert all((MINI.folder / name / "config.json").is_file() for name in MINI.parts)


def test_parameters_of_z_image_turbo() -> None:
    text_config = Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
    )  # fmt: skip
    with torch.device("meta"):
        flux = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        networks = {
            "text_encoder": Qwen3Encoder(TextEncoderConfig.from_json(text_config.to_dict())),
            "transformer": ZImageTransformer(
                TransformerConfig(
                    dim=3840, layers=30, refiner_layers=2, heads=30, norm_eps=1e-5, qk_norm=True, in_channels=16,
                    patch=2, caption_dim=2560, rope_theta=256.0, time_scale=1000.0, axes_dims=(32, 48, 48),
                    axes_lens=(1024, 512, 512),
                )
            ),
            "vae": Autoencoder(AutoencoderConfig.from_json(dict(flux.config))),
        }  # fmt: skip
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert {name: part.parameters for name, part in TURBO.parts.items()} == counts


# Reading


def test_a_card_is_read_whole(tmp_path: Path) -> None:
    card = ModelCard.read(card_file(tmp_path, WHOLE))
    assert (card.name, card.family, card.title, card.steps) == ("test", "z_image", "A card to test with", 4)
    assert (card.license, card.source, card.folder) == ("MIT", "nowhere", tmp_path.resolve())
    assert dict(card.aspects) == {"1:1": (64, 64), "2:1": (96, 48)}
    assert card.default_size == (64, 64)
    assert card.limits == Limits(
        multiple=16, min_side=48, max_side=128, max_pixels=8192, listed_sizes_only=False, max_steps=20, tokens=64,
        max_tokens=96,
    )  # fmt: skip
    assert dict(card.parts) == {"vae": Part(parameters=3)}
    assert dict(card.styles["plain"].title) == {"en": "Plain", "ko": "기본"}
    assert (card.styles["plain"].lora, card.styles["flat"].lora) == (None, "flat.st")
    assert card.preview == ((0.1, 0.2, 0.3), (0.0, 0.0, 0.5))


def test_what_may_be_left_out(tmp_path: Path) -> None:
    card = ModelCard.read(card_file(tmp_path, {k: v for k, v in WHOLE.items() if k not in ("styles", "preview")}))
    assert dict(card.styles) == {}
    assert card.preview is None


def test_folder_is_relative_to_the_card(tmp_path: Path) -> None:
    assert ModelCard.read(card_file(tmp_path, {**WHOLE, "folder": "weights"})).folder == tmp_path.resolve() / "weights"
    assert ModelCard.read(card_file(tmp_path, {**WHOLE, "folder": "/weights"})).folder == Path("/weights")


def test_cards_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        MINI.steps = 3  # type: ignore[misc]
    for table in (MINI.aspects, MINI.parts, MINI.styles, MINI.styles["anime"].title):
        with pytest.raises(TypeError):
            table["new"] = None  # type: ignore[index]


# What is wrong with a card. Each says which key, and the file.

REQUIRED = ["name", "family", "title", "license", "source", "steps", "aspects", "limits", "parts"]
REQUIRED_LIMITS = ["multiple", "min_side", "max_side", "max_pixels", "max_steps", "tokens", "max_tokens"]


def refusal(path: Path) -> str:
    with pytest.raises(CardError) as caught:
        ModelCard.read(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def refusal_of(folder: Path, *keys: str | int, value: Any = None) -> str:
    """The message for the whole card with one value replaced, or removed where no value is given."""
    values = copy.deepcopy(WHOLE)
    table: Any = values
    for key in keys[:-1]:
        table = table[key]
    if value is None:
        del table[keys[-1]]
    else:
        table[keys[-1]] = value
    return refusal(card_file(folder, values))


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key(tmp_path: Path, key: str) -> None:
    assert f"{key} is missing" in refusal_of(tmp_path, key)


@pytest.mark.parametrize("key", REQUIRED_LIMITS)
def test_missing_limit(tmp_path: Path, key: str) -> None:
    assert f"limits.{key} is missing" in refusal_of(tmp_path, "limits", key)


def test_missing_key_of_a_part_or_style(tmp_path: Path) -> None:
    assert "parts.vae.parameters is missing" in refusal_of(tmp_path, "parts", "vae", "parameters")
    assert "styles.flat.title is missing" in refusal_of(tmp_path, "styles", "flat", "title")


@pytest.mark.parametrize(
    ("keys", "value", "kind"),
    [
        *[((key,), 3, "str") for key in ("name", "family", "title", "license", "source", "folder")],
        (("steps",), "8", "int"),
        (("steps",), 8.0, "int"),
        (("steps",), True, "int"),
        *[((key,), "x", "dict") for key in ("aspects", "limits", "parts", "styles")],
        *[(("limits", key), 1.5, "int") for key in REQUIRED_LIMITS],
        (("limits", "max_pixels"), True, "int"),
        (("limits", "listed_sizes_only"), 1, "bool"),
        (("aspects", "1:1"), "64x64", "list"),
        (("parts", "vae"), "vae", "dict"),
        (("parts", "vae", "parameters"), "3", "int"),
        (("styles", "plain"), "plain", "dict"),
        (("styles", "plain", "title"), "Plain", "dict"),
        (("styles", "plain", "title", "en"), 3, "str"),
        (("styles", "plain", "lora"), False, "str"),
        (("preview",), "x", "list"),
    ],
    ids=str,
)
def test_wrong_type(tmp_path: Path, keys: tuple[str, ...], value: Any, kind: str) -> None:
    assert f"{'.'.join(keys)} must be of type {kind}, not {value!r}" in refusal_of(tmp_path, *keys, value=value)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "keys", [("steps",), ("parts", "vae", "parameters"), *[("limits", key) for key in REQUIRED_LIMITS]]
)
def test_counts_start_at_one(tmp_path: Path, keys: tuple[str, ...], value: int) -> None:
    assert f"{'.'.join(keys)} must be at least 1, not {value}" in refusal_of(tmp_path, *keys, value=value)


@pytest.mark.parametrize(
    "keys", [("step",), ("limits", "min_pixels"), ("parts", "vae", "sha256"), ("styles", "flat", "rank")]
)
def test_unknown_key(tmp_path: Path, keys: tuple[str, ...]) -> None:
    assert f"{'.'.join(keys)} is not a key of a model card" in refusal_of(tmp_path, *keys, value=1)


@pytest.mark.parametrize("size", [[64], [64, 64, 64], [], [64, "64"], [64.0, 64], [64, 0], [-16, 64], [True, 64]])
def test_wrong_aspect(tmp_path: Path, size: list[Any]) -> None:
    assert "aspects.2:1 must be [width, height]" in refusal_of(tmp_path, "aspects", "2:1", value=size)


def test_no_aspect(tmp_path: Path) -> None:
    assert "aspects is empty" in refusal_of(tmp_path, "aspects", value={})


@pytest.mark.parametrize("size", [[65, 64], [32, 64], [144, 48], [128, 80]])
def test_aspect_beyond_the_cards_own_limits(tmp_path: Path, size: list[int]) -> None:
    message = refusal_of(tmp_path, "aspects", "2:1", value=size)
    assert "aspects.2:1 breaks the card's own limits" in message
    assert f"{size[0]}x{size[1]}" in message


def test_limits_that_contradict(tmp_path: Path) -> None:
    assert "limits.max_tokens is below limits.tokens" in refusal_of(tmp_path, "limits", "max_tokens", value=63)
    assert "limits" in refusal_of(tmp_path, "limits", "max_side", value=47)


@pytest.mark.parametrize("rows", [[0.1, 0.2, 0.3], [[0.1, 0.2]], [[0.1, 0.2, 0.3, 0.4]], [["a", "b", "c"]], [3], [[]]])
def test_wrong_preview(tmp_path: Path, rows: list[Any]) -> None:
    assert "preview must be rows of three numbers" in refusal_of(tmp_path, "preview", value=rows)


def test_whole_numbers_in_a_preview(tmp_path: Path) -> None:
    card = ModelCard.read(card_file(tmp_path, {**WHOLE, "preview": [[1, 0, 0.5], [0, 0, 0]]}))
    assert card.preview == ((1.0, 0.0, 0.5), (0.0, 0.0, 0.0))


PIN = 32 * "0a"
DOWNLOAD: Values = {"repo": "owner/model-1.0", "include": ["vae/*"], "parts": {"vae": ["vae/*"]}}


def with_download(**changes: Any) -> Values:
    return {**WHOLE, "download": {key: value for key, value in {**DOWNLOAD, **changes}.items() if value is not None}}


def test_where_a_model_is_fetched_from(tmp_path: Path) -> None:
    card = ModelCard.read(card_file(tmp_path, with_download(sha256={"vae/a.safetensors": PIN})))
    assert card.download == Download(
        "owner/model-1.0", "main", ("vae/*",), {"vae": ("vae/*",)}, {"vae/a.safetensors": PIN}
    )
    assert ModelCard.read(card_file(tmp_path, WHOLE)).download is None
    assert MINI.download is None
    assert TURBO.download is not None
    assert TURBO.download.repo == "Tongyi-MAI/Z-Image-Turbo"
    assert set(TURBO.download.parts) == set(TURBO.parts)
    with pytest.raises(TypeError):
        TURBO.download.parts["new"] = ()  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"repo": None}, "download.repo is missing"),
        ({"include": None}, "download.include is missing"),
        ({"mirror": "x"}, "download.mirror is not a key of a model card"),
        ({"revision": 3}, "download.revision must be of type str"),
        ({"revision": ""}, "download.revision is empty"),
        *[
            ({"repo": repo}, "download.repo must be owner/name")
            for repo in ("model", "a/b/c", "../b", "a/..", "a /b", "")
        ],
        *[({"include": value}, "download.include must be a list of patterns") for value in ([], [3], [""])],
        ({"include": "vae/*"}, "download.include must be of type list"),
        ({"parts": {"vae": []}}, "download.parts.vae must be a list of patterns"),
        ({"parts": {"unet": ["unet/*"]}}, "download.parts.unet is none of the model's parts. They are vae."),
        *[
            ({"sha256": {"a": pin}}, "download.sha256.a must be 64 hexadecimal")
            for pin in ("", "0a", 64 * "A", 65 * "0")
        ],
        ({"sha256": {"a": 3}}, "download.sha256.a must be of type str"),
    ],
    ids=str,
)
def test_wrong_download(tmp_path: Path, changes: Values, says: str) -> None:
    assert says in refusal(card_file(tmp_path, with_download(**changes)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere.toml")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b'name = "\xff"')
    assert "cannot be read" in refusal(tmp_path / "binary.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    assert "cannot be read" in refusal(tmp_path / "broken.toml")
    (tmp_path / "empty.toml").write_text("")
    assert "is missing" in refusal(tmp_path / "empty.toml")


def test_unknown_family(tmp_path: Path) -> None:
    shutil.copytree(MINI.folder, tmp_path / "model")
    values = tomllib.loads((tmp_path / "model" / "card.toml").read_text(encoding="utf-8"))
    card_file(tmp_path / "model", {**values, "family": "z_imag"})
    with pytest.raises(CardError, match=r"no model family 'z_imag'.*z_image"):
        Engine.open(tmp_path / "model", device="cpu")


# Finding


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint, without a card."""
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    return folder


@pytest.mark.parametrize("name", ["mini", "z-image-turbo"])
def test_by_name(name: str) -> None:
    assert find_card(name, MODELS) == built_in_cards(MODELS)[name]
    assert find_card(Path(name), MODELS) == built_in_cards(MODELS)[name]


def test_by_folder_with_a_card(tmp_path: Path) -> None:
    card_file(tmp_path, WHOLE)
    card = find_card(tmp_path, MODELS)
    assert (card.name, card.folder) == ("test", tmp_path.resolve())
    assert find_card(str(tmp_path), MODELS) == card
    assert find_card(tmp_path / "card.toml", MODELS) == card
    card_file(tmp_path, {**WHOLE, "name": "other"}, "other.toml")
    assert find_card(tmp_path / "other.toml", MODELS).name == "other"
    (tmp_path / "card.toml").write_text("")
    with pytest.raises(CardError, match=r"card\.toml: "):
        find_card(tmp_path, MODELS)


@pytest.mark.parametrize("pipeline", ["ZImagePipeline", "ZImageImg2ImgPipeline"])
def test_by_folder_without_a_card(checkpoint: Path, pipeline: str) -> None:
    (checkpoint / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    card = find_card(checkpoint, MODELS)
    assert (card.name, card.title, card.family) == ("my model", "my model", "z_image")
    assert card.folder == checkpoint.resolve()
    assert card.present
    assert (card.aspects, card.limits, card.steps) == (TURBO.aspects, TURBO.limits, TURBO.steps)
    assert (card.license, card.source, dict(card.styles), card.preview) == ("", "", {}, None)


def test_styles_beside_a_model(checkpoint: Path) -> None:
    """Their owner adds them to a model that has no card of its own, and the style that is a checkpoint is found there."""
    own = checkpoint / "styles.toml"
    own.write_text('[styles.film]\ntitle = { en = "Film" }\ncheckpoint = "styles/film.safetensors"\n')
    card = find_card(checkpoint, MODELS)
    assert list(card.styles) == ["film"]
    assert card.address == str(checkpoint.resolve())
    film = find_card(f"{card.address}:film", MODELS)
    assert (film.name, film.files) == ("my model:film", (checkpoint.resolve() / "styles/film.safetensors",))
    with pytest.raises(CheckpointError, match=r"Mend `checkpoint` of \[styles\.film\] in styles\.toml of my model"):
        film.check_present()
    for text, says in {
        "[styles": "cannot be read",
        "[film]\n": "film is not a key of a model card",
        "[styles.film]\n": r"styles\.film\.title is missing",
        '[styles.film]\ntitle = {}\nlora = "../film.safetensors"\n': "must lie below the card's folder",
        "".join(
            f'[styles.{name}]\ntitle = {{}}\nlora = "{name}/one.safetensors"\n' for name in "ab"
        ): "are called alike",
    }.items():
        own.write_text(text)
        with pytest.raises(CardError, match=rf"styles\.toml.* {says}"):
            find_card(checkpoint, MODELS)


def test_styles_beside_a_card(checkpoint: Path) -> None:
    """As in a folder that `hwaga convert` writes. They count before the card's."""
    text = (ASSETS / "mini" / "card.toml").read_text(encoding="utf-8")
    (checkpoint / "card.toml").write_text(text, encoding="utf-8")
    own = checkpoint / "styles.toml"
    own.write_text(
        '[styles.film]\ntitle = { en = "Film" }\ncheckpoint = "film.safetensors"\n'
        '[styles.anime]\ntitle = { en = "Mine" }\nlora = "loras/mine.safetensors"\n'
    )
    for model in (checkpoint, checkpoint / "card.toml"):
        card = find_card(model, MODELS)
        assert list(card.styles) == ["realistic", "semi_realistic", "anime", "film"]
        assert card.styles["anime"].lora == "loras/mine.safetensors"
        with pytest.raises(CheckpointError, match=r"\[styles\.film\] in the card or styles\.toml of mini"):
            find_card(f"{model}:film", MODELS).check_present()
    own.write_text("[styles")
    for model in (checkpoint, checkpoint / "card.toml"):
        with pytest.raises(CardError, match=r"styles\.toml cannot be read"):
            find_card(model, MODELS)


def test_by_folder_below_home_and_below_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert find_card("~/my model", MODELS).folder == checkpoint.resolve()
    monkeypatch.chdir(checkpoint)
    assert find_card(".", MODELS).name == "my model"


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name} holds no model_index\.json"):
        find_card(tmp_path, MODELS)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '"ZImagePipeline"', "\ufeff{}", '{"_class_name": ["ZImagePipeline"]}',
             '{"_class_name": {}}', '{"_class_name": null}', "[" * 100_000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_damaged_index(checkpoint: Path, text: str) -> None:
    (checkpoint / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError, match="my model"):
        find_card(checkpoint, MODELS)


def test_another_pipeline(checkpoint: Path) -> None:
    (checkpoint / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match=r"my model holds a FluxPipeline\. Hwaga opens ZImagePipeline"):
        find_card(checkpoint, MODELS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("minni", "mini"), ("Mini", "mini"), ("z-image-trubo", "z-image-turbo"), ("zimage", "z-image-turbo")],
)
def test_near_names_are_offered(name: str, meant: str) -> None:
    with pytest.raises(
        UnknownModelError, match=rf"no model '{name}'\. Did you mean .*{meant}.*\? Known models: mini, sdxl, z-image"
    ):
        find_card(name, MODELS)


@pytest.mark.parametrize(
    "name", ["???", "/no/such/folder", "a\0b", "x" * 300, "~nobody-of-that-name/model", "mini/nowhere"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownModelError, match="There is no model"):
        find_card(name, MODELS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vae/any.safetensors", b""),
        ("diffusion_models/without_a_suffix", b"\x02\0\0\0\0\0\0\0{}"),
        ("text_encoders/model.gguf", b"GGUF\x03\0\0\0"),
        ("unet/model.gguf", b"GGUF\x03\0\0\0"),
        ("clip/any.safetensors", b""),
        ("checkpoints/any.safetensors", b""),
        ("split_files/diffusion_models/any.safetensors", b""),
        ("split_files/unet/any.safetensors", b""),
        ("model.ckpt", b"PK\x03\x04"),
        ("model.pt", b"\x80\x02}q\x00."),
    ],
)
def test_files_of_weights_make_a_folder_a_model(tmp_path: Path, name: str, content: bytes) -> None:
    """They are told by how they begin; what they hold is for the family to find out."""
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    (tmp_path / "notes.json").write_text('{"type":{}}')
    card = find_card(tmp_path, MODELS)
    assert (card.files, card.family, card.folder, card.present) == ((file,), "z_image", tmp_path, True)
    assert find_card(file, MODELS).files == (file,)
    (tmp_path / "transformer").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        find_card(tmp_path, MODELS)


def test_two_names_of_one_folder_are_looked_at_once(tmp_path: Path) -> None:
    file = tmp_path / "diffusion_models" / "any.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"")
    (tmp_path / "unet").symlink_to("diffusion_models")
    assert find_card(tmp_path, MODELS).files == (file,)


@pytest.mark.parametrize("value", [[3], [""], [["vae/ae.safetensors"]]])
def test_files_are_paths(tmp_path: Path, value: list[object]) -> None:
    assert "files must be a list of paths" in refusal_of(tmp_path, "files", value=value)


def test_a_file_that_is_no_card(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(UnknownModelError, match=r"notes\.txt is a file\. Give the checkpoint's folder"):
        find_card(path, MODELS)


# Sizes

SIDE = st.one_of(
    st.integers(1, 3000),
    st.integers(1, 200).map(lambda n: 16 * n),
    st.sampled_from([-16, 0, 255, 256, 2048, 2049, 2064, 10**9, 10**320]),
)


@given(SIDE, SIDE)
def test_any_size_of_z_image_turbo(width: int, height: int) -> None:
    limits = TURBO.limits
    good = (
        width % 16 == 0
        and height % 16 == 0
        and limits.min_side <= min(width, height)
        and max(width, height) <= limits.max_side
        and width * height <= limits.max_pixels
    )
    if good:
        TURBO.check_size(width, height)
        return
    with pytest.raises(SizeError) as caught:
        TURBO.check_size(width, height)
    message = str(caught.value)
    assert f"{width}x{height}" in message
    assert "Try " in message or any(f"({w}x{h})" in message for w, h in TURBO.aspects.values()), "no remedy"


@given(st.integers(256, 2048), st.integers(256, 2048))
def test_what_is_offered_is_good(width: int, height: int) -> None:
    if width % 16 == 0 and height % 16 == 0:
        TURBO.check_size(width, height)
        return
    with pytest.raises(SizeError, match="multiples of 16") as caught:
        TURBO.check_size(width, height)
    down, up = str(caught.value).rpartition("Try ")[2].rstrip(".").split(" or ")
    sizes = [tuple(map(int, size.split("x"))) for size in (down, up)]
    for offered in sizes:
        assert all(abs(a - b) < 16 for a, b in zip(offered, (width, height), strict=True))
        TURBO.check_size(*offered)


@given(SIDE, SIDE)
def test_any_size_of_the_mini(width: int, height: int) -> None:
    if (width, height) in MINI.aspects.values():
        MINI.check_size(width, height)
        return
    with pytest.raises(SizeError) as caught:
        MINI.check_size(width, height)
    message = str(caught.value)
    assert f"{width}x{height}" in message
    assert all(f"{w}x{h} ({name})" in message for name, (w, h) in MINI.aspects.items())


@pytest.mark.parametrize("card", [MINI, TURBO], ids=lambda card: card.name)
def test_the_cards_own_sizes(card: ModelCard) -> None:
    for name, size in card.aspects.items():
        assert card.size_of(name) == size
        card.check_size(*size)
        assert card.nearest_aspect(*size) == f"{name} ({size[0]}x{size[1]})"


def test_of_equal_shapes_the_nearest_in_pixels() -> None:
    card = replace(MINI, aspects={"1:1": (256, 256), "4:3": (288, 224), "1:1 large": (384, 384)})
    assert card.nearest_aspect(200, 200) == "1:1 (256x256)"
    assert card.nearest_aspect(1024, 1024) == "1:1 large (384x384)"
    assert card.nearest_aspect(400, 300) == "4:3 (288x224)"


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((240, 512), "too small for z-image-turbo: sides start at 256 pixels"),
        ((2064, 512), "too large for z-image-turbo: sides end at 2048 pixels and pictures at 4,194,304 pixels"),
        ((1000, 1000), "multiples of 16, and 1000x1000 is not. Try 992x992 or 1008x1008"),
        ((1920, 1080), "Try 1920x1072 or 1920x1088"),
    ],
)
def test_size_messages(size: tuple[int, int], says: str) -> None:
    with pytest.raises(SizeError) as caught:
        TURBO.check_size(*size)
    assert says in str(caught.value)


def test_unknown_aspect() -> None:
    for card, aspect in ((MINI, "5:4"), (TURBO, "1:1 "), (TURBO, "")):
        with pytest.raises(SizeError) as caught:
            card.size_of(aspect)
        assert f"has no aspect {aspect!r}. It has {', '.join(card.aspects)}." in str(caught.value)


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text("name = " + 3000 * "[")
    with pytest.raises(CardError, match="cannot be read"):
        ModelCard.read(tmp_path / "card.toml")


SOURCE = {"repo": "a/b", "file": "x/flat.safetensors", "license": "MIT"}


def with_source(**changes: Any) -> Values:
    source = {key: value for key, value in (SOURCE | changes).items() if value is not None}
    return {**WHOLE, "styles": {"flat": {"title": {"en": "Flat"}, "source": source}}}


def test_where_a_style_is_from(tmp_path: Path) -> None:
    style = ModelCard.read(card_file(tmp_path, with_source())).styles["flat"]
    assert style.source == LoraSource("a/b", "x/flat.safetensors", "main", "MIT", None)
    assert style.lora == "loras/flat.safetensors"
    pinned = ModelCard.read(card_file(tmp_path, with_source(sha256=PIN, revision="v1"))).styles["flat"].source
    assert pinned == LoraSource("a/b", "x/flat.safetensors", "v1", "MIT", PIN)


def test_two_styles_of_one_place(tmp_path: Path) -> None:
    """The same file in two styles is fetched once; two files in one place are refused."""
    values = with_source()
    again = {"title": {"en": "Again"}, "source": dict(values["styles"]["flat"]["source"])}
    values["styles"]["again"] = again
    assert len(ModelCard.read(card_file(tmp_path, values)).styles) == 2
    again["source"]["repo"] = "c/d"
    assert "styles.again.source is another than that of a style before it" in refusal(card_file(tmp_path, values))
    again["lora"] = "verified.json"
    assert "styles.again.lora must be a .safetensors file where it has a source" in refusal(card_file(tmp_path, values))
    again["lora"] = "loras/again.safetensors"
    assert ModelCard.read(card_file(tmp_path, values)).styles["again"].lora == "loras/again.safetensors"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"repo": "b"}, r"styles\.flat\.source\.repo must be owner/name"),
        ({"repo": "../b/c"}, "must be owner/name"),
        ({"file": "flat.ckpt"}, r"must be a \.safetensors file"),
        ({"license": None}, r"source\.license is missing"),
        ({"license": ""}, "Say what the author allows"),
        ({"revision": ""}, "revision is empty"),
        ({"sha256": "0"}, "64 hexadecimal digits"),
        ({"more": 1}, r"styles\.flat\.source\.more is not a key"),
    ],
)
def test_a_style_from_nowhere(tmp_path: Path, changes: Values, says: str) -> None:
    with pytest.raises(CardError, match=says):
        ModelCard.read(card_file(tmp_path, with_source(**changes)))


def test_other_repositories(tmp_path: Path) -> None:
    card = ModelCard.read(card_file(tmp_path, with_download(also=[{"repo": "c/d", "include": ["tokenizer/*"]}])))
    assert card.download is not None
    assert card.download.also == (Download("c/d", "main", ("tokenizer/*",), {}, {}),)
    whole = {"repo": "c/d", "include": ["*"]}
    also = ModelCard.read(card_file(tmp_path, with_download(also=[whole | {"into": "vae", "license": "MIT"}]))).download
    assert also is not None
    assert also.also == (Download("c/d", "main", ("*",), {}, {}, into="vae", license="MIT"),)
    places = [{"into": into} for into in ("../vae", "/vae", "vae/", "a//b", ".", "..", "a\\b")]
    for wrong in (
        "x",
        {"repo": "c/d"},
        whole | {"repo": "c"},
        whole | {"parts": {}},
        *(whole | each for each in places),
    ):
        with pytest.raises(CardError, match=r"download\.also"):
            ModelCard.read(card_file(tmp_path, with_download(also=[wrong])))


CHECKPOINTS = {"anime": {"title": {"en": "Anime", "ko": "애니"}, "checkpoint": "anime.safetensors", "steps": 28},
               "film": {"title": {"en": "Film"}, "checkpoint": "film"},
               "line": {"title": {"en": "Line"}, "lora": "loras/line.safetensors"}}  # fmt: skip


def test_styles_that_are_checkpoints(tmp_path: Path) -> None:
    """A card per checkpoint comes of one card: each is a model to be opened, named after the style."""
    path = card_file(tmp_path, {**WHOLE, "styles": CHECKPOINTS})
    card = ModelCard.read(path)
    (tmp_path / "film").mkdir()
    anime = find_card(f"{path}:anime", tmp_path)
    assert (anime.name, anime.steps, anime.download) == (f"{card.name}:anime", 28, None)
    assert anime.files == (tmp_path / "anime.safetensors",)
    assert not anime.present
    assert anime.styles["anime"].checkpoint is None, "there it is the model's own look"
    with pytest.raises(
        CheckpointError, match=r"not there\. Mend `checkpoint` of \[styles\.anime\] in the card of test"
    ):
        anime.check_present()
    film = find_card(f"{path}:film", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no model\. Mend `checkpoint` of \[styles\.film\]"):
        film.check_present()
    assert (film.folder, film.files, film.steps) == (tmp_path / "film", (), card.steps)
    for wrong in ("line", "chalk"):
        with pytest.raises(StyleError, match=rf"no style '{wrong}' that is a checkpoint.* are: anime, film"):
            find_card(f"{path}:{wrong}", tmp_path)
    with pytest.raises(UnknownModelError, match="no model 'nothing:anime'"):
        find_card("nothing:anime", tmp_path)
    (tmp_path / "again").mkdir()
    written = dataclasses.replace(card, folder=tmp_path / "again", download=None)
    (tmp_path / "again" / "card.toml").write_text(card_toml(written), encoding="utf-8")
    assert ModelCard.read(tmp_path / "again" / "card.toml") == written


@pytest.mark.parametrize(
    ("style", "says"),
    [
        ({"checkpoint": "a", "lora": "b"}, "checkpoint and lora exclude each other"),
        ({"checkpoint": "../a"}, "checkpoint must lie below the card's folder"),
        ({"checkpoint": 3}, "checkpoint must be of type str"),
        ({"checkpoint": "a", "source": SOURCE}, r"checkpoint must be a \.safetensors file where it has a source"),
    ],
)
def test_a_checkpoint_that_cannot_be(style: Values, says: str, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=says):
        ModelCard.read(card_file(tmp_path, {**WHOLE, "styles": {"a": {"title": {"en": "A"}, **style}}}))


def test_a_checkpoint_from_the_hub(tmp_path: Path) -> None:
    source = {"checkpoint": "checkpoints/flat.safetensors", "title": {"en": "Flat"}, "source": SOURCE}
    path = card_file(tmp_path, {**WHOLE, "styles": {"flat": source}})
    style = ModelCard.read(path).styles["flat"]
    assert (style.lora, style.file) == (None, "checkpoints/flat.safetensors")
    with pytest.raises(CheckpointError, match=r"not there\. Mend `checkpoint`"):
        find_card(f"{path}:flat", tmp_path).check_present()
    card = with_download()
    path = card_file(tmp_path, {**card, "styles": {"flat": source}})
    with pytest.raises(CheckpointError, match=r"`hwaga download (.*)` fetches it, or mend `checkpoint`") as refused:
        find_card(f"{path}:flat", tmp_path).check_present()
    assert f"hwaga download {path.resolve()}`" in str(refused.value)


def test_cards_are_written_as_they_are_read(tmp_path: Path) -> None:
    """All but where their own files would be fetched from."""
    for card in built_in_cards(tmp_path).values():
        folder = tmp_path / card.name
        folder.mkdir()
        moved = dataclasses.replace(
            card, folder=folder, files=tuple(folder / file.relative_to(card.folder) for file in card.files)
        )
        (folder / "card.toml").write_text(card_toml(moved), encoding="utf-8")
        assert ModelCard.read(folder / "card.toml") == dataclasses.replace(moved, download=None)


def test_guidance_and_samplers(tmp_path: Path) -> None:
    """A card says whether its model is drawn with guidance, and a request is held to it."""
    text = (ASSETS / "cards" / "z-image-turbo.toml").read_text()
    led = text.replace("steps = 8\n", 'steps = 8\nguidance = 5.5\nsamplers = ["dpmpp_2m_karras", "euler"]\n', 1)
    (tmp_path / "card.toml").write_text(led)
    card = ModelCard.read(tmp_path / "card.toml")
    assert (card.guidance, card.samplers) == (5.5, ("dpmpp_2m_karras", "euler"))
    card.check_guidance(ImageRequest("a cat", negative="fog", guidance=3, sampler="euler"))
    (tmp_path / "again.toml").write_text(card_toml(card))
    assert ModelCard.read(tmp_path / "again.toml").samplers == card.samplers
    assert ModelCard.read(tmp_path / "again.toml").guidance == 5.5
    (tmp_path / "plain.toml").write_text(text)
    plain = ModelCard.read(tmp_path / "plain.toml")
    plain.check_guidance(ImageRequest("a cat"))
    for fields in ({"negative": "fog"}, {"guidance": 2}):
        with pytest.raises(RequestError, match=r"draws without guidance.*avoid"):
            plain.check_guidance(ImageRequest("a cat", **fields))
    # Where avoid comes to nothing, it is no remedy.
    for deaf in (
        dataclasses.replace(plain, own_words_only=True),
        dataclasses.replace(plain, family="sdxl"),
        dataclasses.replace(plain, family="another"),
    ):
        with pytest.raises(RequestError, match=r"Leave negative out; .* has no place but the prompt"):
            deaf.check_guidance(ImageRequest("a cat", negative="fog"))
    for asked, led_by in ((1, 5.5), (None, 1.0)):
        with pytest.raises(RequestError, match="At guidance 1 there is no negative prompt"):
            dataclasses.replace(card, guidance=led_by).check_guidance(
                ImageRequest("a cat", negative="fog", guidance=asked)
            )
    with pytest.raises(RequestError, match="leave sampler out"):
        plain.check_guidance(ImageRequest("a cat", sampler="euler"))
    for wrong in ("guidance = 0.5", "guidance = nan", 'samplers = ["heun"]', 'samplers = ["euler", "euler"]'):
        (tmp_path / "card.toml").write_text(text.replace("steps = 8\n", f"steps = 8\n{wrong}\n", 1))
        with pytest.raises(CardError):
            ModelCard.read(tmp_path / "card.toml")
