"""Each setting that a plan reads decides something: change it alone, and see the plan or the refusal change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import planner
from planner import Plan
from planner.config.types import Classes, schema_of
from planner.errors import PlannerError
from planner.settings.schema import Settings


class Block(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        for index, size in enumerate(sizes):
            self.add_module(f"part{index}", leaf(size))


def leaf(size_bytes: int) -> nn.Module:
    module = nn.Module()
    values = torch.empty(size_bytes // 4, dtype=torch.float32, device="meta")
    module.w = nn.Parameter(values, requires_grad=False)
    return module


def model() -> nn.Module:
    """embed 40; four blocks of 48 + 32; head 120."""
    root = nn.Module()
    root.embed = leaf(40)
    root.layers = nn.ModuleList(Block(48, 32) for _ in range(4))
    root.head = leaf(120)
    return root


def leaves_of(*sizes: int) -> nn.Module:
    root = nn.Module()
    for index, size in enumerate(sizes):
        root.add_module(f"m{index}", leaf(size))
    return root


def experts() -> nn.Module:
    """Two blocks of a router and four experts of 40."""
    root = nn.Module()
    root.layers = nn.ModuleList(nn.Module() for _ in range(2))
    for layer in root.layers:
        layer.router = leaf(8)
        layer.experts = nn.ModuleList(leaf(40) for _ in range(4))
    return root


@dataclass(frozen=True)
class Change:
    """One setting changed in a situation where it matters."""

    path: str
    value: Any
    base: dict[str, Any] = field(default_factory=dict)
    model: Any = model

    def __str__(self) -> str:
        return f"{self.path}={self.value}"


BOTH = {0: 240, 1: 320}
TIGHT = {0: 200, "cpu": 1000}
NARROW = {0: 36, 1: 16, "cpu": 1000}
WIDE = {0: 48, 1: 44, "cpu": 1000}
MIXED = {0: 36, 1: 56, "cpu": 1000}
# Of distinct sizes, and nearly as large as three devices: to pack them is work.
TWELVE = [428, 252, 60, 172, 300, 288, 244, 440, 464, 192, 284, 220]

CHANGES = [
    Change("strategy.type", "sequential", {"max_memory": BOTH}),
    Change("strategy.type", "balanced", {"max_memory": {0: 400, 1: 400}}),
    Change("strategy.type", "balanced_low_0", {"max_memory": {0: 500, 1: 500, 2: 500}}),
    Change("strategy.auto.fill", "fewest", {"max_memory": {0: 500, 1: 500}}),
    Change("strategy.auto.fill", "in_order", {"max_memory": {0: 400, 1: 400}}),
    Change(
        "strategy.auto.search_steps",
        1,
        {"max_memory": {0: 1116, 1: 1116, 2: 1116}},
        lambda: leaves_of(*TWELVE),
    ),
    Change(
        "strategy.sequential.fallback_allocation", True, {"max_memory": NARROW}, lambda: leaves_of(20, 8, 28)
    ),
    Change(
        "strategy.sequential.reserve", "if_offloaded", {"max_memory": WIDE}, lambda: leaves_of(12, 24, 32)
    ),
    Change(
        "strategy.balanced.fallback_allocation", True, {"max_memory": NARROW}, lambda: leaves_of(20, 8, 28)
    ),
    Change("strategy.balanced.reserve", "if_offloaded", {"max_memory": MIXED}, lambda: leaves_of(8, 20, 8)),
    Change(
        "strategy.balanced_low_0.fallback_allocation",
        True,
        {"max_memory": {0: 64, 1: 56, "cpu": 1000}},
        lambda: leaves_of(28, 4, 20, 32, 28),
    ),
    Change(
        "strategy.balanced_low_0.reserve", "if_offloaded", {"max_memory": MIXED}, lambda: leaves_of(8, 20, 8)
    ),
    Change("max_memory", {0: 320, 1: 240}, {"max_memory": BOTH}),
    Change("max_memory", {0: 600, "cpu": 600}, {"max_memory": BOTH}),
    Change("headroom", {1: 60}, {"max_memory": {0: 400, 1: 400}}),
    Change("headroom", {0: "50%"}, {"max_memory": {0: 400, 1: 400}}),
    Change("mode", "gpu_only", {"max_memory": TIGHT}),
    Change("mode", "no_disk", {"max_memory": {0: 200, "cpu": 100, "disk": 1000}}),
    Change("dtype", "float16", {"max_memory": TIGHT}),
    Change("special_dtypes", {"head.w": "float16"}, {"max_memory": TIGHT}),
    Change("no_split_module_classes", ("ModuleList",), {"max_memory": {0: 400, 1: 400}}),
    Change("no_split_modules", ("layers",), {"max_memory": {0: 400, 1: 400}}),
    Change("granularity", "module", {"max_memory": {0: 300, "cpu": 1000}}),
    Change("granularity", "expert", {"max_memory": {0: 200, 1: 200}}, experts),
    Change("pin", {"head": 0}, {"max_memory": {0: 400, 1: 400}}),
    Change("forbid", {"head": (1,)}, {"max_memory": {0: 400, 1: 400}}),
    Change("keep_together", (("embed", "head"),), {"max_memory": {0: 400, 1: 400}}),
    Change("execute_offloaded", "cpu", {"max_memory": TIGHT}),
    Change("staging_blocks", 2, {"max_memory": {0: 320, "cpu": 1000}}),
]

RUNNING = {
    "context_length": 512,
    "batch_size": 2,
    "prompt_length": 4,
    "num_beams": 2,
    "encoder_length": 64,
    "cache": "static",
    "cache_dtype": "float64",
    "logits": "all",
    "attention_kernel": "math",
    "is_padded": True,
    "allocator_margin": "50%",
}
"""Each changes what a plan of T5 says of running it; tested below."""
DESCRIBED = ("workload.inputs",)  # what only a recording reads

BY_TIME: tuple[tuple[str, Any], ...] = (
    *((f"strategy.{kind}.{name}", value) for kind in ("latency", "throughput", "pipeline")
      for name, value in (("tokens", 64), ("order", "any"), ("search_steps", 0), ("long_steps", "host"))),
    ("strategy.latency.parts", False),
    ("strategy.pipeline.microbatches", 9),
    ("machine", "slower"),
    ("engine", "vllm"),
    ("strategy.throughput.maximise", "cache"),
)  # fmt: skip
"""Each changes what a plan by time says; tested in test_plans_by_time.py, test_long_steps.py, test_engines.py and test_most_cache.py."""
DETECTED = ("offload_folder",)  # tested below, for it means nothing where budgets are named
DISPATCHED = ("offload_buffers",)  # tested with dispatch, which reads it of a plan
RECORDED = {
    "model.model_type": "mixtral",
    "model.dtype": "bfloat16",
    "model.num_hidden_layers": 4,
    "model.hidden_size": 64,
    "model.num_attention_heads": 8,
    "model.num_key_value_heads": 2,
    "model.head_dim": 24,
    "model.max_position_embeddings": 128,
    "model.num_experts": 8,
    "model.num_experts_per_tok": 2,
    "model.quant_method": "awq",
}
"""Facts for the estimate of run-time memory, which will read each of them; until then they are in the plan."""


def leaf_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Each leaf of a schema; below a union, the leaves of each of its classes stand under the tag."""
    for name, declared in schema_of(cls).fields.items():
        tree = declared.type.tree
        if not isinstance(tree, Classes):
            yield f"{prefix}{name}"
            continue
        if tree.tags:
            yield f"{prefix}{name}.type"
        for tag, member in tree.members.items():
            yield from leaf_paths(member, f"{prefix}{name}." + (f"{tag}." if tag else ""))


