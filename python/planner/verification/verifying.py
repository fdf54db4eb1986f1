"""Verifying: the model's structure in fake tensors, dispatched as the model would be, and one forward of it."""

from __future__ import annotations

import logging
import os
import random
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_map_only

from planner.crossing import Crossing
from planner.devices import DeviceKey
from planner.dispatch.copies import require_offloadable
from planner.dispatch.dispatched import RECORD, is_part
from planner.dispatch.dispatching import carry_out
from planner.dispatch.engagement import Engagement
from planner.dispatch.homes import Assignment, require_fit, require_whole
from planner.dispatch.slots import modules_of, require_initialised
from planner.dotted import nearest_key
from planner.errors import InvalidInputError, OffloadError, PlanMismatchError, PlannerError
from planner.plan import Plan
from planner.verification.known_values import KnownValues
from planner.verification.sample_inputs import sample_inputs
from planner.verification.twins import twin_of
from planner.verification.verdict import Verification

__all__ = ["verify"]

# What torch says where the answer needs values, or a kernel that has no fake.
_UNKNOWABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def verify(model: nn.Module, plan: Plan | Mapping[str, Any], inputs: Any = None) -> Verification:
    """Says whether a model would run as a plan has it, and where its own code would cross devices; nothing is moved.

    Args:
        model: a model, with its weights or on the meta device; only looked at.
        plan: a plan, or a device map. Its devices need not be there.
        inputs: arguments of one forward: a tensor, a tuple of positional ones, or a mapping of keywords. Without them, the class's
            own main input, where its configuration tells the shape.

    Returns:
        A :class:`Verification`. What :func:`planner.dispatch` would refuse does not run, with its words. Where the model branches on
        values that come from weights, as experts that are looped over, ``runs`` is None.

    Raises:
        InvalidInputError: no plan; inputs that the undispatched model does not take either, or none where they cannot be told.
        InvalidDevicesError: a device that is none.

    Guarantee: the model, its hooks, its buffers, the random numbers and the gradient mode stay as they are, also when this raises. No
        byte of a weight is read or allocated. Borders, stand-ins and crossings are those of :func:`planner.dispatch`.

    Cost: a forward's time in Python; a few seconds for 80 decoder layers.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> print(verify(net, {"0": 0, "1": 1}, torch.ones(1, 2)))
        runs
    """
    if not isinstance(plan, Plan | Mapping):
        raise InvalidInputError(
            f"verify() wants a plan or a device map, a mapping of names to devices, not {plan!r}"
        )
    assignment = (
        Assignment.of_plan(plan, _assumed) if isinstance(plan, Plan) else Assignment(plan, assumed=_assumed)
    )
    args, kwargs = _arguments(sample_inputs(model) if inputs is None else inputs)
    try:
        require_initialised(model)
        _require_whole_model(model)
        require_fit(model, assignment)
        require_whole(model, assignment)
    except PlannerError as error:
        return Verification(False, str(error), ())
    with _as_before():
        return _verdict(model, assignment, args, kwargs)


def _assumed(key: DeviceKey) -> torch.device:
    """A device of this machine's kind, whether it is there or not."""
    if not isinstance(key, int):
        return torch.device(key) if key == "cpu" else torch.device(key, 0)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda" if found is None or found.type == "mps" else found.type, key)


def _require_whole_model(model: nn.Module) -> None:
    if RECORD not in model.__dict__ and is_part(model):
        raise PlanMismatchError(
            f"this {type(model).__name__} is part of a larger model that is dispatched; dispatch or undispatch that one",
            findings=(),
        )


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    raise InvalidInputError(
        f"inputs are a tensor, a tuple or a mapping of keywords, not {type(inputs).__name__}"
    )


@contextmanager
def _as_before() -> Iterator[None]:
    """Random numbers go on afterwards where they were; what torch logs of fake tensors that fail, the verdict says."""
    state, other = torch.get_rng_state(), random.getstate()
    quiet = _Quiet(threading.get_ident())
    _FAKE_LOG.addFilter(quiet)
    try:
        yield
    finally:
        _FAKE_LOG.removeFilter(quiet)
        torch.set_rng_state(state)
        random.setstate(other)


