"""Reasons into words. All wording about decisions lives here."""

from __future__ import annotations

from collections.abc import Mapping

from planner.devices import DeviceKey
from planner.plan import Reason
from planner.units import format_bytes

__all__ = ["empty_devices_notice", "infeasible_message", "sentence"]

_WORDS = {
    "fits": "Putting {name} on {device}: it needs {needed} bytes, {available} are available.",
    "tied": "Putting {name} on {device} with the module it is tied to: together they need {needed} bytes, {available} are available.",
    "bound": "Putting {name} on {device}: it shares a tensor with a module there.",
    "fallback": "Putting {name} on {device} out of turn, because the next module would have left the device empty: "
    "it needs {needed} bytes, {available} are available.",
    "split": "Splitting {name}: it needs {needed} bytes, {available} are available on {device}.",
    "split_tied": "Splitting {name}, which is tied to the current module: together they need {needed} bytes, "
    "{available} are available on {device}.",
    "resident": "{name} lies on {device}: {needed} bytes of {available}.",
    "offloaded": "{name} is offloaded to {device}: {needed} bytes of {available}.",
    "oversized": "{name} lies on {device}, because it is larger than every accelerator: {needed} bytes.",
    "no_room": "{name} does not fit on {device}: it needs {needed} bytes, {available} are left.",
    "next_device": "Leaving {device}: {name} cannot be split and needs {needed} bytes, {available} are available.",
}


def sentence(reason: Reason) -> str:
    """One decision in words.

    Example:
        >>> sentence(Reason(rule="fits", name="lm_head", device=0, needed_bytes=10, available_bytes=12))
        'Putting lm_head on 0: it needs 10 bytes, 12 are available.'
    """
    available = "unlimited" if reason.available_bytes is None else f"{reason.available_bytes:g}"
    return _WORDS[reason.rule].format(
        name=reason.name,
        device=reason.device,
        needed=_count(reason.needed_bytes),
        available=available if reason.available_bytes is None else _count(reason.available_bytes),
    )


def empty_devices_notice(required_bytes: Mapping[DeviceKey, float]) -> str:
    """The notice about devices that got no module.

    Source: the message of accelerate 1.15's ``infer_auto_device_map``, whose lines other tools look for.
    """
    lines = "\n".join(
        f"  - {device}: {_count(size)} bytes required" for device, size in required_bytes.items()
    )
    return (
        "Based on the current allocation process, no modules could be assigned to the following devices due to "
        f"insufficient memory:\n{lines}\n"
        "These minimum requirements are specific to this allocation attempt and may vary. Consider increasing "
        "the available memory for these devices to at least the specified minimum, or adjusting the model config."
    )


def infeasible_message(
    block: str, size_bytes: int, mode: str, more_bytes: Mapping[DeviceKey, int], is_proven: bool
) -> str:
    """Why there is no plan, and what would make one.

    Args:
        block: first block without a place in the best partial plan.
        size_bytes: its size.
        mode: which tiers were allowed.
        more_bytes: by device, what alone would be enough.
        is_proven: there is none; otherwise none was found.
    """
    where = {"gpu_only": "on the accelerators", "no_disk": "without disk"}.get(mode, "on the devices named")
    enough = " or ".join(
        f"{format_bytes(size)} ({size} bytes) more on {device}" for device, size in more_bytes.items()
    )
    verdict = "the model does not fit" if is_proven else "no plan was found that fits the model"
    return f"{verdict} {where}: '{block}' ({format_bytes(size_bytes)}) is left over; " + (
        f"{enough} would be enough" if enough else "more room on any single device would not be enough"
    )


def _count(size_bytes: float) -> str:
    return str(int(size_bytes)) if size_bytes == int(size_bytes) else str(size_bytes)
