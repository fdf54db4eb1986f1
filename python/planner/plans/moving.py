"""What would move a block: a pin that can be followed, or nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

from planner.choices import Style
from planner.devices.keys import DeviceKey
from planner.names import device_of, is_within
from planner.plans.parts import PLACING, DevicePlan, PlanParts, Reason
from planner.spelling import one_line

__all__ = ["pin_words", "where_to_move"]

_LEFT_OUT: Final[Mapping[str, tuple[str, ...]]] = {"gpu_only": ("cpu", "disk"), "no_disk": ("disk",)}
_GLOB: Final = frozenset("*?[")


def pin_words(name: str, device: DeviceKey, style: Style) -> str:
    """A pin as it is typed.

    Example:
        >>> pin_words("layers.7", 0, "python"), pin_words("layers.7", "cpu", "shell")
        ("pin={'layers.7': 0}", '--pin layers.7=cpu')
    """
    if style == "shell":
        return f"--pin {_quoted(f'{name}={device}')}"
    return f"pin={{{name!r}: {device!r}}}"


def _quoted(text: str) -> str:
    """One word of a shell; what cannot be seen is spelled out, as bash and zsh read it."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(escaped)}'"


def where_to_move(plan: PlanParts, block: str) -> DeviceKey | None:
    """The first device to which a pin would move a block; None where the plan does not show that there is one.

    It is shown by a device that has room for the block and all that goes with it, or has it once something not larger has
    changed places with it.

    Cost: O(devices · reasons · constraints).
    """
    units = {reason.name: reason for reason in plan.account.reasons if reason.rule in PLACING}
    own = units.get(block)
    if own is None or own.rule == "oversized" or not own.needed_bytes or _is_constrained(plan, own):
        return None
    by_id = {device.id: device for device in plan.devices}
    home, runner = by_id[own.device], device_of(own.name, plan.execution_map)
    for device in plan.devices:
        if device.id == home.id or not _may_hold(plan, own, device):
            continue
        if (device.free_bytes or 0) >= own.needed_bytes:
            if device.kind == "accelerator" or _can_stream(plan, own, runner, home, device):
                return device.id
        elif device.kind == "accelerator" and any(
            _can_change_places(plan, own, runner, home, device, unit) for unit in units.values()
        ):
            return device.id
    return None


def _can_change_places(
    plan: PlanParts,
    own: Reason,
    runner: DeviceKey | None,
    home: DevicePlan,
    device: DevicePlan,
    unit: Reason,
) -> bool:
    """Whether a unit of an accelerator finds room where the block is, and the block where the unit was."""
    least_bytes = own.needed_bytes - (device.free_bytes or 0)
    if unit.device != device.id or not least_bytes <= unit.needed_bytes <= own.needed_bytes:
        return False
    if home.kind != "accelerator" and not _can_take_its_turn(plan, runner, unit):
        return False
    return not _is_constrained(plan, unit) and _may_hold(plan, unit, home)


def _can_stream(
    plan: PlanParts, unit: Reason, runner: DeviceKey | None, home: DevicePlan, device: DevicePlan
) -> bool:
    """Whether what moves to the cpu or to disk may run: where it ran before, be it in the room that it leaves, or on the cpu."""
    if runner not in (None, unit.device):
        return True
    said = plan.account.settings.get("execute_offloaded")
    is_for_cpu = said is not None and said.value == "cpu"
    if is_for_cpu and device.kind == "cpu":
        return True
    stage = next((each for each in plan.devices if each.kind == "cpu"), None) if is_for_cpu else home
    if stage is None:  # nothing may run what is offloaded
        return False
    left_bytes = unit.needed_bytes if stage is home else 0
    kept_bytes = (stage.free_bytes or 0) + stage.reserved_bytes + left_bytes
    return kept_bytes >= _staging_blocks(plan) * unit.needed_bytes


def _can_take_its_turn(plan: PlanParts, runner: DeviceKey | None, unit: Reason) -> bool:
    """Whether a unit may run where an offloaded block ran, in the room that was kept there."""
    kept_bytes = next((each.reserved_bytes for each in plan.devices if each.id == runner), 0)
    return kept_bytes >= _staging_blocks(plan) * unit.needed_bytes


def _staging_blocks(plan: PlanParts) -> int:
    said = plan.account.settings.get("staging_blocks")
    return said.value if said is not None and type(said.value) is int else 1


def _may_hold(plan: PlanParts, unit: Reason, device: DevicePlan) -> bool:
    """Whether settings let a unit lie on a device. What several devices share may be taken already."""
    mode = plan.account.settings.get("mode")
    is_left_out = mode is not None and device.kind in _LEFT_OUT.get(str(mode.value), ())
    return (
        not is_left_out
        and device.pool is None
        and device.budget_bytes is not None
        and unit.rule != "oversized"
    )


def _is_constrained(plan: PlanParts, unit: Reason) -> bool:
    """Whether a constraint may be about a unit. What a glob matches, and what else is in a unit, a plan does not say."""
    said = _constrained_names(plan)
    if not said:
        return False
    sizes = plan.account.block_bytes
    is_alone = sizes.get(unit.name) == unit.needed_bytes and not _is_kept_together(plan, unit.name)
    are_about_tied = any(_is_about(name, block) for block, size in sizes.items() if not size for name in said)
    are_about_it = any(_GLOB & set(name) or _is_about(name, unit.name) for name in said)
    return not is_alone or are_about_tied or are_about_it


def _is_kept_together(plan: PlanParts, block: str) -> bool:
    said = plan.account.settings.get("keep_together")
    groups = said.value if said is not None and isinstance(said.value, list | tuple) else ()
    return any(_is_about(name, block) for group in groups for name in group)


def _constrained_names(plan: PlanParts) -> list[str]:
    parts = (path.partition(".") for path in plan.account.settings)
    return [name for kind, _, name in parts if kind in ("pin", "forbid")]


def _is_about(name: str, block: str) -> bool:
    return is_within(block, name) or is_within(name, block)
