"""When a model calls what lies around its layers, seen while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from planner.pipelines.layers import LayerList, Roles, parts_outside

__all__ = ["ObservedCalls", "observed_calls"]


class ObservedCalls:
    """Calls of one forward after another.

    Args:
        length: how many layers there are.

    ``order`` are the numbers of layers as they were called.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._at = 0  # layers of this forward that were called
        self._parts: dict[str, set[str]] = {"before": set(), "between": set(), "after": set()}
        self.order: list[int] = []

    def starts(self, *_: Any) -> None:
        """A forward begins."""
        self._at = 0

    def layer(self, number: int, *_: Any) -> None:
        """A layer is called."""
        self.order.append(number)
        self._at += 1

    def part(self, name: str, *_: Any) -> None:
        """What lies around the layers, or something in it, is called."""
        when = "before" if not self._at else "between" if self._at < self._length else "after"
        self._parts[when].add(name)

    @property
    def is_in_order(self) -> bool:
        """Whether each forward has called each layer once, one after the other."""
        forwards = len(self.order) // self._length
        return bool(forwards) and self.order == list(range(self._length)) * forwards

    def roles(self) -> Roles:
        """What was seen."""
        return Roles(**{when: frozenset(names) for when, names in self._parts.items()})


@contextmanager
def observed_calls(model: nn.Module, layers: LayerList) -> Iterator[ObservedCalls]:
    """Sees what a model calls."""
    calls = ObservedCalls(layers.length)
    hooks = [model.register_forward_pre_hook(calls.starts)]
    whole = model.get_submodule(layers.name)
    assert isinstance(whole, nn.ModuleList), "a list of layers was found"
    hooks += [
        layer.register_forward_pre_hook(partial(calls.layer, number)) for number, layer in enumerate(whole)
    ]
    for name, _ in parts_outside(model, layers):
        for inner in model.get_submodule(name).modules():
            hooks.append(inner.register_forward_pre_hook(partial(calls.part, name)))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
