"""What takes the place of ``dispatch_model`` inside other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planner.compat.huggingface.run_elsewhere import as_meant

if TYPE_CHECKING:
    from torch import nn

    from planner.compat.huggingface.in_force import Integration

__all__ = ["place"]


def place(
    integration: Integration,
    before: Callable[..., Any],
    model: nn.Module,
    device_map: Any,
    *args: Any,
    **kwargs: Any,
) -> nn.Module:
    """accelerate's ``dispatch_model``, ours: a map of ours runs offloaded blocks where its plan says.

    Args:
        integration: says what reading an offloaded weight outside of its module's forward gives.
        before: the function whose place this takes.
        model: the model; changed in place.
        device_map: names to devices.
        args, kwargs: as accelerate 1.15's signature has them.

    Returns:
        The model.

    Raises:
        As :func:`planner.dispatch_model`.
    """
    from planner.compat.dispatching import place_model

    return place_model(
        model, as_meant(device_map), *args, **kwargs, outside=integration.outside, comes_from_files=True
    )
