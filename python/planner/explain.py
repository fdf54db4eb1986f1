"""Reasons into words. All wording about decisions lives here."""

from __future__ import annotations

from collections.abc import Mapping

from planner.devices import DeviceKey
from planner.plan import Reason

__all__ = ["empty_devices_notice", "sentence"]

_WORDS = {
    "fits": "Putting {name} on {device}: it needs {needed} bytes, {available} are available.",
    "tied": "Putting {name} on {device} with the module it is tied to: together they need {needed} bytes, {available} are available.",
    "bound": "Putting {name} on {device}: it shares a tensor with a module there.",
    "fallback": "Putting {name} on {device} out of turn, because the next module would have left the device empty: "
    "it needs {needed} bytes, {available} are available.",
    "split": "Splitting {name}: it needs {needed} bytes, {available} are available on {device}.",
    "split_tied": "Splitting {name}, which is tied to the current module: together they need {needed} bytes, "
    "{available} are available on {device}.",
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


def _count(size_bytes: float) -> str:
    return str(int(size_bytes)) if size_bytes == int(size_bytes) else str(size_bytes)
