"""Tensors of one module that rest elsewhere: their slots, what stands in for them, and where their values are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from planner.dispatching.offload.shown_weights import ShownWeights
from planner.dispatching.tensors.copies import SharedCopies, copied, copy_marks, has_storage_alone
from planner.dispatching.tensors.fakes import address_of, is_fake
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.placeholder_device import PlaceholderDevice
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot
from planner.errors import InvalidInputError
from planner.spelling import shown

__all__ = ["OffloadStore", "TiedCopies", "has_own_memory", "is_foreign", "require_tied_copies"]

# By address of a resting tensor: its copies by device. accelerate's type, so that its readers find what they expect.
TiedCopies = dict[int, dict[Any, Any]]


def require_tied_copies(tied: Any) -> None:
    """Raises InvalidInputError unless something is a mapping that copies can be added to, or None."""
    if not isinstance(tied, MutableMapping | None):
        raise InvalidInputError(f"tied_params_map must map addresses to copies by device; got {shown(tied)}")


class OffloadStore:
    """Tensors of one module that rest elsewhere.

    Args:
        slots: where the tensors belong.
        keys: their keys in ``source``, in the same order.
        names: what errors call them.
        source: where they rest. May be exchanged at any time; the next use reads the new one.
        execution_device: where their module runs, as far as that is known.
        tied: by address, copies shared with other modules.
        shares: instead, for each slot what it shares with other owners of its tensor, if anything.
        says_device: placeholders say where their module runs, not only inside a forward.
    """

    __slots__ = (
        "execution_device",
        "keys",
        "names",
        "pinned",
        "placeholders",
        "says_device",
        "shares",
        "slots",
        "source",
        "tied",
    )

    def __init__(
        self,
        slots: Sequence[Slot],
        keys: Sequence[str],
        names: Sequence[str],
        source: Mapping[str, Any],
        execution_device: torch.device | None = None,
        tied: TiedCopies | None = None,
        shares: Sequence[SharedCopies | None] = (),
        *,
        says_device: bool = False,
    ) -> None:
        self.slots = tuple(slots)
        self.keys = tuple(keys)
        self.names = tuple(names)
        self.source = source
        self.execution_device = execution_device
        self.tied = tied
        self.shares = tuple(shares)
        self.says_device = says_device
        self.placeholders: list[PlaceholderTensor] = []
        # Keys of what lies in pinned memory by our doing; None before the first request.
        self.pinned: list[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.__slots__}
        # A copy's memory is not pinned.
        return {
            **state,
            "placeholders": [placeholder.in_model() for placeholder in self.placeholders],
            "pinned": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.adopt(self.placeholders)

    def adopt(self, placeholders: Sequence[PlaceholderTensor]) -> None:
        """Takes placeholders as its own; one that several modules share says where the first of them runs."""
        self.placeholders = list(placeholders)
        if isinstance(self.source, ShownWeights):
            self.source.placeholders = dict(zip(self.keys, self.placeholders, strict=True))
        for index, placeholder in enumerate(self.placeholders):
            if placeholder.whereabouts is None:
                placeholder.whereabouts = PlaceholderDevice(self, index, self.says_device)

    def install(self, placeholders: Sequence[PlaceholderTensor]) -> None:
        """Puts placeholders into the slots."""
        self.adopt(placeholders)
        for slot, placeholder in zip(self.slots, self.placeholders, strict=True):
            slot.write(placeholder)

    def exchange(self, source: Mapping[str, Any]) -> None:
        """Other resting tensors."""
        self.source = source
        for placeholder in self.placeholders:
            placeholder.kept = None

    def keep(self, index: int, tensor: torch.Tensor) -> None:
        """Another resting tensor of a slot: for all owners, where it has several, or the source makes a new tensor each time."""
        # Files and read-only mappings would give the old tensor again.
        if isinstance(self.source, MutableMapping) and self.share(index, tensor) is None:
            self.source[self.keys[index]] = tensor
        else:
            self.placeholders[index].kept = tensor

    def value(self, index: int) -> Any:
        """The resting tensor of a slot.

        Raises:
            OffloadError: its source does not have it. Fields: ``name``.
        """
        kept = self.placeholders[index].kept if self.placeholders else None
        return self.resting_place(index).value(self.names[index]) if kept is None else kept

    def resting_place(self, index: int) -> RestingPlace:
        """Where a tensor rests, unless other values took the place of those in a file."""
        return RestingPlace(self.source, self.keys[index])

    def is_in_file(self, index: int) -> bool:
        """Whether a tensor is read from a file when it is asked for."""
        return self.placeholders[index].kept is None and self.resting_place(index).is_in_file

    def leave(self, journal: Journal) -> None:
        """Lets placeholders that stay in their slots know where their values are: nobody else will."""
        for index, (slot, placeholder) in enumerate(zip(self.slots, self.placeholders, strict=True)):
            if slot.read() is placeholder:
                journal.set(placeholder.__dict__, "rests_in", self.resting_place(index))

    def fetch(self, index: int) -> torch.Tensor:
        """A copy of one resting tensor where its module runs; for reading outside of a forward."""
        return copied(self.value(index), self.execution_device or torch.device("cpu"))

    def size_bytes(self) -> int:
        """Bytes that the tensors take where they run."""
        return sum(placeholder.numel() * placeholder.element_size() for placeholder in self.placeholders)

    def share(self, index: int, resting: Any) -> dict[Any, Any] | None:
        """What the owners of one tensor share, by device; None if it has one owner."""
        if self.shares:
            return self.shares[index]
        address = address_of(resting) if self.tied else 0
        return self.tied.get(address) if self.tied and address else None

    def is_shared(self) -> bool:
        """Whether other modules share a resting tensor."""
        if not self.tied and not any(share is not None for share in self.shares):
            return False
        return any(self.share(index, self.value(index)) is not None for index in range(len(self.slots)))

    def pin(self) -> None:
        """Lets pinned memory take the place of the resting tensors, one after the other, where that can be.

        Raises:
            RuntimeError: there is no pinned memory to be had. Not a second time.
        """
        if self.pinned is not None:
            return
        self.pinned = []
        for key in self.keys if isinstance(self.source, MutableMapping) else ():
            resting = self.source[key]
            if is_fake(resting):
                continue  # it takes no memory of any kind
            if resting.device.type == "cpu" and not resting.is_pinned() and has_storage_alone(resting):
                self._put(key, torch.Tensor.pin_memory)
                self.pinned.append(key)

    def unpin(self) -> None:
        """Ordinary memory again."""
        while self.pinned:
            self._put(self.pinned[-1], torch.Tensor.clone)
            self.pinned.pop()

    def _put(self, key: str, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Gives a resting tensor other memory."""
        resting = self.source[key]
        with torch.inference_mode(False), torch.no_grad():
            made = move(resting.detach())
        if isinstance(resting, nn.Parameter):
            # The object stays: optimizers know it, and it comes back when dispatching is undone.
            resting.data = made
        else:
            cast(MutableMapping[str, Any], self.source)[key] = made

    def restored(
        self,
        devices: Mapping[str, torch.device],
        made: dict[int, Any],
        journal: Journal,
        *,
        is_whole: bool = False,
    ) -> list[tuple[Slot, Any]]:
        """What would have to be written to leave every tensor in its module.

        Args:
            devices: by key, where each shall lie; "meta" leaves the placeholder.
            made: by placeholder, what was made for another module that shares it; added to.
            journal: where it is written down that a parameter is frozen or thawed.
            is_whole: what is a view of a file is copied into memory of its own.
        """
        writes: list[tuple[Slot, Any]] = []
        for index, slot in enumerate(self.slots):
            device = devices.get(self.keys[index], torch.device("cpu"))
            found, placeholder = slot.read(), self.placeholders[index]
            # What others put there, or took away, is theirs.
            if device.type == "meta" or found is None or is_foreign(found):
                continue
            if id(placeholder) not in made:
                resting = self.value(index)
                tensor = resting if resting.device == device else copied(resting, device)
                if is_whole and not has_own_memory(tensor):
                    tensor = tensor.detach().clone()
                made[id(placeholder)] = (
                    tensor if slot.is_buffer else _as_parameter(tensor, placeholder, journal)
                )
            writes.append((slot, made[id(placeholder)]))
        return writes


def is_foreign(found: Any) -> bool:
    """Whether a real tensor was put in the place of a placeholder: for one call, or for good."""
    # As the object says now: torch can swap what two tensors are and leave the objects in place.
    return found is not None and not found.is_meta


def has_own_memory(tensor: torch.Tensor) -> bool:
    """Whether torch has made the memory of a tensor; that of a file is somebody else's, and cannot be made larger."""
    return is_traceable_wrapper_subclass(tensor) or tensor.untyped_storage().resizable()


def _as_parameter(tensor: Any, placeholder: PlaceholderTensor, journal: Journal) -> Any:
    if not isinstance(tensor, nn.Parameter):
        made = nn.Parameter(tensor, requires_grad=placeholder.requires_grad)
        copy_marks(placeholder, made)
        return made
    # The caller's own parameter: the placeholder may have been frozen or thawed meanwhile.
    journal.require_gradient(tensor, placeholder.requires_grad)
    return tensor
