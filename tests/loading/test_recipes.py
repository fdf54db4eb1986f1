"""Live tensors come out of files by recipe as `from_pretrained` makes them, bit for bit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from saved_models import EXPERTS, SAVED, empty, same_bits, saved
from stored_rows import made, rows_of
from torch import nn
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from planner.loading.conversions import ClassSteps
from planner.loading.recipes import Computed, Part, Pieces, Recipes, find_recipes
from planner.loading.stored import StoredTensor

# Of those that are not all used as stored: how many of each kind.
KINDS = {
    "mixtral": {"Pieces": 8},
    "qwen3_moe": {"Pieces": 8},
    "deepseek": {"Pieces": 6},
    "nomic_bert": {"Part": 12},
    "ernie": {"Part": 6, "Computed": 18},
}


def row(name: str, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> StoredTensor:
    return StoredTensor(name, 0, 0, dtype.itemsize * torch.Size(shape).numel(), dtype, shape)


def stored_as(folder: Path, **changed: Any) -> Path:
    """Writes a folder's one file anew."""
    path = folder / "model.safetensors"
    save_file(changed, path, metadata={"format": "pt"})
    return folder


def assert_equal(folder: Path, recipes: Recipes, wanted: Any) -> None:
    values = made(folder, recipes.by_name)
    for name, tensor in wanted.state_dict().items():
        assert same_bits(values[recipes.ties.get(name, name)], tensor), name


@pytest.mark.parametrize("name", SAVED)
def test_tensors_are_those_of_from_pretrained(name: str) -> None:
    found = saved(name)
    recipes = find_recipes(rows_of(found.folder), empty(found.model))
    assert_equal(found.folder, recipes, found.model)
    kinds = Counter(type(recipe).__name__ for recipe in recipes.by_name.values())
    assert {kind: number for kind, number in kinds.items() if kind != "StoredTensor"} == KINDS.get(name, {})
    assert (recipes.missing, recipes.unexpected, recipes.findings) == ((), (), ())


def test_what_is_used_as_stored_costs_no_object_and_nothing_is_changed() -> None:
    found = saved("llama")
    rows = rows_of(found.folder)
    skeleton = empty(found.model)
    before = {name: id(tensor) for name, tensor in skeleton.state_dict(keep_vars=True).items()}
    recipes = find_recipes(rows, skeleton)
    assert {id(recipe) for recipe in recipes.by_name.values()} == set(map(id, rows))
    assert {name: id(tensor) for name, tensor in skeleton.state_dict(keep_vars=True).items()} == before


def test_parts_and_pieces_say_which_bytes() -> None:
    found = saved("nomic_bert")
    recipes = find_recipes(rows_of(found.folder), empty(found.model)).by_name
    attention = "encoder.layers.1.self_attn" if "encoder.layers.1.self_attn.k_proj.weight" in recipes else ""
    key = next(recipe for name, recipe in recipes.items() if "k_proj.weight" in name and attention in name)
    assert isinstance(key, Part)
    assert (key.begin - key.source.begin, key.nbytes, key.shape) == (32 * 32 * 4, 32 * 32 * 4, (32, 32))
    found = saved("mixtral")
    gates = find_recipes(rows_of(found.folder), empty(found.model)).by_name[
        "model.layers.0.mlp.experts.gate_up_proj"
    ]
    assert isinstance(gates, Pieces)
    names = [piece.name.removeprefix("model.layers.0.block_sparse_moe.experts.") for piece, _ in gates.pieces]
    assert names[:3] == ["0.w1.weight", "0.w3.weight", "1.w1.weight"]
    assert [at for _, at in gates.pieces] == [number * 48 * 32 * 4 for number in range(8)]
    assert gates.nbytes == 8 * 48 * 32 * 4


