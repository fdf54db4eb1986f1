"""A model in words is judged as the live one is."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from generators import CLASSES, tree
from planner.checker.check import Finding, check
from planner.checker.described import DescribedModule, model_from_sizes
from planner.errors import InvalidTreeError


def tensors_of(model: nn.Module) -> dict[str, Any]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def in_words(model: nn.Module) -> DescribedModule:
    """Names, bytes, ties by identity, and classes."""
    tensors = tensors_of(model)
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    modules = model.named_modules(remove_duplicate=False)
    return model_from_sizes(
        {name: tensor.numel() * tensor.itemsize for name, tensor in tensors.items()},
        tied=groups.values(),
        classes={name: type(module).__name__ for name, module in modules},
    )


def verdicts(findings: tuple[Finding, ...]) -> set[tuple[str, frozenset[str], int | None]]:
    """Without the order of names: words list parameters and buffers as one."""
    return {
        (finding.rule, frozenset({finding.name, *finding.names}), finding.needed_bytes)
        for finding in findings
        if not finding.is_note
    }


@given(st.integers(0, 2**32))
def test_words_and_the_live_model_get_the_same_verdicts(seed: int) -> None:
    rng = Random(seed)
    model = tree(rng)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)] + [*tensors_of(model), "stray"]
    device_map = {
        name: rng.choice([0, 1, "cpu", "moon"]) for name in rng.sample(names, rng.randint(0, len(names)))
    }
    arguments: dict[str, Any] = {
        "max_memory": {0: rng.randint(0, 500), 1: 200},
        "no_split_module_classes": [rng.choice(CLASSES).__name__],
    }
    assert verdicts(check(in_words(model), device_map, **arguments)) == verdicts(
        check(model, device_map, **arguments)
    )


@pytest.mark.parametrize("names", [[""], ["a."], [".a"], ["a..b"], ["a", "a.b"], ["a.b", "a"]], ids=str)
def test_names_that_no_model_can_have_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidTreeError):
        model_from_sizes(dict.fromkeys(names, 1))


def test_depth_is_no_limit() -> None:
    name = ".".join(["a"] * 20_000)
    assert check(model_from_sizes({name: 5}), {"": 0}, {0: 4})[0].needed_bytes == 5
