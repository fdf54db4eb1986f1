"""Where something else than a device map distributes a model, ours steps aside."""

from __future__ import annotations

import sys

__all__ = ["reason_to_step_aside"]

_HERE = "transformers.integrations.accelerate"


def reason_to_step_aside(arguments: tuple[object, ...]) -> str | None:
    """Who distributes the model that a function is called with, in words; None where a device map does."""
    asked = sys.modules[_HERE]  # what transformers asks itself before it dispatches
    if asked.is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3 divides the weights"
    if asked.is_fsdp_enabled():
        return "FSDP divides the weights"
    # `tp_plan=` becomes one, too. The model is first, or comes after the object whose method it is.
    for argument in arguments[:2]:
        if getattr(getattr(argument, "config", None), "distributed_config", None) is not None:
            return "the model has a distributed_config"
    return None
