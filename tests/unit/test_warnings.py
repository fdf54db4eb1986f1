"""A warning comes once, and points at the line that called the package."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.compat import transformers as dialect

MODEL = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
BITS = {0: "8Gb", "cpu": 10**9}


CALLS: dict[str, Callable[[], Any]] = {
    "infer": lambda: planner.infer_auto_device_map(MODEL, max_memory=BITS),
    "infer of transformers": lambda: dialect.infer_auto_device_map(MODEL, BITS),
    "balanced": lambda: planner.get_balanced_memory(MODEL, max_memory=BITS),
    "balanced of transformers": lambda: dialect.get_balanced_memory(MODEL, BITS),
    "max memory": lambda: planner.get_max_memory(BITS),
    "max memory of transformers": lambda: dialect.get_max_memory(BITS),
    "size": lambda: planner.convert_file_size_to_int("8Gb"),
    "buffers": lambda: planner.infer_auto_device_map(MODEL, max_memory={0: 90, "cpu": 1000}),
    "unknown keys": lambda: planner.check_device_map(MODEL, {"": 0, "nothing": 1}),
}


@pytest.mark.parametrize("name", CALLS)
def test_once_and_at_the_caller(name: str) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CALLS[name]()
    assert [each.filename for each in found] == [__file__]
    assert found[0].lineno == CALLS[name].__code__.co_firstlineno


def test_from_inside_torch(recwarn: pytest.WarningsRecorder) -> None:
    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            planner.convert_file_size_to_int("1Gb")
            return x

    Asking()(torch.ones(1))
    assert [warning.filename for warning in recwarn] == [__file__]
