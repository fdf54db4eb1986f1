"""Budgets that spread a model evenly over the accelerators."""

from __future__ import annotations

from planner.devices.keys import Budgets, DeviceKey, device_kind
from planner.model.layout import BalanceFacts


def balanced_budgets(facts: BalanceFacts, budgets: Budgets, *, low_zero: bool) -> Budgets:
    """accelerate's balanced budgets.

    Args:
        facts: sizes of the model.
        budgets: in canonical order; left as they are.
        low_zero: leave the first accelerator as empty as the others allow; of no effect where there is only one.

    Source: ``get_balanced_memory``, accelerate 1.15, utils/modeling.py.
    """
    in_use = accelerators_in_use(budgets)
    if not in_use:
        return dict(budgets)
    mean_bytes = int(facts.final_modules_bytes / max(facts.final_module_count, 1))
    buffer_bytes = int(1.25 * max(facts.first_no_split_bytes, mean_bytes))
    return balance(
        budgets,
        total_bytes=facts.total_bytes,
        buffer_bytes=buffer_bytes,
        low_zero=low_zero and len(in_use) > 1,
    )


def accelerators_in_use(budgets: Budgets) -> list[DeviceKey]:
    """Accelerators with a budget above zero, in order."""
    return [device for device, size in budgets.items() if device_kind(device) == "accelerator" and size > 0]


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