class _Quiet(logging.Filter):
    """Drops what one thread logs."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


def _verdict(
    model: nn.Module, assignment: Assignment, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Verification:
    attempt = _Attempt(model, assignment)
    error = attempt.run(args, kwargs)
    if error is None:
        return Verification(True, None, attempt.crossings())
    words = attempt.words(error)
    if isinstance(error, _UNKNOWABLE):
        return Verification(None, f"it depends on values, which are not there: {words}", attempt.crossings())
    if not isinstance(error, OffloadError | PlanMismatchError):
        # Is it the plan's fault?
        alone = _Attempt(model, None)
        usual = alone.run(args, kwargs)
        if isinstance(usual, _UNKNOWABLE):
            return Verification(
                None, f"it depends on values, which are not there: {alone.words(usual)}", attempt.crossings()
            )
        if usual is not None:
            raise InvalidInputError(
                f"the undispatched {type(model).__name__} does not run with these inputs either: {alone.words(usual)}; give inputs "
                "that it takes: verify(model, plan, inputs=…)"
            ) from usual
    return Verification(False, words, attempt.crossings())


class _Attempt:
    """One forward of a twin.

    Args:
        model: the model.
        assignment: how the twin is dispatched; None leaves it undispatched.
    """

    def __init__(self, model: nn.Module, assignment: Assignment | None) -> None:
        self.model = model
        self.assignment = assignment
        self.twin: nn.Module | None = None

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
        """What the forward has raised, if anything."""
        known = KnownValues()
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
                twin = self.twin = twin_of(self.model, mode, known)
                given, named = tree_map_only(torch.Tensor, lambda t: _input(t, known), (args, kwargs))
                if self.assignment is not None:
                    given, named = self._dispatch(twin, self.assignment, given, named)
                with known:
                    twin(*given, **named)
        except Exception as error:  # noqa: BLE001 (whatever the model's code raises is the answer)
            return error
        return None

    def _dispatch(
        self, twin: nn.Module, assignment: Assignment, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Dispatches the twin, and gives the inputs as whoever calls the model would: where one device is all, they are there."""
        carry_out(twin, Engagement(assignment=assignment, weights=_on_disk(twin, assignment)))
        originals = {
            **dict(self.model.named_parameters(remove_duplicate=False)),
            **dict(self.model.named_buffers(remove_duplicate=False)),
        }
        names = {id(module): name for name, module in modules_of(twin)}
        for row in twin.__dict__[RECORD].homes:
            prefix = names[id(row.slot.module)]
            name = f"{prefix}.{row.slot.name}" if prefix else row.slot.name
            home = nearest_key(name, assignment.homes)
            if row.runs_on is None and home is not None and assignment.homes[home].rests_on is not None:
                require_offloadable(originals[name], name)
        if not assignment.is_single:
            return args, kwargs
        device = next(iter(assignment.homes.values())).runs_on
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))

    def crossings(self) -> tuple[Crossing, ...]:
        record = None if self.twin is None else self.twin.__dict__.get(RECORD)
        log = None if record is None else getattr(record.membership, "log", None)
        return () if log is None else tuple(log.crossings())

    def words(self, error: Exception) -> str:
        """An error with the module and the line that it comes from."""
        said = str(error) if isinstance(error, PlannerError) else f"{type(error).__name__}: {error}"
        where = self._where(error)
        return f"{said} ({where})" if where else said

    def _where(self, error: Exception) -> str:
        names = {} if self.twin is None else {id(module): name for name, module in modules_of(self.twin)}
        line, owner = "", None
        for frame, number in traceback.walk_tb(error.__traceback__):
            path = frame.f_code.co_filename
            if path.startswith(_OURS):
                continue
            held = frame.f_locals.get("self")
            if id(held) in names and isinstance(held, nn.Module):
                owner = held
            if not path.startswith(_TORCH):
                line = f"{path}:{number}"
        if owner is None:
            return line
        name = names[id(owner)]
        what = f"in '{name}', a {type(owner).__name__}" if name else f"in {type(owner).__name__}"
        return f"{what}, at {line}" if line else what


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


def _on_disk(twin: nn.Module, assignment: Assignment) -> dict[str, Any] | None:
    """Stands for the files of what a map puts on disk."""
    if not any(home.rests_on is None for home in assignment.homes.values()):
        return None
    return dict(twin.named_parameters(remove_duplicate=False)) | dict(
        twin.named_buffers(remove_duplicate=False)
    )


def _input(tensor: torch.Tensor, known: KnownValues) -> torch.Tensor:
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if not tensor.is_meta:
        known.learn(made, tensor)
    return made
