"""Which device a placeholder says: the one where its module runs, or "meta" for those who look for what is offloaded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from planner.dispatching.tensors.slots import Slot, modules_of

__all__ = ["PlaceholderDevice", "device_of", "is_asked_by"]

_META = torch.device("meta")
_CPU = torch.device("cpu")
# What runs a module, as the interpreter calls it; the property that says where the model's inputs are to be, which asks the first
# weight; and what makes adapters, which go where their layer runs. Not what loads them: that believes the map, and leaves out what
# it has on disk.
_CALLS = frozenset(
    {"_call_impl", "forward", "generate", "device", "get_peft_model", "add_adapter", "inject_adapter"}
)


class _Store(Protocol):
    """Of :class:`planner.dispatching.offload.store.OffloadStore`, what a placeholder needs."""

    @property
    def slots(self) -> Sequence[Slot]: ...

    @property
    def placeholders(self) -> Sequence[Any]: ...

    @property
    def execution_device(self) -> torch.device | None: ...

    def fetch(self, index: int) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class PlaceholderDevice:
    """Where the values of a placeholder are, and which code sees where they are wanted.

    Args:
        store: the tensors that it is one of.
        index: which one.
        is_open: all code does; otherwise only code inside a forward, and all other gets "meta", as accelerate has it.
    """

    store: _Store
    index: int
    is_open: bool

    def device(self) -> torch.device:
        """The device that the placeholder has for the code that asks now."""
        if self.is_open or self._is_running():
            return self.store.execution_device or _CPU
        return _META

    def closed(self) -> PlaceholderDevice:
        """The same, seen inside a forward only."""
        return replace(self, is_open=False)

    def is_of(self, placeholder: Any) -> bool:
        """Whether a placeholder stands for the tensor itself and not for a view of it."""
        return self.store.placeholders[self.index] is placeholder

    def values(self) -> torch.Tensor:
        """A copy of the tensor where its module runs."""
        return self.store.fetch(self.index)

    def _is_running(self) -> bool:
        """Whether a module that holds the tensor runs in this thread, or this one works for the thread where it does.

        Read from the stack: it belongs to the thread, knows modules that have no hook, and is right after any error.
        """
        if torch._C._current_graph_task_id() != -1:
            return True  # backward: a part of a forward is computed again
        if self._is_running_in(sys._getframe(1)):
            return True
        if threading.current_thread() is threading.main_thread():
            return False
        # A thread that a forward has started, or has given work to, has none of it on its own stack.
        return any(self._is_running_in(frame) for frame in list(sys._current_frames().values()))

    def _is_running_in(self, frame: FrameType | None) -> bool:
        while frame is not None:
            code = frame.f_code
            if code.co_name in _CALLS and code.co_argcount > 0:
                caller = frame.f_locals.get(code.co_varnames[0])
                if isinstance(caller, nn.Module) and self._is_inside(caller):
                    return True
            frame = frame.f_back
        return False

    def _is_inside(self, model: nn.Module) -> bool:
        owner, placeholder = self.store.slots[self.index].module, self.store.placeholders[self.index]
        return any(
            module is owner
            or any(
                held is placeholder
                for table in (module._parameters, module._buffers)
                for held in table.values()
            )
            for _, module in modules_of(model)
        )


def device_of(placeholder: Any) -> torch.device:
    """The device that a placeholder has for the code that asks now."""
    where: PlaceholderDevice | None = placeholder.whereabouts
    return _META if where is None else where.device()


def is_asked_by(library: str, frame: FrameType) -> bool:
    """Whether code that asks is of a library, by its frame."""
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == library
