"""What lies in a slot while its weight is offloaded: shape and dtype, and an error for whoever reads values.

A plain meta tensor is not enough: torch computes with a CPU tensor and a meta tensor without complaint, and gives
whatever lies in uninitialised memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from planner.errors import OffloadError

__all__ = ["OffloadedTensor", "is_offloaded", "placeholder"]

aten = torch.ops.aten

# Operators that look at shape and dtype only.
_SHAPE_ONLY = {
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
# `state_dict` and `.data` ask for these; where values may be fetched, they still wait until somebody wants them.
_SAME_VALUES = {aten.detach.default, aten.alias.default}


class OffloadedTensor(torch.Tensor):
    """A tensor on the meta device that raises when its values are read, and so do its views.

    Shape, strides, dtype, device, ``numel``, ``requires_grad`` and a place in ``state_dict`` are as usual. Calling the
    class makes a plain parameter, because other libraries rebuild a parameter by calling its class.
    """

    offloaded_name: str
    fetch: Callable[[], torch.Tensor] | None
    # In a pickle, and in a shallow copy of a module: of which stand-in this is the twin. Otherwise: its own twin.
    stands_for: OffloadedTensor | None = None
    twin: OffloadedTensor | None = None
    # Values that took the place of those in a file.
    kept: torch.Tensor | None = None

    # Dynamo follows subclasses that intercept functions; this one only intercepts operators, below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True, **_: Any) -> Any:
        return nn.Parameter(data, requires_grad=requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _on_operator(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadedTensor:
        if self.stands_for is not None:
            return copy.deepcopy(self.stands_for, memo)
        made = _bare(self, requires_grad=self.requires_grad)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.marks(), memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if self.stands_for is None:
            raise OffloadError(
                f"'{self.offloaded_name}' is offloaded, so it has no values to save, nor has model.state_dict(); save "
                "dict(planner.state_dict(model)), or the whole model",
                name=self.offloaded_name,
            )
        arguments = (tuple(self.shape), self.stride(), self.dtype, self.requires_grad)
        # Marks lead back to the module that holds the stand-in, so they follow as state.
        return (_rebuild, arguments, self.stands_for.marks())

    def in_model(self) -> OffloadedTensor:
        """What is pickled in place of this together with its module, which knows where the values are."""
        if self.twin is None:
            # One for one: what was one stand-in is one again.
            self.twin = _bare(self, requires_grad=self.requires_grad)
            self.twin.__dict__.update(self.marks(), stands_for=self)
        return self.twin

    def follow(self, value: torch.Tensor) -> None:
        """Takes on another shape and dtype, and stays the object that all owners of the tensor hold."""
        if self.shape == value.shape and self.dtype == value.dtype and self.stride() == value.stride():
            return
        torch.Tensor.data.__set__(self, _bare(value, requires_grad=False))  # type: ignore[attr-defined]

    def marks(self) -> dict[str, Any]:
        """Attributes that a copy has as well."""
        return {key: mark for key, mark in vars(self).items() if key not in ("twin", "stands_for")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"offloaded '{self.offloaded_name}' (shape={tuple(self.shape)}, dtype={self.dtype})"

    @property
    def data(self) -> torch.Tensor:
        """A stand-in for the same values; assigning raises OffloadError."""
        found: torch.Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        refuse(self, "assigning .data")

    def share_memory_(self) -> NoReturn:
        """Raises OffloadError."""
        refuse(self, "share_memory_")

    def __dlpack__(self, **_: Any) -> NoReturn:
        refuse(self, "DLPack")

    def __dlpack_device__(self) -> NoReturn:
        refuse(self, "DLPack")

    def tolist(self) -> Any:
        """Raises OffloadError."""
        return _read(self, "tolist").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raises OffloadError."""
        return _read(self, "numpy").numpy(force=force)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        # NumPy converts what it gets.
        return _read(self, "__array__").numpy()


