"""Who takes hooks off a model and goes on as if all its weights were there."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final

from torch import nn

from planner.errors import OffloadError

__all__ = ["refuse_forgetting"]

# `from_pretrained` takes off accelerate's hooks and has accelerate put on new ones, which find no values in placeholders of ours.
_MODULES: Final = frozenset({"peft.peft_model", "peft.mixed_model"})


def refuse_forgetting(module: nn.Module) -> None:
    """Raises OffloadError where PEFT takes the hooks off a model outside of ``planner.integrate()``: before the first one is off."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name.startswith("remove_hook_from_"):
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != "from_pretrained":
        return
    if frame.f_globals.get("__name__") in _MODULES and _uses_accelerators(module):
        raise OffloadError(
            f"PEFT takes the hooks off this {type(module).__name__} to load an adapter, and knows nothing of where its offloaded weights "
            "are; load the adapter inside planner.integrate(), or call planner.undispatch(model) first"
        )


def _uses_accelerators(model: nn.Module) -> bool:
    """Whether something of it runs on an accelerator: where all runs on the CPU, what comes back with the hooks lies where it is used."""
    devices = (getattr(getattr(each, "_hf_hook", None), "execution_device", None) for each in model.modules())
    return any(device is not None and str(device) != "cpu" for device in devices)
