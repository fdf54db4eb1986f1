"""Writing what was made into a model: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from planner.dispatching.api import take_off_later_hooks
from planner.dispatching.hooks.place import moves_in_place
from planner.dispatching.install.prepare import prepare
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.install.regions import Regions
from planner.dispatching.install.request import DispatchRequest
from planner.dispatching.tensors.copies import copy_marks
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.loading.targets import Target

__all__ = ["commit"]


def commit(
    model: nn.Module,
    values: Iterable[tuple[Target, torch.Tensor]],
    request: DispatchRequest | None,
    regions: Regions | None,
    attributes: Mapping[str, object],
) -> None:
    """Writes tensors into their slots and, where there is a request, installs what it asks for.

    Args:
        model: the model; changed in place.
        values: tensors of the model, and what their slots get.
        request: a checked request; None leaves the tensors where they were put.
        regions: of this model under that request.
        attributes: what else the model itself gets.

    Guarantee: when it raises, also for an interrupt, the model is as it was, with what was installed in it.
    """
    engaged = dispatched_models(model)
    journal = Journal()
    try:
        take_off_later_hooks(model, engaged, journal)
        for earlier in engaged:
            earlier.remove(journal)
        taken: set[int] = set()
        for target, value in values:
            _write(journal, target, value, taken)
        for name, attribute in attributes.items():
            journal.set(model.__dict__, name, attribute)
        if request is not None:
            prepare(model, request, [], regions).install(journal)
    except BaseException:
        journal.roll_back()
        raise
    for earlier in engaged:
        earlier.close()


def _write(journal: Journal, target: Target, value: torch.Tensor, taken: set[int]) -> None:
    found = target.found
    if value is found:
        if found.is_meta and not is_offloaded(found):
            _put(journal, target, found)  # a tie that the skeleton has lost
        return
    first = target.places[0].slot
    made = value
    if not first.is_buffer:
        trains = bool(found.requires_grad) and (value.is_floating_point() or value.is_complex())
        if not (isinstance(value, nn.Parameter) and value.requires_grad == trains):
            made = nn.Parameter(value.detach(), requires_grad=trains)
    copy_marks(found, made)
    if moves_in_place(found, made) and id(found) not in taken:
        # Optimizers and callers hold the parameter that is there. Where a tie ends, it goes with the first of its names.
        taken.add(id(found))
        made.grad = None if found.grad is None else found.grad.to(made.device, made.dtype)
        journal.move(found, made)
        made = found
    _put(journal, target, made)


def _put(journal: Journal, target: Target, made: torch.Tensor) -> None:
    for place in target.places:
        if place.slot.read() is not made:
            journal.set(place.slot.table, place.slot.name, made)
