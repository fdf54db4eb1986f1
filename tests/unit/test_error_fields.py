"""What errors carry: each documented field is declared with a type and is there, whoever raises."""

from __future__ import annotations

import ast
import pickle
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import planner
from planner import InfeasibleError, errors

PACKAGE = Path(planner.__file__).parent
CLASSES = {name: getattr(errors, name) for name in errors.__all__}


def declared(cls: type) -> set[str]:
    """Fields of a class of errors, with those of its bases."""
    bases = [base for base in cls.__mro__ if base.__module__ == errors.__name__]
    return {name for base in bases for name in vars(base).get("__annotations__", {})}


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Each place of the package where an error of ours is made."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node


@pytest.mark.parametrize("name", CLASSES)
def test_every_documented_field_is_declared(name: str) -> None:
    cls = CLASSES[name]
    text = (cls.__doc__ or "").partition("Fields:")[2]
    documented = {
        word for word in text.split("``")[1::2] if word.isidentifier() and word not in ("auto", "device_map")
    }
    own = set(vars(cls).get("__annotations__", {}))
    assert documented == own
    typing.get_type_hints(cls)


def test_every_field_is_declared_and_every_declared_field_given() -> None:
    wrong = []
    for where, call in raised():
        cls = CLASSES[call.func.id]  # type: ignore[attr-defined]
        given = {keyword.arg for keyword in call.keywords}
        if None in given:
            continue  # **fields of another error
        needed = {name for name in declared(cls) if not hasattr(cls, name)}
        # The general class says in each function's docstring what it carries there.
        unknown = set() if cls is errors.InvalidInputError else given - declared(cls)
        if needed - given or unknown:
            wrong.append((where, needed - given, unknown))
    assert not wrong


def leaves(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(10, 10, bias=False, device="meta") for _ in range(count)))


@pytest.mark.parametrize("strategy", ["auto", "sequential", "balanced"])
@pytest.mark.parametrize("mode", ["any", "no_disk", "gpu_only"])
def test_what_a_strategy_cannot_know_is_none(strategy: str, mode: str) -> None:
    with pytest.raises(InfeasibleError) as found:
        planner.plan(leaves(4), max_memory={0: 400, "cpu": 500, "disk": 1}, strategy=strategy, mode=mode)
    error = found.value
    assert isinstance(error.block, str) and isinstance(error.best_partial, typing.Mapping)
    assert isinstance(error.shortfall_bytes, int)
    if strategy == "auto":
        assert error.device is None and error.more_bytes and error.is_proven is True
        assert error.shortfall_bytes == min(error.more_bytes.values())
    else:
        assert error.device is not None and error.more_bytes is None and error.is_proven is None


def test_no_single_device_would_be_enough() -> None:
    with pytest.raises(InfeasibleError) as found:
        planner.plan(leaves(4), max_memory={0: 400, 1: 400}, pin={"0": 0, "1": 0, "2": 1, "3": 1})
    assert found.value.shortfall_bytes is None and found.value.more_bytes == {}


def test_a_field_that_nobody_gave_is_none_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(InfeasibleError("no")))
    assert (error.shortfall_bytes, error.more_bytes, error.is_proven, error.device) == (None,) * 4


def test_the_root_is_called_the_model() -> None:
    root = nn.Sequential(nn.Linear(10, 10, bias=False, device="meta"))
    whole = planner.plan(root, max_memory={0: 400, 1: 1}, no_split_modules=["0"])
    assert planner.explain(whole, "").startswith("The model lies on GPU 0")
    with pytest.raises(
        planner.InvalidConstraintError, match="pin of the model names device 7, which has no budget"
    ):
        planner.plan(root, max_memory={0: 400}, pin={"": 7})
    with pytest.raises(planner.InvalidConstraintError, match="forbid the model = 0, cpu"):
        planner.plan(root, max_memory={0: 400, "cpu": 400}, forbid={"": [0, "cpu"]})