@pytest.mark.parametrize(
    ("name", "cls", "missing", "unexpected"),
    [
        ("llama", tf.LlamaModel, (), ("lm_head.weight",)),
        ("gpt2", tf.GPT2Model, (), ()),
        ("t5", tf.T5EncoderModel, (), None),
        ("mixtral", tf.MixtralModel, (), ("lm_head.weight",)),
        ("bert", tf.BertModel, ("pooler.dense.weight", "pooler.dense.bias"), None),
    ],
)
def test_a_base_model_from_the_files_of_one_with_a_head(
    name: str, cls: Any, missing: tuple[str, ...], unexpected: tuple[str, ...] | None
) -> None:
    found = saved(name)
    wanted, said = cls.from_pretrained(found.folder, output_loading_info=True)
    recipes = find_recipes(rows_of(found.folder), empty(wanted))
    values = made(found.folder, recipes.by_name)
    for live, tensor in wanted.state_dict().items():
        assert live in missing or same_bits(values[recipes.ties.get(live, live)], tensor), live
    assert set(recipes.missing) == set(missing) == set(said["missing_keys"])
    assert bool(recipes.unexpected) == bool(said["unexpected_keys"])
    if unexpected is not None:
        assert recipes.unexpected == unexpected


@pytest.mark.parametrize(
    ("name", "inner"), [("llama", "model"), ("gpt2", "transformer"), ("mixtral", "model")]
)
def test_a_model_with_a_head_from_the_files_of_its_base(tmp_path: Path, name: str, inner: str) -> None:
    headed = copy.deepcopy(saved(name).model)
    getattr(headed, inner).save_pretrained(tmp_path)
    wanted, said = type(headed).from_pretrained(tmp_path, output_loading_info=True)
    recipes = find_recipes(rows_of(tmp_path), empty(wanted))
    values = made(tmp_path, recipes.by_name)
    assert set(recipes.missing) == set(said["missing_keys"])
    for live, tensor in wanted.state_dict().items():
        assert live in recipes.missing or same_bits(values[recipes.ties.get(live, live)], tensor), live


def test_names_of_old_files(tmp_path: Path) -> None:
    for name, old in (("bert", ("LayerNorm.weight", "LayerNorm.gamma")), ("wav2vec2", ("", ""))):
        found = saved(name)
        tensors = load_file(found.folder / "model.safetensors")
        parametrized = [
            (".parametrizations.weight.original0", ".weight_g"),
            (".parametrizations.weight.original1", ".weight_v"),
        ]
        for new, ancient in (old, *parametrized):
            tensors = {
                live.replace(new, ancient) if new else live: tensor for live, tensor in tensors.items()
            }
        (tmp_path / name).mkdir()
        folder = stored_as(tmp_path / name, **tensors)
        recipes = find_recipes(rows_of(folder), empty(found.model))
        assert_equal(folder, recipes, found.model)
        assert recipes.steps and not recipes.missing and not recipes.unexpected


def test_experts_that_are_stored_the_other_way_round_are_computed(tmp_path: Path) -> None:
    found = saved("qwen3_vl_moe")
    tensors = load_file(found.folder / "model.safetensors")
    turned = {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
        for name, tensor in tensors.items()
    }
    folder = stored_as(tmp_path, **turned)
    recipes = find_recipes(rows_of(folder), empty(found.model))
    assert_equal(folder, recipes, found.model)
    assert sum(isinstance(recipe, Computed) for recipe in recipes.by_name.values()) == 8


def test_a_conversion_with_several_results_runs_once_for_all_and_survives_copies() -> None:
    found = saved("ernie")
    by_name = find_recipes(rows_of(found.folder), empty(found.model)).by_name
    computed = {name: recipe for name, recipe in by_name.items() if isinstance(recipe, Computed)}
    conversions = {id(recipe.conversion) for recipe in computed.values()}
    assert len(conversions) < len(computed)
    values = made(found.folder, computed)
    for again in (copy.deepcopy(computed), pickle.loads(pickle.dumps(computed))):
        assert all(same_bits(tensor, values[name]) for name, tensor in made(found.folder, again).items())


def test_names_that_the_class_leaves_in_files() -> None:
    found = saved("deepseek")
    ignored = ["model.layers.2.self_attn.rotary_emb.inv_freq", "model.layers.61.eh_proj.weight"]
    rows = [*rows_of(found.folder), *map(row, [*ignored, "model.layers.2.other"])]
    recipes = find_recipes(rows, empty(found.model))
    assert recipes.unexpected == ("model.layers.2.other",)
    assert recipes.ignored == tuple(ignored)
    # Position ids were a tensor of the files once.
    found = saved("bert")
    recipes = find_recipes([*rows_of(found.folder), row("bert.embeddings.position_ids")], empty(found.model))
    assert (recipes.unexpected, recipes.ignored) == ((), ("bert.embeddings.position_ids",))


