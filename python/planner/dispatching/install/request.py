"""What a dispatch is asked to do, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from planner.dispatching.install.device_map import ResolvedDeviceMap
from planner.dispatching.offload.reads_ahead import MakesReadsAhead

__all__ = ["DispatchRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchRequest:
    """A checked request.

    Args:
        resolved_map: where everything lies and runs.
        offload_buffers: saved buffers rest with the weights.
        skip_keys: what never crosses.
        outside: what happens to readers of offloaded weights.
        says_device: offloaded weights say where their module runs; otherwise they do inside forwards, and "meta" outside.
        weights: resting tensors by full name, where they come from elsewhere than the model.
        force_borders: borders, too, if there is one device.
        whole_classes: classes whose instances are brought in whole.
        home: where tensors count as having lain before, and return to; None for where they lie.
        stays_in_files: what ``weights`` has stays without values when other libraries take the hooks off, as accelerate has it; otherwise
            it comes to where it counts as having lain.
        room_bytes: by device, what offloaded blocks may take there together; room for two lets one be copied ahead.
        reads_ahead: of the offloaded blocks, makes what reads them ahead from where ``weights`` has them.
    """

    resolved_map: ResolvedDeviceMap
    offload_buffers: bool = False
    skip_keys: frozenset[str] = frozenset()
    outside: Literal["raise", "fetch"] = "raise"
    says_device: bool = False
    weights: Mapping[str, Any] | None = None
    force_borders: bool = False
    whole_classes: frozenset[str] = frozenset()
    home: torch.device | None = None
    stays_in_files: bool = False
    room_bytes: Mapping[torch.device, int] = field(default_factory=dict)
    reads_ahead: MakesReadsAhead | None = None
