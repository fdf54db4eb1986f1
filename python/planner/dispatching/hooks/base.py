"""Hooks: what happens before and after a module's forward. accelerate's names, attributes and meaning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from planner.dispatching.bases import hook_base

__all__ = ["ModelHook", "SequentialHook"]

if TYPE_CHECKING:

    class _ModelBase: ...

    class _SequentialBase: ...

else:
    _ModelBase = hook_base("ModelHook")
    _SequentialBase = hook_base("SequentialHook")


class ModelHook(_ModelBase):
    """Called around a module's forward; does nothing.

    Source: accelerate 1.15, hooks.py.
    """

    no_grad: bool = False

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Called when the hook is attached; gives the module."""
        return module

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Called with the arguments; gives those the module shall get."""
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Called with the result; gives the one the caller shall get."""
        return output

    def cancel_forward(self, module: nn.Module) -> None:
        """Called instead of :meth:`post_forward` when the module raised."""

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Called when the hook is taken off; gives the module."""
        return module


class SequentialHook(_SequentialBase, ModelHook):
    """Several hooks, one after the other.

    Source: accelerate 1.15, hooks.py.
    """

    def __init__(self, *hooks: Any) -> None:
        self.hooks = hooks

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Attaches all, in order."""
        for hook in self.hooks:
            module = hook.init_hook(module)
        return module

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Calls all, in order."""
        entered: list[Any] = []
        try:
            for hook in self.hooks:
                args, kwargs = hook.pre_forward(module, *args, **kwargs)
                entered.append(hook)
        except BaseException:
            # The module will not run, so no `post_forward` lets go of what these have brought.
            _cancel(entered, module)
            raise
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Calls all, in order."""
        left = list(self.hooks)
        try:
            while left:
                output = left[0].post_forward(module, output)
                del left[0]
        except BaseException:
            # The first of these has raised itself; the others have not been called.
            _cancel(left[1:], module)
            raise
        return output

    def cancel_forward(self, module: nn.Module) -> None:
        """Cancels all, last first."""
        _cancel(self.hooks, module)

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Takes all off, in order."""
        for hook in self.hooks:
            module = hook.detach_hook(module)
        return module


def _cancel(hooks: Iterable[Any], module: nn.Module) -> None:
    for hook in reversed(list(hooks)):
        # accelerate's own hooks do not have it.
        cancel = getattr(hook, "cancel_forward", None)
        if cancel is not None:
            cancel(module)
