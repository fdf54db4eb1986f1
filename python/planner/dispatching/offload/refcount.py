"""Uses of a module's offloaded tensors: brought in for the first one, and out again after the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from planner.dispatching.offload.materialize import Materialized
from planner.dispatching.offload.store import OffloadStore
from planner.errors import OffloadError

__all__ = ["OffloadedModule", "Use", "UsedElsewhereError", "is_capturing"]


class UsedElsewhereError(OffloadError):
    """Weights are in use on another device. Fields: ``device``: which."""

    device: torch.device


class OffloadedModule:
    """Offloaded tensors of one module, and the forwards that use them.

    Args:
        store: the tensors.

    Guarantee: used by several threads, or again from inside, tensors are brought in once and go with the last user. When
        :meth:`acquire` raises, everything is as before.
    """

    __slots__ = ("_lock", "_materialized", "_users", "staged", "store")

    def __init__(self, store: OffloadStore) -> None:
        self.store = store
        self._begin_unused()

    def _begin_unused(self) -> None:
        self._lock = threading.Lock()
        self._users: set[Use] = set()
        self._materialized: Materialized | None = None
        # Tensors on their way.
        self.staged: Any = None

    def __getstate__(self) -> OffloadStore:
        return self.store

    def __setstate__(self, store: OffloadStore) -> None:
        self.store = store
        self._begin_unused()

    @property
    def is_live(self) -> bool:
        """Whether the tensors are in use now."""
        return bool(self._users)

    def is_held(self, device: torch.device | None) -> bool:
        """Whether this thread uses the tensors on a device already, and so will find them until it has ended that use."""
        use, materialized = _held.uses.get(self), self._materialized
        return (
            use is not None
            and materialized is not None
            and use in self._users
            and materialized.device == device
        )

    def held_on(self) -> torch.device | None:
        """Where this thread uses the tensors, if it does."""
        use, materialized = _held.uses.get(self), self._materialized
        is_held = use is not None and materialized is not None and use in self._users
        return materialized.device if is_held and materialized is not None else None

    def acquire(self, device: torch.device, use: Use) -> None:
        """Brings the tensors to a device, or joins those who have.

        Raises:
            OffloadError: they are in use on another device, or a tensor cannot be had. Fields: ``name``.
        """
        with self._lock:
            if not self.store.slots:
                return
            materialized = self._materialized
            if self._users and materialized is not None and materialized.device != device:
                name = self.store.names[0]
                raise UsedElsewhereError(
                    f"'{name}' is in use on {materialized.device} and cannot be brought to {device} at the same time",
                    name=name,
                    device=materialized.device,
                )
            if materialized is not None and not materialized.is_complete:
                self._release_all()  # bringing them in was interrupted
            # Counted first, so that an interrupt at any point finds here what has to be undone.
            self._users.add(use)
            try:
                if self._materialized is None:
                    self._materialize(device)
            except BaseException:
                self._leave(use)
                raise

    def compare_all(self) -> None:
        """Lets the end of this materialization find every write, also those that torch does not count."""
        with self._lock:
            if self._materialized is not None:
                self._materialized.is_thorough = True

    def release(self, use: Use) -> None:
        """Ends one use, if it has not ended; the last one puts the placeholders back."""
        with self._lock:
            self._leave(use)

    def outside(self, tensor: Any) -> Any:
        """What lies in a slot outside of forwards, where this tensor lies now."""
        materialized = self._materialized
        tensors = [] if materialized is None else materialized.tensors
        return next((row.found for row in tensors if row.tensor is tensor), tensor)

    def stage(self, send: Callable[[Sequence[torch.Tensor]], Any]) -> None:
        """Copies the resting tensors ahead of their use; not if they are in use, or on their way already.

        Args:
            send: starts the copies of tensors in pinned memory.
        """
        with self._lock:
            rest = self.store
            if self._users or self.staged is not None or not rest.slots or rest.is_shared():
                return
            rest.pin()
            self.staged = send([rest.value(index) for index in range(len(rest.slots))])

    def expect(self, staged: Any) -> bool:
        """Lets the next use take tensors that are on their way; not if they are in use, or others on their way already.

        Args:
            staged: :class:`StagedTensors`.
        """
        with self._lock:
            if self._users or self.staged is not None or not self.store.slots:
                return False
            self.staged = staged
            return True

    def unstage(self, staged: Any = None) -> None:
        """Forgets tensors that are on their way, if they were not used.

        Args:
            staged: only these; None for any.
        """
        with self._lock:
            if staged is None or staged is self.staged:
                self.staged = None

    def close(self) -> None:
        """Lets go of the slots for good, leaving what lies in them."""
        with self._lock:
            self.store = OffloadStore((), (), (), {})
            self._materialized, self.staged = None, None
            self._users = set()

    def _materialize(self, device: torch.device) -> None:
        rest = self.store
        refuse_capture(device, rest.names[0])
        staged, self.staged = self.staged, None
        rest.execution_device = device
        ready = None if staged is None else staged.take(device, rest)
        materialized = self._materialized = Materialized(rest, device)
        if staged is None or ready is None:
            materialized.materialize()
        else:
            materialized.materialize(staged.origins, ready)

    def _leave(self, use: Use) -> None:
        self._users.discard(use)
        if not self._users:
            self._release_all()

    def _release_all(self) -> None:
        materialized = self._materialized
        if materialized is None:
            return
        try:
            materialized.release()
            materialized.keep_changes()
        except Exception:
            self._materialized = None  # trying again would not help; after an interrupt it does
            raise
        self._materialized = None


class Use:
    """One use of some offloaded_modules, for one forward.

    Args:
        offloaded_modules: those that the forward needs.

    Guarantee: ending it a second time does nothing, or what an interrupt has left undone.
    """

    __slots__ = ("offloaded_modules",)

    def __init__(self, offloaded_modules: Sequence[OffloadedModule]) -> None:
        self.offloaded_modules = offloaded_modules

    def begin(self, device: torch.device) -> None:
        """Brings all to a device; the caller calls :meth:`end` afterwards, also when this raises."""
        if not self.offloaded_modules:
            return
        # Copies must count what is written to them, also where the forward runs in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            for offloaded_module in self.offloaded_modules:
                offloaded_module.acquire(device, self)
                # The outermost use counts: it ends last.
                _held.uses.setdefault(offloaded_module, self)

    def end(self) -> None:
        """Ends the use of all, also when one of them raises."""
        try:
            for offloaded_module in self.offloaded_modules:
                if _held.uses.get(offloaded_module) is self:
                    del _held.uses[offloaded_module]
                offloaded_module.release(self)
        except BaseException:
            self.end()
            raise


class _Held(threading.local):
    """The outermost use of each offloaded module by this thread."""

    def __init__(self) -> None:
        self.uses: dict[OffloadedModule, Use] = {}


_held = _Held()


def refuse_capture(device: torch.device, name: str) -> None:
    """Raises OffloadError while a CUDA graph is captured: a replay would run on memory that was given back."""
    if is_capturing(device):
        raise OffloadError(
            f"a CUDA graph cannot be captured over '{name}', which is offloaded: a replay would read memory that was given "
            "back; place the module on the accelerator",
            name=name,
        )


def is_capturing(device: torch.device) -> bool:
    """Whether work for a device is recorded into a CUDA graph just now."""
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()
