"""Moving a tensor with all that it carries: quantised parameters keep their scales in attributes."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import nn

from planner.dispatching.tensors.copies import copied, like_parameter
from planner.errors import OffloadError
from planner.model.carried import carried_tensors, parts_of

__all__ = ["relocated"]


def relocated(tensor: Any, device: torch.device, name: str, *, non_blocking: bool = False) -> Any:
    """A tensor on another device, of the same class, with what it carries: the caller's keeps all of its own.

    Args:
        tensor: the tensor.
        device: where to.
        name: what errors call it.
        non_blocking: as in ``Tensor.to``, for tensors that carry nothing.

    Raises:
        OffloadError: what it carries cannot be copied. Fields: ``name``.
    """
    is_usual = type(tensor) in (torch.Tensor, nn.Parameter) or _is_wrapper(tensor)
    if is_usual or not (_moves_itself(tensor) or carried_tensors(tensor)):
        return like_parameter(tensor, copied(tensor, device, non_blocking=non_blocking))
    with torch.inference_mode(False), torch.no_grad():
        twin = _twin(tensor, tensor.detach(), name)
        # Its own `to` may change it and what it carries in place, so it is asked of the twin.
        made = twin.to(device) if _moves_itself(tensor) else tensor.detach().to(device)
        if not isinstance(made, type(tensor)):
            made = _twin(twin, made.detach(), name)
        for key in vars(twin).keys() - vars(made).keys():
            setattr(made, key, vars(twin)[key])
        _bring_along(made, twin, device, name)
        if isinstance(tensor, nn.Parameter) and made.requires_grad != tensor.requires_grad:
            made.requires_grad_(tensor.requires_grad)
    return made


def _is_wrapper(tensor: Any) -> bool:
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _moves_itself(tensor: Any) -> bool:
    """Whether its class has a `to` of its own."""
    return type(tensor).to is not torch.Tensor.to


def _twin(tensor: Any, data: torch.Tensor, name: str) -> Any:
    """A tensor of the same class that carries the same, past the constructor, whose arguments are not known."""
    made = torch.Tensor._make_subclass(type(tensor), data, tensor.requires_grad)
    made.__dict__.update(_copied_attributes(tensor, {id(tensor): made}, name))
    return made


def _bring_along(made: Any, twin: Any, device: torch.device, name: str) -> None:
    """Moves what was left behind. What is the tensor itself, under its own or another name, stays that."""
    here: dict[Any, Any] = {_place_of(twin): made.detach()}
    moved: dict[int, Any] = {id(twin): made}
    for part in carried_tensors(made).values():
        if part is not twin and part.device == twin.device != device:
            place = _place_of(part)
            if place not in here:
                here[place] = relocated(part, device, name)
            moved[id(part)] = here[place]
    made.__dict__.update(_copied_attributes(made, moved, name))


def _place_of(tensor: Any) -> Any:
    if _is_wrapper(tensor) or tensor.data_ptr() == 0:
        return id(tensor)
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _copied_attributes(tensor: Any, moved: dict[int, Any], name: str) -> dict[str, Any]:
    """Attributes in which the objects around tensors are new; tensors are those in ``moved``, or the same as before."""
    shared = _shared(tensor)
    memo = {key: moved.get(key, part) for key, part in shared.items()}
    try:
        return {key: copy.deepcopy(value, memo) for key, value in vars(tensor).items()}
    except Exception as error:
        raise OffloadError(
            f"cannot move '{name}': what its class {type(tensor).__name__} carries in its attributes cannot be copied: "
            f"{error!r}",
            name=name,
        ) from error


def _shared(tensor: Any) -> dict[int, Any]:
    """What a copy of the attributes has in common with them: tensors, and all that holds none."""
    holders: dict[int, list[int]] = {}
    met: dict[int, Any] = {}
    pending = deque([tensor])
    while pending:
        holder = pending.popleft()
        for _, part in parts_of(holder):
            holders.setdefault(id(part), []).append(id(holder))
            if id(part) not in met:
                met[id(part)] = part
                pending.append(part)
    around: set[int] = set()
    rising = [key for key, part in met.items() if isinstance(part, torch.Tensor)]
    while rising:
        new = [key for key in holders.get(rising.pop(), ()) if key not in around]
        around.update(new)
        rising.extend(new)
    return {key: part for key, part in met.items() if key not in around or isinstance(part, torch.Tensor)}
