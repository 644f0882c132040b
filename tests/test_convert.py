"""`hwaga convert`: every layout and precision, loaded by diffusers and by Hwaga; and everything that can go wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from gguf_files import write_gguf
from reference import MINI, random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import (
    StateDict,
    causal_lm,
    ldm_autoencoder,
    original_transformer,
    published_checkpoint,
    state_dict,
    write_header,
)
from torch import Tensor

import hwaga.weights.conversion as conversion_module
import hwaga.weights.shards as shards_module
from hwaga import Engine, ImageRequest
from hwaga.card_styles import Style
from hwaga.cards import ModelCard
from hwaga.convert import ConversionPlan, convert, plan_conversion
from hwaga.errors import CheckpointError, ConversionError, DiskSpaceError
from hwaga.model_lookup import find_card
from hwaga.weights.quantize import PRECISIONS
from hwaga.weights.verified import Report, Verified, condition, verify

PARTS = ("transformer", "text_encoder", "vae")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Z-Image in small, in diffusers' layout and float32."""
    return published_checkpoint(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def theirs(source: Path) -> dict[str, StateDict]:
    return {name: state_dict(source / name) for name in PARTS}


@pytest.fixture(scope="module")
def comfy(source: Path, theirs: dict[str, StateDict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as ComfyUI keeps it."""
    folder = tmp_path_factory.mktemp("comfy")
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    save_file(original_transformer(theirs["transformer"]), folder / "a.safetensors")
    save_file(causal_lm(theirs["text_encoder"]), folder / "b.safetensors")
    save_file(ldm_autoencoder(theirs["vae"]), folder / "c.safetensors")
    return folder


def converted(source: Path, destination: Path, precision: str = "bf16", layout: str = "diffusers") -> Path:
    plan = planned(source, destination, precision, layout)
    *_, done = convert(plan)
    assert done == plan.conversion.to_read
    return destination


def planned(source: Path, destination: Path, precision: str = "bf16", layout: str = "diffusers") -> ConversionPlan:
    return plan_conversion(find_card(source, source), destination, precision=precision, layout=layout)


def stored(folder: Path) -> StateDict:
    """All tensors below a folder, by network and name."""
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for file in (folder / part).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "converting" in path.name)


# bfloat16


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_bf16_is_what_rounding_makes(
    layout: str, source: Path, comfy: Path, theirs: dict[str, StateDict], tmp_path: Path
) -> None:
    """From both layouts, all weights under diffusers' names, also those that Hwaga has no use for."""
    made = stored(converted(source if layout == "diffusers" else comfy, tmp_path / "made"))
    expected = {f"{part}.{name}": tensor.bfloat16() for part in PARTS for name, tensor in theirs[part].items()}
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_diffusers_loads_it(layout: str, source: Path, comfy: Path, tmp_path: Path) -> None:
    made = converted(source if layout == "diffusers" else comfy, tmp_path / "made")
    pipeline = ZImagePipeline.from_pretrained(made, dtype=torch.bfloat16)
    original = ZImagePipeline.from_pretrained(source, dtype=torch.bfloat16)
    for name in PARTS:
        ours, reference = (getattr(p, name).state_dict() for p in (pipeline, original))
        assert ours.keys() == reference.keys()
        for key, tensor in reference.items():
            assert ours[key].dtype == torch.bfloat16
            assert torch.equal(ours[key], tensor.bfloat16()), key
    arguments = {"num_inference_steps": 2, "width": 128, "height": 128, "guidance_scale": 0.0, "output_type": "pt"}
    pictures = []
    for each in (pipeline, original):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        pictures.append(each("a fox", generator=generator, **arguments).images)
    assert torch.equal(*pictures)


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    """diffusers' layout to ComfyUI's and back ends in the same bytes."""
    first = converted(source, tmp_path / "first")
    there = converted(first, tmp_path / "there", layout="comfyui")
    assert {path.relative_to(there).as_posix() for path in there.rglob("*.safetensors")} == {
        "diffusion_models/z_image_turbo_bf16.safetensors", "text_encoders/qwen_3_4b.safetensors", "vae/ae.safetensors",
    }  # fmt: skip
    assert load_file(there / "vae/ae.safetensors")["encoder.mid.attn_1.q.weight"].ndim == 4
    back = stored(converted(there, tmp_path / "back"))
    assert back.keys() == stored(first).keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in stored(first).items())


def test_shards(source: Path, theirs: dict[str, StateDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwaga.families.z_image.conversion.SHARD_BYTES", 400_000)
    made = converted(source, tmp_path / "made")
    files = sorted((made / "transformer").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert file.stat().st_size < 420_000 or len(opened.keys()) == 1
    network = ZImageTransformer2DModel.from_pretrained(made / "transformer", dtype=torch.bfloat16)
    for name, tensor in theirs["transformer"].items():
        assert torch.equal(network.state_dict()[name], tensor.bfloat16())
    with Engine.open(made, device="cpu", dtype="bfloat16") as engine:
        assert engine.card.name == "made"


def test_a_checkpoint_of_other_sizes(tmp_path: Path) -> None:
    """A language-model head, files in several formats, biases; names stay what they were."""
    for name in ("sharded", "wide"):
        folder = random_checkpoint(tmp_path / name, name)
        made = stored(converted(folder, tmp_path / f"made-{name}"))
        expected = stored(folder)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], tensor.bfloat16()) for key, tensor in expected.items())
        pipeline = ZImagePipeline.from_pretrained(tmp_path / f"made-{name}", dtype=torch.bfloat16)
        assert pipeline.text_encoder.dtype == torch.bfloat16
        with pytest.raises(CheckpointError, match="cannot say so"):
            planned(folder, tmp_path / "other", layout="comfyui")


# What lies beside the weights


def test_the_card_and_the_marker(tmp_path: Path) -> None:
    """A card of its own with everything but the download, LoRAs of its styles, and hashes that `models verify` takes."""
    made = converted(MINI, tmp_path / "small")
    original, card = ModelCard.read(MINI / "card.toml"), find_card(made, tmp_path)
    for field in ("family", "title", "license", "steps", "aspects", "limits", "parts", "styles", "preview"):
        assert getattr(card, field) == getattr(original, field), field
    assert (card.name, card.folder, card.download, card.own_words_only) == ("small", made, None, True)
    assert card.source == "bundled, converted to bf16"
    assert condition(card) == "verified"
    *_, report = verify(made)
    assert isinstance(report, Report)
    assert report.good
    assert report.extra == ()
    marker = Verified.read(made)
    assert marker is not None
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files - set(marker.files) == {"card.toml", "verified.json"}
    assert marker.styles == ("loras/flat.safetensors", "loras/line.safetensors"), "without which it would be whole"
    request = ImageRequest("a red apple on a yellow background", seed=3, steps=2, style="anime")
    with (
        Engine.open(made, device="cpu", dtype="bfloat16") as one,
        Engine.open("mini", device="cpu", dtype="bfloat16") as two,
    ):
        assert one.generate(request).image.tobytes() == two.generate(request).image.tobytes()


def test_a_style_that_is_another_model_stays_behind(source: Path, tmp_path: Path) -> None:
    style = Style({"en": "Anime"}, None, checkpoint="anime.safetensors")
    card = replace(find_card(source, source), styles={"anime": style, "plain": Style({"en": "Plain"}, None)})
    *_, _ = convert(plan_conversion(card, tmp_path / "new", precision="bf16", layout="diffusers"))
    assert list(find_card(tmp_path / "new", tmp_path).styles) == ["plain"]


def test_comfyui_has_a_card_with_files(source: Path, tmp_path: Path) -> None:
    made = converted(source, tmp_path / "made", layout="comfyui")
    (made / "vae" / "another.safetensors").write_bytes(b"not the model's")
    card = find_card(made, tmp_path)
    assert [file.relative_to(made).as_posix() for file in card.files] == [
        "text_encoders/qwen_3_4b.safetensors", "diffusion_models/z_image_turbo_bf16.safetensors", "vae/ae.safetensors",
    ]  # fmt: skip
    with Engine.open(made, device="cpu") as engine:
        assert engine.card.name == "made"


# Refusals


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "folder", "link"):
        with pytest.raises(ConversionError, match="nothing is overwritten"):
            planned(source, tmp_path / name)
    steps = convert(planned(source, tmp_path / "late"))
    next(steps)
    (tmp_path / "late").mkdir()
    with pytest.raises(ConversionError, match="appeared meanwhile"):
        list(steps)
    assert [*(tmp_path / "late").iterdir()] == []
    assert leftovers(tmp_path) == []


def test_what_is_not_offered(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"--precision is one of bf16, int8, fp8, int4, not 'fp16'"):
        planned(source, tmp_path / "a", precision="fp16")
    with pytest.raises(ConversionError, match=r"--layout is one of diffusers, comfyui, not 'gguf'"):
        planned(source, tmp_path / "a", layout="gguf")
    with pytest.raises(CheckpointError, match="diffusers' layout only"):
        planned(source, tmp_path / "a", precision="int8", layout="comfyui")
    shutil.copytree(source, tmp_path / "partly")
    Verified("r", "c", {}, ("vae/x.safetensors",)).write(tmp_path / "partly")
    with pytest.raises(CheckpointError, match=r"only partly on this machine: vae/x\.safetensors"):
        planned(tmp_path / "partly", tmp_path / "a")


def test_a_small_disk_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(source, tmp_path / "below" / "made")
    plan.check_space()
    usage = shutil.disk_usage("/")._replace(free=plan.space_needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match="Make room"):
        plan.check_space()


@pytest.mark.parametrize("after", [0, 1, 30])
def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    real, left = shards_module.ShardWriter._write, [after]

    def full(self: shards_module.ShardWriter, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(shards_module.ShardWriter, "_write", full)
    with pytest.raises(DiskSpaceError, match="No space left on device"):
        converted(source, tmp_path / "made")
    assert [*tmp_path.iterdir()] == []


def test_weights_that_are_no_numbers(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "bad")
    file = next((tmp_path / "bad" / "vae").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"][3, 2, 1, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.weight holds NaN"):
        converted(tmp_path / "bad", tmp_path / "made")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "made").exists()


def test_closing_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with closing(convert(planned(source, tmp_path / "made"))) as steps:
        next(steps)
        with pytest.raises(ConversionError, match="Another conversion"):
            next(convert(planned(source, tmp_path / "made")))
    assert [*tmp_path.iterdir()] == []


KILLS = int(os.environ.get("HWAGA_TEST_KILLS", "6"))

SLOWLY = """
import time
import hwaga.weights.conversion as conversion
real = conversion._write_target
def slow(*arguments):
    for size in real(*arguments):
        time.sleep(0.003)
        yield size
conversion._write_target = slow
from hwaga.cli import main
main()
"""


def test_kill_9_at_any_moment(source: Path, tmp_path: Path) -> None:
    """The destination is there whole or not at all, and the next run needs no help."""
    numbers, destination, killed = random.Random(5), tmp_path / "made", 0
    command = [sys.executable, "-c", SLOWLY, "convert", str(source), str(destination)]
    while killed < KILLS:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not leftovers(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(numbers.random() * 0.8)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
            assert not destination.exists()
        else:  # it was quicker than the blow
            assert process.returncode == 0
            shutil.rmtree(destination)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, error = process.communicate()
    assert (process.returncode, out) == (0, f"{destination}\n"), error
    assert leftovers(tmp_path) == []
    *_, report = verify(destination)
    assert isinstance(report, Report)
    assert report.good


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_leaves_nothing(source: Path, tmp_path: Path, blow: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOWLY, "convert", str(source), str(tmp_path / "made"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".made.converting" / "text_encoder").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(blow)
    out, error = process.communicate()
    assert (process.returncode, out) == (130, ""), error
    assert "Traceback" not in error
    assert [*tmp_path.iterdir()] == []


# Fewer bits


LARGE = re.compile(
    r"(layers|\w+_refiner)\.\d+\.(attention|self_attn|feed_forward|mlp)\.(w|to_|\w+_proj)\w*(\.0)?\.weight"
)


def reference_codes(weight: Tensor, precision: str) -> dict[str, Tensor]:
    codes, *others = PRECISIONS[precision].encode(weight.float())
    names = ("", "_scale", "_low")
    kept = (codes, *(other.bfloat16() for other in others))
    return {f"_{precision}{name}": tensor for name, tensor in zip(names, kept, strict=False)}


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_fewer_bits_are_what_the_quantiser_makes(
    precision: str,
    source: Path,
    comfy: Path,
    theirs: dict[str, StateDict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the large weights, from float32 and not from rounded ones; the rest is bfloat16. In pieces as in one."""
    monkeypatch.setattr(conversion_module, "PIECE_VALUES", 5000)
    made = stored(converted(source, tmp_path / "made", precision))
    large = 0
    for part in PARTS:
        for name, tensor in theirs[part].items():
            key = f"{part}.{name}"
            last = part == "text_encoder" and re.match(r"layers\.3\.|norm\.", name)
            if last:
                assert not any(other.startswith(key) for other in made)
            elif LARGE.fullmatch(name):
                large += 1
                assert key not in made
                for ending, expected in reference_codes(tensor, precision).items():
                    found = made[key + ending]
                    assert found.dtype == expected.dtype
                    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), key
            else:
                assert torch.equal(made[key], tensor.bfloat16()), key
    assert large > 60
    other = stored(converted(comfy, tmp_path / "other", precision))
    assert other.keys() == made.keys()
    assert all(torch.equal(other[key].view(torch.uint8), made[key].view(torch.uint8)) for key in made if made[key].ndim)


def picture(folder: Path, dtype: str, precision: str | None = None) -> tuple[bytes, str]:
    request = ImageRequest("a red apple on a yellow background", seed=3, steps=2, width=256, height=256)
    with Engine.open(folder, device="cpu", dtype=dtype, precision=precision) as engine:
        result = engine.generate(request)
        assert len(result.image.getcolors(2**16) or []) > 500, "the picture is flat"
        return result.image.tobytes(), engine.precision


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_it_is_drawn_with_as_if_quantised_while_it_was_read(
    precision: str, dtype: str, whole: Path, tmp_path: Path
) -> None:
    """Byte for byte; and in any number of pieces of a stack, since each row stands for itself."""
    made = converted(whole, tmp_path / "made", precision)
    assert picture(made, dtype)[0] == picture(whole, dtype, precision)[0]
    assert picture(made, dtype, "int8" if precision == "int4" else precision)[0] == picture(made, dtype)[0]


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in bfloat16, so that it makes no difference in which format it is quantised."""
    return converted(source, tmp_path_factory.mktemp("whole") / "made")


def test_nothing_is_rounded_twice(whole: Path, tmp_path: Path) -> None:
    made = converted(whole, tmp_path / "made", "int8")
    with pytest.raises(CheckpointError, match=r"is in int8, and int4 would be rounded twice"):
        Engine.open(made, device="cpu", precision="int4")
    with pytest.raises(CheckpointError, match=r"is in int8 already\. Convert the original"):
        planned(made, tmp_path / "again", "bf16")


def regrouped(tensors: StateDict) -> StateDict:
    """As many codes in smaller groups."""
    factors = {f"{NAME}{ending}": tensors[f"{NAME}{ending}"].repeat(1, 2, 1) for ending in ("_scale", "_low")}
    return factors | {NAME: tensors[NAME].reshape(256, 8, 16)}


NAME = "layers.1.attention.to_k.weight_int4"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(f"{NAME}_scale"), f"does not hold {NAME} with what belongs to it"),
        (lambda tensors: tensors.update({f"{NAME}_low": torch.zeros(2, 2, 1).bfloat16()}), "with what belongs to it"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:, :1].contiguous()}), "with what belongs to it"),
        (lambda tensors: tensors.update({NAME: tensors[NAME].view(torch.int8)}), "with what belongs to it"),
        (lambda tensors: tensors.update(regrouped(tensors)), "with what belongs to it"),
        (lambda tensors: tensors.pop(NAME), "lacks layers.1.attention.to_k.weight"),
        (lambda tensors: tensors[f"{NAME}_scale"].fill_(torch.nan), "has a scale that is NaN"),
        (lambda tensors: tensors[f"{NAME}_low"].fill_(torch.inf), "has a scale that is NaN"),
    ],
)  # fmt: skip
def test_damage_is_named(change: Callable[[StateDict], object], says: str, whole: Path, tmp_path: Path) -> None:
    made = converted(whole, tmp_path / "made", "int4")
    file = next((made / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=says):
        Engine.open(made, device="cpu")


def test_gguf_becomes_whole_again(source: Path, comfy: Path, theirs: dict[str, StateDict], tmp_path: Path) -> None:
    """A GGUF file's numbers, rounded to bfloat16, under diffusers' names."""
    folder = tmp_path / "packed"
    shutil.copytree(comfy, folder)
    meant = write_gguf(
        folder / "a.safetensors", original_transformer(theirs["transformer"]),
        lambda _, tensor: "Q4_K" if tensor.shape[-1] == 256 and tensor.ndim == 2 else "F32",
    )  # fmt: skip
    made = stored(converted(folder, tmp_path / "made"))
    qkv = meant["layers.2.attention.qkv.weight"].bfloat16()
    for place, name in enumerate(("to_q", "to_k", "to_v")):
        assert torch.equal(made[f"transformer.layers.2.attention.{name}.weight"], qkv.split(256)[place])
    assert torch.equal(made["transformer.cap_pad_token"], meant["cap_pad_token"].bfloat16())
    ZImagePipeline.from_pretrained(tmp_path / "made", dtype=torch.bfloat16)


# Memory


@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_name_that_is_no_text_is_refused_before_any_work(which: str, source: Path, tmp_path: Path) -> None:
    """A card is UTF-8, and a path need not be."""
    unnameable = tmp_path / os.fsdecode(b"caf\xe9")
    if which == "source":
        shutil.copytree(source, unnameable)
    model, destination = (unnameable, tmp_path / "made") if which == "source" else (source, unnameable)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError, match=r"not UTF-8.*Rename the folder"):
        planned(model, destination)
    assert sorted(tmp_path.iterdir()) == before


MEMORY = """
import resource, sys
from pathlib import Path
import hwaga.convert as convert
from hwaga.model_lookup import find_card
import hwaga.families.z_image.family
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = convert.plan_conversion(find_card(sys.argv[1], Path("/")), Path(sys.argv[2]), precision=sys.argv[3], layout="diffusers")
for _ in convert.convert(plan):
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, plan.conversion.to_read)
"""


def test_memory_does_not_grow_with_the_checkpoint(source: Path, tmp_path: Path) -> None:
    """1.3 GB of float32 in one layer more of a large one; benchmarks/convert.py reads more, by hand."""
    shutil.copytree(source, tmp_path / "large")
    folder = tmp_path / "large" / "text_encoder"
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 5_000_000}
    (folder / "config.json").write_text(json.dumps(config))
    header = {name: ("F32", tuple(tensor.shape)) for name, tensor in state_dict(folder).items()}
    header["embed_tokens.weight"] = ("F32", (5_000_000, 64))
    write_header(next(folder.glob("*.safetensors")), header)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "large"), str(tmp_path / "made"), "int8"]
    grown, read = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert read > 1.28e9
    assert grown < 400 * 2**20
