"""Which modules get a border: whatever is called and holds tensors, so that it finds its arguments where it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from planner.dispatching.install.regions import Met, Regions, has_forward
from planner.dispatching.methods.forward import (
    Border,
    Forward,
    OffloadedForward,
    OffloadedRootForward,
    RootForward,
)
from planner.dispatching.methods.mixed_forward import (
    MixedForward,
    MixedRootForward,
    OffloadedMixedForward,
    OffloadedMixedRootForward,
    OffloadedReturningForward,
    OffloadedUnmixedForward,
    ReturningForward,
    UnmixedForward,
)

__all__ = ["Edge", "edges_of", "forward_kind"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A module with something around it.

    Args:
        module: the module.
        name: its first name.
        execution_device: where its arguments go; None leaves them where they are.
        is_mixed: what is inside runs on several devices, which its own code may mix.
        is_apart: it runs on one device, directly inside of one that is mixed, and mixes nothing itself.
        is_returning: the cpu runs it for a block whose other parts run on accelerators, and its results go back there.
    """

    module: nn.Module
    name: str
    execution_device: torch.device | None
    is_mixed: bool
    is_apart: bool
    is_returning: bool


def edges_of(
    model: nn.Module,
    layout: Regions,
    named: frozenset[str],
    main_device: torch.device,
    no_split: frozenset[str],
) -> Iterator[Edge]:
    """The borders of a model under a device map; that of the model itself is always among them.

    Args:
        model: the model.
        layout: the map, applied to it.
        named: keys of the map.
        main_device: where the model's arguments go, if something in it runs there.
        no_split: classes whose code expects to run on one device.

    A name runs where all that is inside runs. Where that is on several devices, a module with tensors of its own runs where the
    first of those does; one that is named, or called as a whole, where the map says, if anything inside runs there; a block whose
    parts run on one accelerator and on the cpu, on the accelerator.

    The parts of a block that its class says is called as a whole have none, because hundreds of them would cost what a few do not:
    where they are called by themselves nevertheless, that is in the model's own code. Embeddings are called by themselves.
    """
    return _Edges(model, layout, named, main_device, no_split).found()


class _Edges:
    def __init__(
        self,
        model: nn.Module,
        layout: Regions,
        named: frozenset[str],
        main_device: torch.device,
        no_split: frozenset[str],
    ) -> None:
        self.model = model
        self.named = named
        self.main_device = main_device
        self.no_split = no_split
        self.own: dict[int, list[torch.device]] = {}
        for place in layout.places:
            self.own.setdefault(id(place.slot.module), []).append(place.placement.execution_device)
        self.names: dict[int, list[Met]] = {}
        for met in layout.met:
            self.names.setdefault(id(met.module), []).append(met)
        self.inside = _inside(model, self.own)
        self.apart, self.parts = _inside_mixed(model, self.inside, no_split)

    def found(self) -> Iterator[Edge]:
        for names in self.names.values():
            module, inside = names[0].module, self.inside[id(names[0].module)]
            if not has_forward(module) and module is not self.model:
                continue
            execution_device, is_mixed = self._execution_device(names, inside), len(inside) > 1
            is_inside_mixed = len(inside) == 1 and id(module) in self.apart
            # A module that gets a device as an argument makes tensors there, which need not be where it runs.
            is_apart = is_inside_mixed and not _takes_device(type(module))
            if is_mixed or is_inside_mixed or (execution_device is not None and not self._is_inner(names)):
                is_returning = is_apart and id(module) in self.parts and _is_cpu(inside)
                yield Edge(module, names[0].name, execution_device, is_mixed, is_apart, is_returning)

    def _is_inner(self, names: Sequence[Met]) -> bool:
        is_named = any(met.name in self.named for met in names)
        return (
            all(met.is_inner for met in names)
            and not is_named
            and not isinstance(names[0].module, nn.Embedding)
        )

    def _execution_device(
        self, names: Sequence[Met], inside: tuple[torch.device, ...]
    ) -> torch.device | None:
        module = names[0].module
        if len(inside) == 1:
            return inside[0]
        if not inside:
            # A module without tensors, an activation, runs where it is called, whatever the map says.
            return self.main_device if module is self.model else None
        own = self._owned(module)
        if own is not None:
            return own
        for met in names:
            if (
                met.placement is not None
                and met.placement.execution_device in inside
                and (met.name in self.named or met.is_whole)
            ):
                return met.placement.execution_device
        if module is self.model:
            return self.main_device if self.main_device in inside else inside[0]
        if type(module).__name__ in self.no_split:
            # Of a block whose parts the cpu runs for one accelerator, what its own code goes on with is there.
            accelerators = [device for device in inside if device.type != "cpu"]
            return accelerators[0] if len(accelerators) == 1 else None
        return None

    def _owned(self, module: nn.Module) -> torch.device | None:
        """Where the first tensor runs that a module uses itself: one of its own, or in a list of parameters."""
        own = self.own.get(id(module))
        if own:
            return own[0]
        for child in module._modules.values():
            if child is not None and not has_forward(child) and child._modules == {}:
                found = self._owned(child)
                if found is not None:
                    return found
        return None


