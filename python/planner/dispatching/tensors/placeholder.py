"""What lies in a slot while its weight is offloaded: shape, dtype and device, and an error where values are read.

A plain meta tensor is not enough: torch computes with a CPU tensor and a meta tensor without complaint, and gives
whatever lies in uninitialised memory. Nor is one that says "meta": what a model makes on its device has no values.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from planner.dispatching.tensors.fakes import without_fakes
from planner.dispatching.tensors.placeholder_device import PlaceholderDevice, device_of, is_asked_by
from planner.dispatching.tensors.placeholder_values import own_values, read, refuse, require_no_graph
from planner.dispatching.tensors.resting import RestingPlace
from planner.errors import OffloadError

__all__ = ["PlaceholderTensor", "at_hand", "is_offloaded", "placeholder"]

aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

# They make a tensor of their own, on the placeholder's device unless they get another one.
_FACTORIES = {
    aten.empty_like,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.rand_like,
    aten.randn_like,
    aten.randint_like,
    aten.new_empty,
    aten.new_empty_strided,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
}
# They compute a module of torch's with the weights of the modules inside, which are not called.
_WHOLE_MODULES = {aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default}
# `state_dict` and `.data` ask for these; where values may be fetched, they still wait until they are wanted.
_SAME_VALUES = {aten.detach.default, aten.alias.default}


class PlaceholderTensor(torch.Tensor):
    """A tensor without values that raises when they are read, and so do its views.

    Shape, strides, dtype, device, ``numel``, ``requires_grad`` and a place in ``state_dict`` are as usual; ``is_meta`` holds,
    and :class:`PlaceholderDevice` says where ``device`` does not. Calling the class makes a plain parameter, because other
    libraries rebuild a parameter by calling its class.
    """

    # For code that counts bytes: marks lead to the model.
    carries_nothing = True
    offloaded_name: str
    # None: always the meta device.
    whereabouts: PlaceholderDevice | None = None
    fetch: Callable[[], torch.Tensor] | None
    # What `fetch` gives is the tensor itself, so it may be written to.
    is_at_hand: bool = False
    # In a pickle, and in a shallow copy of a module: of which placeholder this is the twin. Otherwise: its own twin.
    stands_for: PlaceholderTensor | None = None
    twin: PlaceholderTensor | None = None
    # Values that took the place of those in a file.
    kept: torch.Tensor | None = None
    # Once its hook is taken off; until then the hook knows.
    rests_in: RestingPlace | None = None

    # Dynamo follows subclasses that intercept functions; this one only intercepts operators, below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True, **_: Any) -> Any:
        return nn.Parameter(data, requires_grad=requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:
            # All of torch asks here, so that `x.to(weight)` and `weight.is_cuda` know it as well.
            return device_of(args[0])
        return _on_operator(func, args, kwargs or {})

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Always; but PEFT makes an adapter without values beside a weight that says so, and is told what ``device`` is."""
        return not is_asked_by("peft", sys._getframe(1)) or _is_meta(device_of(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> PlaceholderTensor:
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
        # Marks lead back to the module that holds the placeholder, so they follow as state.
        return (_rebuild, arguments, self.stands_for.marks())

    def in_model(self) -> PlaceholderTensor:
        """What is pickled in place of this together with its module, which knows where the values are."""
        if self.twin is None:
            # One for one: what was one placeholder is one again.
            self.twin = _bare(self, requires_grad=self.requires_grad)
            self.twin.__dict__.update(self.marks(), stands_for=self)
        return self.twin

    def follow(self, value: torch.Tensor) -> None:
        """Takes on another shape and dtype, and stays the object that all owners of the tensor hold."""
        if self.shape == value.shape and self.dtype == value.dtype and self.stride() == value.stride():
            return
        torch.Tensor.data.__set__(self, _bare(value, requires_grad=False))  # type: ignore[attr-defined]

    def take(self, values: torch.Tensor) -> PlaceholderTensor:
        """Has other values from now on than those in a file, once its hook is taken off and nobody runs its module."""
        values = read(values, "copy_") if isinstance(values, PlaceholderTensor) else values
        self.kept = torch.empty(self.shape, dtype=self.dtype).copy_(values.detach())
        return self

    def marks(self) -> dict[str, Any]:
        """Attributes that a copy has as well; its module's copy says where that runs."""
        own = ("twin", "stands_for", "whereabouts", "is_at_hand")
        return {key: mark for key, mark in vars(self).items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"offloaded '{self.offloaded_name}' (shape={tuple(self.shape)}, dtype={self.dtype})"

    @property
    def data(self) -> torch.Tensor:
        """A placeholder for the same values; assigning raises OffloadError."""
        found: torch.Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        if isinstance(found, PlaceholderTensor):
            found.whereabouts = self.whereabouts
        return found

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        if not self.is_at_hand:
            refuse(self, "assigning .data")
        at_hand(self).data = values

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
        """As usual; torch itself would make it on the meta device."""
        options.setdefault("dtype", self.dtype)
        options["device"] = self._values_on(options.get("device"), "new_tensor")
        return torch.tensor(data, **options)

    def new(self, *args: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
        """As usual; torch itself would make it on the meta device."""
        device = self._values_on(options.pop("device", None), "new")
        return torch.empty(0, dtype=self.dtype, device=device).new(*args, **options)

    def _values_on(self, device: Any, what: str) -> Any:
        device = device_of(self) if device is None else device
        if _is_meta(device):
            refuse(self, what)
        return device

    def data_ptr(self) -> int:
        """0, as on the meta device."""
        return 0

    def untyped_storage(self) -> Any:
        """One without bytes, as on the meta device."""
        return _plain_meta(self).untyped_storage()

    def share_memory_(self) -> NoReturn:
        """Raises OffloadError."""
        refuse(self, "share_memory_")

    def __dlpack__(self, **_: Any) -> NoReturn:
        refuse(self, "DLPack")

    def __dlpack_device__(self) -> NoReturn:
        refuse(self, "DLPack")

    def tolist(self) -> Any:
        """Raises OffloadError."""
        return read(self, "tolist").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raises OffloadError."""
        return read(self, "numpy").numpy(force=force)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        # NumPy converts what it gets.
        return read(self, "__array__").numpy()


def placeholder(
    value: torch.Tensor, name: str, *, is_parameter: bool, requires_grad: bool = False
) -> PlaceholderTensor:
    """A guarded placeholder for a tensor.

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
    made.fetch = made.whereabouts = made.rests_in = None
    made._is_param = is_parameter
    return made


def at_hand(tensor: torch.Tensor) -> torch.Tensor:
    """What a placeholder stands for, where that is at hand; any other tensor itself."""
    return read(tensor, "reading") if isinstance(tensor, PlaceholderTensor) and tensor.is_at_hand else tensor


def is_offloaded(tensor: object) -> bool:
    """Whether this is a placeholder."""
    return isinstance(tensor, PlaceholderTensor)


def _bare(like: torch.Tensor, *, requires_grad: bool) -> PlaceholderTensor:
    with torch.inference_mode(False), without_fakes():
        meta = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
        made: PlaceholderTensor = torch.Tensor._make_subclass(
            PlaceholderTensor, meta, requires_grad, dispatch_device=True
        )
        # Kernels past the dispatcher believe the device that it says, and would read at address 0.
        torch._C._set_throw_on_mutable_data_ptr(made)
    return made


def _is_meta(device: Any) -> bool:
    return torch.device(device).type == "meta"


def _rebuild(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, requires_grad: bool
) -> PlaceholderTensor:
    meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return _bare(meta, requires_grad=requires_grad)


def _on_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    guards: list[PlaceholderTensor] = []

    def note(guard: PlaceholderTensor) -> PlaceholderTensor:
        guards.append(guard)
        return guard

    tree_map_only(PlaceholderTensor, note, (args, kwargs))
    first = guards[0]
    if func.overloadpacket in _FACTORIES or _drops_values(func, kwargs):
        return _made_beside(first, func, args, kwargs)
    if func is aten.is_pinned.default:
        return False
    if func in _WHOLE_MODULES and all(guard.whereabouts is not None for guard in guards):
        return _whole_module(func, guards, args, kwargs)
    if func is aten.copy_.default and isinstance(args[0], PlaceholderTensor) and args[0].rests_in is not None:
        return args[0].take(args[1])
    can_fetch = all(guard.fetch is not None for guard in guards)
    if func.is_view:
        result = _on_meta(func, args, kwargs)
        if can_fetch and func not in _SAME_VALUES:
            # A view of a copy would swallow what is written to it; this one fetches when it is read.
            return _views(result, partial(_fetched, func, args, kwargs), first)
        made = tree_map_only(torch.Tensor, lambda made: _still_guarded(made, first), result)
        if func is aten.detach.default and first.whereabouts is not None:
            # What `state_dict` gives: libraries ask it what is offloaded.
            made.whereabouts = first.whereabouts.closed()
        return made
    if can_fetch and (not func._schema.is_mutable or all(guard.is_at_hand for guard in guards)):
        require_no_graph(guards)
        return _fetched(func, args, kwargs)
    return refuse(first, str(func))


def _drops_values(func: Any, kwargs: dict[str, Any]) -> bool:
    return func is aten._to_copy.default and kwargs.get("device") is not None and _is_meta(kwargs["device"])


def _on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    bare_args, bare_kwargs = tree_map_only(PlaceholderTensor, _plain_meta, (args, kwargs))
    return func(*bare_args, **bare_kwargs)


def _made_beside(guard: PlaceholderTensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A new tensor; one that would have no values raises when they are read."""
    device = kwargs.get("device") or device_of(guard)
    made = _on_meta(func, args, {**kwargs, "device": device})
    return placeholder(made, guard.offloaded_name, is_parameter=False) if _is_meta(device) else made


def _whole_module(
    func: Any, guards: list[PlaceholderTensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The operator with all tensors where its input is."""
    require_no_graph(guards)
    device = args[0].device

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return (own_values(tensor, str(func)) if isinstance(tensor, PlaceholderTensor) else tensor).to(device)

    real_args, real_kwargs = tree_map_only(torch.Tensor, there, (args, kwargs))
    return func(*real_args, **real_kwargs)


def _fetched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real_args, real_kwargs = tree_map_only(
        PlaceholderTensor, lambda guard: read(guard, str(func)), (args, kwargs)
    )
    return func(*real_args, **real_kwargs)


def _views(result: Any, fetch: Callable[[], Any], base: PlaceholderTensor) -> Any:
    """Placeholders for one view, or for a list of them."""
    if isinstance(result, torch.Tensor):
        made = _still_guarded(result, base)
        made.fetch = fetch  # type: ignore[attr-defined]
        return made
    return [
        _views(part, lambda at=index: fetch()[at], base)  # type: ignore[misc]
        for index, part in enumerate(result)
    ]


def _plain_meta(guard: PlaceholderTensor) -> torch.Tensor:
    return torch.empty_strided(guard.shape, guard.stride(), dtype=guard.dtype, device="meta")


def _still_guarded(made: torch.Tensor, base: PlaceholderTensor) -> torch.Tensor:
    view = placeholder(made, base.offloaded_name, is_parameter=False)
    view.fetch, view.whereabouts, view.is_at_hand = base.fetch, base.whereabouts, base.is_at_hand
    return view