def test_every_setting_of_the_schema_is_tested_here() -> None:
    tested = {change.path for change in CHANGES} | {*RECORDED, *DETECTED, *DISPATCHED, *DESCRIBED}
    tested |= {f"workload.{name}" for name in RUNNING} | {path for path, _ in BY_TIME}
    assert tested == set(leaf_paths(Settings))


def settings_with(change: Change) -> dict[str, Any]:
    parts = change.path.split(".")
    if parts[0] != "strategy":
        return {**change.base, change.path: change.value}
    value = change.value if parts[1] == "type" else {"type": parts[1], parts[2]: change.value}
    return {**change.base, "strategy": value}


def settings_without(change: Change) -> dict[str, Any]:
    parts = change.path.split(".")
    return {**change.base, "strategy": parts[1]} if len(parts) == 3 else change.base


def effect(built: nn.Module, settings: dict[str, Any]) -> tuple[object, ...]:
    """What was decided, without the settings that are written beside it."""
    try:
        plan = planner.plan(built, **settings)
    except PlannerError as error:
        return type(error).__name__, error.message
    devices = [(d.id, d.budget_bytes, d.headroom_bytes, d.used_bytes, d.reserved_bytes) for d in plan.devices]
    return (
        list(plan.device_map.items()),
        list(plan.execution_map.items()),
        devices,
        plan.source,
        plan.certificate.proven,
    )


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_changing_one_setting_changes_what_is_decided(change: Change) -> None:
    before = effect(change.model(), settings_without(change))
    after = effect(change.model(), settings_with(change))
    assert before != after
    assert "InvalidConfigError" not in (before[0], after[0])
    assert before == effect(change.model(), settings_without(change)), "the comparison itself is stable"


