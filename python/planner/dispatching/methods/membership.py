"""Which dispatch a forward or an override belongs to."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from planner.dispatching.mixed.log import CrossingLog
from planner.errors import PlannerError

__all__ = ["Membership"]


class Membership:
    """Which dispatch a forward belongs to: the same object for all of one.

    Guarantee: where a layer is copied without its model, the copy belongs to none.
    """

    __slots__ = ("is_disturbed", "log", "record")

    def __init__(self) -> None:
        self.record: weakref.ref[Any] | None = None
        # What the model's own code had brought together.
        self.log = CrossingLog()
        # Whether modules were moved since.
        self.is_disturbed = False

    def __reduce__(self) -> Any:
        return (Membership, ())

    def is_alive(self) -> bool:
        """Whether the dispatch is there."""
        return self.record is not None and self.record() is not None

    def require_in_place(self, error: RuntimeError | None = None) -> None:
        """Raises OffloadError if a tensor is not where its module runs, and that may be why a forward has raised."""
        if error is not None and not _is_about_devices(error):
            return
        record = None if self.record is None else self.record()
        if record is not None:
            record.require_in_place(error)


def _is_about_devices(error: RuntimeError) -> bool:
    # The last one since torch 2.8.
    others = (PlannerError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", PlannerError))
    if isinstance(error, others):
        return False
    words = str(error)
    # The last are those of convolutions.
    return isinstance(error, NotImplementedError) or "device" in words or "should be the same" in words
