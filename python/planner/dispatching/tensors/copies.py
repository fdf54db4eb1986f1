"""Copies of tensors on other devices, of the same class and with the same marks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from planner.dispatching.tensors.contents import is_same
from planner.dispatching.tensors.fakes import address_of, is_fake
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.errors import OffloadError
from planner.model.carried import carried_tensors
from planner.names import listed

# Of placeholders; they say nothing about a real tensor.
_OWN_MARKS = {
    "offloaded_name",
    "fetch",
    "kept",
    "twin",
    "stands_for",
    "whereabouts",
    "rests_in",
    "is_at_hand",
    "_is_param",
}

__all__ = [
    "SharedCopies",
    "copied",
    "copy_marks",
    "fits",
    "has_marks",
    "has_same_values",
    "has_storage_alone",
    "is_same_tensor",
    "is_transformed",
    "like_parameter",
    "require_offloadable",
    "require_plain",
    "return_marks",
    "visitor",
]


def copied(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
    """A tensor's values on a device: a new tensor, or the same storage where it lies there already.

    Guarantee: a tensor with a version counter that any thread may use, also when made under ``torch.inference_mode``.
    """
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().to(device, non_blocking=non_blocking)


def like_parameter(model: Any, data: torch.Tensor) -> Any:
    """Data as a parameter of the class of another one, with its marks; data itself if the other is no parameter."""
    if not isinstance(model, nn.Parameter):
        return data
    # Quantised parameters come back from `.to` as what they were.
    if isinstance(data, nn.Parameter) and data.requires_grad == model.requires_grad:
        return data
    marks = {key: value for key, value in vars(model).items() if key not in _OWN_MARKS}
    cls = type(model)
    arguments: dict[str, Any] = {}
    if cls is nn.Parameter or not issubclass(cls, nn.Parameter):
        # A tensor subclass keeps its class inside a plain parameter.
        made = nn.Parameter(data, requires_grad=model.requires_grad)
    else:
        # Attributes of a subclass are its constructor's arguments, but for transformers' mark.
        arguments = {key: value for key, value in marks.items() if key != "_is_hf_initialized"}
        made = cls(data, requires_grad=model.requires_grad, **arguments)
    for key in marks.keys() - arguments.keys() - vars(made).keys():
        setattr(made, key, marks[key])
    return made


class SharedCopies(dict[Any, Any]):
    """Copies of one tied tensor by device, while they are in use.

    Guarantee: a deep copy or a pickle of several owners leaves theirs shared, too, and empty.
    """

    def __init__(self) -> None:
        super().__init__()
        # What each copy was made from: a source may have been exchanged for one of the owners.
        self.origins: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        return (SharedCopies, ())


def is_same_tensor(one: Any, other: Any) -> bool:
    """Whether two tensors are one, or two plain ones over the same bytes; an address alone does not say so.

    Wrapper subclasses all have address 0, and a view may begin where its base does.
    """
    if one is other:
        return True
    if is_transformed(one) or is_transformed(other):
        return False
    return (
        _place_of(one) == _place_of(other) and address_of(one) != 0 and type(one).__torch_dispatch__ is _PLAIN
    )


def has_same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors on one device are the same, with the same dtype; a NaN is like another one."""
    if one.dtype != other.dtype or one.shape != other.shape or one.layout != other.layout:
        return False
    if torch.equal(one, other):
        return True
    is_plain = type(one).__torch_dispatch__ is _PLAIN and one.layout == torch.strided
    return (
        is_plain
        and one.is_floating_point()
        and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
    )


def has_storage_alone(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor is the only one on its storage: given other memory, it is missed by no view of it."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_inference():
        return False
    storage = tensor.untyped_storage()
    # Two: the tensor and the name above.
    return storage.nbytes() == tensor.nbytes and torch._C._storage_Use_Count(storage._cdata) <= 2


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether this is what ``vmap`` or ``grad`` of torch.func hand a function, or fake: no address, nor values to compare."""
    return is_fake(tensor) or bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


_PLAIN = torch.Tensor.__torch_dispatch__


def _place_of(tensor: Any) -> tuple[Any, ...]:
    return (address_of(tensor), tensor.device, tensor.dtype, tensor.shape, tensor.stride())


def fits(copy: Any, tensor: Any) -> bool:
    """Whether a copy that was found by a tensor's address can be that tensor's: a view may begin there, too."""
    return bool(
        address_of(tensor) != 0
        and copy.shape == tensor.shape
        and copy.stride() == tensor.stride()
        and copy.dtype == tensor.dtype
    )


def copy_marks(model: Any, tensor: Any) -> None:
    """Sets marks of another tensor that this one does not have."""
    for key, value in vars(model).items():
        if key not in _OWN_MARKS and key not in vars(tensor):
            setattr(tensor, key, value)


def return_marks(tensor: Any, made: Any, before: dict[str, Any]) -> None:
    """Does to a tensor's marks what was done to those of a copy.

    Args:
        tensor: the tensor.
        made: its copy.
        before: marks of the copy when it was made.
    """
    now = vars(made)
    if is_same(now, before):
        return
    for key in before.keys() - now.keys():
        vars(tensor).pop(key, None)
    vars(tensor).update((key, mark) for key, mark in now.items() if before.get(key, _ABSENT) is not mark)


_ABSENT = object()


def has_marks(model: Any, tensor: Any) -> bool:
    """Whether a tensor has all marks of another one."""
    return all(key in _OWN_MARKS or key in vars(tensor) for key in vars(model))


def visitor(found: Any, device: torch.device) -> Any:
    """A tensor that was put in the place of a placeholder, on a device: gradients flow back to it."""
    if found.device == device:
        return found
    if isinstance(found, nn.Parameter) and not found.requires_grad:
        return like_parameter(found, copied(found, device))
    # Also without gradients: another thread, or a part of the forward, may turn them on.
    with torch.inference_mode(False), torch.enable_grad():
        return found.to(device)


def require_offloadable(tensor: torch.Tensor, name: str) -> None:
    """Raises OffloadError for a tensor whose bytes do not lie in its own storage and that does not say where.

    Raises:
        OffloadError: a wrapper subclass without ``__tensor_flatten__``, or one that carries tensors in its attributes.
            Fields: ``name``.
    """
    cls = type(tensor)
    if is_traceable_wrapper_subclass(tensor) or is_offloaded(tensor) or is_fake(tensor):
        return
    own_dispatch = cls.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    carried = list(carried_tensors(tensor))
    if own_dispatch or carried:
        why = f"carries {listed(carried, most=3)}" if carried else "keeps its values elsewhere"
        raise OffloadError(
            f"cannot offload '{name}': its class {cls.__name__} {why} and has no __tensor_flatten__; "
            "place it where it runs",
            name=name,
        )


def require_plain(tensor: torch.Tensor, name: str) -> None:
    """Raises OffloadError for a tensor that a file of plain bytes cannot hold.

    Raises:
        OffloadError: one around other tensors, or one that carries some. Fields: ``name``.
    """
    require_offloadable(tensor, name)
    cls = type(tensor)
    if cls.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not is_offloaded(tensor):
        raise OffloadError(
            f"cannot offload '{name}' to a file: its class {cls.__name__} keeps its values in other tensors; place it on "
            "the cpu or where it runs",
            name=name,
        )
