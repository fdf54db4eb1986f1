"""Undoing a dispatch that another library has made, through what its hooks know of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from planner.dispatching.hooks.align import aligns
from planner.dispatching.hooks.base import SequentialHook
from planner.dispatching.hooks.place import moves_in_place, placed
from planner.dispatching.install.lookup import TensorLookup
from planner.dispatching.install.record import refresh_flat_weights
from planner.dispatching.methods.forward import restore_forward
from planner.dispatching.offload.store import has_own_memory
from planner.dispatching.tensors.copies import like_parameter
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.errors import OffloadError
from planner.names import qualified

__all__ = ["has_other_hooks", "hooks_of", "take_off_other_hooks"]

_CPU = torch.device("cpu")
# What accelerate puts in the place of a model's own conversions.
_CONVERSIONS = ("to", "cuda", "xpu", "npu", "mlu", "sdaa", "musa", "neuron")


def has_other_hooks(model: nn.Module) -> bool:
    """Whether hooks say where modules of a model run, as accelerate's do."""
    return any(aligns(hook) for _, module in modules_of(model) for hook in hooks_of(module))


def take_off_other_hooks(model: nn.Module) -> None:
    """Takes hooks off that say where modules run, and brings every tensor to the CPU: hooks do not say where it lay before.

    Args:
        model: the model; changed in place.

    Raises:
        OffloadError: a tensor without values, or whose values cannot be read. Fields: ``name``.

    Guarantee: when it raises, the model is as it was. Tied tensors stay tied; hooks of other kinds stay.
    """
    lookup = TensorLookup(model, ())
    values: dict[int, Any] = {}
    slots = [
        (qualified(prefix, slot.name), slot)
        for prefix, module in modules_of(model)
        for slot in own_slots(module)
    ]
    for name, slot in slots:
        found = slot.read()
        if id(found) in values:
            continue
        if found.is_meta:
            place = lookup.resting_place(slot)
            if place is None:
                raise OffloadError(
                    f"'{name}' has no values: it is on the meta device, and no hook knows them", name=name
                )
            values[id(found)] = _as_found(found, place.value(name))
        else:
            values[id(found)] = placed(found, _CPU, name)
    journal = Journal()
    try:
        for _, slot in slots:
            found = slot.read()
            made = values.get(id(found), found)
            if moves_in_place(found, made):
                # Optimizers and callers hold it.
                journal.move(found, made)
            else:
                journal.set(slot.table, slot.name, made)
        for _, module in modules_of(model):
            _take_off(module, journal)
        journal.remove(model.__dict__, "hf_device_map")
        refresh_flat_weights(model, journal)
    except BaseException:
        journal.roll_back()
        raise


def _as_found(found: Any, value: Any) -> Any:
    """What rests, on the CPU, in memory that is the model's own, as the parameter or buffer that was there."""
    value = value.detach().to(_CPU)
    return like_parameter(found, value if has_own_memory(value) else value.clone())


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    hook = module.__dict__.get("_hf_hook")
    return tuple(getattr(hook, "hooks", None) or (hook,))


def _take_off(module: nn.Module, journal: Journal) -> None:
    hooks = hooks_of(module)
    others = [hook for hook in hooks if not aligns(hook)]
    if len(others) == len(hooks):
        return
    table = module.__dict__
    if others:
        journal.set(table, "_hf_hook", others[0] if len(others) == 1 else SequentialHook(*others))
    else:
        journal.remove(table, "_hf_hook")
        restore_forward(module, journal)
    for name in _CONVERSIONS:
        journal.remove(table, name)
