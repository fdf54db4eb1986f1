"""`device_map="auto"` inside of `planner.integrate()`: bytes, ties and budgets are those of the model once it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import planner
from rig import Accelerators
from tiny_folders import MODELS, saved_in

KIB = 1 << 10


def bytes_by_device(model: Any) -> dict[str, int]:
    """Bytes of each tensor, each object once, by device."""
    found: dict[str, int] = {}
    seen = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for tensor in seen.values():
        found[str(tensor.device)] = found.get(str(tensor.device), 0) + tensor.numel() * tensor.element_size()
    return found


def used_bytes(plan: planner.Plan) -> dict[str, int]:
    names = {0: "virtual:0", 1: "virtual:1"}
    return {names.get(each.id, str(each.id)): each.used_bytes for each in plan.devices if each.used_bytes}


def load(folder: str, **said: Any) -> Any:
    family = tf.AutoModelForSeq2SeqLM if "t5" in folder else tf.AutoModelForCausalLM
    return family.from_pretrained(folder, **said)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.float32),
        ("tied_llama", torch.float32),
        ("tied_llama", torch.bfloat16),
        ("gpt2", torch.float32),
        ("t5", torch.float16),
        ("t5", torch.float32),
        ("gemma", torch.bfloat16),
        ("mixtral", torch.float32),
    ],
)
def test_the_bytes_of_a_plan_are_those_of_the_loaded_model(
    name: str, dtype: torch.dtype, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    folder = saved_in(tmp_path / name, MODELS[name])
    whole_bytes = sum(bytes_by_device(load(folder, dtype=dtype)).values())
    budgets = {0: whole_bytes * 3 // 5, 1: whole_bytes * 3 // 5, "cpu": "1GiB"}
    virtual_accelerators.reset()
    with planner.integrate() as here:
        model = load(folder, dtype=dtype, device_map="auto", max_memory=budgets)
    (plan,) = here.plans
    assert planner.plan_of(model) is plan and dict(plan.device_map) == model.hf_device_map
    assert plan.source.total_bytes == whole_bytes
    assert bytes_by_device(model) == used_bytes(plan)
    assert not any(plan.offloaded_bytes.values())
    for device in plan.devices[:2]:
        assert virtual_accelerators.used_bytes(int(device.id)) == device.used_bytes
        if name != "mixtral":  # whose experts transformers puts together where they will lie
            assert virtual_accelerators.peak_bytes(int(device.id)) == device.used_bytes


def test_a_tie_that_is_not_made_yet_is_counted_once_and_not_split(tmp_path: Path) -> None:
    folder = saved_in(tmp_path, MODELS["tied_llama"])
    with planner.integrate() as here:
        model = load(folder, device_map="auto", max_memory={0: 40 * KIB, 1: 60 * KIB, "cpu": "1GiB"})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    (plan,) = here.plans
    assert plan.device_map["lm_head"] == plan.device_map["model.embed_tokens"]
