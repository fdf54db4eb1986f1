"""Hooks that move or cast a whole module: accelerate's names, attributes and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.dispatching.bases import hook_base
from planner.dispatching.hooks.align import aligns
from planner.dispatching.hooks.attach import remove_hook_from_module
from planner.dispatching.hooks.base import ModelHook
from planner.dispatching.methods.forward import installed, sent
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots, resolve_device
from planner.errors import InvalidInputError
from planner.spelling import shown

__all__ = ["CpuOffload", "LayerwiseCastingHook", "UserCpuOffloadHook"]

_CPU = torch.device("cpu")

if TYPE_CHECKING:

    class _CpuBase: ...

    class _UserBase:
        model: nn.Module
        hook: Any

        def offload(self) -> None: ...

    class _CastingBase: ...

else:
    _CpuBase = hook_base("CpuOffload")
    _UserBase = hook_base("UserCpuOffloadHook")
    _CastingBase = hook_base("LayerwiseCastingHook")


class CpuOffload(_CpuBase, ModelHook):
    """Keeps a model on the CPU until its forward is called; it stays where it ran until it is offloaded by hand.

    Args:
        execution_device: where it runs; by default the first accelerator, without one the CPU.
        prev_module_hook: of the model that ran before; it is offloaded when this one is called.

    Guarantee: whatever of the model lies elsewhere moves, also where a part was moved by hand or by a hook of its own. Parts that
        a dispatch or an :class:`AlignDevicesHook` has placed stay there.

    Source: accelerate 1.15, hooks.py.
    """

    def __init__(
        self,
        execution_device: int | str | torch.device | None = None,
        prev_module_hook: UserCpuOffloadHook | None = None,
    ) -> None:
        self.prev_module_hook = prev_module_hook
        self.execution_device = execution_device if execution_device is not None else _default_device()

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Moves the model to the CPU."""
        return _move(module, _CPU, resolve_device(self.execution_device))

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Offloads the previous model, and brings this one and the arguments where it runs."""
        device = resolve_device(self.execution_device)
        previous = self.prev_module_hook
        # Also accelerate's own.
        if isinstance(previous, _UserBase) and _is_out(previous):
            # First, because the two models need not fit together.
            previous.offload()
        if _is_elsewhere(module, device, device):
            _move(module, device, device)
        return sent(args, device, frozenset()), sent(kwargs, device, frozenset())


class UserCpuOffloadHook(_UserBase):
    """A model with its :class:`CpuOffload` hook.

    Source: accelerate 1.15, hooks.py.
    """

    def __init__(self, model: nn.Module, hook: Any) -> None:
        self.model = model
        self.hook = hook

    def offload(self) -> None:
        """Moves the model to the CPU."""
        self.hook.init_hook(self.model)

    def remove(self) -> None:
        """Takes the hook off."""
        remove_hook_from_module(self.model)


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else resolve_device(torch.device(accelerator.type, 0))


def _is_placed(module: nn.Module, device: torch.device) -> bool:
    """Whether a part of a model that runs on a device is placed otherwise: by a dispatch, or by a hook of another device."""
    forward = installed(module)
    if forward is not None and forward.membership is not None and forward.membership.is_alive():
        return True
    hook: Any = module.__dict__.get("_hf_hook")
    aligning: list[Any] = [each for each in getattr(hook, "hooks", None) or (hook,) if aligns(each)]
    return any(
        each.offload
        or (each.execution_device is not None and resolve_device(each.execution_device) != device)
        for each in aligning
    )


def _movable(model: nn.Module, execution_device: torch.device) -> Iterator[nn.Module]:
    """Modules whose tensors move with a model: all but parts that are placed, and what is inside of these."""
    stack, seen = [model], set[int]()
    while stack:
        module = stack.pop()
        if id(module) in seen or (module is not model and _is_placed(module, execution_device)):
            continue
        seen.add(id(module))
        yield module
        stack.extend(child for child in module._modules.values() if child is not None)


def _is_elsewhere(model: nn.Module, device: torch.device, execution_device: torch.device) -> bool:
    """Whether any tensor that moves with a model lies on another device; the first one alone does not tell."""
    tensors = (slot.read() for module in _movable(model, execution_device) for slot in own_slots(module))
    return any(tensor.device != device and not is_offloaded(tensor) for tensor in tensors)


def _is_out(previous: _UserBase) -> bool:
    """Whether anything of a model that its hook moves is not on the CPU."""
    execution_device = getattr(previous.hook, "execution_device", None)
    return _is_elsewhere(
        previous.model,
        _CPU,
        _default_device() if execution_device is None else resolve_device(execution_device),
    )


def _move(model: nn.Module, device: torch.device, execution_device: torch.device) -> nn.Module:
    """Moves a model; parts that are placed stay where they are."""
    movable = list(_movable(model, execution_device))
    if len(movable) == sum(1 for _ in modules_of(model)):
        # Models may have a `to` of their own.
        return model.to(device)
    for module in movable:
        # Without what is inside, which may be placed by another hook.
        module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]
    return model


class LayerwiseCastingHook(_CastingBase, ModelHook):
    """Keeps a module's weights in one dtype and computes in another.

    Args:
        storage_dtype: between forwards.
        compute_dtype: during a forward.
        non_blocking: as in ``Tensor.to``.

    Raises:
        InvalidInputError: no dtypes.

    Source: accelerate 1.15, hooks.py.
    """

    # accelerate's attribute.
    _is_stateful = False

    def __init__(self, storage_dtype: torch.dtype, compute_dtype: torch.dtype, non_blocking: bool) -> None:
        for dtype in (storage_dtype, compute_dtype):
            if not isinstance(dtype, torch.dtype):
                raise InvalidInputError(f"expected a dtype such as torch.bfloat16, got {shown(dtype)}")
        self.storage_dtype = storage_dtype
        self.compute_dtype = compute_dtype
        self.non_blocking = bool(non_blocking)

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Casts for storage."""
        return module.to(dtype=self.storage_dtype, non_blocking=self.non_blocking)

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Casts for computing."""
        module.to(dtype=self.compute_dtype, non_blocking=self.non_blocking)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Casts for storage."""
        module.to(dtype=self.storage_dtype, non_blocking=self.non_blocking)
        return output

    def cancel_forward(self, module: nn.Module) -> None:
        """Casts for storage."""
        module.to(dtype=self.storage_dtype, non_blocking=self.non_blocking)
