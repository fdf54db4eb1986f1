"""A class that makes one of its weights in float32, loaded from files of half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM

import planner
from tiny_models import SIZES, SPECIAL

GATES = [f"model.layers.{number}.mlp.gate.wg.weight" for number in range(SIZES["num_hidden_layers"])]


def test_such_a_weight_is_as_stored_unless_its_dtype_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = HunYuanMoEV1Config(**SIZES, **SPECIAL, head_dim=8, num_experts=2, moe_topk=1)
    HunYuanMoEV1ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    expected: Any = HunYuanMoEV1ForCausalLM.from_pretrained(tmp_path)
    budgets = {"cpu": "1GiB"}
    stored: Any = planner.load(tmp_path, max_memory=budgets)
    as_made: Any = planner.load(tmp_path, max_memory=budgets, special_dtypes=dict.fromkeys(GATES, "float32"))
    for name in GATES:
        kinds = [model.get_parameter(name).dtype for model in (expected, stored, as_made)]
        assert kinds == [torch.float32, torch.bfloat16, torch.float32]
    assert all(as_made.get_parameter(name).equal(weight) for name, weight in expected.named_parameters())
