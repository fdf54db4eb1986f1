"""Offloaded tensors in their module for a while: brought in, put back, and what was written into them kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from planner.dispatching.offload.store import OffloadStore, is_foreign
from planner.dispatching.offload.watched import WatchedTensor, unwatched, watched
from planner.dispatching.tensors.copies import (
    SharedCopies,
    copied,
    copy_marks,
    fits,
    has_marks,
    has_same_values,
    is_same_tensor,
    is_transformed,
    like_parameter,
    return_marks,
    visitor,
)
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.errors import OffloadError

__all__ = ["Materialized", "version_of"]

_UNSEEN = object()


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


class _MaterializedTensor:
    """One tensor that was brought in.

    Args:
        index: of its slot.
        found: what lay in the slot.
        origin: what the tensor was made from.
        tensor: what lies there meanwhile.
    """

    __slots__ = ("found", "index", "left", "marks", "origin", "tensor", "version", "was_trainable")

    def __init__(self, index: int, found: Any, origin: Any, tensor: Any) -> None:
        self.index = index
        self.found = found
        self.origin = origin
        self.tensor = tensor
        self.version = version_of(tensor)
        self.was_trainable = tensor.requires_grad
        self.marks = dict(vars(tensor))
        # What the forward has left in the slot.
        self.left: Any = _UNSEEN


class Materialized:
    """The tensors of one module on a device, from the first use to the last.

    Args:
        store: whose.
        device: where to.

    A real tensor that somebody put in place of a placeholder is computed with where it was found; ``source`` stays as it is. A
    slot that somebody emptied stays empty. What a forward writes into a tensor in place, or a buffer that it replaces, is
    kept: in ``source``, or with the placeholder where the source makes a new tensor each time, like files. Writes that torch
    does not count are found for buffers, for plain parameters whose data somebody has reached for, and where it
    ``is_thorough`` for all.

    Guarantee: :meth:`release` and :meth:`keep_changes` can be called again where they were interrupted.
    """

    __slots__ = ("device", "guests", "is_complete", "is_thorough", "published", "store")

    def __init__(self, store: OffloadStore, device: torch.device) -> None:
        self.store = store
        self.device = device
        self.guests: list[_MaterializedTensor] = []
        self.published: list[tuple[dict[Any, Any], Any]] = []
        self.is_complete = False
        # Whether all tensors are compared in the end, which finds writes that torch does not count.
        self.is_thorough = False

    def materialize(self, origins: Sequence[Any] | None = None, ready: Sequence[Any] | None = None) -> None:
        """Makes the tensors, then puts them into their slots; to be called without gradients and inference mode.

        Args:
            origins: the resting tensors, where they have been read already.
            ready: copies of them, made ahead.
        """
        rest = self.store
        for index, slot in enumerate(rest.slots):
            found = slot.read()
            if found is None:
                continue
            if is_foreign(found):
                origin, tensor = found, visitor(found, self.device)
            else:
                found = rest.placeholders[index]
                origin = rest.value(index) if origins is None else origins[index]
                tensor = self._arrive(index, origin, None if ready is None else ready[index])
            self.guests.append(_MaterializedTensor(index, found, origin, tensor))
        for guest in self.guests:
            rest.slots[guest.index].write(guest.tensor)
        self.is_complete = True

    def _arrive(self, index: int, resting: Any, ready: Any) -> Any:
        """One tensor on the device, made or shared."""
        shared = self.store.share(index, resting)
        if shared is not None and self.device in shared:
            if _is_copy_of(shared, self.device, resting):
                return shared[self.device]
            shared = None
        tensor = resting.detach().to(self.device) if ready is None else ready
        if not self.store.slots[index].is_buffer:
            tensor = self._as_live(index, resting, tensor)
        elif tensor is not resting:
            copy_marks(resting, tensor)
            copy_marks(self.store.placeholders[index], tensor)
        if shared is not None:
            self.published.append((shared, tensor))
            if isinstance(shared, SharedCopies):
                shared.origins[self.device] = resting
            shared[self.device] = tensor
        return tensor

    def _as_live(self, index: int, resting: Any, data: Any) -> Any:
        """Data as the parameter that the module had: its class, its marks, trainable as its placeholder is now."""
        guard = self.store.placeholders[index]
        is_trainable = guard.requires_grad
        if type(resting) in (nn.Parameter, torch.Tensor):
            is_here = data.device == resting.device and is_same_tensor(data, resting)
            is_frozen = not (is_trainable or resting.requires_grad)
            if is_here and is_frozen and isinstance(resting, nn.Parameter) and has_marks(guard, resting):
                return resting  # it rests where it runs
            tensor: Any = watched(data, requires_grad=is_trainable)
            copy_marks(resting, tensor)
        elif isinstance(resting, nn.Parameter):
            tensor = like_parameter(resting, data)
            if tensor.requires_grad != is_trainable:
                tensor.requires_grad_(is_trainable)
        else:
            tensor = nn.Parameter(data, requires_grad=is_trainable)
        copy_marks(guard, tensor)
        if is_trainable:
            # Also without gradients: another thread, or a part of the forward, may turn them on.
            tensor.register_hook(_RefuseGradient(self.store.names[index]))
        return tensor

    def release(self) -> None:
        """The slots as they were; whatever else somebody put there meanwhile stays."""
        for shared, tensor in self.published:
            # Once withdrawn, another module may have offered its own.
            if shared.get(self.device) is tensor:
                shared.pop(self.device)
                if isinstance(shared, SharedCopies):
                    shared.origins.pop(self.device, None)
        for guest in self.guests:
            slot = self.store.slots[guest.index]
            if guest.left is _UNSEEN:
                guest.left = slot.read()
            if guest.left is guest.tensor:
                slot.write(guest.found)

    def keep_changes(self) -> None:
        """What the forward has written, or put in place of a buffer; after :meth:`release`."""
        if not self.is_complete:
            return
        # First all, then the first write: a buffer may be a view of another one.
        written = [(guest, self._written(guest)) for guest in self.guests if guest.left is guest.tensor]
        for guest, back in written:
            if back is not None:
                self._keep_written(guest, back)
        for guest in self.guests:
            self._keep_marks(guest)
            self._follow(guest)
            slot, left = self.store.slots[guest.index], guest.left
            is_new = left is not guest.tensor and isinstance(left, torch.Tensor) and not is_offloaded(left)
            if slot.is_buffer and is_new:
                self._keep_replaced(guest)

    def _written(self, guest: _MaterializedTensor) -> Any:
        """What the forward has written into a tensor, where it came from; None if nothing."""
        tensor, origin, slot = guest.tensor, guest.origin, self.store.slots[guest.index]
        is_counted = version_of(tensor) != guest.version
        was_reached = isinstance(tensor, WatchedTensor) and tensor.was_reached
        is_compared = (slot.is_buffer or self.is_thorough or was_reached) and not is_transformed(tensor)
        if not (is_counted or is_compared):
            return None
        before = origin
        if is_same_tensor(tensor, origin):
            if self._is_kept(guest):
                return None  # it was written where it rests
            before = self.store.value(guest.index)
        back = copied(unwatched(tensor), origin.device)
        # Some back ends count no writes into running statistics.
        return None if not is_counted and has_same_values(back, before) else back

    def _is_kept(self, guest: _MaterializedTensor) -> bool:
        """Whether what a tensor was made from is what the next forward gets as well; files make a new one each time."""
        return guest.found is guest.origin or self.store.value(guest.index) is guest.origin

    def _keep_written(self, guest: _MaterializedTensor, back: Any) -> None:
        origin = guest.origin
        fits = origin.shape == back.shape and origin.dtype == back.dtype and origin.layout == back.layout
        if fits and self._is_kept(guest):
            with torch.no_grad():
                origin.copy_(back)
        elif guest.found is origin or (isinstance(origin, nn.Parameter) and self._is_kept(guest)):
            # The object stays, which optimizers know and other owners hold.
            origin.data = back
        else:
            self._exchange(guest, back)

    def _keep_replaced(self, guest: _MaterializedTensor) -> None:
        """A buffer that the forward has replaced."""
        back = copied(unwatched(guest.left), guest.origin.device)
        copy_marks(guest.left, back)
        if guest.found is guest.origin:
            self.store.slots[guest.index].write(back)
        else:
            return_marks(guest.found, guest.left, guest.marks)
            self._exchange(guest, back)

    def _keep_marks(self, guest: _MaterializedTensor) -> None:
        """Attributes that the forward has set on a tensor, or taken away."""
        if guest.left is guest.tensor:
            for tensor in (guest.found, guest.origin):
                if tensor is not guest.tensor:
                    return_marks(tensor, guest.tensor, guest.marks)

    def _follow(self, guest: _MaterializedTensor) -> None:
        """A placeholder is what its tensor has become: of another dtype or shape, or frozen."""
        if guest.found is guest.origin or guest.left is not guest.tensor:
            return
        guard, tensor = guest.found, guest.tensor
        if tensor.dtype != guard.dtype or tensor.shape != guard.shape:
            guard.follow(tensor)
        if tensor.requires_grad != guest.was_trainable:
            guard.requires_grad_(tensor.requires_grad)

    def _exchange(self, guest: _MaterializedTensor, tensor: Any) -> None:
        """Another resting tensor."""
        rest, index = self.store, guest.index
        rest.keep(index, tensor)
        rest.placeholders[index].follow(tensor)
        rest.slots[index].write(rest.placeholders[index])


def _is_copy_of(shared: dict[Any, Any], device: torch.device, resting: Any) -> bool:
    """Whether the shared copy on a device was made from this tensor."""
    if isinstance(shared, SharedCopies):
        return device in shared.origins and is_same_tensor(shared.origins[device], resting)
    return fits(shared[device], resting)


def version_of(tensor: torch.Tensor) -> int | None:
    """How often torch has counted a write; None for tensors made under ``inference_mode``, where it does not count."""
    return None if tensor.is_inference() else tensor._version
