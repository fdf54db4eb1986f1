"""accelerate on the same model, for comparison: only where it is installed, and never for a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from planner.devices.keys import DeviceKey
from planner.model.layout import Layout, repeated
from planner.model.tree import ModuleTree


def accelerate_plan(tree: ModuleTree, budgets: Mapping[DeviceKey, int]) -> Callable[[], object] | str:
    """accelerate's planning of a model with the same names and bytes, ready to be timed; in words where it cannot be.

    Args:
        tree: the model; a live one of plain modules on the meta device is made of it.
        budgets: as for our own plan.
    """
    if find_spec("accelerate") is None or find_spec("torch") is None:
        return "not installed"
    infer = import_module("accelerate").infer_auto_device_map
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it notes each device that this machine lacks
    model = _live(tree)
    classes, _ = repeated(tree)

    def run() -> object:
        return infer(model, dict(budgets), no_split_module_classes=classes)

    try:
        run()
    except Exception as error:  # noqa: BLE001 - others' code: that it fails is an answer here
        return f"fails: {type(error).__name__}: {error}"
    return run


def _live(tree: ModuleTree) -> Any:
    """A live model with the names, classes and bytes of a tree, on the meta device."""
    torch = import_module("torch")
    nn = torch.nn
    root = nn.Module()
    modules, classes = {"": root}, dict[str, type]()
    for name, class_name in tree.columns.module_classes():
        made = classes.setdefault(class_name, type(class_name, (nn.Module,), {}))()
        path, _, local = name.rpartition(".")
        modules[path].add_module(local, made)
        modules[name] = made
    sizes = Layout(tree).stored_sizes()
    for name in tree.uncovered([])[1]:
        path, _, local = name.rpartition(".")
        weight = torch.empty(int(sizes.get(name, 0)), dtype=torch.int8, device="meta")
        modules[path].register_parameter(local, nn.Parameter(weight, requires_grad=False))
    return root
