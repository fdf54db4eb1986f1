"""Recipes and skeletons beside `from_pretrained` for classes that have steps of their own; the whole list: benches/sweep_loading.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

import sweep_loading


@pytest.mark.sweep
@pytest.mark.parametrize("name", sweep_loading.CONVERTED)
def test_a_class_is_loaded_as_from_pretrained_does(name: str) -> None:
    found = sweep_loading.judge_class(name)
    assert not found.why_not and not found.faults