def placeholder(
    value: torch.Tensor, name: str, *, is_parameter: bool, requires_grad: bool = False
) -> OffloadedTensor:
    """A guarded stand-in for a tensor.

    Args:
        value: what it stands for; only shape, strides, dtype and marks are taken.
        name: what errors call it.
        is_parameter: whether ``isinstance(…, nn.Parameter)`` holds.
        requires_grad: whether it is trainable.
    """
    made = _bare(value, requires_grad=requires_grad)
    for key, mark in vars(value).items():
        if not isinstance(mark, torch.Tensor):
            setattr(made, key, mark)
    made.offloaded_name = name
    made.fetch = None
    made._is_param = is_parameter
    return made


def is_offloaded(tensor: object) -> bool:
    """Whether this is a stand-in."""
    return isinstance(tensor, OffloadedTensor)


def _bare(like: torch.Tensor, *, requires_grad: bool) -> OffloadedTensor:
    with torch.inference_mode(False):
        meta = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
        made: OffloadedTensor = torch.Tensor._make_subclass(OffloadedTensor, meta, requires_grad)
    return made


def _rebuild(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, requires_grad: bool
) -> OffloadedTensor:
    meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return _bare(meta, requires_grad=requires_grad)


def _on_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    guards: list[OffloadedTensor] = []

    def note(guard: OffloadedTensor) -> OffloadedTensor:
        guards.append(guard)
        return guard

    tree_map_only(OffloadedTensor, note, (args, kwargs))
    first = guards[0]
    can_fetch = all(guard.fetch is not None for guard in guards)
    if func in _SHAPE_ONLY or func.is_view:
        bare_args, bare_kwargs = tree_map_only(OffloadedTensor, _plain_meta, (args, kwargs))
        result = func(*bare_args, **bare_kwargs)
        if can_fetch and func.is_view and func not in _SAME_VALUES:
            # A view of a copy would swallow what is written to it; this one fetches when it is read.
            return _views(result, partial(_fetched, func, args, kwargs), first)
        return tree_map_only(torch.Tensor, lambda made: _still_guarded(made, first), result)
    if can_fetch and not func._schema.is_mutable:
        if torch.is_grad_enabled() and any(guard.requires_grad for guard in guards):
            return _refuse_graph(first)
        return _fetched(func, args, kwargs)
    return refuse(first, str(func))


def _fetched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real_args, real_kwargs = tree_map_only(
        OffloadedTensor, lambda guard: _read(guard, str(func)), (args, kwargs)
    )
    return func(*real_args, **real_kwargs)


def _views(result: Any, fetch: Callable[[], Any], base: OffloadedTensor) -> Any:
    """Stand-ins for one view, or for a list of them."""
    if isinstance(result, torch.Tensor):
        made = _still_guarded(result, base)
        made.fetch = fetch  # type: ignore[attr-defined]
        return made
    return [
        _views(part, lambda at=index: fetch()[at], base)  # type: ignore[misc]
        for index, part in enumerate(result)
    ]


def _plain_meta(guard: OffloadedTensor) -> torch.Tensor:
    return torch.empty_strided(guard.shape, guard.stride(), dtype=guard.dtype, device="meta")


def _still_guarded(made: torch.Tensor, base: OffloadedTensor) -> torch.Tensor:
    if made.device.type != "meta":
        return made
    view = placeholder(made, base.offloaded_name, is_parameter=False)
    view.fetch = base.fetch
    return view


def _read(guard: OffloadedTensor, what: str) -> torch.Tensor:
    if guard.fetch is None:
        refuse(guard, what)
    return guard.fetch()


def _refuse_graph(guard: OffloadedTensor) -> NoReturn:
    raise OffloadError(
        f"'{guard.offloaded_name}' is offloaded and trainable: a gradient that comes from reading it would be lost; read it "
        "under torch.no_grad(), or freeze it with requires_grad_(False)",
        name=guard.offloaded_name,
    )


def refuse(guard: OffloadedTensor, what: str) -> NoReturn:
    """Raises OffloadError for an operation on a stand-in."""
    raise OffloadError(
        f"'{guard.offloaded_name}' is offloaded, and {what} reads its values outside the forward of its module; call the "
        "module instead, wrap the code in planner.align_module_device(module), place the module where it runs, or "
        "dispatch with outside='fetch'",
        name=guard.offloaded_name,
    )
