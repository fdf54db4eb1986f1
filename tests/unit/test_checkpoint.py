"""Plans from files on disk: which files, what is read of them, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.checkpoint_files import write_tensors

import planner
from planner.checkpoint import building, known


def test_numbered_blocks_go_by_value_and_heads_last(tmp_path: Path) -> None:
    names = ["lm_head.weight", *(f"model.layers.{n}.w" for n in (10, 2, 1)), "model.embed_tokens.weight"]
    write_tensors(tmp_path / "model.safetensors", {name: ("F16", [10], 20) for name in names})
    plan = planner.plan(
        tmp_path, max_memory={0: 40, 1: 40, 2: 40}, strategy={"type": "auto", "fill": "in_order"}
    )
    assert plan.source.kind == "checkpoint"
    assert plan.source.total_bytes == 100
    assert list(plan.device_map.items()) == [
        ("model.embed_tokens", 0),
        ("model.layers.1", 0),
        ("model.layers.2", 1),
        ("model.layers.10", 1),
        ("lm_head", 2),
    ]


def folder_of(place: Path, config: dict[str, object]) -> Path:
    """Two blocks of something that says this of itself."""
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)]
    write_tensors(place / "model.safetensors", {name: ("F16", [10], 20) for name in names})
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (known, building):
        monkeypatch.setattr(module, "has_transformers", lambda: False)


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_the_table_is_enough(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"architectures": ["LlamaForCausalLM"]})
    plan = planner.plan(folder, max_memory={0: 40}, no_split_module_classes=["LlamaDecoderLayer"])
    assert plan.source.total_bytes == 40
    assert plan.source.notes == (), "nobody has to do anything about rotary buffers that no file holds"


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_what_the_table_lacks_is_planned_as_stored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"architectures": ["LlamaForTokenClassification"]})
    plan = planner.plan(folder, max_memory={0: 20, 1: 20})
    assert dict(plan.device_map) == {"model.layers.0": 0, "model.layers.1": 1}
    assert "not in the table, and transformers is not installed" in plan.source.notes[0]


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_other_parts_are_told(tmp_path: Path) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "mistral"}}
    plan = planner.plan(folder_of(tmp_path, config), max_memory={0: 100})
    assert "text_config of type llama instead of mistral" in plan.source.notes[0]


@pytest.mark.usefixtures("without_transformers")
def test_a_configuration_alone_needs_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(planner.CheckpointError, match="need transformers and torch"):
        planner.plan(tmp_path, max_memory={0: 100})


def test_a_class_that_refuses_its_configuration_is_told(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(planner.CheckpointError, match="refuses the configuration"):
        planner.plan(tmp_path, max_memory={0: 100})


@pytest.mark.parametrize("said", [{"num_hidden_layers": 10**30}, {"text_config": {"num_experts": 10**9}}])
def test_a_configuration_of_endless_layers_is_refused(said: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **said}))
    with pytest.raises(planner.CheckpointError, match="at most 16384 are built"):
        planner.plan(tmp_path, max_memory={"cpu": "1GiB"})


def test_many_budgets_are_planned_from_one_reading(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"architectures": ["LlamaForCausalLM"]})
    plans = planner.plan_many(folder, [{0: 40}, {0: 20, 1: 20}])
    assert [len(set(plan.device_map.values())) for plan in plans if isinstance(plan, planner.Plan)] == [1, 2]


def test_a_checkpoint_is_no_company_for_a_path(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    with pytest.raises(planner.InvalidInputError, match="needs a live model"):
        planner.plan(folder, checkpoint=folder, max_memory={0: 40})


def test_facts_of_the_configuration_are_in_the_settings(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
    plan = planner.plan(folder_of(tmp_path, config), max_memory={0: 40})
    assert plan.settings["model.num_hidden_layers"].value == 2
    assert "config.json" in plan.provenance["model.num_hidden_layers"]


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x.w": ("F32", [1], 4)})
    index = {"weight_map": {"x.w": "a.safetensors", "y.w": "b.safetensors", "z.w": "c.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        planner.CheckpointError, match=r"2 of 3 files are missing: b.safetensors, c.safetensors"
    ):
        planner.plan(tmp_path, max_memory={0: 100})


@pytest.mark.parametrize(("count", "total_bytes"), [(61, 40), (62, 60)])
def test_layers_behind_the_last_one_are_not_loaded(tmp_path: Path, count: int, total_bytes: int) -> None:
    """They predict more tokens; DeepSeek's files have them under the number of layers."""
    layers = [f"model.layers.{n}.self_attn.o_proj.weight" for n in (60, 61)]
    names = ["model.embed_tokens.weight", *layers]
    write_tensors(tmp_path / "model.safetensors", {name: ("F16", [10], 20) for name in names})
    config = {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": count}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = planner.plan(tmp_path, max_memory={0: 100})
    assert plan.source.total_bytes == total_bytes
