"""What the public functions promise to a type checker. Checked by mypy, never executed."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import assert_type

import torch
from torch import nn

import planner
from planner.checker.check import is_valid
from planner.compat import transformers
from planner.model.tree import ModuleTree
from planner.plans.parts import DeviceUsage, Reason
from planner.strategies.sequential import Layout, Outcome, sequential, sequential_many


def drop_in(model: nn.Module) -> None:
    assert_type(planner.infer_auto_device_map(model), OrderedDict[str, int | str])
    assert_type(
        planner.infer_auto_device_map(
            model,
            max_memory={0: "10GiB", "cuda:1": 5, torch.device("cpu"): 1.5},
            no_split_module_classes=["Block"],
            dtype=torch.float16,
            special_dtypes={"lm_head.weight": "float32"},
            verbose=True,
            clean_result=False,
            offload_buffers=True,
            fallback_allocation=True,
            reserve="if_offloaded",
        ),
        OrderedDict[str, int | str],
    )
    assert_type(planner.get_max_memory(), dict[int | str, int | float])
    assert_type(planner.get_balanced_memory(model, {0: 10}, low_zero=True), dict[int | str, int | float])
    assert_type(planner.compute_module_sizes(model, dtype="bfloat16"), dict[str, int | float])
    assert_type(planner.named_module_tensors(model), Iterator[tuple[str, torch.Tensor]])
    assert_type(planner.convert_file_size_to_int("10GiB"), int)
    assert_type(planner.dtype_byte_size(torch.float32), int | float)
    planner.infer_auto_device_map(model, reserve="sometimes")  # type: ignore[arg-type]


def checker(model: nn.Module) -> None:
    findings = planner.check(model, {"": 0}, {0: "1GiB"}, no_split_module_classes={"Block"})
    assert_type(findings, tuple[planner.Finding, ...])
    assert_type(is_valid(findings), bool)


def transformers_dialect(model: nn.Module) -> None:
    assert_type(
        transformers.infer_auto_device_map(model, {0: 10}, no_split_module_classes={"Block"}),
        OrderedDict[str, int | str],
    )


def steps(model: nn.Module) -> None:
    tree = ModuleTree.from_module(model)
    assert_type(tree, ModuleTree)
    layout = Layout(tree, no_split=("Block",), dtype="int8")
    outcome = sequential(layout, {0: 10, "cpu": 20}, fallback_allocation=True, reserve="always")
    assert_type(outcome, Outcome)
    assert_type(outcome.device_map(clean=False), dict[str, int | str])
    assert_type(outcome.usage, tuple[DeviceUsage, ...])
    assert_type(outcome.reasons, tuple[Reason, ...])
    assert_type(sequential_many(layout, [{0: 10}, {0: 20}]), list[Outcome])


def plans(model: nn.Module, budgets: dict[int, int], row: dict[str, str]) -> None:
    assert_type(planner.plan(model), planner.Plan)
    planner.plan(
        model, max_memory=budgets, headroom={"all": "5%"}, dtype=torch.float16, pin={"a": torch.device("cpu")}
    )
    planner.plan(model, max_memory=row, strategy={"type": "auto", "fill": "even"}, model={"hidden_size": 8})
    planner.plan(
        "folder", strategy="balanced", no_split_modules=["a"], forbid={"a": [0, "cpu"]}, offload_buffers=True
    )
    found = planner.plan_many(model, [budgets, budgets], mode="no_disk", config={"mode": "any"})
    assert_type(found, list[planner.Plan | planner.InfeasibleError])
    planner.plan(model, max_memroy=budgets)  # type: ignore[call-arg]
    planner.plan(model, mode="cpu_only")  # type: ignore[arg-type]
    planner.plan(model, strategy={"search_step": 3})  # type: ignore[arg-type]
    planner.plan(model, staging_blocks="two")  # type: ignore[arg-type]
    planner.plan_many(model, [budgets], granularity="layer")  # type: ignore[arg-type]
    planner.does_not_exist()  # type: ignore[attr-defined]


def errors(error: planner.PlannerError) -> None:
    if isinstance(error, planner.InfeasibleError):
        assert_type(error.shortfall_bytes, int | None)
        assert_type(error.block, str)
        assert_type(error.more_bytes, Mapping[int | str, int] | None)
        assert_type(error.is_proven, bool | None)
    if isinstance(error, planner.InvalidInputError):
        as_value_error(error)


def as_value_error(error: ValueError) -> None: ...
