"""Device maps for a model: planned, inferred, and drawn at random, over two accelerators and the CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import model_zoo
import planner
from planner.names import nearest_key

__all__ = ["Case", "cases", "covering"]


@dataclass(frozen=True)
class Case:
    """One way to place a model.

    Args:
        title: how it was drawn.
        said: a device map, or a plan.
        execution_map: for a device map, where some offloaded parts run.
        is_exact: whether every kernel is the accelerator's.
    """

    title: str
    said: Any
    execution_map: dict[str, Any] = field(default_factory=dict)
    is_exact: bool = True

    def dispatched(self, model: nn.Module, **options: Any) -> nn.Module:
        """The model, dispatched so."""
        if self.execution_map:
            options["execution_map"] = self.execution_map
        return planner.dispatch(model, self.said, **options)

    @property
    def places(self) -> dict[str, Any]:
        """Names to devices."""
        return dict(self.said.device_map if isinstance(self.said, planner.Plan) else self.said)

    def runs_on(self, name: str) -> Any:
        """The device of a part while it runs; None where no name covers it."""
        is_plan = isinstance(self.said, planner.Plan)
        device = place(name, self.places)
        if device != "cpu":
            return device
        found = place(name, self.said.execution_map if is_plan else self.execution_map)
        return found if found is not None else "cpu" if is_plan else 0

    def __str__(self) -> str:
        return f"{self.title} {self.places} {self.execution_map or ''}"


def cases(model: Any, draw: random.Random) -> Iterator[Case | str]:
    """All cases of a model; a word where there is none."""
    yield planned(model)
    yield inferred(model)
    names = blocks(model)
    yield Case("blocks", covering(model, {"": 0, **{name: draw.choice((0, 1, "cpu")) for name in names}}))
    inside = [name for name, _ in model.named_modules() if name]
    chosen = draw.sample(inside, max(1, int(len(inside) * draw.choice((0.1, 0.3, 0.6)))))
    nested = {"": draw.choice((0, "cpu")), **{name: draw.choice((0, "cpu")) for name in chosen}}
    yield Case("any depth", same_for_aliases(model, nested), {"": 0})
    yield Case("everything offloaded", {"": "cpu"}, {"": 0})
    places = {name: draw.choice((0, "cpu", "cpu")) for name in names}
    running = {name: draw.choice((0, "cpu")) for name, device in places.items() if device == "cpu"}
    if set(running.values()) == {"cpu"} and set(places.values()) == {"cpu"}:
        running[names[0]] = 0  # on one device nothing is attached
    yield Case("some run on the CPU", covering(model, {"": 0, **places}), running, is_exact=False)


def planned(model: Any) -> Case | str:
    """A plan that offloads about a third, or more if a block needs the room."""
    for share in (0.35, 0.5, 0.7, 0.9):
        try:
            plan = planner.plan(model, max_memory=budgets(model, share), headroom=None)
        except planner.InfeasibleError:
            continue
        if set(plan.device_map.values()) == {"cpu"}:
            continue  # on one device nothing is attached
        case = Case("plan", plan)
        is_exact = all(case.runs_on(name) != "cpu" for name, _ in model.named_parameters())
        return replace(case, is_exact=is_exact)
    return "no map"


def inferred(model: Any) -> Case | str:
    """The drop-in's map, if it puts something on an accelerator: on one device nothing is attached."""
    no_split = model_zoo.no_split_classes(model)
    for share in (0.35, 0.5, 0.7, 0.9):
        found = planner.infer_auto_device_map(model, budgets(model, share), no_split_module_classes=no_split)
        if set(found.values()) != {"cpu"}:
            return Case("infer_auto_device_map", dict(found))
    return "no map"


def budgets(model: Any, share: float) -> dict[Any, int]:
    """Two accelerators that hold this share of the model each, and the CPU."""
    total = model_zoo.true_bytes(model)
    return {0: int(total * share), 1: int(total * share), "cpu": 10 * total}


def blocks(model: nn.Module) -> list[str]:
    """Topmost modules that the model does not want split, or that are numbered; and what lies beside them."""
    no_split = {
        name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()
    }

    def is_block(name: str, module: nn.Module) -> bool:
        return type(module).__name__ in no_split or name.rpartition(".")[2].isdigit()

    holders = {
        name.rpartition(".")[0][:end]
        for name, module in model.named_modules(remove_duplicate=False)
        if is_block(name, module)
        for end in [i for i, mark in enumerate(name) if mark == "."]
    }
    found: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or any(name.startswith(f"{block}.") for block in found):
            continue
        has_weights = next(module.parameters(), None) is not None
        if is_block(name, module) or (has_weights and name not in holders):
            found.append(name)
    return found


def covering(model: nn.Module, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """The same places as a map without nested keys, as accelerate wants it."""
    wanted = same_for_aliases(model, device_map)
    found: dict[str, Any] = {}

    def materialized(name: str, module: nn.Module) -> None:
        prefix = f"{name}." if name else ""
        if not any(key.startswith(prefix) and key != name for key in wanted):
            found[name] = place(name, wanted)
            return
        for key in [*module._parameters, *module._buffers]:
            found[prefix + key] = place(name, wanted)
        for key, child in module._modules.items():
            if child is not None:
                materialized(prefix + key, child)

    materialized("", model)
    return found


def same_for_aliases(model: nn.Module, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """A module with several names gets the place of the first one under all."""
    found = dict(device_map)
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        original = first.setdefault(id(module), name)
        if original != name:
            found[name] = place(original, found)
    return found


def place(name: str, device_map: Mapping[str, Any]) -> Any:
    """The device of a name."""
    key = nearest_key(name, device_map)
    return None if key is None else device_map[key]
