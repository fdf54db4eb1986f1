"""Skeletons are what `from_pretrained` makes, and what no file has gets the values that it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from saved_models import SAVED, empty, same_bits, saved, tensors_of
from stored_rows import rows_of
from torch import Tensor, nn

from planner.checkpoint.files import find_files
from planner.errors import CheckpointError
from planner.loading.initial import initial_values
from planner.loading.recipes import find_recipes
from planner.loading.skeleton import build_skeleton


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(saved(name).folder, folder / name))


def changed_json(path: Path, **changed: Any) -> None:
    """Writes a JSON file anew; None takes an entry away."""
    said = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def scratch_of(model: Any) -> list[str]:
    return [name for name, _ in model.named_non_persistent_buffers()]


@pytest.mark.parametrize("name", SAVED)
def test_a_skeleton_is_what_from_pretrained_fills(name: str) -> None:
    found = saved(name)
    skeleton: Any = build_skeleton(find_files(found.folder), rows_of(found.folder))
    assert type(skeleton) is type(found.model) and not skeleton.training
    shapes = {live: (tensor.shape, tensor.dtype) for live, tensor in tensors_of(skeleton)}
    assert shapes == {live: (tensor.shape, tensor.dtype) for live, tensor in tensors_of(found.model)}
    assert all(tensor.is_meta for tensor in skeleton.parameters())
    assert skeleton.config.to_dict() == found.model.config.to_dict()
    assert skeleton.name_or_path == found.model.name_or_path
    if found.model.can_generate():
        assert skeleton.generation_config.to_dict() == found.model.generation_config.to_dict()


@pytest.mark.parametrize("name", SAVED)
def test_buffers_that_no_file_has_are_made_by_the_class(name: str) -> None:
    found = saved(name)
    skeleton: Any = build_skeleton(find_files(found.folder))
    before = {live: id(tensor) for live, tensor in tensors_of(skeleton)}
    flags = [hasattr(tensor, "_is_hf_initialized") for _, tensor in tensors_of(skeleton)]
    names = scratch_of(skeleton)
    initial = initial_values(skeleton, names)
    wanted = dict(tensors_of(found.model))
    assert set(initial.values) == set(names) and initial.findings == ()
    for live, value in initial.values.items():
        assert same_bits(value, wanted[live]), live
    assert {live: id(tensor) for live, tensor in tensors_of(skeleton)} == before
    assert all(tensor.is_meta for _, tensor in tensors_of(skeleton))
    assert [hasattr(tensor, "_is_hf_initialized") for _, tensor in tensors_of(skeleton)] == flags


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "t5", "llava", "qwen2_vl", "gpt_oss", "bert"])
def test_missing_tensors_get_the_random_numbers_of_from_pretrained(tmp_path: Path, name: str) -> None:
    folder = copied(name, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for live in sorted(tensors)[::5]:
        del tensors[live]
    save_file(tensors, path, metadata={"format": "pt"})
    skeleton: Any = build_skeleton(find_files(folder), rows_of(folder))
    missing = find_recipes(rows_of(folder), skeleton).missing
    assert len(missing) > 4
    torch.manual_seed(7)
    wanted = dict(tensors_of(type(skeleton).from_pretrained(folder)))
    torch.manual_seed(7)
    initial = initial_values(skeleton, [*missing, *scratch_of(skeleton)])
    assert initial.findings == ()
    for live, value in initial.values.items():
        assert same_bits(value, wanted[live]), live
    assert set(missing) <= set(initial.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_the_configuration_or_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    model: Any = empty(saved("gemma").model).to_empty(device="cpu").to(dtype)
    model.save_pretrained(tmp_path)
    for said in (str(dtype).removeprefix("torch."), None):
        changed_json(tmp_path / "config.json", dtype=said)
        wanted = tf.Gemma3ForCausalLM.from_pretrained(tmp_path)
        skeleton: Any = build_skeleton(find_files(tmp_path), rows_of(tmp_path))
        assert {live: tensor.dtype for live, tensor in tensors_of(skeleton)} == {
            live: tensor.dtype for live, tensor in tensors_of(wanted)
        }
        assert skeleton.config.dtype == wanted.config.dtype == dtype
    wide = build_skeleton(find_files(tmp_path), rows_of(tmp_path), torch.float64)
    assert {tensor.dtype for tensor in wide.parameters()} == {torch.float64}


def test_settings_for_generating_come_from_their_file_or_from_the_configuration(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    changed_json(folder / "generation_config.json", max_new_tokens=7, do_sample=True, top_k=5)
    skeletons: list[Any] = [build_skeleton(find_files(folder))]
    wanted: list[Any] = [tf.LlamaForCausalLM.from_pretrained(folder)]
    assert skeletons[0].generation_config.max_new_tokens == 7
    (folder / "generation_config.json").unlink()
    changed_json(folder / "config.json", num_beams=3)
    skeletons.append(build_skeleton(find_files(folder)))
    wanted.append(tf.LlamaForCausalLM.from_pretrained(folder))
    for skeleton, model in zip(skeletons, wanted, strict=True):
        assert skeleton.generation_config.to_dict() == model.generation_config.to_dict()


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    model = tf.Mamba2Model(
        tf.Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, num_hidden_layers=1, vocab_size=8)
    )
    model.save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    skeleton: Any = build_skeleton(find_files(tmp_path))
    assert skeleton.config.to_dict() == tf.Mamba2Model.from_pretrained(tmp_path).config.to_dict()


@pytest.mark.parametrize("content", ["[1]", "{", '{"max_new_tokens": -5}'])
def test_settings_for_generating_that_are_none_are_named(tmp_path: Path, content: str) -> None:
    folder = copied("llama", tmp_path)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        build_skeleton(find_files(folder))
    assert caught.value.file.endswith("generation_config.json")


def test_a_configuration_that_names_no_model_says_what_to_do(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is missing.*model="):
        build_skeleton(find_files(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(CheckpointError, match=r"does not say what model.*model="):
        build_skeleton(find_files(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["NobodysModel"], "model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"no class NobodysModel; make .*model="):
        build_skeleton(find_files(tmp_path))


def test_a_quantised_model_is_left_to_its_quantiser(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    changed_json(
        folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [4, 4]}
    )
    with pytest.raises(CheckpointError, match=r"quantised by 'fp8'.*LlamaForCausalLM.from_pretrained"):
        build_skeleton(find_files(folder))


def test_no_code_of_the_checkpoint_is_run(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    (folder / "code.py").write_text("raise RuntimeError('run')")
    changed_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.LlamaForCausalLM"})
    assert type(build_skeleton(find_files(folder))) is tf.LlamaForCausalLM


# ---- Modules of nobody's


class Scaled(nn.Module):
    """A weight and a buffer that no file has, and no code that makes them anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("steps", torch.arange(3), persistent=False)


