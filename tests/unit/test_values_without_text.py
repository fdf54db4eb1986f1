"""What Python itself cannot spell out is refused like everything else that makes no sense: by an error that can be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

import planner
from planner.errors import PlannerError
from planner.model.tree import ModuleTree


class Unspeakable:
    """What has no text at all."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def calls(value: Any) -> list[Callable[[], object]]:
    model = nn.Linear(2, 2)
    wrong_settings: list[dict[str, Any]] = [
        {"max_memory": {value: 1}},
        {"strategy": {value: 1}},
        {"pin": {value: 0}},
        {"config": {value: 1}},
        {"dtype": value},
    ]
    return [
        *(partial(planner.plan, model, **wrong) for wrong in wrong_settings),
        partial(planner.plan, "somewhere", checkpoint=value),
        partial(planner.plan, ModuleTree.from_module(model), checkpoint=value),
        partial(planner.check, model, {"": 0}, dtype=value),
        partial(planner.check, model, {"": 0}, special_dtypes={"weight": value}),
        partial(planner.infer_auto_device_map, model, {0: 800}, reserve=value),
        partial(planner.verify, model, value),
    ]


# Python writes no int of so many digits.
@pytest.mark.parametrize("value", [10**5000, Unspeakable()], ids=["endless", "unspeakable"])
def test_it_is_refused_at_every_door(value: Any) -> None:
    for call in calls(value):
        with pytest.raises(PlannerError) as refused:
            call()
        assert len(str(refused.value)) < 500
