"""A model of fake tensors: the modules of another one, its attributes copied, none of its bytes."""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from planner.dispatching.install.record import RECORD, dispatched_models
from planner.dispatching.methods.adapter_loading import AdapterLoading
from planner.dispatching.methods.forward import Forward
from planner.dispatching.methods.overrides import Conversion
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.verification.known_values import KnownValues

__all__ = ["twin_of"]

# A cell of a closure whose variable was never set.
_EMPTY = (CellType(),)
# What a dispatch leaves in a module, beside forwards and hooks.
_OF_DISPATCH = frozenset([RECORD, "hf_device_map", "__reduce_ex__"])


def twin_of(model: nn.Module, mode: FakeTensorMode, known: KnownValues) -> nn.Module:
    """A model's structure with fake tensors; dispatched, what it was before.

    Args:
        model: only looked at.
        mode: makes the tensors. It is on.
        known: learns the values of small buffers.

    Guarantee: tied tensors, shared modules and attributes that lead to modules are in the twin what they are in the model. What
        cannot be copied is shared.

    Cost: no byte of a weight is read; a microsecond or two for each attribute.
    """
    memo: dict[int, Any] = {}
    modules = [module for _, module in modules_of(model)]
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
        for slot in own_slots(module):
            tensor = slot.read()
            if id(tensor) not in memo:
                memo[id(tensor)] = _fake(tensor, mode, known if slot.is_buffer else None)
    installed = {
        id(forward.hook) for dispatched in dispatched_models(model) for forward in dispatched.forwards
    }
    with FakeCopyMode(mode):
        for module in modules:
            _fill(memo[id(module)], module, memo, installed)
    twin: nn.Module = memo[id(model)]
    return twin


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any], installed: set[int]) -> None:
    table = twin.__dict__
    for key, value in vars(module).items():
        if key in ("_parameters", "_buffers", "_modules"):
            table[key] = {name: None if inner is None else memo[id(inner)] for name, inner in value.items()}
        elif not (key in _OF_DISPATCH and installed) and not isinstance(value, Conversion | AdapterLoading):
            if key == "_hf_hook" and id(value) in installed:
                continue
            if isinstance(value, Forward) and id(value.hook) in installed:
                value = _below(value, installed)
                if value is None:
                    continue
            table[key] = _copied(value, memo)
    # Compiled, a module computes what it is; its compiled code would run the model's own modules.
    table.pop("_compiled_call_impl", None)
    if "forward" in table and "_orig_mod" in table["_modules"]:
        table["forward"] = table["_modules"]["_orig_mod"].__call__


def _below(forward: Any, installed: set[int]) -> Any:
    """What others had put there before it was dispatched."""
    while isinstance(forward, Forward) and id(forward.hook) in installed:
        forward = forward.previous
    return forward


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy as far as that can be; locks, streams, files and all else that refuses to be copied are shared."""
    if isinstance(value, FunctionType):
        return _rebound(value, memo)
    if isinstance(value, dict) and any(isinstance(item, FunctionType) for item in value.values()):
        return type(value)((key, _copied(item, memo)) for key, item in value.items())  # hooks
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 (each class refuses in its own way)
        while len(memo) > known:
            memo.popitem()  # half of a copy
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_copied(item, memo) for item in value)
    if isinstance(value, dict) and type(value).__init__ is dict.__init__:
        return type(value)((key, _copied(item, memo)) for key, item in value.items())
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return value
    try:
        twin = object.__new__(type(value))
    except TypeError:
        return value  # a class of C
    memo[id(value)] = twin
    vars(twin).update((key, _copied(item, memo)) for key, item in vars(value).items())
    return twin


def _rebound(function: FunctionType, memo: dict[int, Any]) -> Any:
    """A function that calls the twin's modules where it was closed over the model's; the function itself if it was not."""
    if id(function) in memo:
        return memo[id(function)]
    cells = function.__closure__ or ()
    if not any(_leads_in(cell, memo, {id(function)}) for cell in cells):
        return function
    closure = tuple(CellType() for _ in cells)
    twin = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    vars(twin).update(vars(function))
    memo[id(function)] = twin
    for cell, made in zip(cells, closure, strict=True):
        if cell not in _EMPTY:
            held = cell.cell_contents
            made.cell_contents = _copied(held, memo) if _leads_in(cell, memo, set()) else held
    return twin


def _leads_in(cell: CellType, memo: dict[int, Any], seen: set[int]) -> bool:
    """Whether a closure holds a module or tensor of the model, a method of one, or a function that does."""
    if cell in _EMPTY:
        return False
    held = cell.cell_contents
    if id(held) in memo or (isinstance(held, MethodType) and id(held.__self__) in memo):
        return True
    if not isinstance(held, FunctionType) or id(held) in seen:
        return False
    seen.add(id(held))
    return any(_leads_in(each, memo, seen) for each in held.__closure__ or ())


def _fake(tensor: Any, mode: FakeTensorMode, known: KnownValues | None) -> Any:
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    if not is_plain and not is_offloaded(tensor):
        return mode.from_tensor(tensor, static_shapes=True)
    # Without values, they will come from somewhere.
    device = torch.device("cpu") if is_offloaded(tensor) or tensor.is_meta else tensor.device
    made: Any = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    known_here = known is not None and not is_offloaded(tensor) and not tensor.is_meta
    if isinstance(tensor, nn.Parameter):
        # Frozen: a forward without a graph is all that is asked, and a graph would ask for the device.
        made = nn.Parameter(made, requires_grad=False)
    for key, mark in vars(tensor).items():
        if key not in vars(made) and not isinstance(mark, torch.Tensor):
            setattr(made, key, mark)
    if known_here and known is not None:
        known.learn(made, tensor)
    return made
