"""Hooks that move or cast a whole module: accelerate's names, attributes and meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.dispatch.bases import hook_base
from planner.dispatch.forwards import sent
from planner.dispatch.hooks import ModelHook
from planner.dispatch.slots import resolve_device

__all__ = ["CpuOffload", "LayerwiseCastingHook", "UserCpuOffloadHook"]

if TYPE_CHECKING:

    class _CpuBase: ...

    class _UserBase: ...

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
        return module.to("cpu")

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Offloads the previous model, and brings this one and the arguments where it runs."""
        device = resolve_device(self.execution_device)
        previous = self.prev_module_hook
        if isinstance(previous, UserCpuOffloadHook) and _first_device(previous.model) != torch.device("cpu"):
            previous.offload()
        if _first_device(module) != device:
            module.to(device)
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
        from planner.dispatch.attaching import remove_hook_from_module

        remove_hook_from_module(self.model)


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else resolve_device(torch.device(accelerator.type, 0))


def _first_device(model: nn.Module) -> torch.device | None:
    first = next(model.parameters(), None)
    return None if first is None else first.device


class LayerwiseCastingHook(_CastingBase, ModelHook):
    """Keeps a module's weights in one dtype and computes in another.

    Args:
        storage_dtype: between forwards.
        compute_dtype: during a forward.
        non_blocking: as in ``Tensor.to``.

    Source: accelerate 1.15, hooks.py.
    """

    _is_stateful = False

    def __init__(self, storage_dtype: torch.dtype, compute_dtype: torch.dtype, non_blocking: bool) -> None:
        self.storage_dtype = storage_dtype
        self.compute_dtype = compute_dtype
        self.non_blocking = non_blocking

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
