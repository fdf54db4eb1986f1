"""One forward of a model's twin, dispatched or not, and what came of it."""

from __future__ import annotations

import os
import re
import traceback
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

from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.install.record import RECORD, Dispatched
from planner.dispatching.mixed.crossing import Crossing
from planner.dispatching.tensors.copies import require_offloadable
from planner.dispatching.tensors.slots import modules_of
from planner.errors import PlannerError
from planner.names import nearest_key, qualified
from planner.verification.absent_devices import is_question
from planner.verification.dispatched_twin import dispatch_twin, named_tensors
from planner.verification.known_values import KnownValues, MixedDevicesError
from planner.verification.twins import twin_of
from planner.verification.whole_functions import WholeFunctions

__all__ = ["Attempt"]

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# What torch says where the answer needs values, or a kernel that has no fake.
_UNKNOWABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
# And where it looks for the values past all modes.
_ABSENT = ("for tensor subclasses", "its data is not allocated yet")


class Attempt:
    """One forward of a twin; made and run in one go.

    Args:
        model: the model; only looked at.
        resolved_map: how the twin is dispatched; None leaves it undispatched.
        args: positional inputs.
        kwargs: inputs by keyword.
        kind: what accelerators are called here, where that says nothing to the reader; None where it does.
    """

    def __init__(
        self,
        model: nn.Module,
        resolved_map: ResolvedDeviceMap | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        kind: str | None = None,
    ) -> None:
        self.model = model
        self.resolved_map = resolved_map
        self.kind = kind
        self.twin: nn.Module | None = None
        self.error: Exception | None = None
        try:
            self._run(args, kwargs)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the model's code raises is the answer)
            self.error = error

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = KnownValues()
        with (
            FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False) as mode,
            torch.no_grad(),
        ):
            twin = self.twin = twin_of(self.model, mode, known)
            given = tree_map_only(torch.Tensor, lambda tensor: _input(tensor, known), (args, kwargs))
            with known, WholeFunctions(known):
                if self.resolved_map is not None:
                    self._dispatch(twin, self.resolved_map)
                    if self.resolved_map.is_single:
                        # Callers of a model on one device take the inputs there.
                        device = next(iter(self.resolved_map.placements.values())).execution_device
                        given = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), given)
                twin(*given[0], **given[1])

    def _dispatch(self, twin: nn.Module, resolved_map: ResolvedDeviceMap) -> None:
        dispatch_twin(twin, resolved_map)
        # Whether a tensor can rest elsewhere is a matter of its class, which a fake one has not.
        originals = named_tensors(self.model)
        names = {id(module): name for name, module in modules_of(twin)}
        record: Dispatched = twin.__dict__[RECORD]
        for row in record.originals:
            name = qualified(names[id(row.slot.module)], row.slot.name)
            key = nearest_key(name, resolved_map.placements)
            if (
                row.execution_device is None
                and key is not None
                and resolved_map.placements[key].storage_device is not None
            ):
                require_offloadable(originals[name], name)

    @property
    def is_refused(self) -> bool:
        """Whether the plan is to blame: our own dispatch has refused, or devices were mixed."""
        return isinstance(self.error, PlannerError | MixedDevicesError)

    @property
    def is_unknowable(self) -> bool:
        """Whether values, a fake of a kernel or of a tensor were missing."""
        error = self.error
        if error is None:
            return False
        return (
            isinstance(error, _UNKNOWABLE)
            or self.twin is None
            or any(words in str(error) for words in _ABSENT)
        )

    @property
    def is_question(self) -> bool:
        """Whether its code has asked the driver of accelerators that are not there."""
        return self.error is not None and is_question(self.error)

    def crossings(self) -> tuple[Crossing, ...]:
        """What the forward has brought together outside of blocks, until it ended."""
        record: Dispatched | None = None if self.twin is None else self.twin.__dict__.get(RECORD)
        return () if record is None else record.membership.log.crossings()

    def words(self) -> str:
        """The error, with the module and the line that it comes from."""
        error = self.error
        assert error is not None
        text = str(error) if isinstance(error, PlannerError) else f"{type(error).__name__}: {error}"
        text = text.partition("\n")[0]
        where = self._where(error)
        whole = f"{text} ({where})" if where else text
        return whole if self.kind is None else re.sub(rf"\b{self.kind}:(?=\d)", "", whole)

    def _where(self, error: Exception) -> str:
        names = {} if self.twin is None else {id(module): name for name, module in modules_of(self.twin)}
        line, owner = "", None
        for frame, number in traceback.walk_tb(error.__traceback__):
            path = frame.f_code.co_filename
            if path.startswith(_OURS):
                continue
            held = frame.f_locals.get("self")
            if id(held) in names:
                owner = held
            if not path.startswith(_TORCH):
                line = f"{path}:{number}"
        if owner is None:
            return line
        name = names[id(owner)]
        what = f"in '{name}', {type(owner).__name__}" if name else f"in {type(owner).__name__}"
        return f"{what}, at {line}" if line else what


def _input(tensor: torch.Tensor, known: KnownValues) -> torch.Tensor:
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if not tensor.is_meta:
        known.learn(made, tensor)
    return made
