"""Dispatching a twin as its model would be, with stand-ins for what a plan puts on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from planner.dispatching.api import carry_out
from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.install.request import DispatchRequest

__all__ = ["dispatch_twin", "named_tensors"]


def dispatch_twin(
    twin: nn.Module,
    resolved_map: ResolvedDeviceMap,
    *,
    offload_buffers: bool = False,
    room_bytes: Mapping[torch.device, int] | None = None,
) -> None:
    """Dispatches a twin.

    Args:
        twin: changed.
        resolved_map: where everything lies and runs.
        offload_buffers: saved buffers rest with the weights.
        room_bytes: by device, what offloaded blocks may take there together; without it none is copied ahead.
    """
    is_on_disk = any(placement.storage_device is None for placement in resolved_map.placements.values())
    request = DispatchRequest(
        resolved_map=resolved_map,
        offload_buffers=offload_buffers,
        weights=named_tensors(twin) if is_on_disk else None,
        room_bytes=dict(room_bytes or {}),
    )
    carry_out(twin, request)


def named_tensors(model: nn.Module) -> dict[str, Any]:
    """Parameters and buffers by all of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
