"""`planner.compat.transformers.infer_auto_device_map` beside transformers' own, over generated trees and budgets."""

from __future__ import annotations

import copy
from collections import Counter
from random import Random

import pytest
from hypothesis import given

import planner
from generators import Case, transformers_case, transformers_cases
from oracle.judge import Verdict, judge_transformers
from planner.compat.transformers import infer_auto_device_map


def verdict(drawn: Case) -> Verdict:
    return judge_transformers(drawn.model, drawn.max_memory, drawn.kwargs)


@given(transformers_cases())
def test_where_transformers_binds_ours_is_identical_and_everywhere_valid(drawn: Case) -> None:
    found = verdict(drawn)
    assert found.is_good, found


def test_the_same_over_seeded_cases() -> None:
    """More cases than hypothesis has time for."""
    totals = Counter(_judged(seed).word for seed in range(500))
    assert totals["identical"] > 250


@pytest.mark.sweep
@pytest.mark.parametrize("start", range(0, 60_000, 10_000))
def test_the_same_over_very_many_seeded_cases(start: int) -> None:
    totals = Counter(_judged(seed).word for seed in range(start, start + 10_000))
    assert totals["identical"] > 5_000
    print(dict(totals))


def _judged(seed: int) -> Verdict:
    drawn = transformers_case(Random(seed))
    found = verdict(drawn)
    assert found.is_good, f"seed {seed}: {found}\n{drawn}\n{drawn.model.all_tied_weights_keys}"
    return found


@given(transformers_cases())
def test_what_is_handed_in_stays_as_it_is(drawn: Case) -> None:
    budgets, keys = dict(drawn.max_memory), dict(drawn.model.all_tied_weights_keys)
    no_split = copy.copy(drawn.kwargs.get("no_split_module_classes"))
    try:
        infer_auto_device_map(drawn.model, drawn.max_memory, **drawn.kwargs)
    except planner.InfeasibleError:
        assert "disk" in budgets
    assert list(drawn.max_memory.items()) == list(budgets.items())
    assert drawn.model.all_tied_weights_keys == keys
    assert drawn.kwargs.get("no_split_module_classes") == no_split
