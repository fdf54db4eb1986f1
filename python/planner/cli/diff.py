"""`planner diff`: what two plans place differently."""

from __future__ import annotations

from planner.cli.arguments import Json, PlanFile
from planner.cli.exits import NEGATIVE, OK
from planner.cli.files import read_plan
from planner.cli.output import write, write_json
from planner.plan import Plan
from planner.units import format_bytes

__all__ = ["command"]


def command(left: PlanFile, right: PlanFile, as_json: Json = False) -> int:
    """List what two plans place differently.

    Exit code 1 if there is anything. A name is listed where either plan's device map has it as a key. Bytes are compared for each device.
    """
    one, other = read_plan(left), read_plan(right)
    moved = one.diff(other)
    if as_json:
        write_json(
            {
                "differs": bool(moved),
                "names": moved,
                "used_bytes": {"left": _used(one), "right": _used(other)},
            }
        )
        return NEGATIVE if moved else OK
    for difference in moved:
        write(str(difference))
    for device in dict.fromkeys((*_used(one), *_used(other))) if moved else ():
        before, after = _used(one).get(device, 0), _used(other).get(device, 0)
        if before != after:
            write(f"device {device}: {format_bytes(before)} → {format_bytes(after)} used")
    return NEGATIVE if moved else OK


def _used(plan: Plan) -> dict[str, int]:
    return {str(device.id): device.used_bytes for device in plan.devices}
