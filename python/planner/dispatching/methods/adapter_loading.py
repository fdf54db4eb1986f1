"""What stands in the place of transformers' ``load_adapter``, which loads adapters to where its model's map has the layer beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from planner.dispatching.methods.overrides import Override
from planner.dispatching.tensors.placeholder import PlaceholderTensor, is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots

__all__ = ["AdapterLoading", "said_where_it_runs"]

_MAP = "hf_device_map"
_CPU = torch.device("cpu")


class AdapterLoading(Override):
    """Stands in the place of ``load_adapter`` of a model with offloaded weights: adapters are loaded to where their layer runs, not to
    where it rests.

    Args:
        module: the model.
    """

    __slots__ = ()
    place = "load_adapter"

    @classmethod
    def is_due(cls, module: nn.Module) -> bool:
        """Whether a module has transformers' method; PEFT's own models have one of that name that places adapters otherwise."""
        return hasattr(type(module), cls.place) and hasattr(type(module), "_hf_peft_config_loaded")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with said_where_it_runs(self.module):
            return self.usual(*args, **kwargs)


@contextmanager
def said_where_it_runs(model: nn.Module) -> Iterator[None]:
    """While open, ``hf_device_map`` of a model with offloaded weights says of each module where it runs; others are left alone."""
    before = vars(model).get(_MAP)
    running = _running(model)
    if running is None:
        yield
        return
    vars(model)[_MAP] = running
    try:
        yield
    finally:
        if before is None:
            del vars(model)[_MAP]
        else:
            vars(model)[_MAP] = before


def _running(model: nn.Module) -> dict[str, torch.device] | None:
    """Where each module runs that runs on one device, and where the first weight does for all others; None if nothing is offloaded."""
    modules = list(modules_of(model))
    runs: dict[int, set[torch.device]] = {}
    found_offloaded = False
    first: torch.device | None = None
    for _, module in modules:
        tensors = [slot.read() for slot in own_slots(module)]
        found_offloaded = found_offloaded or any(map(is_offloaded, tensors))
        devices = [_device(tensor) for tensor in tensors]
        first = next(iter(devices), None) if first is None else first
        runs[id(module)] = set(devices)
    if not found_offloaded or first is None:
        return None
    for _, module in reversed(modules):
        for child in module._modules.values():
            if child is not None:
                runs[id(module)] |= runs[id(child)]
    whole = {name: next(iter(runs[id(module)])) for name, module in modules if len(runs[id(module)]) == 1}
    return {"": first, **whole}


def _device(tensor: torch.Tensor) -> torch.device:
    if isinstance(tensor, PlaceholderTensor) and tensor.whereabouts is not None:
        return tensor.whereabouts.store.execution_device or _CPU
    return tensor.device
