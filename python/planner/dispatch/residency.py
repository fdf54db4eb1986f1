"""Offloaded tensors of one module: brought in while somebody uses them, and out again after the last one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from planner.dispatch.copies import copied, like_parameter
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
        tied: copies shared with other modules.

    Guarantee: used by several threads, or again from inside, tensors are brought in once and go with the last user. When
        ``acquire`` raises, everything is as before.
    """

    __slots__ = ("_lock", "_users", "device", "is_pinned", "keys", "live", "names", "placeholders", "published", "slots", "source", "staged", "tied", "versions")  # fmt: skip

    def __init__(
        self,
        slots: Sequence[Slot],
        keys: Sequence[str],
        names: Sequence[str],
        source: Mapping[str, Any],
        tied: TiedCopies | None = None,
    ) -> None:
        self.slots = tuple(slots)
        self.keys = tuple(keys)
        self.names = tuple(names)
        self.source = source
        self.tied = tied
        self.placeholders: list[OffloadedTensor] = []
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.device: torch.device | None = None
        self.live: list[Any] = []
        self.versions: list[int | None] = []
        self.published: list[int] = []
        self.staged: Any = None
        self.is_pinned = False

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: getattr(self, key) for key in ("slots", "keys", "names", "source", "tied", "placeholders")
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

    def acquire(self, device: torch.device) -> None:
        """Brings the tensors to a device, or joins those who have.

        Raises:
            OffloadError: they are in use on another device, or a tensor cannot be had. Fields: ``name``.
        """
        if not self.slots:
            return
        with self._lock:
            if self._users == 0:
                self._bring_in(device)
            elif device != self.device:
                raise OffloadError(
                    f"'{self.names[0]}' is in use on {self.device} and cannot be brought to {device} at the same time",
                    name=self.names[0],
                )
            self._users += 1

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
            if self._users or self.staged is not None or not self.slots or self.tied_addresses():
                return False
            self.pin()
            self.staged = send([self.value(index) for index in range(len(self.slots))])
            return True

    def unstage(self) -> None:
        """Forgets copies that were made ahead, if nobody has used them."""
        with self._lock:
            self.staged = None

    def tied_addresses(self) -> list[int]:
        """Addresses of resting tensors that other modules share."""
        if not self.tied:
            return []
        return [
            address
            for address in (self.value(index).data_ptr() for index in range(len(self.slots)))
            if address in self.tied
        ]

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
            self.staged = None
            self._users = 0

    def _bring_in(self, device: torch.device) -> None:
        refuse_capture(device, self.names[0])
        for index in range(len(self.slots)):
            self._adopt(index)
        staged, self.staged = self.staged, None
        arrived: list[Any] = []
        published: list[int] = []
        try:
            ready = staged.take(device) if staged is not None else None
            for index in range(len(self.slots)):
                arrived.append(self._arrive(index, device, ready, published))
        except BaseException:
            self._withdraw(published, device)
            raise
        self.live, self.device, self.published = arrived, device, published
        self.versions = [_version(tensor) for tensor in arrived]
        for slot, tensor in zip(self.slots, arrived, strict=True):
            slot.write(tensor)

    def _arrive(
        self, index: int, device: torch.device, ready: Sequence[Any] | None, published: list[int]
    ) -> Any:
        """One tensor on its device, made or shared."""
        guard, resting = self.placeholders[index], self.value(index)
        shared = None if self.tied is None else self.tied.get(resting.data_ptr())
        if shared is not None and device in shared:
            return shared[device]
        data = ready[index] if ready is not None else copied(resting, device)
        tensor = data
        if not self.slots[index].is_buffer:
            with torch.inference_mode(False):
                tensor = nn.Parameter(data, requires_grad=guard.requires_grad)
            if guard.requires_grad and torch.is_grad_enabled():
                tensor.register_hook(_RefuseGradient(self.names[index]))  # type: ignore[no-untyped-call]
        if shared is not None:
            shared[device] = tensor
            published.append(resting.data_ptr())
        return tensor

    def _take_out(self) -> None:
        for slot, guard, tensor in zip(self.slots, self.placeholders, self.live, strict=True):
            # Whatever else somebody put there meanwhile stays, and is adopted by the next use.
            if slot.read() is tensor:
                slot.write(guard)
        live, versions = self.live, self.versions
        self._withdraw(self.published, self.device)
        self.live, self.versions, self.published = [], [], []
        for index, (tensor, version) in enumerate(zip(live, versions, strict=True)):
            resting = self.value(index) if _version(tensor) != version else None
            if resting is not None and resting.data_ptr() != tensor.data_ptr():
                with torch.no_grad():
                    resting.copy_(tensor)

    def _withdraw(self, addresses: Sequence[int], device: torch.device | None) -> None:
        """Takes back copies that were offered to modules with the same tensor."""
        for address in addresses:
            if self.tied is not None:
                self.tied.get(address, {}).pop(device, None)

    def _adopt(self, index: int) -> None:
        """Takes over a real tensor that somebody put in place of the stand-in."""
        found, guard = self.slots[index].read(), self.placeholders[index]
        if found is guard or is_offloaded(found) or found is None or found.device.type == "meta":
            return
        if not isinstance(self.source, MutableMapping):
            raise OffloadError(
                f"'{self.names[index]}' was replaced while it was offloaded, and what is offloaded cannot be changed there; "
                "call planner.undispatch(model) first",
                name=self.names[index],
            )
        self.source[self.keys[index]] = found
        self.placeholders[index] = placeholder(
            found,
            self.names[index],
            is_parameter=isinstance(found, nn.Parameter),
            requires_grad=found.requires_grad,
        )

    def restore(self, devices: Mapping[str, torch.device]) -> list[tuple[Slot, Any]]:
        """What would have to be written to leave every tensor in its module.

        Args:
            devices: by key, where each shall lie; "meta" leaves the stand-in.
        """
        writes: list[tuple[Slot, Any]] = []
        for index, slot in enumerate(self.slots):
            self._adopt(index)
            device = devices.get(self.keys[index], torch.device("cpu"))
            if device.type == "meta":
                continue
            resting, guard = self.value(index), self.placeholders[index]
            tensor = resting if resting.device == device else copied(resting, device)
            if not slot.is_buffer and not (
                isinstance(tensor, nn.Parameter) and tensor.requires_grad == guard.requires_grad
            ):
                tensor = _as_parameter(tensor, guard)
            writes.append((slot, tensor))
        return writes


def _as_parameter(tensor: Any, guard: OffloadedTensor) -> Any:
    if isinstance(tensor, nn.Parameter):
        # The caller's own parameter: the stand-in was frozen or thawed meanwhile.
        return tensor.requires_grad_(guard.requires_grad)
    made = nn.Parameter(tensor, requires_grad=guard.requires_grad)
    return like_parameter(made, made)


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