@pytest.mark.parametrize("name", RUNNING)
def test_changing_one_word_of_a_workload_changes_what_running_takes(name: str) -> None:
    base = {"context_length": 32, "allocator_margin": 0}
    sizes = {"vocab_size": 4096, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model: nn.Module = T5ForConditionalGeneration(T5Config(**sizes))
    if name == "attention_kernel":  # T5 has none but its own
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        )
    plans = [
        planner.plan(model, max_memory={0: 1 << 27}, workload={**base, **more})
        for more in ({}, {name: RUNNING[name]})
    ]
    rows = [
        [(each.cache_bytes, each.activation_bytes, each.margin_bytes) for each in plan.devices]
        for plan in plans
    ]
    assert rows[0] != rows[1]


def test_an_offload_folder_makes_disk_a_device(tmp_path: Path) -> None:
    without = planner.plan(model())
    with_folder = planner.plan(model(), offload_folder=tmp_path)
    assert "disk" not in [device.id for device in without.devices]
    disk = next(device for device in with_folder.devices if device.id == "disk")
    assert disk.budget_bytes > 0
    assert str(tmp_path) in disk.origin


@pytest.mark.parametrize("path", RECORDED)
def test_what_decides_no_map_is_recorded_as_the_user_said_it(path: str) -> None:
    value = RECORDED[path]
    *outer, name = path.split(".")
    said = {outer[0]: {name: value}} if outer else {name: value}
    plan = planner.plan(model(), max_memory={0: 1000}, config=said)
    assert (plan.settings[path].value, plan.settings[path].rank) == (value, "user")
    silent = planner.plan(model(), max_memory={0: 1000})
    assert silent.settings[path].rank in ("default", "computed")
    assert plan != silent


class StatedConfig:
    """A live `model.config` as transformers has it."""

    model_type = "llama"

    def to_dict(self) -> dict[str, object]:
        """As it would be written to config.json."""
        return {
            "model_type": "mixtral",
            "dtype": "bfloat16",
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "max_position_embeddings": 128,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "quantization_config": {"quant_method": "awq"},
        }


def with_config() -> nn.Module:
    root = model()
    root.config = StatedConfig()
    return root


@pytest.mark.parametrize("path", [path for path in RECORDED if path.startswith("model.")])
def test_what_a_live_model_says_of_itself_is_recorded_as_imported(path: str) -> None:
    plan = planner.plan(with_config(), max_memory={0: 1000})
    assert (plan.settings[path].value, plan.settings[path].rank) == (RECORDED[path], "imported")


def test_what_the_user_says_of_a_model_wins_over_the_import() -> None:
    plan = planner.plan(with_config(), max_memory={0: 1000}, model={"hidden_size": 128})
    assert (plan.settings["model.hidden_size"].value, plan.settings["model.hidden_size"].rank) == (
        128,
        "user",
    )
    assert plan.settings["model.num_hidden_layers"].rank == "imported"


def test_every_setting_that_is_one_value_stands_in_the_plan() -> None:
    """Also those that nobody said, with their default."""
    plan = planner.plan(model(), max_memory={0: 1000})
    mappings = {"max_memory", "special_dtypes", "pin", "forbid"}
    chosen = {path.replace("strategy.auto.", "strategy.") for path in leaf_paths(Settings)}
    expected = {
        path for path in chosen if path.count(".") < 2 and not path.startswith("workload.")
    } - mappings
    assert expected <= set(plan.settings)
    assert plan.settings["max_memory.0"].value == 1000
    assert plan.settings["strategy.type"].value == "auto"


def test_a_plan_of_settings_is_the_plan_of_the_same_settings_from_a_mapping() -> None:
    said = {"max_memory": {0: 400, 1: 400}, "pin": {"head": 0}, "strategy": {"fill": "fewest"}}
    by_keyword: Plan = planner.plan(model(), **said)
    by_config: Plan = planner.plan(model(), config=said)
    assert by_keyword.device_map == by_config.device_map
    assert by_keyword.settings == by_config.settings


def test_keywords_win_over_the_config() -> None:
    plan = planner.plan(model(), config={"max_memory": {0: 1000}, "mode": "gpu_only"}, mode="no_disk")
    assert plan.settings["mode"].value == "no_disk"
