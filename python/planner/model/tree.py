"""The module tree of a live model, flattened into columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from planner import _core
from planner.errors import InvalidInputError, InvalidTreeError
from planner.model.carried import CARRIES_NOTHING, carried_bytes
from planner.model.dtypes import describe_dtype
from planner.names import is_text, text_set

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModuleTree"]


@dataclass(frozen=True, slots=True, eq=False)
class ModuleTree:
    """Modules, parameters and buffers of a model under every name; the model itself is not kept.

    Args:
        columns: the flattened tree, owned by the extension.
        no_split_classes: what the model itself says of classes that must not be split, if it does.

    Guarantee: a snapshot; later changes to the model do not reach it. Safe to share between threads.
    """

    columns: _core.Tree
    no_split_classes: tuple[str, ...] = ()

    @classmethod
    def from_module(cls, model: nn.Module) -> ModuleTree:
        """Flattens a live model.

        Args:
            model: any ``torch.nn.Module`` on any device, meta included; tensors are looked at, never read.

        Returns:
            The tree. Ties go by object identity; the same tensor or module under two names is one object twice.

        Raises:
            InvalidTreeError: a module inside itself, an uninitialised (lazy) parameter, a member that is not a tensor,
                ``_no_split_modules`` that are no names, or more names than can be planned. Fields: ``name``.

        Cost:
            O(modules + tensors), iterative: depth is no limit. About a quarter of ``list(model.named_parameters())``.

        Example:
            >>> import torch
            >>> ModuleTree.from_module(torch.nn.Sequential(torch.nn.Linear(2, 2))).module_count
            2
        """
        columns = _core.Tree.walk(model, _plain_types(), describe_dtype, describe_tensor)
        return cls(columns, _declared_classes(model))

    @classmethod
    def beside(
        cls, class_name: str, models: Sequence[tuple[str, ModuleTree]], no_split_classes: Iterable[str]
    ) -> ModuleTree:
        """Whole models from files below one root, by name and in order.

        Args:
            class_name: the root's.
            models: their tensors stay their own.
            no_split_classes: of all of them.

        Cost: O(rows).
        """
        columns = _core.Tree.beside(class_name, [(name, model.columns) for name, model in models])
        return cls(columns, tuple(no_split_classes))

    @property
    def module_count(self) -> int:
        """Modules under every name, the root included."""
        return self.columns.module_count

    @property
    def tensor_count(self) -> int:
        """Tensor objects."""
        return self.columns.tensor_count

    @property
    def class_name(self) -> str:
        """The model's own class; "" where it is not known."""
        return next((name for name, _ in self.columns.class_bases()), "")

    @property
    def can_tie(self) -> bool:
        """Whether the class of any module has ``_tie_weights``."""
        return self.columns.can_tie

    def uncovered(
        self, keys: Iterable[str], needed: Literal["all", "saved"] = "all"
    ) -> tuple[list[str], list[str]]:
        """Keys that name nothing, and names of tensors that no key covers.

        Args:
            keys: dotted names; each covers itself and all that is inside, the empty one everything.
            needed: which tensors need a key: all, or those that are saved with the model.

        Cost: O(keys + rows).
        """
        known = list(keys)
        texts = [key for key in known if is_text(key)]
        unknown, uncovered = self.columns.uncovered(texts, needed)
        return [*unknown, *(key for key in known if not is_text(key))], uncovered


def _declared_classes(model: nn.Module) -> tuple[str, ...]:
    """Classes that a model says must not be split; sorted, because transformers keeps them in a set, whose order is not the same
    in two processes. Raises InvalidTreeError."""
    try:
        return tuple(sorted(text_set(getattr(model, "_no_split_modules", None) or None, "_no_split_modules")))
    except InvalidInputError as error:  # it is not the caller who says so
        raise InvalidTreeError(f"the model cannot be planned: {error.message}", name="") from None


@cache
def _plain_types() -> tuple[type, ...]:
    import torch

    return (torch.Tensor, torch.nn.Parameter)


def describe_tensor(tensor: Any, name: str) -> tuple[int, Any, int]:
    """Elements, dtype and stored bytes of a tensor of any class but the plain ones.

    Raises:
        InvalidTreeError: it is no tensor, a lazy one without a shape, or one that fails to tell. Fields: ``name``.
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise InvalidTreeError(f"'{name}' is registered as a tensor but is a {kind}", name=name)
    if torch.nn.parameter.is_lazy(tensor):
        raise InvalidTreeError(
            f"parameter '{name}' is not initialised yet, so its size is unknown; run one forward pass "
            "(or load a state dict) to materialise lazy modules before planning",
            name=name,
        )
    try:
        return int(tensor.numel()), tensor.dtype, _stored_bytes(tensor)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        kind = type(tensor).__name__
        raise InvalidTreeError(
            f"'{name}' ({kind}) does not tell its size: {type(error).__name__}: {error}", name=name
        ) from error


def _stored_bytes(tensor: Any) -> int:
    """Bytes that a tensor holds on this process: a DTensor its local shard, a wrapper the tensors inside it.

    What others carry in their attributes is theirs, too.
    """
    total, pending = 0, [tensor]
    while pending:
        inner = pending.pop()
        local = getattr(inner, "_local_tensor", None)
        flatten = getattr(type(inner), "__tensor_flatten__", None)
        if local is not None:
            pending.append(local)
        elif flatten is not None:
            pending.extend(getattr(inner, attribute) for attribute in flatten(inner)[0])
        else:
            carried = carried_bytes(inner)
            total += carried
            if not (carried and _has_no_storage(inner)):
                total += int(inner.numel()) * int(inner.dtype.itemsize)
    return total


def _has_no_storage(tensor: Any) -> bool:
    """Whether this is a wrapper that only looks like so many elements."""
    import torch

    is_plain = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    return not is_plain and not hasattr(type(tensor), CARRIES_NOTHING)
