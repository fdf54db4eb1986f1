"""Budgets as both dialects take them: given, or detected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from planner.devices.detect import budgets_as_accelerate
from planner.devices.keys import Budgets, read_budgets, warn_of_absent

__all__ = ["available_budgets", "shave_single_device"]

logger = logging.getLogger(__name__)


def available_budgets(max_memory: Mapping[Any, Any] | None) -> Budgets:
    """What was given, in canonical spelling and order; what is free now, when nothing was given."""
    if max_memory is None:
        return budgets_as_accelerate()
    budgets = read_budgets(max_memory)
    warn_of_absent(budgets)
    return budgets


def shave_single_device(budgets: Budgets) -> None:
    """Keeps 10 % of the only numbered accelerator free, as both dialects do when budgets were detected."""
    for device in budgets:
        if isinstance(device, int):
            budgets[device] *= 0.9
            logger.info(
                "We will use 90%% of the memory on device %s for storing the model, and 10%% for the buffer to avoid OOM. "
                "You can set `max_memory` in to a higher value to use more memory (at your own risk).",
                device,
            )
            return
