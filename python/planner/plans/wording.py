"""Reasons into words. All wording about decisions lives here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from planner.choices import Mode
from planner.devices.keys import DeviceKey, canonical_device
from planner.errors import InvalidConstraintError, InvalidInputError
from planner.names import device_of, is_within, named
from planner.plans.parts import Reason
from planner.plans.plan import Plan
from planner.spelling import shown
from planner.units import format_bytes

__all__ = [
    "UNDECIDED",
    "WORDS",
    "empty_devices_notice",
    "explain",
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
    "fused_experts": "{name} holds all its experts in one tensor and cannot be split by expert: its block goes to {device} "
    "as a whole, {needed} bytes.",
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


_STAGES = {
    "in_order": "in the order given",
    "other_order": "with the devices in another order",
    "tie_position": "with tied blocks at another member's place",
    "scattered": "with blocks anywhere on the accelerators",
    "offload": "with something offloaded",
}


def explain(plan: Plan, name: str) -> str:
    """Where a module lies, why, and what would move it; at most a dozen lines.

    Args:
        plan: the plan.
        name: a module or tensor; any name inside a block is explained by the block.

    Raises:
        InvalidInputError: no plan.
        InvalidConstraintError: the plan has no place for that name. Fields: ``names``, ``suggestions``.

    Cost: O(keys and reasons of the plan); reasons are made when they are first asked for.

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> print(explain(plan(model, max_memory={0: 1000, "cpu": 2000}), "3"))
        3 lies on cpu and runs on 0, as block '3'.
          3 is offloaded to cpu: 400 bytes of 2000.
          3 does not fit on 0: it needs 400 bytes, 200 are left.
        Tried: in the order given, with the devices in another order, with blocks anywhere on the accelerators.
        Offloaded bytes: 1200, proven least.
        Everything would be on the accelerators with 600 bytes more on 0.
        To move it, write pin={'3': 0}.
    """
    if not isinstance(plan, Plan):
        raise InvalidInputError(f"what is explained is a plan; got {type(plan).__name__}")
    home = first_device_of(plan.device_map, name) if isinstance(name, str) else None
    if home is None:
        nearest = difflib.get_close_matches(name, list(plan.device_map), n=3) if isinstance(name, str) else []
        raise InvalidConstraintError(
            f"the plan has no place for {shown(name)}", names=(name,), suggestions=tuple(nearest)
        )
    own = reasons_about(plan, name)
    block = next((reason.name for reason in own if is_within(name, reason.name)), name)
    runs = first_device_of(plan.execution_map, name)
    runs_there = "" if runs is None else f" and runs on {runs}"
    lines = [
        f"{name or 'the model'} lies on {home}{runs_there}, as {f'block {block!r}' if block else 'one block'}."
    ]
    lines.extend(f"  {sentence(reason)}" for reason in own[:5])
    if len(own) > 5:
        lines.append(f"  and {len(own) - 5} more reasons.")
    lines.append(f"Tried: {', '.join(_tried(plan))}.")
    offloaded = sum(plan.offloaded_bytes.values())
    known = plan.certificate
    proof = known.proof if known.proven else f"at least {known.lower_bound_bytes} in any plan"
    lines.append(f"Offloaded bytes: {offloaded}, {proof}.")
    if plan.shortfall is not None and plan.shortfall.more_bytes:
        more = " or ".join(
            f"{size} bytes more on {device}" for device, size in plan.shortfall.more_bytes.items()
        )
        lines.append(f"Everything would be on the accelerators with {more}.")
    lines.extend(_advice(plan, block, home, own))
    lines.extend(plan.source.doubts)
    return "\n".join(lines)


def _advice(plan: Plan, block: str, home: DeviceKey, own: tuple[Reason, ...]) -> list[str]:
    """What would move a block: nothing where no device could take it, or where the user has placed it already."""
    if plan.certificate.stage not in _STAGES:
        return ["accelerate's strategies take no pins; strategy='auto' does."]
    said = {path: setting.value for path, setting in plan.settings.items()}
    pinned = [path.removeprefix("pin.") for path in said if path.startswith("pin.")]
    if any(_is_about(name, block) for name in pinned):
        return []
    forbidden = [
        device
        for path, devices in said.items()
        if path.startswith("forbid.") and _is_about(path.removeprefix("forbid."), block)
        for device in (devices if isinstance(devices, list | tuple) else [devices])
    ]
    needed_bytes = max((reason.needed_bytes for reason in own if reason.name == block), default=0)
    is_left_out = _LEFT_OUT.get(str(said.get("mode")), ())
    others = [
        device.id
        for device in plan.devices
        if device.id not in (home, *map(canonical_device, forbidden))
        and device.kind not in is_left_out
        and device.budget_bytes is not None
        and max(needed_bytes, 1) <= device.budget_bytes - device.headroom_bytes
    ]
    return [f"To move it, write pin={{{block!r}: {others[0]!r}}}."] if others else []


# Kinds of devices that a mode leaves out.
_LEFT_OUT: Mapping[str, tuple[str, ...]] = {"gpu_only": ("cpu", "disk"), "no_disk": ("disk",)}


def _is_about(name: str, block: str) -> bool:
    return is_within(block, name) or is_within(name, block)


def _tried(plan: Plan) -> list[str]:
    """Ways of placing units up to the one that gave the plan."""
    stage = plan.certificate.stage
    if stage not in _STAGES:
        return [f"strategy {stage}"]
    tried = list(_STAGES)[: list(_STAGES).index(stage) + (stage != "offload")]
    return [_STAGES[each] for each in tried if each != "tie_position" or each == stage]


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


def infeasible_message(
    block: str, size_bytes: int, mode: Mode, more_bytes: Mapping[DeviceKey, int], is_proven: bool
) -> str:
    """Why there is no plan, and what would make one.

    Args:
        block: first block without a place in the best partial plan; "" is the model.
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
    left = named(block) if block else "the whole model"
    return f"{verdict} {where}: {left} ({format_bytes(size_bytes)}) is left over; " + (
        f"{enough} would be enough" if enough else "more room on any single device would not be enough"
    )
