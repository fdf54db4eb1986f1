"""Classes of modules that say odd things of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.errors import InvalidTreeError


def layers(layer: type[nn.Module], count: int = 3) -> nn.Module:
    root = nn.Module()
    for number in range(count):
        made = layer()
        made.w = nn.Parameter(torch.empty(4, device="meta"))
        root.add_module(f"l{number}", made)
    return root


@pytest.mark.parametrize("module", [None, 5, "\ud800"], ids=["none", "number", "no text"])
@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_a_class_may_have_anything_for_its_module(module: Any, strategy: Any) -> None:
    """As one that was made by `type` has, which anybody may call."""
    made = type("Layer", (nn.Module,), {"__module__": module})
    plan = planner.plan(layers(made), max_memory={0: 200}, strategy=strategy)
    assert dict(plan.device_map) == {"": 0}


@pytest.mark.parametrize("said", [5, ["Layer", None], ["\ud800"]], ids=["number", "nothing", "no text"])
def test_a_model_whose_no_split_classes_are_no_names_is_refused(said: Any) -> None:
    model = layers(nn.Identity)
    model._no_split_modules = said
    with pytest.raises(InvalidTreeError, match="_no_split_modules must hold names"):
        planner.plan(model, max_memory={0: 100})


def test_a_model_may_name_one_class_as_a_text() -> None:
    model = layers(nn.Sequential)
    for layer in model.children():
        layer.append(nn.Linear(1, 1, device="meta"))
    model._no_split_modules = "Sequential"
    assert planner.plan(model, max_memory={0: 1000}).source.blocks == 3
