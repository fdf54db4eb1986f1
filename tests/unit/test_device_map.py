"""The device map of a plan is a dict that loaders take as it is, and each caller's own."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import planner


def made() -> planner.Plan:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    return planner.plan(model, max_memory={0: 200, "cpu": 1000})


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda given: pickle.loads(pickle.dumps(given)),
    ".copy": lambda given: given.copy(),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_it_is_copied_as_a_dict_with_what_runs_elsewhere(copied) -> None:
    device_map = made().device_map
    again = copied(device_map)
    assert again == device_map == {"0": 0, "1": "cpu", "2": "cpu"}
    assert again is not device_map
    assert again.execution_map == device_map.execution_map == {"1": 0, "2": 0}
    again["0"], again.execution_map["1"] = 7, 7
    assert device_map["0"] == device_map.execution_map["1"] == 0


def test_it_is_dumped_as_a_dict() -> None:
    device_map = made().device_map
    assert isinstance(device_map, dict)
    assert json.dumps(device_map) == '{"0": 0, "1": "cpu", "2": "cpu"}'
    assert repr(device_map) == repr(dict(device_map))
    assert [type(device) for device in device_map.values()] == [int, str, str]


def test_what_a_caller_does_to_it_is_the_callers_alone() -> None:
    plan = made()
    before = plan.to_json()
    for mine in (plan.device_map, plan.execution_map, plan.device_map.execution_map):
        mine.clear()
        mine["x"] = 5
    assert plan.to_json() == before
    assert plan.device_map == {"0": 0, "1": "cpu", "2": "cpu"}
    with pytest.raises(AttributeError):
        plan.device_map = {}  # type: ignore[misc]


def test_from_pretrained_takes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "vocab_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path)
    plan = planner.plan(tmp_path, max_memory={"cpu": "1GiB"}, granularity="module", pin={"lm_head": "cpu"})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map=plan.device_map)
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 32)


def test_dispatch_takes_it() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    want = model(torch.ones(2, 4))
    plan = planner.plan(model, max_memory={"cpu": 1000})
    assert planner.dispatch(model, plan.device_map)(torch.ones(2, 4)).equal(want)
