"""Offloaded tensors in their module for a while: brought in, put back, and what was written into them kept."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
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

    A real tensor that was put in the place of a placeholder is computed with where it was found; ``source`` stays as it is. A
    slot that was emptied stays empty. What a forward writes into a tensor in place, or a buffer that it replaces, is
    kept: in ``source``, or with the placeholder where the source makes a new tensor each time, like files. Writes that torch
    does not count are found for buffers, for plain parameters whose data was reached for, and where it
    ``is_thorough`` for all.

    Guarantee: :meth:`release` and :meth:`keep_changes` can be called again where they were interrupted.
    """

    __slots__ = ("device", "is_complete", "is_thorough", "published", "store", "tensors")

    def __init__(self, store: OffloadStore, device: torch.device) -> None:
        self.store = store
        self.device = device
        self.tensors: list[_MaterializedTensor] = []
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
            self.tensors.append(_MaterializedTensor(index, found, origin, tensor))
        for row in self.tensors:
            rest.slots[row.index].write(row.tensor)
        self.is_complete = True

    def _arrive(self, index: int, resting: Any, ready: Any) -> Any:
        """One tensor on the device, made or shared."""
        shared = self.store.share(index, resting)
        if shared is not None and self.device in shared:
            if _is_copy_of(shared, self.device, resting):
                return shared[self.device]
            shared = None
        tensor = resting.detach().to(self.device) if ready is None else ready
        is_buffer = self.store.slots[index].is_buffer
        if is_buffer and ready is None and self._is_read_anew(index) and is_same_tensor(tensor, resting):
            # Back ends do not count what they write into running statistics: there must be something to compare with.
            tensor = tensor.clone()
        if not is_buffer:
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

    def _is_read_anew(self, index: int) -> bool:
        """Whether the next use may get other memory, so that what is written into this one has to be noticed."""
        is_from_files = not isinstance(self.store.source, MutableMapping)
        return is_from_files and self.store.placeholders[index].kept is None

    def _as_live(self, index: int, resting: Any, data: Any) -> Any:
        """Data as the parameter that the module had: its class, its marks, trainable as its placeholder is now."""
        placeholder = self.store.placeholders[index]
        is_trainable = placeholder.requires_grad
        if type(resting) in (nn.Parameter, torch.Tensor):
            is_here = data.device == resting.device and is_same_tensor(data, resting)
            is_frozen = not (is_trainable or resting.requires_grad)
            if (
                is_here
                and is_frozen
                and isinstance(resting, nn.Parameter)
                and has_marks(placeholder, resting)
                and not self._is_read_anew(index)
            ):
                return resting  # it rests where it runs
            tensor: Any = watched(data, requires_grad=is_trainable)
            copy_marks(resting, tensor)
        elif isinstance(resting, nn.Parameter):
            tensor = like_parameter(resting, data)
            if tensor.requires_grad != is_trainable:
                tensor.requires_grad_(is_trainable)
        else:
            tensor = nn.Parameter(data, requires_grad=is_trainable)
        copy_marks(placeholder, tensor)
        if is_trainable:
            # Also without gradients: another thread, or a part of the forward, may turn them on.
            tensor.register_hook(_RefuseGradient(self.store.names[index]))
        return tensor

    def release(self) -> None:
        """The slots as they were; whatever else was put there meanwhile stays."""
        for shared, tensor in self.published:
            # Once withdrawn, another module may have offered its own.
            if shared.get(self.device) is tensor:
                shared.pop(self.device)
                if isinstance(shared, SharedCopies):
                    shared.origins.pop(self.device, None)
        for row in self.tensors:
            slot = self.store.slots[row.index]
            if row.left is _UNSEEN:
                row.left = slot.read()
            if row.left is row.tensor:
                slot.write(row.found)

    def keep_changes(self) -> None:
        """What the forward has written, or put in place of a buffer; after :meth:`release`."""
        if not self.is_complete:
            return
        # First all, then the first write: a buffer may be a view of another one.
        written = [(row, self._written(row)) for row in self.tensors if row.left is row.tensor]
        for row, back in written:
            if back is not None:
                self._keep_written(row, back)
        for row in self.tensors:
            self._keep_marks(row)
            self._follow(row)
            slot, left = self.store.slots[row.index], row.left
            is_new = left is not row.tensor and isinstance(left, torch.Tensor) and not is_offloaded(left)
            if slot.is_buffer and is_new:
                self._keep_replaced(row)

    def _written(self, row: _MaterializedTensor) -> Any:
        """What the forward has written into a tensor, where it came from; None if nothing."""
        tensor, origin, slot = row.tensor, row.origin, self.store.slots[row.index]
        is_counted = version_of(tensor) != row.version
        was_reached = isinstance(tensor, WatchedTensor) and tensor.was_reached
        is_compared = (slot.is_buffer or self.is_thorough or was_reached) and not is_transformed(tensor)
        if not (is_counted or is_compared):
            return None
        before = origin
        if is_same_tensor(tensor, origin):
            if self._is_kept(row):
                if is_counted or was_reached:
                    self._keep_origin(row)
                return None  # it was written where it rests
            before = self.store.value(row.index)
        back = copied(unwatched(tensor), before.device)
        # Some back ends count no writes into running statistics.
        return None if not is_counted and has_same_values(back, before) else back

    def _is_kept(self, row: _MaterializedTensor) -> bool:
        """Whether what a tensor was made from is what the next forward gets as well; files make a new one each time."""
        return row.found is row.origin or self.store.value(row.index) is row.origin

    def _keep_written(self, row: _MaterializedTensor, back: Any) -> None:
        origin = row.origin
        fits = origin.shape == back.shape and origin.dtype == back.dtype and origin.layout == back.layout
        if fits and self._is_kept(row):
            with torch.no_grad():
                origin.copy_(back)
            self._keep_origin(row)
        elif row.found is origin or (isinstance(origin, nn.Parameter) and self._is_kept(row)):
            # The object stays, which optimizers know and other owners hold.
            origin.data = back
        else:
            # Where it lies other weights may come to lie.
            self._exchange(row, back.clone() if is_same_tensor(back, row.tensor) else back)

    def _keep_origin(self, row: _MaterializedTensor) -> None:
        """Lets what was written in the source's own tensor be what rests, where the source may read the old values anew."""
        if row.found is not row.origin and not isinstance(self.store.source, MutableMapping):
            self.store.keep(row.index, row.origin)

    def _keep_replaced(self, row: _MaterializedTensor) -> None:
        """A buffer that the forward has replaced."""
        resting = row.origin
        if row.found is not resting and is_same_tensor(row.tensor, resting):
            resting = self.store.value(row.index)  # it was read to where it runs
        back = copied(unwatched(row.left), resting.device)
        copy_marks(row.left, back)
        if row.found is row.origin:
            self.store.slots[row.index].write(back)
        else:
            return_marks(row.found, row.left, row.marks)
            self._exchange(row, back)

    def _keep_marks(self, row: _MaterializedTensor) -> None:
        """Attributes that the forward has set on a tensor, or taken away."""
        if row.left is row.tensor:
            for tensor in (row.found, row.origin):
                if tensor is not row.tensor:
                    return_marks(tensor, row.tensor, row.marks)

    def _follow(self, row: _MaterializedTensor) -> None:
        """A placeholder is what its tensor has become: of another dtype or shape, or frozen."""
        if row.found is row.origin or row.left is not row.tensor:
            return
        placeholder, tensor = row.found, row.tensor
        if tensor.dtype != placeholder.dtype or tensor.shape != placeholder.shape:
            placeholder.follow(tensor)
        if tensor.requires_grad != row.was_trainable:
            placeholder.requires_grad_(tensor.requires_grad)

    def _exchange(self, row: _MaterializedTensor, tensor: Any) -> None:
        """Another resting tensor."""
        rest, index = self.store, row.index
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
