"""Copies of one tied tensor on several devices: what is written into one, the others get."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from planner.dispatching.tensors.copies import copied, has_same_values
from planner.dispatching.tensors.fakes import address_of
from planner.dispatching.tensors.slots import Slot
from planner.errors import OffloadError

__all__ = ["Tie", "TiedCopy"]


class TiedCopy:
    """One of the tensors.

    Args:
        tensor: it; for what is offloaded, the resting one, None if that is in a file.
        slots: where it belongs.
        name: what errors call it.
        is_resting: whether it lies outside of its slots.
    """

    __slots__ = ("is_resting", "name", "slots", "state", "tensor", "was_trainable")

    def __init__(self, tensor: Any, slots: Sequence[Slot], name: str, is_resting: bool) -> None:
        self.tensor = tensor
        self.slots = tuple(slots)
        self.name = name
        self.is_resting = is_resting
        # As it was when all were the same; None before the first look.
        self.state: Any = None
        self.was_trainable = False

    def __getstate__(self) -> Any:
        return self.tensor, self.slots, self.name, self.is_resting, self.has_changed(), self.was_trainable

    def __setstate__(self, state: Any) -> None:
        self.tensor, self.slots, self.name, self.is_resting, was_written, self.was_trainable = state
        # A copy lies elsewhere and counts anew; what had been written to and not settled, its owner settles.
        self.state = _WRITTEN if was_written else _state_of(self.tensor)

    def is_there(self) -> bool:
        """Whether the model still has it; what was put in its place is not tied."""
        return self.is_resting or any(slot.read() is self.tensor for slot in self.slots)

    def note(self) -> None:
        """Remembers what it is like now."""
        self.state = _state_of(self.tensor)
        self.was_trainable = self.tensor is not None and self.tensor.requires_grad

    def has_changed(self) -> bool:
        """Whether it has been written to since, as far as torch counts it."""
        return self.state is not None and self.state != _state_of(self.tensor)


_WRITTEN = ("written before it was copied",)


def _state_of(tensor: Any) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    # The address and the shape, because `.data = …` counts no write.
    return None if tensor.is_inference() else tensor._version, address_of(tensor), tensor.shape, tensor.dtype


class Tie:
    """All copies of one tensor.

    Args:
        copies: the first one is the object that optimizers made before the dispatch hold.

    Guarantee: gradients of the others are added to that one's when backward ends, and what an optimizer writes into a copy, the
        others have when its step ends.
    """

    __slots__ = ("__weakref__", "_handles", "_lock", "copies")

    def __init__(self, copies: Sequence[TiedCopy]) -> None:
        self.__setstate__(tuple(copies))
        for copy in self.copies:
            copy.note()
        self._settle_training([copy for copy in self.copies if not copy.is_resting])

    def __getstate__(self) -> tuple[TiedCopy, ...]:
        return self.copies

    def __setstate__(self, copies: tuple[TiedCopy, ...]) -> None:
        self.copies = copies
        self._lock = threading.RLock()
        self._handles: dict[int, Any] = {}
        _listen()
        with _living_lock:
            _living.add(self)

    def is_held_by(self, tensors: set[int]) -> bool:
        """Whether one of the copies is among tensors, by identity."""
        return any(id(copy.tensor) in tensors for copy in self.copies)

    def settle(self) -> None:
        """Brings the others along where one has been written to.

        Raises:
            OffloadError: several have been and differ now, or one is in a file. Fields: ``name``.
        """
        with self._lock:
            there = [copy for copy in self.copies if copy.is_there()]
            written = [copy for copy in there if copy.has_changed()]
            if written:
                self._bring_along(written[0], written[1:], [copy for copy in there if copy not in written])
            self._settle_training([copy for copy in there if not copy.is_resting])
            for copy in there:
                copy.note()

    def require_one_tensor(self) -> list[torch.Tensor]:
        """The copies that the model still has, when all of them have the same values.

        For the end of a dispatch, where one of them must stand for all.

        Raises:
            OffloadError: one has others, although torch has counted no write. Fields: ``name``.
        """
        with self._lock:
            there = [copy for copy in self.copies if copy.is_there() and copy.tensor is not None]
            for other in there[1:]:
                first = there[0]
                if not has_same_values(other.tensor.detach().cpu(), first.tensor.detach().cpu()):
                    raise OffloadError(
                        f"'{first.name}' and '{other.name}' are one tensor with copies on {first.tensor.device} and "
                        f"{other.tensor.device}, and one was written to where torch does not count it (`.data`, NumPy): which of "
                        "them is meant cannot be told; copy one into the other, under torch.no_grad()",
                        name=first.name,
                    )
            return [copy.tensor for copy in there]

    def settle_traced(self) -> None:
        """The same in compiled code, where versions cannot be traced: others that can be trained get what the first one is."""
        first = self.copies[0].tensor
        for copy in self.copies[1:]:
            tensor = copy.tensor
            if (
                tensor is not None
                and not copy.is_resting
                and tensor.requires_grad
                and torch.is_grad_enabled()
            ):
                with torch.no_grad():
                    tensor.copy_(first)

    def _bring_along(self, source: TiedCopy, others: Sequence[TiedCopy], left: Sequence[TiedCopy]) -> None:
        for other in others:
            # Loops over all parameters do the same to each.
            if not has_same_values(copied(other.tensor, source.tensor.device), source.tensor.detach()):
                raise OffloadError(
                    f"'{source.name}' and '{other.name}' are one tensor with copies on {source.tensor.device} and "
                    f"{other.tensor.device}, and both were written to, each in its own way; write to one of them, or place both "
                    "on one device",
                    name=source.name,
                )
        for other in left:
            if other.tensor is None:
                raise OffloadError(
                    f"'{source.name}' was written to, and '{other.name}', which is the same tensor, rests in a file, where it "
                    "would not be changed; place both on one device",
                    name=source.name,
                )
            _take_over(other.tensor, source.tensor)

    def _settle_training(self, copies: Sequence[TiedCopy]) -> None:
        changed = [copy for copy in copies if copy.tensor.requires_grad != copy.was_trainable]
        for copy in copies if changed else ():
            copy.tensor.requires_grad_(changed[0].tensor.requires_grad)
        for copy in copies[1:]:
            tensor = copy.tensor
            if tensor.requires_grad and isinstance(tensor, nn.Parameter) and id(tensor) not in self._handles:
                handle: Any = tensor.register_post_accumulate_grad_hook(self._await_end)  # type: ignore[no-untyped-call]
                self._handles[id(tensor)] = handle

    def _await_end(self, _: Any) -> None:
        """A gradient has arrived; other threads may add to the first one's until backward ends."""
        torch.autograd.Variable._execution_engine.queue_callback(self._collect)

    def _collect(self) -> None:
        with self._lock, torch.no_grad():
            first, *others = [copy.tensor for copy in self.copies if copy.is_there() and not copy.is_resting]
            for tensor in others:
                if tensor.grad is not None:
                    gradient = copied(tensor.grad, first.device)
                    # Dense before sparse, which torch adds in this order only.
                    parts = sorted(
                        (part for part in (first.grad, gradient) if part is not None), key=_is_sparse
                    )
                    first.grad = parts[0] if len(parts) == 1 else parts[0] + parts[1]
                    tensor.grad = None

    def close(self) -> None:
        """Adds no gradients any more, and hears of no optimizer."""
        with _living_lock:
            _living.discard(self)
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


_living: weakref.WeakSet[Tie] = weakref.WeakSet()
_living_lock = threading.Lock()


@cache
def _listen() -> None:
    """Hears of every optimizer's step from now on: it may be the last thing before the model is saved.

    Also of its beginning, because compiled code does not note what it has brought along.
    """
    register_optimizer_step_pre_hook(_settle_held)
    register_optimizer_step_post_hook(_settle_held)


def _settle_held(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return  # versions cannot be traced; the next forward settles
    with _living_lock:
        ties = list(_living)
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]} if ties else set()
    for tie in ties:
        if tie.is_held_by(held):
            tie.settle()


def _is_sparse(gradient: torch.Tensor) -> bool:
    return gradient.is_sparse


def _take_over(tensor: Any, source: Any) -> None:
    with torch.inference_mode(False), torch.no_grad():
        if tensor.shape == source.shape and tensor.dtype == source.dtype:
            tensor.copy_(source)
        else:
            tensor.data = copied(source, tensor.device)
