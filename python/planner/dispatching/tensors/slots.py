"""Where a tensor hangs in a model: a module object and the name of one of its own tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from planner.errors import InvalidDevicesError, InvalidTreeError
from planner.names import qualified, require_module
from planner.spelling import device_words, shown

__all__ = [
    "Slot",
    "flat_weights",
    "modules_of",
    "own_slots",
    "present_device",
    "refuse_uninitialised",
    "require_initialised",
    "resolve_device",
    "usable_device",
]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One parameter or buffer of one module object.

    The object, not a dotted path: wrapping the module later changes its path, not the slot.
    """

    module: nn.Module
    name: str
    is_buffer: bool = False

    @property
    def table(self) -> dict[str, Any]:
        """The module's own dict that holds the tensor."""
        table: Any = self.module._buffers if self.is_buffer else self.module._parameters
        tensors: dict[str, Any] = table
        return tensors

    def read(self) -> Any:
        """What lies there now; None if the slot is empty or gone."""
        table = self.table
        return table[self.name] if self.name in table else None  # noqa: SIM401 (TorchScript's has no `get`)

    def write(self, tensor: Any) -> None:
        """Puts a tensor there, without the checks of ``Module.__setattr__``, which would unregister some."""
        self.table[self.name] = tensor
        if "_flat_weights" in self.module.__dict__:
            self.module.__dict__["_flat_weights"] = flat_weights(self.module)

    @property
    def is_persistent(self) -> bool:
        """Whether the tensor is saved with the model."""
        return not (self.is_buffer and self.name in self.module._non_persistent_buffers_set)


def own_slots(module: nn.Module) -> Iterator[Slot]:
    """Slots of a module's own tensors, parameters first; empty ones are left out."""
    yield from (Slot(module, name) for name, value in module._parameters.items() if value is not None)
    yield from (Slot(module, name, True) for name, value in module._buffers.items() if value is not None)


def require_initialised(module: nn.Module, *, recurse: bool = True) -> None:
    """Raises if a tensor of a module has no shape yet, as those of lazy layers: there is nothing to place or to offload.

    Raises:
        InvalidTreeError: with the tensor's name. Fields: ``name``.
    """
    for prefix, inner in modules_of(module) if recurse else [("", module)]:
        for slot in own_slots(inner):
            refuse_uninitialised(slot.read(), qualified(prefix, slot.name))


def refuse_uninitialised(tensor: Any, name: str) -> None:
    """The same for one tensor."""
    if is_lazy(tensor):
        raise InvalidTreeError(
            f"'{name}' is not initialised yet, so it has no values to place or to offload; run one forward pass (or load a state "
            "dict) first",
            name=name,
        )


def flat_weights(module: nn.Module) -> list[Any]:
    """The weights of a recurrent module in the order of the list that its forward reads instead of the slots."""
    names: Any = module._flat_weights_names
    return [module._parameters.get(name) for name in names]


def modules_of(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module object once with its first name, in preorder; any depth."""
    require_module(root)
    seen: set[int] = set()
    stack = [("", root)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
        stack.extend(reversed(children))


def resolve_device(device: Any) -> torch.device:
    """The device with its index, as tensors on it call it.

    Args:
        device: a number, a string or a ``torch.device``.

    Raises:
        InvalidDevicesError: nothing of these, or a name that torch or this machine does not know. Fields: ``device``.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    resolved = _known_device(device)
    if resolved.index is None and resolved.type not in ("cpu", "meta"):
        # Only the back end knows which one "cuda" or "mps" is just now.
        return usable_device(resolved)
    return resolved


def usable_device(device: Any) -> torch.device:
    """The device with its index, as tensors on it call it, if any can be made there.

    Raises:
        InvalidDevicesError: as :func:`resolve_device`, or this machine has no such device. Fields: ``device``.
    """
    resolved = _known_device(device)
    try:
        return torch.empty(0, device=resolved).device
    except (RuntimeError, AssertionError) as error:  # a torch without the back end asserts that it is there
        raise InvalidDevicesError(f"{shown(device)} cannot be used: {error}", device=device) from error


def _known_device(device: Any) -> torch.device:
    try:
        resolved = torch.device(device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidDevicesError(f"{shown(device)} is no device of torch", device=device) from error
    number = (device_words(device) or ("", None))[1] if isinstance(device, str) else device
    if isinstance(number, int | str) and resolved.index != int(number):
        # torch keeps eight bits of a number.
        raise InvalidDevicesError(f"{shown(device)} is no device of torch", device=device)
    return resolved


def present_device(device: Any) -> torch.device:
    """As :func:`resolve_device`, for what is moved there at once.

    Raises:
        InvalidDevicesError: also for a number that the accelerators of this machine do not have. Fields: ``device``.
    """
    resolved = resolve_device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and resolved.type == accelerator.type:
        count = torch.accelerator.device_count()
        if resolved.index >= count:
            raise InvalidDevicesError(
                f"this machine has no {resolved}: numbers below {count} would do", device=device
            )
    return resolved