def test_what_the_class_does_not_want_from_files_may_be_missing() -> None:
    found = saved("llama")
    skeleton = empty(found.model)
    skeleton._keys_to_ignore_on_load_missing = {r"layers\.1\..*norm"}
    norms = [name for name in skeleton.state_dict() if "layers.1." in name and "norm" in name]
    rows = [each for each in rows_of(found.folder) if each.name not in (*norms, "lm_head.weight")]
    recipes = find_recipes(rows, skeleton)
    assert set(recipes.missing) == {*norms, "lm_head.weight"}
    assert set(recipes.may_be_missing) == set(norms) and norms


def test_experts_of_which_one_is_missing_are_one_finding() -> None:
    found = saved("mixtral")
    gone = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    rows = [each for each in rows_of(found.folder) if each.name != gone]
    recipes = find_recipes(rows, empty(found.model))
    assert len(recipes.findings) == 1 and "model.layers.1.mlp.experts.gate_up_proj" in recipes.findings[0]
    assert recipes.missing == ()


# ---- rename


def two() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))


def test_rename_by_mapping_and_by_function() -> None:
    rows = [row("a.weight", (2, 2)), row("1.weight", (2, 2)), row("optimizer.step")]
    mapped = find_recipes(rows, two(), {"a.weight": "0.weight", "optimizer.step": None})
    assert mapped.by_name == {"0.weight": rows[0], "1.weight": rows[1]}
    assert (mapped.ignored, mapped.unexpected, mapped.notes) == (("optimizer.step",), (), ())
    called = find_recipes(rows, two(), lambda name: name.replace("a.", "0."))
    assert called.by_name == mapped.by_name
    assert called.unexpected == ("optimizer.step",)
    noted = find_recipes(rows, two(), {"b.weight": "0.weight"})
    assert "b.weight" in noted.notes[0]
    assert noted.missing == ("0.weight",)


def test_two_stored_names_that_become_one_are_both_named() -> None:
    rows = [row("0.weight", (2, 2)), row("1.weight", (2, 2)), row("a.weight", (2, 2))]
    recipes = find_recipes(rows, two(), {"a.weight": "1.weight"})
    (finding,) = recipes.findings
    assert all(name in finding for name in ("a.weight", "1.weight"))
    # By the class's own steps, too.
    found = saved("llama")
    rows = [*rows_of(found.folder), row("layers.0.input_layernorm.weight", (32,))]
    (finding,) = find_recipes(rows, empty(found.model)).findings
    assert "model.layers.0.input_layernorm.weight and layers.0.input_layernorm.weight" in finding


def test_rename_comes_before_the_steps_of_the_class() -> None:
    found = saved("mixtral")
    rows = [each._replace(name=f"module.{each.name}") for each in rows_of(found.folder)]
    recipes = find_recipes(rows, empty(found.model), lambda name: name.removeprefix("module."))
    assert_equal(found.folder, recipes, found.model)


# ---- Other models


def test_names_of_other_models_are_those_of_the_files() -> None:
    model = two()
    model.register_buffer("kept", torch.zeros(2, device="meta"))
    model.register_buffer("scratch", torch.zeros(2, device="meta"), persistent=False)
    recipes = find_recipes([row("0.weight", (2, 2)), row("kept"), row("scratch")], model)
    assert set(recipes.by_name) == {"0.weight", "kept"}
    assert (recipes.missing, recipes.unexpected) == (("1.weight",), ("scratch",))


