"""The whole training in miniature: from a pack to a checkpoint that hwaga and diffusers draw the same pictures with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import following
from diffusers import ZImagePipeline
from packs import write_small_pack
from PIL import Image
from safetensors.torch import load_file
from training.__main__ import main
from training.ahead import compile_ahead
from training.batches import Batch
from training.pack import BASE_STYLE, STYLES
from training.phases import autoencoder
from training.phases import judge as judge_phase
from training.recipe import Recipe
from training.session import Session
from training.supply import Supply, blank_batches, padded

from hwaga.cards import ModelCard
from hwaga.engine import Engine
from hwaga.request import ImageRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack, run and checkpoint of the tiny recipe; trained in two slices."""
    folder = tmp_path_factory.mktemp("training")
    write_small_pack(folder / "pack")
    _stage(folder, "tokenizer")
    _stage(folder, "train", "autoencoder", "pieces", "judge", "text_encoder", "transformer")
    _stage(folder, "train")
    _stage(folder, "assemble", "--model", str(folder / "mini"))
    return folder


def _stage(folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        places = ["--tiny", "--device", "cpu", "--data", str(folder), "--run", str(folder / "run")]
        patch.setattr("sys.argv", ["training", *arguments, *places])
        main()


def test_every_phase_is_finished_and_logged(data: Path) -> None:
    progress = json.loads((data / "run" / "progress.json").read_text())
    log = [json.loads(line) for line in (data / "run" / "log.jsonl").read_text().splitlines()]
    names = {"autoencoder", "pieces", "judge", "text_encoder", "transformer", "lora-flat", "lora-line"}
    assert progress.keys() == names
    assert all(entry["done"] == 1.0 for entry in progress.values())
    assert {entry["phase"] for entry in log} >= names
    assert (data / "run" / "sheets" / "transformer.png").exists()
    assert not list((data / "run" / "states").glob("*"))


def test_pieces_leave_the_encoder_as_it_was(data: Path) -> None:
    """The transformer learns its latents, perhaps at the same time."""
    session = Session(Recipe.load("tiny"), data / "pack", data / "run", torch.device("cpu"))
    before, pieces, both = session.load("autoencoder"), session.load("pieces"), autoencoder.weights(session)
    assert {name.split(".")[0] for name in pieces} == {"decoder"}
    assert both.keys() == before.keys()
    encoder = [name for name in both if name.startswith("encoder")]
    assert all(torch.equal(both[name], before[name]) for name in encoder)
    assert any(not torch.equal(both[name], before[name]) for name in pieces)


def test_what_is_compiled_ahead_has_the_shapes_that_come(data: Path) -> None:
    session = Session(Recipe.load("tiny"), data / "pack", data / "run", torch.device("cpu"))
    supply = Supply(session, autoencoder.load(session), BASE_STYLE, "ahead", reuse=2, capacity=64, edits=0.25)
    count = session.recipe.transformer.phase.batch

    def shapes(batches: list[Batch]) -> set[tuple[int, ...]]:
        return {(len(batch.tokens), padded(batch.grid), batch.ids.shape[1]) for batch in batches}

    ahead = shapes(blank_batches(session.recipe.sizes, count, session.device))
    assert len(ahead) == 4
    assert shapes(supply.one_of_each(count)) <= ahead
    before = (data / "run" / "progress.json").read_text()
    compile_ahead(session)
    assert (data / "run" / "progress.json").read_text() == before
    with pytest.raises(SystemExit, match="Nothing is compiled for a CPU"):
        _stage(data, "compile")


def test_an_unknown_measure_is_refused(data: Path) -> None:
    with pytest.raises(SystemExit, match="Unknown measures beauty; there are combinations"):
        _stage(data, "evaluate", "--model", str(data / "mini"), "--only", "beauty")


def test_files_of_a_run_are_small_enough_to_carry(data: Path) -> None:
    assert max(path.stat().st_size for path in (data / "run").glob("*.safetensors")) < 16 * 2**20


def test_hwaga_and_diffusers_draw_the_same(data: Path) -> None:
    prompt = "파란 배경의 고양이"
    with Engine.open(str(data / "mini"), device="cpu", dtype="float32") as engine:
        ours = np.asarray(engine.generate(ImageRequest(prompt, seed=4)).image, int)
        in_style = np.asarray(engine.generate(ImageRequest(prompt, seed=4, style="anime")).image, int)
    pipeline = ZImagePipeline.from_pretrained(data / "mini", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": prompt, "height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 0.0}
    theirs = np.asarray(pipeline(**options, generator=torch.Generator().manual_seed(4)).images[0], int)
    assert abs(ours - theirs).max() <= 1
    pipeline.load_lora_weights(data / "mini" / "loras", weight_name="flat.safetensors")
    theirs = np.asarray(pipeline(**options, generator=torch.Generator().manual_seed(4)).images[0], int)
    assert abs(in_style - theirs).max() <= 1


def test_the_card_says_what_the_checkpoint_is(data: Path) -> None:
    card = ModelCard.read(data / "mini" / "card.toml")
    files = {part: load_file(next((data / "mini" / part).glob("*.safetensors"))) for part in ("transformer", "vae")}
    for part, weights in files.items():
        assert card.parts[part].parameters == sum(value.numel() for value in weights.values())
    assert card.aspects["1:1"] == (64, 64)
    assert set(card.styles) == {"realistic", "semi_realistic", "anime"}


def test_a_checkpoint_is_measured(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_RESULTS", str(data / "results"))
    only = [
        "combinations",
        "pairs",
        "dyed",
        "counted",
        "placed",
        "size_80x48",
        "style_flat",
        "image_to_image",
        "autoencoder",
        "diffusers",
    ]
    _stage(data, "evaluate", "--model", str(data / "mini"), "--share", "0.01", "--reference", "2", "--only", *only)
    report = json.loads((data / "results" / "mini_scores.json").read_text())
    scores = report["scores"]
    assert scores.keys() == set(only)
    assert scores["combinations"]["pictures"] == 5
    assert scores["diffusers"]["largest_difference_of_255"] <= 1
    assert "colour" in scores["dyed"]["judge_on_real"]
    for name in only[:7]:
        assert 0 <= scores[name]["object_top_1"] <= 1
    assert re.search("gpu|cpu", str(report["where"]))


def test_previews_are_fitted_and_written_to_the_card(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit_preview.SUBJECTS", ["an apple", "a car"])
    _stage(data, "preview", "--model", str(data / "mini"))
    preview = ModelCard.read(data / "mini" / "card.toml").preview
    assert preview is not None
    assert (len(preview), len(preview[0])) == (17, 3)


def test_the_benchmarks_read_the_judge(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stage(data, "judge", "--judge", str(data / "judge"))
    monkeypatch.setattr(following, "FOLDER", data / "judge")
    session = Session(Recipe.load("tiny"), data / "pack", data / "run", torch.device("cpu"))
    judge, copy = judge_phase.load(session), following.Judge()
    noise = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for pixels in noise:
        image = Image.fromarray(pixels).resize((128, 128))
        picture = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            scores = judge(picture)[0][0]
        order = copy.objects(image, 6)
        assert (scores[order].diff() < 0.05 * scores.abs().max()).all()
    assert [wish.object for wish in following.wishes(3)] == [0, 1, 2]


def test_every_batch_of_the_judge_has_all_numbers_of_objects(data: Path) -> None:
    session = Session(Recipe.load("tiny"), data / "pack", data / "run", torch.device("cpu"))
    textures = {style: session.textures(style) for style in STYLES}
    pictures, picked, colours, counts = judge_phase.mixed(
        session.things, textures, 24, (64, 64), np.random.default_rng(0)
    )
    assert len(pictures) == len(picked) == len(colours) == len(counts)
    assert np.bincount(counts).tolist() == [12, 4, 4, 4]


def test_an_unknown_phase_is_refused(data: Path) -> None:
    with pytest.raises(SystemExit, match="Unknown phases vae"):
        _stage(data, "train", "vae")
