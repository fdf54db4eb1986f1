"""A mode that counts the storages of fake tensors by device, as an accelerator's allocator would, and peaks of forwards."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.choices import AttentionKernel
from planner.devices.keys import DeviceKey
from planner.dispatching.tensors.fakes import is_fake
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.memory.recording.kernels import COMPOSED, attention
from planner.verification.known_values import KnownValues

__all__ = ["AttentionKernels", "StorageCounter", "key_of"]

_aten = torch.ops.aten
_READS = (_aten._local_scalar_dense.default, _aten.equal.default)
_attention = torch.nn.functional.scaled_dot_product_attention


def key_of(device: torch.device) -> DeviceKey:
    """How plans call a device of torch's."""
    return device.type if device.type in ("cpu", "mps") else device.index or 0


class StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is alive on each device; a forward's peak is the most of it since the forward began.

    To be entered after the modes that make fake tensors and know their values.

    Args:
        known: knows values that follow from the inputs.
        is_padded: the answer where code asks for other values: masks of prompts without padding are true everywhere.
    """

    def __init__(self, known: KnownValues, *, is_padded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, dict[DeviceKey, int]] = {}
        self.alive_bytes: dict[DeviceKey, int] = {}
        self._known = known
        self._is_padded = is_padded
        self._now: dict[DeviceKey, int] | None = None
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._inside: set[Any] = set()

    def note(self, tensors: Iterable[Any]) -> None:
        """Fake tensors are there, whose storages may be new."""
        for tensor in tensors:
            if is_fake(tensor) and not is_offloaded(tensor):
                self._take(tensor.untyped_storage(), key_of(tensor.device))

    def _take(self, storage: Any, device: DeviceKey) -> None:
        key = storage._cdata
        if key in self._watched:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._watched[key]
            self.alive_bytes[device] -= size

        self._watched[key] = weakref.ref(storage, gone)
        found = self.alive_bytes[device] = self.alive_bytes.get(device, 0) + size
        if self._now is not None:
            self._now[device] = max(found, self._now.get(device, 0))

    # ---- Forwards

    def phase(self, name: str) -> None:
        """A forward begins; its inputs are there."""
        self._now = self.peaks[name] = dict(self.alive_bytes)

    def output(self, value: Any) -> None:
        """It has returned something."""
        self._now = None

    def after(self) -> None:
        """What it has returned has been let go."""

    def forget(self) -> None:
        """Lets go of everything that is watched."""
        self._watched.clear()

    # ---- Operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READS and any(self._is_unknown(tensor) for tensor in args):
            return self._answer(torch.bool if func is not _READS[0] else args[0].dtype)
        inside = COMPOSED.get(func)
        if inside is not None and func not in self._inside and any(map(is_fake, args)):
            self._inside.add(func)
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self._inside.discard(func)
        out = func(*args, **kwargs)
        self.note(tree_leaves(out))
        return out

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        return is_fake(tensor) and not is_offloaded(tensor) and self._known.value(tensor) is None

    def _answer(self, dtype: torch.dtype) -> Any:
        """What a recording answers, too."""
        answer = not self._is_padded if dtype == torch.bool else 1
        return float(answer) if dtype.is_floating_point else answer


class AttentionKernels(TorchFunctionMode):
    """Has attention on accelerators run the kernel that a workload names.

    Args:
        kernel: which of torch's.
    """

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _attention and self.kernel != "math" and args and args[0].device.type != "cpu":
            return attention(self.kernel, *args, **kwargs)
        return func(*args, **kwargs)
