"""Globs in pin, forbid and keep_together, from every door, on models of real shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import planner
from planner import InvalidConstraintError
from planner.checker.check import check, is_valid
from planner.config import Stack
from planner.model.globs import matched_names
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.names import device_of
from planner.settings.schema import Settings

LAYERS = 3


@pytest.fixture(scope="module")
def mixtral() -> nn.Module:
    """Experts in one tensor, as transformers 5 has them."""
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=4,
    )
    with torch.device("meta"):
        return MixtralForCausalLM(config)


def room(model: nn.Module) -> dict[int | str, int]:
    total_bytes = sum(tensor.nbytes for tensor in model.parameters())
    return {0: total_bytes, 1: total_bytes, "cpu": 2 * total_bytes}


@pytest.mark.parametrize("granularity", ["block", "expert", "module"])
@pytest.mark.parametrize("execute_offloaded", ["accelerator", "cpu"])
def test_all_experts_on_the_cpu_in_one_word(
    mixtral: nn.Module, granularity: str, execute_offloaded: str
) -> None:
    """llama.cpp's --cpu-moe: attention, router, norms and ends stay on the accelerator."""
    plan = planner.plan(
        mixtral,
        max_memory=room(mixtral),
        pin={"*.experts": "cpu"},
        granularity=granularity,  # type: ignore[arg-type]
        execute_offloaded=execute_offloaded,  # type: ignore[arg-type]
    )
    assert is_valid(check(mixtral, plan.device_map, max_memory=room(mixtral)))
    experts_bytes = 0
    for name, tensor in mixtral.named_parameters():
        is_expert = ".experts." in name
        home = device_of(name, plan.device_map)
        assert (home == "cpu") == is_expert, (name, home)
        runs = device_of(name, {**plan.device_map, **plan.execution_map})
        assert (runs == "cpu") == (is_expert and execute_offloaded == "cpu"), (name, runs)
        experts_bytes += tensor.nbytes * is_expert
    assert plan.offloaded_bytes == {"cpu": experts_bytes, "disk": 0}
    assert plan.certificate.proven


def test_numbered_experts_are_matched_as_a_whole_or_one_by_one() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    model = nn.Sequential(Layer(), Layer())
    settings = {"max_memory": {0: 10**6, "cpu": 10**6}, "no_split_module_classes": ["Layer"]}
    whole = planner.plan(model, pin={"*.experts": "cpu"}, **settings)  # type: ignore[arg-type]
    assert whole.source.blocks == 4 and whole.device_map["0.experts"] == "cpu"
    some = planner.plan(model, pin={"*.experts.[23]": "cpu"}, **settings)  # type: ignore[arg-type]
    assert some.source.blocks == 6
    homes = {name: device_of(f"1.experts.{name}", some.device_map) for name in "0123"}
    assert homes == {"0": 0, "1": 0, "2": "cpu", "3": "cpu"}


def test_the_nearest_name_is_heard_and_a_written_one_before_a_glob(mixtral: nn.Module) -> None:
    pins: dict[str, int | str] = {
        "model.layers.*": 0,
        "*.experts": "cpu",
        "model.layers.1": 1,
        "model.layers.2.mlp.experts": 1,
    }
    for order in (list(pins), list(reversed(pins))):
        plan = planner.plan(mixtral, max_memory=room(mixtral), pin={name: pins[name] for name in order})
        homes = [
            (
                device_of(f"model.layers.{n}.self_attn", plan.device_map),
                device_of(f"model.layers.{n}.mlp.experts", plan.device_map),
            )
            for n in range(LAYERS)
        ]
        assert homes == [(0, "cpu"), (1, "cpu"), (0, 1)]


def test_globs_that_disagree_about_one_name_are_an_error(mixtral: nn.Module) -> None:
    with pytest.raises(InvalidConstraintError, match="may lie nowhere") as raised:
        planner.plan(mixtral, max_memory=room(mixtral), pin={"*.experts": "cpu", "*.mlp.exp*": 0})
    assert raised.value.names == ("pin *.experts = cpu", "pin *.mlp.exp* = 0")


