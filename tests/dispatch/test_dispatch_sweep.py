"""Tiny models of real classes, dispatched over two virtual accelerators and the CPU in many ways, equal undispatched ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rig import missing

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

import dispatch_sweep
import tiny_zoo


@pytest.mark.sweep
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("name", dispatch_sweep.QUICK)
def test_a_real_class_gives_the_same_wherever_its_parts_lie(name: str) -> None:
    found = dispatch_sweep.judge_class(name, seed=0)
    assert found.runs, found.reason
    assert not found.faults, "\n".join(f"{row['word']}: {row['map']}\n{row['text']}" for row in found.faults)


@pytest.mark.sweep
def test_the_classes_are_known() -> None:
    assert set(dispatch_sweep.QUICK) <= set(tiny_zoo.names())
