"""Attaching hooks that keep layers in one dtype and compute in another: accelerate's function."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from planner.arguments import name_list
from planner.dispatching.hooks.attach import add_hook_to_module
from planner.dispatching.hooks.moving import LayerwiseCastingHook
from planner.errors import InvalidInputError
from planner.names import qualified, require_module
from planner.spelling import shown

__all__ = ["attach_layerwise_casting_hooks"]

# accelerate 1.15, utils/constants.py.
_CASTABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def attach_layerwise_casting_hooks(
    module: nn.Module,
    storage_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    skip_modules_pattern: str | tuple[str, ...] | None = None,
    skip_modules_classes: tuple[type[nn.Module], ...] | None = None,
    non_blocking: bool = False,
) -> None:
    """Keeps linear and convolution layers in one dtype between forwards and computes in another.

    Args:
        module: the outermost one.
        storage_dtype, compute_dtype, non_blocking: as for :class:`LayerwiseCastingHook`.
        skip_modules_pattern: regular expressions of names to leave out.
        skip_modules_classes: classes to leave out.

    Raises:
        InvalidInputError: anything that is no module, dtype, pattern or class, before anything is attached.

    Source: accelerate 1.15, big_modeling.py.
    """
    require_module(module)
    LayerwiseCastingHook(storage_dtype, compute_dtype, non_blocking)
    _cast_layers(
        module,
        "",
        lambda: LayerwiseCastingHook(storage_dtype, compute_dtype, non_blocking),
        _compiled(skip_modules_pattern),
        _classes(skip_modules_classes),
    )


def _compiled(patterns: Any) -> tuple[re.Pattern[str], ...]:
    if patterns is None:
        return ()
    texts = [patterns] if isinstance(patterns, str) else name_list(patterns, "skip_modules_pattern")
    try:
        return tuple(re.compile(text) for text in texts)
    except re.error as error:
        raise InvalidInputError(f"skip_modules_pattern {shown(error.pattern)}: {error}") from error


def _classes(classes: Any) -> tuple[type, ...]:
    found = () if classes is None else (classes,) if isinstance(classes, type) else classes
    if not (isinstance(found, tuple) and all(isinstance(each, type) for each in found)):
        raise InvalidInputError(f"skip_modules_classes must hold classes, not {shown(classes)}")
    return found


def _cast_layers(
    module: nn.Module, name: str, make: Any, patterns: tuple[re.Pattern[str], ...], classes: tuple[type, ...]
) -> None:
    if isinstance(module, classes) or any(pattern.search(name) for pattern in patterns):
        return
    if isinstance(module, _CASTABLE):
        add_hook_to_module(module, make(), append=True)
        return
    for key, child in module.named_children():
        _cast_layers(child, qualified(name, key), make, patterns, classes)