def test_a_pin_and_what_is_forbidden_must_agree(mixtral: nn.Module) -> None:
    with pytest.raises(InvalidConstraintError, match=r"forbid model\.layers\.\* = cpu"):
        planner.plan(
            mixtral, max_memory=room(mixtral), pin={"*.experts": "cpu"}, forbid={"model.layers.*": ["cpu"]}
        )


@pytest.mark.parametrize(
    ("setting", "glob", "nearest"),
    [
        ("pin", "*.expert", "*.experts"),
        ("pin", "model.layer.*", "model.layers.*"),
        ("forbid", "lm_heda*", "lm_head"),
        ("keep_together", "*.self_atn.?_proj", "*.self_attn.?_proj"),
    ],
)
def test_a_glob_that_matches_nothing_names_the_nearest(
    mixtral: nn.Module, setting: str, glob: str, nearest: str
) -> None:
    said = {"pin": {glob: 0}, "forbid": {glob: [0]}, "keep_together": [[glob]]}[setting]
    with pytest.raises(InvalidConstraintError, match="names nothing in the model") as raised:
        planner.plan(mixtral, max_memory=room(mixtral), **{setting: said})  # type: ignore[arg-type]
    assert (raised.value.names, raised.value.suggestions) == ((glob,), (nearest,))


def test_a_name_of_the_model_is_no_glob() -> None:
    model = nn.Module()
    model.add_module("a[0]", nn.Linear(2, 2))
    model.add_module("a0", nn.Linear(2, 2))
    layout = Layout(ModuleTree.from_module(model))
    assert matched_names(layout, "pin", ["a[0]"]) == {"a[0]": ("a[0]",)}
    assert matched_names(layout, "pin", ["a[01]"]) == {"a[01]": ("a0",)}


def test_what_is_registered_twice_follows_its_original() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.Linear(2, 2), nn.Module()
            self.mlp.experts, self.mlp.gate = nn.Linear(2, 2), nn.Linear(2, 2)
            self.feed_forward = self.mlp

    model = nn.Sequential(Layer(), Layer())
    budgets: dict[int | str, int] = {0: 10**6, "cpu": 10**6}
    plan = planner.plan(
        model, max_memory=budgets, no_split_module_classes=["Layer"], pin={"*.experts": "cpu"}
    )
    assert is_valid(check(model, plan.device_map, max_memory=budgets))
    for way in ("mlp", "feed_forward"):
        assert device_of(f"0.{way}.experts", plan.device_map) == "cpu"
        assert device_of(f"0.{way}.gate", plan.device_map) == 0


def test_modules_that_are_to_stay_whole_go_with_what_is_matched_inside(mixtral: nn.Module) -> None:
    plan = planner.plan(
        mixtral,
        max_memory=room(mixtral),
        pin={"*.experts": "cpu"},
        no_split_modules=["model.layers.1"],
    )
    assert plan.device_map["model.layers.1"] == "cpu"
    assert device_of("model.layers.0.self_attn", plan.device_map) == 0


def test_globs_from_files_variables_and_options(tmp_path: Path) -> None:
    file = tmp_path / "planner.yaml"
    file.write_text(
        "pin:\n  '*.experts': cpu\nforbid:\n  model.layers.[01]: [1]\nkeep_together: [['*.gate']]\n"
    )
    stack = (
        Stack.of(Settings, str(file))
        .environment({"PLANNER_PIN__model.layers.*": "0"})
        .option("pin.*.norm", "1", "--pin *.norm=1")
    )
    chosen = stack.resolve().config
    assert dict(chosen.pin) == {"*.experts": "cpu", "model.layers.*": 0, "*.norm": 1}
    assert dict(chosen.forbid) == {"model.layers.[01]": (1,)}
    assert chosen.keep_together == (("*.gate",),)
