"""What a plan says of dtypes is what a load makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from layered_net import empty, state, written
from planner import InfeasibleError

SPECIAL = {"head.weight": "float16", "layers.0.up.bias": "float32"}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("budgets", [{"cpu": "1GiB"}, {"cpu": "24KB", "disk": "1GB"}])
@pytest.mark.parametrize("is_said_to", ["plan", "load"])
def test_dtypes_of_single_tensors_are_carried_out(
    is_said_to: str, budgets: dict[str, Any], dtype: Any, tmp_path: Path
) -> None:
    folder = written(tmp_path)
    settings: dict[str, Any] = {"max_memory": budgets, "special_dtypes": SPECIAL}
    if is_said_to == "plan":
        plan = planner.plan(empty(), checkpoint=folder, dtype=dtype, **settings)
        model = planner.load(folder, empty(), plan)
    else:
        model = planner.load(folder, empty(), dtype=dtype or "auto", **settings)
    for name, value in planner.state_dict(model).items():
        stored = state()[name]
        general = getattr(torch, dtype or "float32") if stored.is_floating_point() else stored.dtype
        wanted = getattr(torch, SPECIAL[name]) if name in SPECIAL else general
        assert value.dtype == wanted and value.equal(stored.to(wanted)), name


def test_a_disk_alone_runs_nothing_and_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="on the CPU or on accelerators"):
        planner.load(written(tmp_path), empty(), max_memory={"disk": "1GB"})
    planner.load(written(tmp_path), empty(), max_memory={"disk": "1GB", "cpu": "10KB"})
