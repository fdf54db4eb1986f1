"""Reasons into words. All wording about decisions lives here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from planner.choices import Mode
from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError
from planner.names import device_of, is_within, named
from planner.plans.advice import more_room
from planner.plans.columns import one_size
from planner.plans.parts import Reason
from planner.plans.plan import Plan

__all__ = [
    "UNDECIDED",
    "WORDS",
    "empty_devices_notice",
    "first_device_of",
    "infeasible_message",
    "reasons_about",
    "sentence",
]

# Templates of sentences by rule; fields are name, device, needed and available.
WORDS: Mapping[str, str] = {
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
    "first_block": "{name} is kept on {device}, where the model's inputs belong: its first parameter is there.",
    "fused_experts": "{name} holds all its experts in one tensor and cannot be split by expert: its block goes to {device} "
    "as a whole, {needed} bytes.",
    "as_auto": "{name} lies where strategy 'auto' puts it, which the same room is enough for: no plan of one run a device that was found "
    "takes less.",
    "experts_as_part": "{name} holds all its experts in one tensor and cannot be split by expert: it is a part of its block, "
    "which goes to {device}, {needed} bytes.",
    "no_room": "{name} does not fit on {device}: it needs {needed} bytes, {available} are left.",
    "next_device": "Leaving {device}: {name} cannot be split and needs {needed} bytes, {available} are available.",
}

# Of a module that no decision names.
UNDECIDED = "No decision of its own: it goes with what it shares tensors or is kept together with."


def sentence(reason: Reason) -> str:
    """One decision in words.

    Example:
        >>> sentence(Reason(rule="fits", name="lm_head", device=0, needed_bytes=10, available_bytes=12))
        'Putting lm_head on 0: it needs 10 bytes, 12 are available.'

    Raises:
        InvalidInputError: no such rule.
    """
    if reason.rule not in WORDS:
        raise InvalidInputError(
            f"no rule is called {reason.rule!r}; the plan is of another version of planner"
        )
    available = "unlimited" if reason.available_bytes is None else str(reason.available_bytes)
    return WORDS[reason.rule].format(
        name=reason.name or "the model", device=reason.device, needed=reason.needed_bytes, available=available
    )


def reasons_about(plan: Plan, name: str) -> tuple[Reason, ...]:
    """The decisions about a module, about what it lies in, and about what lies in it."""
    return tuple(
        reason for reason in plan.reasons if is_within(name, reason.name) or is_within(reason.name, name)
    )


def first_device_of(device_map: Mapping[str, DeviceKey], name: str) -> DeviceKey | None:
    """The device of a name: of the nearest key above it, else of the first key inside it, else None.

    Example:
        >>> first_device_of({"layers.0": 0, "layers.1": "cpu"}, "layers.1.mlp")
        'cpu'
    """
    around = device_of(name, device_map)
    if around is not None:
        return around
    return next((device for key, device in device_map.items() if is_within(key, name)), None)


def empty_devices_notice(required_bytes: Mapping[DeviceKey, int], *, are_bare: bool = True) -> str:
    """The notice about devices that got no weights.

    Args:
        required_bytes: by device, the least budget with which it gets some.
        are_bare: they got no module either; otherwise some got modules without tensors.

    Source: the message of accelerate 1.15's ``infer_auto_device_map``, whose lines other tools look for.
    """
    lines = "\n".join(f"  - {device}: {size} bytes required" for device, size in required_bytes.items())
    return (
        f"Based on the current allocation process, no {'modules' if are_bare else 'weights'} could be assigned to the following devices due to "
        f"insufficient memory:\n{lines}\n"
        "These minimum requirements are specific to this allocation attempt and may vary. Consider increasing "
        "the available memory for these devices to at least the specified minimum, or adjusting the model config."
    )


_NOT_FITTING: Final = "the model does not fit"
_NOT_FOUND: Final = "no plan was found that fits the model"


def as_not_proven(message: str) -> str:
    """The words of :func:`infeasible_message` where what was proven is about less than all plans."""
    return message.replace(_NOT_FITTING, _NOT_FOUND, 1)


def infeasible_message(
    block: str,
    size_bytes: int,
    mode: Mode,
    more_bytes: Mapping[DeviceKey, int],
    is_proven: bool,
    *,
    is_all_disk: bool = False,
) -> str:
    """Why there is no plan, and what would make one.

    Args:
        block: first block without a place in the best partial plan; "" is the model.
        size_bytes: its size.
        mode: which tiers were allowed.
        more_bytes: by device, what alone would be enough.
        is_proven: there is none; otherwise none was found.
        is_all_disk: no device that runs modules is named.
    """
    otherwise = (
        "modules run on the CPU or on accelerators, so one of these must be named beside the disk"
        if is_all_disk
        else "more room on any single device would not be enough"
    )
    where = {"gpu_only": "on the accelerators", "no_disk": "without disk"}.get(mode, "on the devices named")
    enough = ", or ".join(more_room(more_bytes))
    verdict = _NOT_FITTING if is_proven else _NOT_FOUND
    left = named(block) if block else "the whole model"
    return f"{verdict} {where}: {left} ({one_size(size_bytes)}) finds no place; " + (
        f"{enough} would be enough" if enough else otherwise
    )