def _is_cpu(devices: Sequence[torch.device]) -> bool:
    return all(device.type == "cpu" for device in devices)


def _takes_device(cls: type[nn.Module]) -> bool:
    """Whether the forward of a class has an argument called ``device``, as those of position embeddings have."""
    try:
        return "device" in inspect.signature(cls.forward).parameters
    except (TypeError, ValueError):  # a forward that is no Python function
        return False


def _inside(model: nn.Module, own: dict[int, list[torch.device]]) -> dict[int, tuple[torch.device, ...]]:
    """By module, the devices of everything inside, in the order in which they are met."""
    found: dict[int, tuple[torch.device, ...]] = {}
    stack = [(model, False)]
    while stack:
        module, is_ready = stack.pop()
        if is_ready:
            devices = dict.fromkeys(own.get(id(module), ()))
            for child in module._modules.values():
                devices.update(dict.fromkeys(found[id(child)] if child is not None else ()))
            found[id(module)] = tuple(devices)
        elif id(module) not in found:
            found[id(module)] = ()
            stack.append((module, True))
            stack.extend((child, False) for child in reversed(module._modules.values()) if child is not None)
    return found


def _inside_mixed(
    model: nn.Module, inside: dict[int, tuple[torch.device, ...]], no_split: frozenset[str]
) -> tuple[set[int], set[int]]:
    """Modules that the own code of a mixed one may call, and those of them that are inside of a block."""
    found: set[int] = set()
    parts: set[int] = set()
    seen: set[tuple[int, bool, bool]] = set()
    stack = [(model, False, False)]
    while stack:
        module, is_inside, is_part = stack.pop()
        if (id(module), is_inside, is_part) in seen:
            continue
        seen.add((id(module), is_inside, is_part))
        if is_inside:
            found.add(id(module))
            if is_part:
                parts.add(id(module))
        is_mixed = len(inside[id(module)]) > 1 if has_forward(module) else is_inside
        is_in_block = is_part or type(module).__name__ in no_split
        children = (child for child in module._modules.values() if child is not None)
        stack.extend((child, is_mixed, is_in_block) for child in children)
    return found, parts


def forward_kind(edge: Edge | None, *, is_fetching: bool, is_root: bool) -> type[Forward]:
    """What stands in the place of a module's forward."""
    if is_root:
        if edge is not None and edge.is_mixed:
            return OffloadedMixedRootForward if is_fetching else MixedRootForward
        return OffloadedRootForward if is_fetching else RootForward
    if edge is not None and edge.is_mixed:
        return OffloadedMixedForward if is_fetching else MixedForward
    if edge is not None and edge.is_returning:
        return OffloadedReturningForward if is_fetching else ReturningForward
    if edge is not None and edge.is_apart:
        return OffloadedUnmixedForward if is_fetching else UnmixedForward
    return OffloadedForward if is_fetching else Border
