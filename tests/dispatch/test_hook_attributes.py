"""What other libraries and torch.compile read from hooks: plain attributes under their public names."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import AlignDevicesHook, InvalidInputError

X = torch.linspace(-1, 1, 4).reshape(2, 2)
PACKAGE = Path(planner.__file__).parent


def properties_under_their_own_name(tree: ast.AST) -> Iterator[str]:
    """Methods with decorators that read or write the instance's dict under the name of the method."""
    for method in ast.walk(tree):
        if isinstance(method, ast.FunctionDef) and method.decorator_list:
            for node in ast.walk(method):
                if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                    of = ast.unparse(node.value)
                    if node.slice.value == method.name and (
                        of.endswith("__dict__") or of.startswith("vars(")
                    ):
                        yield f"{method.name}, line {node.lineno}"


def test_no_property_stores_under_its_own_name() -> None:
    """torch.compile takes the value in the instance's dict for the property again."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    assert [
        (path, row) for path, tree in trees.items() for row in properties_under_their_own_name(tree)
    ] == []


def test_the_scan_finds_one() -> None:
    source = "class A:\n @property\n def x(self):\n  return self.__dict__['x']\n @x.setter\n def x(self, y):\n  vars(self)['x'] = y"
    assert len(list(properties_under_their_own_name(ast.parse(source)))) == 2


def made() -> AlignDevicesHook:
    return AlignDevicesHook("cpu", io_same_device=True, skip_keys=["cache"], offload_buffers=True)


def test_no_attribute_of_a_hook_hides_behind_a_property() -> None:
    hooks = (made(), planner.ModelHook(), planner.SequentialHook(made()), planner.CpuOffload("cpu"))
    for hook in (*hooks, planner.LayerwiseCastingHook(torch.float16, torch.float32, False)):
        names = {name for name, value in inspect.getmembers(type(hook)) if isinstance(value, property)}
        assert not names & vars(hook).keys(), type(hook)


def test_a_hook_is_made_from_the_attributes_of_another_one() -> None:
    """As PEFT does for modules that it copies."""
    wanted = inspect.signature(AlignDevicesHook.__init__).parameters.keys() - {"self"}
    arguments = {name: value for name, value in vars(made()).items() if name in wanted}
    assert arguments.keys() == wanted
    assert repr(AlignDevicesHook(**arguments)) == repr(made())


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))])
def test_copies_follow_what_is_set(again: Any) -> None:
    hook = again(made())
    assert repr(hook) == repr(made()) and hook.is_special and hook.skip == {"cache"} and hook.index == -1
    hook.io_same_device = False
    assert not hook.is_special
    hook.no_grad = True
    assert hook.is_special
    hook.no_grad, hook.execution_device, hook.skip_keys = False, None, "past"
    assert hook.is_special and hook.device is None and hook.skip == {"past"}
    hook.execution_device = torch.device("meta")
    assert not hook.is_special and hook.device == torch.device("meta")


def test_no_mapping_of_weights_is_refused_and_nothing_changed() -> None:
    hook = AlignDevicesHook("cpu", weights_map={"w": X})
    with pytest.raises(InvalidInputError):
        hook.weights_map = 3
    assert hook.weights_map == {"w": X}


@pytest.mark.parametrize(("name", "value"), [("execution_device", "nowhere:3"), ("skip_keys", 3)])
def test_no_device_and_no_keys_are_refused_and_nothing_changed(name: str, value: Any) -> None:
    hook = made()
    with pytest.raises(planner.PlannerError):
        setattr(hook, name, value)
    assert repr(hook) == repr(made()) and hook.device == torch.device("cpu") and hook.skip == {"cache"}


@pytest.mark.parametrize("io_same_device", [True, False])
def test_a_hook_is_compiled_whole(io_same_device: bool) -> None:
    hook = AlignDevicesHook("cpu", io_same_device=io_same_device)
    layer = planner.add_hook_to_module(nn.Linear(2, 2), hook)
    assert torch.compile(layer, fullgraph=True, backend="eager")(X).equal(layer(X))


def test_the_border_of_a_whole_model_is_compiled_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    want = model(X)
    planner.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.compile(model, fullgraph=True, backend="eager")(X).equal(want)
