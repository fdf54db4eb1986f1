"""Loading into a model whose tensors are spread over processes, which is torch's own work."""

from __future__ import annotations

import os

import torch
from torch import nn

from planner.compat.weight_source import open_weights

__all__ = ["is_asked_for", "load_distributed"]


def is_asked_for(model: nn.Module, *, full_state_dict: bool, broadcast_from_rank0: bool) -> bool:
    """Whether there is a process group, and something that only it can do: tensors that are spread over it, parts of a state dict, or
    reading by the first rank alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    if broadcast_from_rank0 or not full_state_dict:
        return True
    return any(hasattr(tensor, "device_mesh") for tensor in model.parameters())


def load_distributed(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    *,
    strict: bool,
    full_state_dict: bool,
    broadcast_from_rank0: bool,
) -> None:
    """Hands the tensors of a checkpoint to ``set_model_state_dict`` of torch.

    Raises:
        As that function.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: dict[str, torch.Tensor] = {}
    if not broadcast_from_rank0 or torch.distributed.get_rank() == 0:
        source = open_weights(checkpoint)
        state = {row.name: source.files.view(row) for row in source.rows}
    options = StateDictOptions(
        full_state_dict=full_state_dict, strict=strict, broadcast_from_rank0=broadcast_from_rank0
    )
    set_model_state_dict(model, state, options=options)