def test_transformers_is_not_loaded_for_other_models() -> None:
    code = (
        "import sys, torch\n"
        "from planner.loading.recipes import find_recipes\n"
        "from planner.loading.initial import initial_values\n"
        "with torch.device('meta'): model = torch.nn.Linear(2, 2)\n"
        "find_recipes([], model); initial_values(model, ['weight'])\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_scales_of_fused_experts_go_where_the_weights_go() -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    config = tf.Qwen3MoeConfig(**{**EXPERTS, "moe_intermediate_size": 32}, num_experts=3, head_dim=8)
    config.quantization_config = tf.FineGrainedFP8Config(weight_block_size=(16, 16))
    quantiser = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
    with torch.device("meta"):
        model = tf.Qwen3MoeForCausalLM(config)
        quantiser.preprocess_model(model=model, device_map=None, dtype=torch.bfloat16)
    rows = [each for name, tensor in model.state_dict().items() for each in as_stored(name, tensor)]
    recipes = find_recipes(rows, model)
    assert (recipes.missing, recipes.unexpected, recipes.findings) == ((), (), ())
    for name, tensor in model.state_dict().items():
        recipe = recipes.by_name[name]
        assert (recipe.shape, recipe.dtype) == (tuple(tensor.shape), tensor.dtype)
    scales = recipes.by_name["model.layers.0.mlp.experts.gate_up_proj_scale_inv"]
    assert isinstance(scales, Pieces) and len(scales.pieces) == 6


def as_stored(name: str, tensor: torch.Tensor) -> Iterator[StoredTensor]:
    """A live tensor as Qwen's files have it: each expert's projections for themselves."""
    start, found, last = name.partition(".experts.")
    shape = tuple(tensor.shape)
    if not found:
        yield row(name, shape, tensor.dtype)
        return
    end = last.removeprefix("gate_up_proj").removeprefix("down_proj")
    is_gate = last.startswith("gate_up_proj")
    for expert in range(shape[0]):
        for part in ("gate_proj", "up_proj") if is_gate else ("down_proj",):
            rows = shape[1] // 2 if is_gate else shape[1]
            yield row(f"{start}.experts.{expert}.{part}.weight{end}", (rows, *shape[2:]), tensor.dtype)


# ---- Steps


def steps_of(steps: list[Any], *live: str) -> ClassSteps:
    return ClassSteps(steps, "model", {name: torch.empty(2) for name in live}, None)


def test_layers_that_differ_in_their_number_go_through_the_steps_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Counter[str]()
    original = WeightRenaming.rename_source_key

    def counted(self: WeightRenaming, name: str) -> tuple[str, str | None]:
        calls["steps"] += 1
        return original(self, name)

    monkeypatch.setattr(WeightRenaming, "rename_source_key", counted)
    names = [f"layers.{number}.{part}" for number in range(1000) for part in ("old.weight", "bias")]
    live = [name.replace("old", "new") for name in names]
    found = steps_of([WeightRenaming(".old.", ".new.")], *live).live_names(names)
    assert [found[name].name if name in found else name for name in names] == live
    assert calls["steps"] <= 10


@pytest.mark.parametrize(
    ("pattern", "goal"),
    [
        ("layers.0.old", "layers.0.new"),  # a step for one layer
        (r"layers\.(\d{1,2})\.old", r"first.\1.new"),  # and one for those with few digits
        (r"layers\.([0-4])\.old", r"few.\1.new"),
    ],
)
def test_steps_that_care_for_numbers_see_every_number(pattern: str, goal: str) -> None:
    names = [f"layers.{number}.old" for number in (*range(12), 100, 1000)]
    found = steps_of([WeightRenaming(pattern, goal)]).live_names(names)
    for name in names:
        assert found[name].name == WeightRenaming(pattern, goal).rename_source_key(name)[0]


def test_a_converter_may_take_a_name_that_is_live(tmp_path: Path) -> None:
    live = {"a.weight": torch.empty(3, 2, device="meta")}
    converter = WeightConverter("a.weight", "a.weight", [Transpose(0, 1)])
    steps = ClassSteps([converter], "", live, None)
    (name,) = steps.live_names(["a.weight"]).values()
    assert name.pattern is not None
    recipe = steps.recipes(name.name, [(name.pattern, row("a.weight", (2, 3)))])["a.weight"]
    assert isinstance(recipe, Computed)
    assert recipe.shape == (3, 2)


def test_names_with_zero_bytes_are_names_like_others() -> None:
    names = ["layers.1.weight", "layers.\0.weight", "model.\0\0.x"]
    found = steps_of([WeightRenaming("weight", "scale")], "layers.1.scale").live_names(names)
    assert [found[name].name for name in names] == ["layers.1.scale", "layers.\0.scale", "model.\0\0.x"]
