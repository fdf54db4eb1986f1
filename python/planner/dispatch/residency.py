"""Offloaded tensors of one module: brought in while somebody uses them, and out again after the last one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from planner.dispatch.copies import (
    SharedCopies,
    copied,
    copy_marks,
    fits,
    is_same_tensor,
    like_parameter,
    visitor,
)
from planner.dispatch.guard import OffloadedTensor, is_offloaded, placeholder
from planner.dispatch.slots import Slot
from planner.errors import OffloadError

__all__ = ["Residency", "TiedCopies"]

# By address of a resting tensor: its copies by device. accelerate's type, so that its readers find what they expect.
TiedCopies = dict[int, dict[Any, Any]]


class _RefuseGradient:
    """Raises when a gradient arrives at a copy that is about to be thrown away."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, gradient: torch.Tensor) -> NoReturn:
        raise OffloadError(
            f"'{self.name}' is offloaded and trainable: its gradient would be lost with its copy; freeze it with "
            "requires_grad_(False), or give it a device of its own in the device map",
            name=self.name,
        )


class Residency:
    """What one module needs from elsewhere while it runs.

    Args:
        slots: where the tensors belong.
        keys: their keys in ``source``, in the same order.
        names: what errors call them.
        source: where they rest. May be exchanged at any time; the next use reads the new one.
        tied: by address, copies shared with other modules.
        shares: instead, for each slot what it shares with other owners of its tensor, if anything.

    A real tensor that somebody puts in place of a stand-in is computed with where it was found; ``source`` stays as it is.
    What a forward writes into a tensor in place, or a buffer that it replaces, is kept: in ``source``, or in the slot where
    the source makes a new tensor each time, like files. Writes that torch does not count (through ``.data``) are kept for
    buffers only.

    Guarantee: used by several threads, or again from inside, tensors are brought in once and go with the last user. When
        ``acquire`` raises, everything is as before.
    """

    __slots__ = ("_lock", "_users", "device", "is_pinned", "keys", "live", "names", "origins", "placeholders", "published", "shares", "slots", "source", "staged", "tied", "versions")  # fmt: skip

    def __init__(
        self,
        slots: Sequence[Slot],
        keys: Sequence[str],
        names: Sequence[str],
        source: Mapping[str, Any],
        tied: TiedCopies | None = None,
        shares: Sequence[SharedCopies | None] = (),
    ) -> None:
        self.slots = tuple(slots)
        self.keys = tuple(keys)
        self.names = tuple(names)
        self.source = source
        self.tied = tied
        self.shares = tuple(shares)
        self.placeholders: list[OffloadedTensor] = []
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.device: torch.device | None = None
        self.live: list[Any] = []
        self.versions: list[int | None] = []
        # By slot: what lay there, and the tensor that the live one was made from.
        self.origins: list[tuple[Any, Any]] = []
        self.published: list[tuple[dict[Any, Any], torch.device]] = []
        self.staged: Any = None
        self.is_pinned = False

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: getattr(self, key)
            for key in ("slots", "keys", "names", "source", "tied", "shares", "placeholders")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
        self._forget()
        # A copy that was made while the original ran holds a copy of what the original had brought in.
        for slot, guard in zip(self.slots, self.placeholders, strict=True):
            if "_parameters" in slot.module.__dict__:
                slot.write(guard)

    @property
    def is_live(self) -> bool:
        """Whether somebody uses the tensors now."""
        return self._users > 0

    def engage(self, placeholders: Sequence[OffloadedTensor]) -> None:
        """Puts stand-ins into the slots."""
        self.placeholders = list(placeholders)
        for slot, guard in zip(self.slots, self.placeholders, strict=True):
            slot.write(guard)

    def acquire(self, device: torch.device, held: list[Residency] | None = None) -> None:
        """Brings the tensors to a device, or joins those who have.

        Args:
            device: where to.
            held: gets this residency once it is counted, without a moment in between for an interrupt.

        Raises:
            OffloadError: they are in use on another device, or a tensor cannot be had. Fields: ``name``.
        """
        if not self.slots:
            return
        with self._lock:
            if self._users and device != self.device:
                raise OffloadError(
                    f"'{self.names[0]}' is in use on {self.device} and cannot be brought to {device} at the same time",
                    name=self.names[0],
                )
            users, length = self._users, len(held or ())
            try:
                # Counted first, so that an interrupt at any point finds here what has to be undone.
                self._users = users + 1
                if users == 0:
                    self._bring_in(device)
                if held is not None:
                    held.append(self)
            except BaseException:
                self._users = users
                if users == 0:
                    self._put_back()
                if held is not None:
                    del held[length:]
                raise

    def release(self) -> None:
        """Ends one use; the last one puts the stand-ins back."""
        if not self.slots:
            return
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self._take_out()

    def resting_bytes(self) -> int:
        """Bytes that the tensors take where they run."""
        return sum(guard.numel() * guard.element_size() for guard in self.placeholders)

    def value(self, index: int) -> Any:
        """The resting tensor of a slot.

        Raises:
            OffloadError: its source does not have it. Fields: ``name``.
        """
        try:
            return self.source[self.keys[index]]
        except (KeyError, OSError) as error:
            name = self.names[index]
            raise OffloadError(f"offloaded weight '{name}' cannot be read: {error!r}", name=name) from error

    def fetch(self, index: int) -> torch.Tensor:
        """A copy of one resting tensor where its module runs; for reading outside of a forward."""
        return copied(self.value(index), self.device or torch.device("cpu"))

    def stage(self, send: Callable[[Sequence[torch.Tensor]], Any]) -> bool:
        """Copies the resting tensors ahead of their use; not if they are in use, or on their way already.

        Args:
            send: starts the copies of tensors in pinned memory.
        """
        with self._lock:
            if self._users or self.staged is not None or not self.slots or self._is_shared():
                return False
            self.pin()
            self.staged = send([self.value(index) for index in range(len(self.slots))])
            return True

    def unstage(self) -> None:
        """Forgets copies that were made ahead, if nobody has used them."""
        with self._lock:
            self.staged = None

    def _is_shared(self) -> bool:
        """Whether other modules share a resting tensor."""
        if not self.tied and not any(share is not None for share in self.shares):
            return False
        return any(self._share(index, self.value(index)) is not None for index in range(len(self.slots)))

    def _share(self, index: int, resting: Any) -> dict[Any, Any] | None:
        if self.shares:
            return self.shares[index]
        return self.tied.get(resting.data_ptr()) if self.tied and resting.data_ptr() else None

    def pin(self) -> None:
        """Lets pinned memory take the place of the resting tensors, one after the other, where that can be."""
        if self.is_pinned:
            return
        self.is_pinned = True
        if not isinstance(self.source, MutableMapping):
            return
        for index, key in enumerate(self.keys):
            resting = self.value(index)
            if resting.device.type == "cpu" and type(resting) in (torch.Tensor, nn.Parameter):
                with torch.no_grad():
                    pinned = resting.detach().pin_memory()
                    if isinstance(resting, nn.Parameter):
                        # The object stays: optimizers know it, and it comes back when dispatching is undone.
                        resting.data = pinned
                    else:
                        self.source[key] = pinned

    def close(self) -> None:
        """Lets go of the slots for good, leaving what lies in them."""
        with self._lock:
            self.slots, self.keys, self.names = (), (), ()
            self.placeholders, self.live, self.versions = [], [], []
            self.origins, self.shares = [], ()
            self.staged = None
            self._users = 0

    def _bring_in(self, device: torch.device) -> None:
        refuse_capture(device, self.names[0])
        staged, self.staged = self.staged, None
        self.device = device
        ready = staged.take(device) if staged is not None else None
        for index, slot in enumerate(self.slots):
            found = slot.read()
            if self._is_foreign(index, found):
                origin, tensor = found, visitor(found, device)
            else:
                found, origin = self.placeholders[index], self.value(index)
                tensor = self._arrive(index, origin, device, ready)
            self.live.append(tensor)
            self.origins.append((found, origin))
            self.versions.append(_version(tensor))
        for slot, tensor in zip(self.slots, self.live, strict=True):
            slot.write(tensor)

    def _is_foreign(self, index: int, found: Any) -> bool:
        """Whether somebody put a real tensor in place of the stand-in: for one call, or for good."""
        if found is self.placeholders[index] or found is None or is_offloaded(found):
            return False
        return bool(found.device.type != "meta")

    def _arrive(self, index: int, resting: Any, device: torch.device, ready: Sequence[Any] | None) -> Any:
        """One tensor on its device, made or shared."""
        shared = self._share(index, resting)
        if shared is not None and device in shared:
            if _is_copy_of(shared, device, resting):
                return shared[device]
            shared = None
        tensor = ready[index] if ready is not None else copied(resting, device)
        if not self.slots[index].is_buffer:
            tensor = self._as_live(index, resting, tensor)
        if shared is not None:
            self.published.append((shared, device))
            if isinstance(shared, SharedCopies):
                shared.origins[device] = resting
            shared[device] = tensor
        return tensor

    def _as_live(self, index: int, resting: Any, data: Any) -> Any:
        """Data as the parameter that the module had: its class, its marks, trainable as its stand-in is now."""
        guard = self.placeholders[index]
        with torch.inference_mode(False):
            if isinstance(resting, nn.Parameter):
                tensor = like_parameter(resting, data)
                if tensor.requires_grad != guard.requires_grad:
                    tensor.requires_grad_(guard.requires_grad)
            else:
                tensor = nn.Parameter(data, requires_grad=guard.requires_grad)
            copy_marks(guard, tensor)
            if guard.requires_grad:
                # Also without gradients: another thread, or a part of the forward, may turn them on.
                tensor.register_hook(_RefuseGradient(self.names[index]))
        return tensor

    def _put_back(self) -> None:
        """Everything as before the first use; also in the middle of it."""
        self._withdraw()
        for slot, tensor, (found, _) in zip(self.slots, self.live, self.origins, strict=False):
            # Whatever else somebody put there meanwhile stays.
            if slot.read() is tensor:
                slot.write(found)
        self.live, self.versions, self.origins = [], [], []

    def _take_out(self) -> None:
        left = [slot.read() for slot in self.slots]
        live, versions, origins = self.live, self.versions, self.origins
        self._put_back()
        for index, (tensor, version, (found, origin)) in enumerate(zip(live, versions, origins, strict=True)):
            slot = self.slots[index]
            if left[index] is tensor:
                self._keep_changes(index, tensor, version, found, origin)
            elif slot.is_buffer and isinstance(left[index], torch.Tensor) and not is_offloaded(left[index]):
                self._keep_buffer(index, left[index], found, origin)

    def _keep_changes(self, index: int, tensor: Any, version: int | None, found: Any, origin: Any) -> None:
        """What the forward has written into a tensor."""
        is_counted = _version(tensor) != version
        if tensor is origin or not (is_counted or self.slots[index].is_buffer):
            return
        if is_same_tensor(tensor, origin):
            return
        back = copied(tensor, origin.device)
        # Some back ends count no writes into running statistics.
        if not is_counted and torch.equal(back, origin):
            return
        if found is origin or self.value(index) is origin:
            with torch.no_grad():
                origin.copy_(back)
            return
        guard = self.placeholders[index]
        kept = back if self.slots[index].is_buffer else nn.Parameter(back, requires_grad=guard.requires_grad)
        self.slots[index].write(kept)

    def _keep_buffer(self, index: int, left: Any, found: Any, origin: Any) -> None:
        """A buffer that the forward has replaced."""
        back, key = copied(left, origin.device), self.keys[index]
        if found is not self.placeholders[index] or not isinstance(self.source, MutableMapping):
            self.slots[index].write(back)
            return
        self.source[key] = back
        if back.shape != origin.shape or back.dtype != origin.dtype:
            guard = placeholder(back, self.names[index], is_parameter=False)
            guard.fetch = self.placeholders[index].fetch
            self.placeholders[index] = guard
        self.slots[index].write(self.placeholders[index])

    def _withdraw(self) -> None:
        """Takes back copies that were offered to modules with the same tensor."""
        while self.published:
            shared, device = self.published[-1]
            shared.pop(device, None)
            if isinstance(shared, SharedCopies):
                shared.origins.pop(device, None)
            self.published.pop()

    def restore(self, devices: Mapping[str, torch.device]) -> list[tuple[Slot, Any]]:
        """What would have to be written to leave every tensor in its module.

        Args:
            devices: by key, where each shall lie; "meta" leaves the stand-in.
        """
        writes: list[tuple[Slot, Any]] = []
        for index, slot in enumerate(self.slots):
            device = devices.get(self.keys[index], torch.device("cpu"))
            if device.type == "meta":
                continue
            found, guard = slot.read(), self.placeholders[index]
            is_foreign = self._is_foreign(index, found)
            resting = found if is_foreign else self.value(index)
            tensor = resting if resting.device == device else copied(resting, device)
            if is_foreign:
                tensor = visitor(found, device)
            elif not slot.is_buffer and not (
                isinstance(tensor, nn.Parameter) and tensor.requires_grad == guard.requires_grad
            ):
                tensor = _as_parameter(tensor, guard)
            writes.append((slot, tensor))
        return writes


def _as_parameter(tensor: Any, guard: OffloadedTensor) -> Any:
    if isinstance(tensor, nn.Parameter):
        # The caller's own parameter: the stand-in was frozen or thawed meanwhile.
        return tensor.requires_grad_(guard.requires_grad)
    return nn.Parameter(tensor, requires_grad=guard.requires_grad)


def _is_copy_of(shared: dict[Any, Any], device: torch.device, resting: Any) -> bool:
    """Whether the shared copy on a device was made from this tensor."""
    if isinstance(shared, SharedCopies):
        return device in shared.origins and is_same_tensor(shared.origins[device], resting)
    return fits(shared[device], resting)


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


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
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
