"""Models that are divided among processes, of which running memory is not known."""

from __future__ import annotations

from typing import Any

from planner.checkpoint.opened import Opened
from planner.errors import InvalidInputError

__all__ = ["require_undivided"]


def require_undivided(opened: Opened) -> None:
    """Raises InvalidInputError where the tensors of a live model are shards, or its class runs as one rank of several.

    Cost: O(tensors).
    """
    model: Any = None if opened.live is None else opened.live()
    if model is None:
        return
    ranks = getattr(model, "_tp_size", None)
    if isinstance(ranks, int) and ranks > 1:
        raise _divided(f"it was loaded with tp_size={ranks}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        mesh = getattr(tensor, "device_mesh", None)  # of what torch calls a DTensor
        if mesh is not None and hasattr(tensor, "placements") and mesh.size() > 1:
            raise _divided(f"{name} is a shard of a tensor over {mesh.size()} processes")


def _divided(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"workload: the model is divided among processes ({why}), and what one of them keeps and computes is not known; plan the model "
        "as it is before it is divided, or leave workload out: weights are counted as this process holds them"
    )