class Resettable(Scaled):
    """The same with torch's convention, which nothing is said of children by."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 3.0)
        self.steps = torch.arange(3)
        self.register_buffer("steps", torch.arange(3), persistent=False)


def test_other_modules_are_made_by_torchs_convention() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Linear(2, 3), nn.BatchNorm1d(3), nn.MultiheadAttention(4, 2), Resettable(), nn.LSTM(2, 2)
        )
    torch.manual_seed(3)
    names = [name for name, _ in tensors_of(model)]
    initial = initial_values(model, names)
    assert initial.findings == ()
    torch.manual_seed(3)
    attention = nn.MultiheadAttention(4, 2)
    assert same_bits(initial.values["3.scale"], torch.full((2,), 3.0))
    assert same_bits(initial.values["3.steps"], torch.arange(3))
    assert same_bits(initial.values["1.running_var"], torch.ones(3))
    assert same_bits(initial.values["1.num_batches_tracked"], torch.tensor(0))
    assert same_bits(initial.values["2.out_proj.bias"], attention.out_proj.bias)
    assert bool((initial.values["4.weight_hh_l0"].abs() <= 1).all())
    assert all(tensor.is_meta for _, tensor in tensors_of(model))


def test_linear_layers_draw_what_they_draw_when_they_are_built() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 2))
    torch.manual_seed(3)
    wanted = nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 2))
    torch.manual_seed(3)
    initial = initial_values(model, [name for name, _ in wanted.named_parameters()])
    assert all(same_bits(initial.values[name], tensor) for name, tensor in wanted.named_parameters())


def test_what_nobody_makes_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Scaled(), nn.Linear(2, 2))
    initial = initial_values(model, ["0.scale", "0.steps", "1.weight"])
    assert set(initial.values) == {"1.weight"}
    assert ["'0.scale'" in initial.findings[0], "'0.steps'" in initial.findings[1]] == [True, True]
    assert all("Scaled" in finding for finding in initial.findings)


def test_a_buffer_that_a_class_of_transformers_does_not_make_is_named() -> None:
    skeleton = empty(saved("llama").model)
    skeleton.model.register_buffer("extra", torch.zeros(2, device="meta"), persistent=False)
    initial = initial_values(skeleton, ["model.extra", "model.rotary_emb.inv_freq"])
    assert set(initial.values) == {"model.rotary_emb.inv_freq"}
    assert "'model.extra'" in initial.findings[0]


def test_code_that_fails_is_a_finding_with_its_reason() -> None:
    skeleton: Any = build_skeleton(find_files(saved("wav2vec2").folder))
    half = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"  # is made together with its other half only
    initial = initial_values(skeleton, [half])
    assert half in initial.findings[0] and "weight_norm" in initial.findings[0]
    # Of both, `from_pretrained` leaves what was in memory before: its class writes into a product of theirs.
    both = [half, half.replace("original0", "original1")]
    assert [
        name in finding for name, finding in zip(both, initial_values(skeleton, both).findings, strict=True)
    ] == [True] * 2


def test_values_that_the_model_has_stay_as_they_are() -> None:
    model: Any = saved("gpt2").model
    before = {name: tensor.clone() for name, tensor in tensors_of(model)}
    torch.manual_seed(0)
    initial = initial_values(model, ["transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight"])
    assert not same_bits(initial.values["transformer.wte.weight"], before["transformer.wte.weight"])
    assert all(same_bits(tensor, before[name]) for name, tensor in tensors_of(model))


def test_a_model_of_transformers_inside_another() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inside: Any) -> None:
            super().__init__()
            self.inside = inside
            self.head = nn.Linear(32, 2)

    with torch.device("meta"):
        wrapper = Wrapper(type(saved("llama").model)(saved("llama").model.config))
    wanted: dict[str, Tensor] = {f"inside.{name}": each for name, each in tensors_of(saved("llama").model)}
    initial = initial_values(wrapper, ["inside.model.rotary_emb.inv_freq", "head.weight"])
    assert initial.findings == ()
    assert same_bits(
        initial.values["inside.model.rotary_emb.inv_freq"], wanted["inside.model.rotary_emb.inv_freq"]
    )
    assert initial.values["head.weight"].shape == (2, 32)


def test_buffers_are_made_on_the_cpu_whatever_device_is_the_default() -> None:
    skeleton = empty(saved("llama").model)
    with torch.device("meta"):
        initial = initial_values(skeleton, ["model.rotary_emb.inv_freq"])
    assert initial.values["model.rotary_emb.inv_freq"].device.type == "cpu"
