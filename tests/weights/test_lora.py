"""LoRA files that are refused, and how the loaded ones are kept. What they draw is held against diffusers in
tests/families/test_lora_parity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_files import save
from safetensors.torch import save_file
from torch import Tensor, nn

from hwaga.errors import LoraError
from hwaga.loras import LoraLibrary
from hwaga.weights.adapters import Adapters
from hwaga.weights.fused import FusedLinear
from hwaga.weights.layouts import Layout
from hwaga.weights.lora import LoraCache, LoraFile, LoraTarget, lora_targets

CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = FusedLinear(8, (8, 4, 4), bias=False)
        self.out = nn.Linear(8, 6)


THEIRS = Layout(renames=(("attn.to_out.0.", "out."),), stacks={"qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v.")})
ORIGINAL = Layout(renames=(("attn.qkv.", "qkv."), ("attn.out.", "out.")))


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


@pytest.fixture(scope="module")
def targets(network: Network) -> dict[str, LoraTarget]:
    return lora_targets([(network, (THEIRS, ORIGINAL))])


def pair(stem: str, out: int, width: int = 8, rank: int = 2) -> dict[str, Tensor]:
    return {f"{stem}.lora_A.weight": torch.ones(rank, width), f"{stem}.lora_B.weight": torch.ones(out, rank)}


GOOD = pair("attn.to_q", 8) | pair("attn.to_out.0", 6)


@pytest.fixture
def refusal(tmp_path: Path, targets: dict[str, LoraTarget]) -> Callable[[Mapping[str, Tensor]], str]:
    def refuse(tensors: Mapping[str, Tensor]) -> str:
        path = save(tmp_path / "bad.safetensors", dict(tensors))
        with pytest.raises(LoraError) as refused:
            LoraFile.read(path).load(targets, CPU, torch.float32)
        return str(refused.value)

    return refuse


def test_places(targets: dict[str, LoraTarget]) -> None:
    rows = {name: (target.name, target.rows.start, target.rows.stop, target.layout) for name, target in targets.items()}
    assert rows == {
        "attn_to_q": ("qkv", 0, 8, 0),
        "attn_to_k": ("qkv", 8, 12, 0),
        "attn_to_v": ("qkv", 12, 16, 0),
        "attn_to_out_0": ("out", 0, 6, 0),
        "attn_to_out": ("out", 0, 6, 0),
        "attn_qkv": ("qkv", 0, 16, 1),
        "attn_out": ("out", 0, 6, 1),
    }


def test_what_has_no_place_is_named(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    assert "holds attn.to_x.lora_A.weight, for which this model has no layer" in refusal(GOOD | pair("attn.to_x", 8))
    five = {key: value for k in range(5) for key, value in pair(f"blocks.{k}", 8).items()}
    assert "and 1 more, for which" in refusal(GOOD | five)


def test_another_model_s(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    said = refusal(pair("lora_unet_double_blocks_0_img_attn_qkv", 8))
    assert "was made for another model: there is no lora_unet_double_blocks_0_img_attn_qkv.lora_A.weight" in said
    assert "for another model: attn.to_q is 8 x 16 and the layer is 8 x 8" in refusal(pair("attn.to_q", 8, width=16))


def test_wrong_shapes(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    assert "does not fit this model: attn.to_k is 8 x 8 and the layer is 4 x 8" in refusal(GOOD | pair("attn.to_k", 8))
    ranks = GOOD | {"attn.to_q.lora_B.weight": torch.ones(8, 3)}
    assert "attn.to_q.lora_B.weight and attn.to_q.lora_A.weight are of different rank" in refusal(ranks)
    assert "is no matrix but [2, 8, 1]" in refusal(GOOD | {"attn.to_q.lora_A.weight": torch.ones(2, 8, 1)})
    assert "is no matrix but [8, 2, 3, 1]" in refusal(GOOD | {"attn.to_q.lora_B.weight": torch.ones(8, 2, 3, 1)})
    assert "attn.to_q is 8 x 72 and the layer is 8 x 8" in refusal(
        GOOD | {"attn.to_q.lora_A.weight": torch.ones(2, 8, 3, 3)}
    )
    assert "attn.to_q.alpha is no number but [2]" in refusal(GOOD | {"attn.to_q.alpha": torch.ones(2)})
    loha = {f"attn.to_q.hada_{name}": torch.ones(shape) for name, shape in
            {"w1_a": (8, 2), "w1_b": (2, 8), "w2_a": (8, 2), "w2_b": (2, 4)}.items()}  # fmt: skip
    assert "the two factors of attn.to_q differ in shape" in refusal(loha)


def test_what_is_not_whole(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    assert "is not whole: attn.to_k has attn.to_k.lora_A.weight alone" in refusal(
        GOOD | {"attn.to_k.lora_A.weight": torch.ones(2, 8)}
    )
    assert "attn.to_k has attn.to_k.alpha alone" in refusal(GOOD | {"attn.to_k.alpha": torch.ones(())})
    assert "attn.to_k has attn.to_k.lokr_w1 alone" in refusal(GOOD | {"attn.to_k.lokr_w1": torch.ones(2, 8)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_named(value: float, refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    bad = GOOD["attn.to_q.lora_B.weight"].clone()
    bad[3, 1] = value
    assert "attn.to_q.lora_B.weight holds NaN or infinity" in refusal(GOOD | {"attn.to_q.lora_B.weight": bad})
    whole = {"attn.to_q.lokr_w1": torch.ones(1, 1), "attn.to_q.lokr_w2": torch.full((8, 8), value)}
    assert "attn.to_q.lokr_w2 holds NaN or infinity" in refusal(whole)
    alpha = {"attn.to_q.alpha": torch.tensor(value)}
    assert "attn.to_q.alpha holds NaN or infinity" in refusal(GOOD | alpha)


def test_kinds_that_are_not_computed(refusal: Callable[[Mapping[str, Tensor]], str], tmp_path: Path) -> None:
    assert "is a DoRA" in refusal(GOOD | {"attn.to_q.dora_scale": torch.ones(8, 1)})
    assert "is a DoRA" in refusal(GOOD | {"attn.to_q.lora_magnitude_vector": torch.ones(8)})
    assert "holds attn.to_q.diff_b, which is no part of" in refusal(GOOD | {"attn.to_q.diff_b": torch.ones(8)})
    assert "holds attn.to_q.lora_B.bias, which is no part of" in refusal(
        GOOD | {"attn.to_q.lora_B.bias": torch.ones(8)}
    )
    assert "is no LoRA: none of its 1 tensors" in refusal({"attn.to_q.weight": torch.ones(8, 8)})
    assert "stores attn.to_q.lora_A.weight (I64)" in refusal(
        GOOD | {"attn.to_q.lora_A.weight": torch.ones(2, 8, dtype=torch.int64)}
    )
    assert "twice over" in refusal(GOOD | pair("transformer.attn.to_q", 8))


def test_one_layer_under_two_names(
    network: Network, targets: dict[str, LoraTarget], tmp_path: Path, refusal: Callable[[Mapping[str, Tensor]], str]
) -> None:
    """A fused layer beside all of its parts repeats them; beside some of them it is another LoRA, whose rest would be lost."""
    fused = pair("attn.qkv", 16, rank=3)
    assert "holds attn.qkv and, under another name, a part of it (attn.to_q)" in refusal(GOOD | fused)
    parts = pair("attn.to_q", 8) | pair("attn.to_k", 4) | pair("attn.to_v", 4)
    both = LoraFile.read(save(tmp_path / "both.safetensors", parts | fused)).load(targets, CPU, torch.float32)
    joined = both.by_layer[network.qkv].joined
    assert joined is not None
    assert len(joined.down) == 6, "two ranks of each part, and none of the fused layer's three"


def test_layers_that_nothing_listens_to_are_accepted(network: Network, tmp_path: Path) -> None:
    known = lora_targets([(network, (THEIRS,))], unused={"attn2_": "attn_"})
    path = save(tmp_path / "all.safetensors", GOOD | pair("attn2.to_q", 8) | pair("attn2.to_out.0", 6))
    loaded = LoraFile.read(path).load(known, CPU, torch.float32)
    assert set(loaded.by_layer) == {network.qkv, network.out}
    path = save(tmp_path / "other.safetensors", GOOD | pair("attn2.to_x", 8))
    with pytest.raises(LoraError, match=r"holds attn2\.to_x"):
        LoraFile.read(path).match(known)


def test_two_spellings_of_one_key(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    assert "attn.to_q.lora_down.weight twice over" in refusal(GOOD | {"attn.to_q.lora_down.weight": torch.ones(2, 8)})


def test_an_alpha_that_means_nothing(targets: dict[str, LoraTarget], tmp_path: Path) -> None:
    """LoKr of two whole matrices: trainers write a huge alpha, which float16 holds as infinity, and no reader uses it."""
    whole = {"attn.to_q.lokr_w1": torch.ones(1, 1), "attn.to_q.lokr_w2": torch.ones(8, 8),
             "attn.to_q.alpha": torch.tensor(float("inf")).half()}  # fmt: skip
    LoraFile.read(save(tmp_path / "whole.safetensors", whole)).load(targets, CPU, torch.float32)


def test_alphas_that_make_no_number(refusal: Callable[[Mapping[str, Tensor]], str]) -> None:
    huge = GOOD | {"attn.to_q.lora_B.weight": torch.full((8, 2), 1e30), "attn.to_q.alpha": torch.tensor(1e30)}
    assert "its alpha makes values too large" in refusal(huge)
    assert "is no matrix but [0, 8]" in refusal(pair("attn.to_q", 8, rank=0) | {"attn.to_q.alpha": torch.tensor(4.0)})


def test_the_configuration_that_peft_writes_beside_a_file(targets: dict[str, LoraTarget], tmp_path: Path) -> None:
    path = save(tmp_path / "adapter_model.safetensors", GOOD)
    alone = LoraFile.read(path).load(targets, CPU, torch.float32)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6, "r": 2, "alpha_pattern": {"to_out.0": 1}}')
    ups = []
    for file in (path, LoraLibrary(tmp_path / "library").add(path, "copy").file):
        loaded = LoraFile.read(file).load(targets, CPU, torch.float32)
        ups.append([adapter.joined.up.max().item() for adapter in loaded.by_layer.values() if adapter.joined])
    assert ups == [[0.5, 3.0]] * 2
    assert [adapter.joined.up.max().item() for adapter in alone.by_layer.values() if adapter.joined] == [1.0, 1.0]


@pytest.mark.parametrize(
    "note",
    [
        "{", "[]", '{"lora_alpha": "8"}', '{"alpha_pattern": 3, "lora_alpha": 1}', "[" * 9999, '{"lora_alpha": NaN}',
        '{"lora_alpha": 1' + "0" * 400 + "}", '{"lora_alpha": true}', '{"lora_alpha": 1, "alpha_pattern": {"(": 1}}',
        '{"lora_alpha": 1, "alpha_pattern": {"(_|_?)*!": 1}}',
    ],
)  # fmt: skip
def test_notes_of_peft_that_cannot_be_read(note: str, tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "noted.safetensors", {"lora_adapter_metadata": note})
    with pytest.raises(LoraError, match="lora_adapter_metadata cannot be read"):
        LoraFile.read(tmp_path / "noted.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="is a pickle"):
        LoraFile.read(tmp_path / "old.pt")
    with pytest.raises(LoraError, match="There is no file"):
        LoraFile.read(tmp_path / "none.safetensors")
    whole = save(tmp_path / "whole.safetensors", GOOD).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoraError, match="truncated"):
        LoraFile.read(tmp_path / "half.safetensors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=64), start=st.integers(0, 2000), cut=st.integers(0, 64))
def test_damaged_files_end_in_our_error(
    junk: bytes, start: int, cut: int, tmp_path: Path, targets: dict[str, LoraTarget]
) -> None:
    whole = save(tmp_path / "whole.safetensors", GOOD).read_bytes()
    start %= len(whole)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(whole[:start] + junk + whole[start + cut :])
    try:
        LoraFile.read(path).load(targets, CPU, torch.float32)
    except LoraError as error:
        assert str(error).endswith((".", ")"))  # noqa: PT017 - damage in the values of a weight is not an error


@pytest.fixture
def cache(targets: dict[str, LoraTarget]) -> LoraCache:
    return LoraCache(targets, device=CPU, dtype=torch.float32, limit=3000)


def lora(folder: Path, name: str, rank: int) -> Path:
    return save(folder / f"{name}.safetensors", pair("attn.to_q", 8, rank=rank))


def test_the_same_loras_are_the_same_object(cache: LoraCache, tmp_path: Path) -> None:
    first = lora(tmp_path, "first", 2)
    assert cache.adapters([]) is None
    assert cache.adapters([(first, 0.0)]) is None
    once = cache.adapters([(first, 1.0)])
    assert cache.adapters([(first, 1.0)]) is once
    half = cache.adapters([(first, 0.5)])
    assert half is not once
    assert cache.adapters([(first, 0.5)]) is half
    assert cache.kept.nbytes == 2 * 4 * (2 * 8 + 16 * 2)


def test_a_file_that_was_replaced_is_read_again(cache: LoraCache, tmp_path: Path, network: Network) -> None:
    path = lora(tmp_path, "first", 2)
    before = cache.adapters([(path, 1.0)])
    lora(tmp_path, "first", 3)
    after = cache.adapters([(path, 1.0)])
    assert before is not None
    assert after is not None
    assert [len(each.by_layer[network.qkv].tensors()[0]) for each in (before, after)] == [2, 3]
    path.unlink()
    with pytest.raises(LoraError, match="not there any more"):
        cache.adapters([(path, 1.0)])


def test_those_used_longest_ago_leave_first(cache: LoraCache, tmp_path: Path) -> None:
    paths = [lora(tmp_path, name, 8) for name in "abc"]
    size = 4 * (8 * 8 + 16 * 8)
    kept: list[Adapters | None] = [cache.adapters([(path, 1.0)]) for path in paths]
    assert cache.kept.nbytes == 3 * size
    assert cache.adapters([(paths[0], 1.0)]) is kept[0]
    lora(tmp_path, "d", 12)
    cache.adapters([(tmp_path / "d.safetensors", 1.0)])  # more than the limit allows
    assert cache.kept.nbytes <= 3000
    assert cache.adapters([(paths[0], 1.0)]) is kept[0], "used after b and c"
    assert cache.adapters([(paths[1], 1.0)]) is not kept[1]


def test_one_that_is_larger_than_the_limit_works(targets: dict[str, LoraTarget], tmp_path: Path) -> None:
    cache = LoraCache(targets, device=CPU, dtype=torch.float32, limit=0)
    first, second = lora(tmp_path, "first", 2), lora(tmp_path, "second", 3)
    assert cache.adapters([(first, 1.0), (second, 0.5)]) is not None
    assert cache.kept.nbytes == 4 * 5 * (8 + 16)
