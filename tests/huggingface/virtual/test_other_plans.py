"""Plans given to what runs inside of `planner.integrate()`: one with more on disk than a loaded model has there, and such as run what
is offloaded on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import planner
from planner.errors import PlanMismatchError
from planner.plans.device_map import DeviceMap
from stored_models import reference
from tiny_models import mapped

IDS = torch.arange(3, 13)[None]
MORE_ON_DISK = DeviceMap(mapped("llama", (0, "disk", "disk", 1)), {"model.layers.1": 0, "model.layers.2": 0})


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return logits


@pytest.fixture
def changed(folder: Path, here: planner.Integration) -> Any:
    """One layer on disk; a weight that is in memory has other values than its file."""
    model = LlamaForCausalLM.from_pretrained(folder, device_map=mapped("llama", (0, "disk", 1, 1)))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(2)
    return model


def test_what_would_have_to_be_written_is_named_and_nothing_else(changed: Any) -> None:
    before = answer(changed)
    with pytest.raises(PlanMismatchError, match=r"puts 'model\.layers\.2' on disk") as raised:
        planner.dispatch(changed, MORE_ON_DISK)
    assert raised.value.findings == ("model.layers.2",)
    assert answer(changed).equal(before), "it is as it was"


def test_values_in_memory_are_written_by_what_the_refusal_names(changed: Any, tmp_path: Path) -> None:
    before = answer(changed)
    with pytest.raises(
        PlanMismatchError, match=r"planner\.dispatch_model\(model, plan\.device_map, offload_dir"
    ):
        planner.dispatch(changed, MORE_ON_DISK)
    planner.dispatch_model(changed, MORE_ON_DISK, offload_dir=tmp_path)
    assert changed.model.layers[2].mlp.down_proj.weight.is_meta
    assert answer(changed).equal(before)


def test_values_of_the_files_are_taken_by_what_the_refusal_names(changed: Any, folder: Path) -> None:
    with pytest.raises(PlanMismatchError, match=r"planner\.load\(folder, model, plan\)"):
        planner.dispatch(changed, MORE_ON_DISK)
    planner.load(folder, changed, MORE_ON_DISK)
    assert changed.model.layers[2].mlp.down_proj.weight.is_meta
    assert answer(changed).equal(answer(reference(folder).to(0)))


@pytest.mark.parametrize("given", ["plan", "map"])
@pytest.mark.parametrize("home", ["cpu", "disk"])
def test_offloaded_blocks_run_on_the_cpu_where_the_plan_has_them_there(
    home: str, given: str, folder: Path, here: planner.Integration
) -> None:
    """What lies and runs on the CPU is in no execution map."""
    budgets = {0: "1GiB", "cpu": "1GiB", "disk": "1GiB"}
    pins = {f"model.layers.{number}": home for number in (1, 2)}
    plan = planner.plan(folder, max_memory=budgets, pin=pins, execute_offloaded="cpu")
    assert plan.execution_map == ({} if home == "cpu" else dict.fromkeys(pins, "cpu"))
    model = LlamaForCausalLM.from_pretrained(folder, device_map=plan if given == "plan" else plan.device_map)
    ran: list[str] = []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_pre_hook(lambda _, args: ran.append(str(args[0].device)))
    answer(model)
    assert ran == ["virtual:0", "cpu", "cpu", "virtual:0"]
