"""`get_max_memory` and `get_balanced_memory` of both dialects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from planner.devices import Budgets, DeviceKey, detect_budgets, device_kind, read_budgets, warn_of_absent

__all__ = ["available_budgets", "balance", "shave_single_device"]

logger = logging.getLogger(__name__)


def available_budgets(max_memory: Mapping[Any, Any] | None) -> Budgets:
    """What was said, in canonical spelling and order; what is free now, when nothing was."""
    if max_memory is None:
        return detect_budgets()
    budgets = read_budgets(max_memory)
    warn_of_absent(budgets)
    return budgets


def accelerators_in_use(budgets: Budgets) -> list[DeviceKey]:
    """Accelerators with a budget above zero, in order."""
    return [device for device, size in budgets.items() if device_kind(device) == "accelerator" and size > 0]


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


def balance(budgets: Budgets, *, total_bytes: float, buffer_bytes: int, low_zero: bool) -> Budgets:
    """Caps every accelerator but the last at its share of the model plus a buffer.

    Args:
        budgets: in canonical order.
        total_bytes: the model.
        buffer_bytes: what a share may exceed the mean by, so that whole blocks fit.
        low_zero: leave the first accelerator as empty as the others allow.

    Source: the end of ``get_balanced_memory``, accelerate 1.15. There ``low_zero`` takes the devices to be numbered from
        0 without gaps and raises or empties the wrong one otherwise; here "zero" is the first accelerator in use.
    """
    budgets = dict(budgets)
    in_use = accelerators_in_use(budgets)
    numbered = [device for device in in_use if isinstance(device, int)]
    share = total_bytes // (len(in_use) - 1 if low_zero else len(in_use)) + buffer_bytes
    spared = numbered[0] if low_zero and numbered else None
    for device in numbered[:-1]:
        if device != spared:
            budgets[device] = min(share, budgets[device])
    if spared is not None:
        others = sum(budgets[device] for device in numbered if device != spared)
        budgets[spared] = min(max(0, total_bytes - others), budgets[spared])
    return budgets
