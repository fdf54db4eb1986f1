"""Whether a plan can be measured on this machine with this model, and with which inputs: asked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from planner.devices.keys import accelerator_backend
from planner.dispatching.install.record import RECORD
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import resolve_device
from planner.errors import InvalidInputError, PlanMismatchError
from planner.memory.recording.workloads import runs_of
from planner.names import device_of, listed
from planner.plans.plan import Plan
from planner.plans.workload import workload_of
from planner.settings.workload import Workload
from planner.spelling import shown
from planner.verification.peak_rows import execution_devices

__all__ = ["named_inputs", "require_dispatched", "require_measurable"]

_COUNTERS = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")


def require_measurable(model: nn.Module, plan: Plan, steps: int | None) -> Workload:
    """The workload of a plan that can be measured here.

    Raises:
        InvalidInputError: a plan without a workload or that runs nothing on accelerators; no accelerator that counts; a model in
            training mode; ``steps`` that are none.
    """
    workload = workload_of(plan)
    if workload is None:
        raise InvalidInputError(
            "this plan has no workload, so it predicts no memory; plan with workload={'context_length': …}"
        )
    if steps is not None and (type(steps) is not int or steps < 0):
        raise InvalidInputError(f"steps is a number of tokens of at least 0, or None, not {shown(steps)}")
    running = execution_devices(plan)
    if not any(isinstance(key, int) for key in running):
        where = ", ".join(map(str, running)) or "no device"
        raise InvalidInputError(
            f"this plan runs everything on {where}, which counts no peaks; planner.verify(model, plan) finds them with fake tensors"
        )
    backend = accelerator_backend()
    if backend is None or any(not hasattr(backend, name) for name in _COUNTERS):
        what = "no accelerator" if backend is None else f"{backend.__name__} without such counters"
        raise InvalidInputError(
            f"measuring needs accelerators that count their memory, and this machine has {what}; planner.verify(model, plan) finds peaks "
            "without them"
        )
    if model.training:
        raise InvalidInputError(
            f"this {type(model).__name__} is in training mode, where it takes more than the plan counts; call model.eval() first"
        )
    return workload


def require_dispatched(model: nn.Module, plan: Plan) -> None:
    """Raises PlanMismatchError unless a model is dispatched as a plan says. Fields: ``findings``."""
    if RECORD not in model.__dict__:
        raise PlanMismatchError(
            f"this {type(model).__name__} is not dispatched; call planner.dispatch(model, plan) first",
            findings=(),
        )
    here = dict(getattr(model, "hf_device_map", {}))
    planned = dict(plan.device_map)
    wrong = [name for name in {**planned, **here} if here.get(name) != planned.get(name)] or [
        name for name in _blocks(plan) if not _runs_as_planned(model, plan, name)
    ]
    if wrong:
        raise PlanMismatchError(
            f"this {type(model).__name__} is dispatched by another plan, which differs at {listed(map(repr, wrong))}; "
            "call planner.dispatch(model, plan) first",
            findings=tuple(wrong),
        )


def _blocks(plan: Plan) -> list[str]:
    return [] if plan.demands is None else list(plan.demands.blocks)


def _runs_as_planned(model: nn.Module, plan: Plan, name: str) -> bool:
    runs_on = device_of(name, plan.execution_map)
    key = device_of(name, plan.device_map) if runs_on is None else runs_on
    if key is None or key == "disk":
        return True
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return True  # a single tensor, which runs with what is around it
    hook = module.__dict__.get("_hf_hook")
    found = getattr(hook, "execution_device", None)
    if found is None:
        tensors = (each for each in (*module.parameters(), *module.buffers()) if not is_offloaded(each))
        found = next((tensor.device for tensor in tensors), None)
    return found is None or found == resolve_device(key)


def named_inputs(model: nn.Module, workload: Workload, inputs: Any) -> dict[str, torch.Tensor]:
    """The caller's inputs by name, which are those of the workload.

    Raises:
        InvalidInputError: others, or of other shapes.
    """
    wanted = next(runs_of(model, workload)).run.inputs
    if inputs is None:
        return {}
    given = _by_name(model, inputs)
    if given.keys() != wanted.keys():
        raise InvalidInputError(
            f"the plan's workload has the inputs {_words(wanted)}, and these are {_words(given)}; plan with workload.inputs (and "
            "is_padded for a mask) to measure others"
        )
    for name, (shape, dtype) in wanted.items():
        found = given[name]
        if tuple(found.shape) != tuple(shape) or found.dtype != dtype:
            raise InvalidInputError(
                f"the plan's workload has {name!r} of shape {list(shape)} and {dtype}, and this one has {list(found.shape)} and "
                f"{found.dtype}: peaks of other sizes cannot be compared; plan with that context_length, prompt_length and batch_size"
            )
    return given


def _words(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def _by_name(model: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    if isinstance(inputs, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(inputs)
    elif isinstance(inputs, torch.Tensor):
        args, kwargs = (inputs,), {}
    elif isinstance(inputs, tuple | list):
        args, kwargs = tuple(inputs), {}
    else:
        raise InvalidInputError(
            f"inputs are a tensor, a tuple of arguments or a mapping of keywords, not {type(inputs).__name__}"
        )
    try:
        bound = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
    except TypeError as error:
        raise InvalidInputError(
            f"the forward of {type(model).__name__} does not take these inputs: {error}"
        ) from error
    found = {**bound, **bound.pop("kwargs", {})}
    named = {name: value for name, value in found.items() if value is not model}
    wrong = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise InvalidInputError(
            f"inputs of a measured forward are tensors, and {listed(map(repr, wrong))} {'is' if len(wrong) == 1 else 'are'} not; "
            "caches and further options are the workload's"
        )
    return named
