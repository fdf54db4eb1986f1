"""accelerate on a model of the same names, classes and bytes, for comparison."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import accelerate
import torch
from torch import nn

from planner.devices.keys import DeviceKey
from planner.model.layout import Layout, repeated
from planner.model.tree import ModuleTree


def accelerate_plan(tree: ModuleTree, budgets: Mapping[DeviceKey, int]) -> Callable[[], object] | str:
    """accelerate's planning of the model, ready to be timed; in words where it fails.

    Args:
        tree: the model; a live one of plain modules on the meta device is made of it.
        budgets: as for our own plan.
    """
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it notes each device that this machine lacks
    model = live(tree)
    classes, _ = repeated(tree)

    def run() -> object:
        return accelerate.infer_auto_device_map(model, dict(budgets), no_split_module_classes=classes)

    try:
        run()
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}"
    return run


def live(tree: ModuleTree) -> nn.Module:
    """A live model with the names, classes and bytes of a tree, on the meta device."""
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
