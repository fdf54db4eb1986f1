"""Whether a model fits, in one sentence, and the line that says which model."""

from __future__ import annotations

from planner.devices.keys import DeviceKey
from planner.names import counted
from planner.plans.columns import one_size
from planner.plans.parts import DevicePlan, PlanParts, Source
from planner.plans.places import listed_places
from planner.plans.runs import Run

__all__ = ["holds_all", "model_facts", "verdict"]

_CONSTRAINTS = ("pin.", "forbid.", "keep_together", "mode")


def model_facts(source: Source) -> str:
    """Format, size and layers of a model.

    Example:
        >>> model_facts(Source(kind="checkpoint", fingerprint="", blocks=83, total_bytes=141_107_412_992,
        ...                    format="bfloat16", layers=80))
        'bfloat16, 131.4 GiB, 80 layers'
    """
    length = counted(source.layers, "layer") if source.layers else counted(source.blocks, "block")
    return ", ".join(filter(None, (source.format, one_size(source.total_bytes), length)))


def holds_all(plan: PlanParts) -> bool:
    """Whether nothing is offloaded."""
    return not sum(plan.offloaded_bytes.values())


def verdict(plan: PlanParts, blocks: tuple[Run, ...]) -> str:
    """Whether everything lies where it runs fast, and what becomes of the rest.

    Args:
        plan: the plan.
        blocks: its blocks.
    """
    accelerators = [device for device in plan.devices if _is_usable(device)]
    if not accelerators:
        return _without_accelerators(plan)
    names: list[DeviceKey] = [device.id for device in accelerators]
    if holds_all(plan):
        return (
            f"Fits on {listed_places([device.id for device in accelerators if device.used_bytes] or names)}."
        )
    where = "the GPUs" if len(names) > 1 else listed_places(names)
    return f"{_refusal(plan, where)}: {_rest(plan, blocks)}."


def _is_usable(device: DevicePlan) -> bool:
    return device.kind == "accelerator" and (device.budget_bytes or 0) > device.headroom_bytes


def _without_accelerators(plan: PlanParts) -> str:
    on_disk = plan.offloaded_bytes.get("disk", 0)
    if on_disk:
        return f"Does not fit in RAM: {one_size(on_disk)} rest on disk and are read for each token; the CPU computes."
    return "Fits in RAM; the CPU computes, for no GPU is among the devices."


def _refusal(plan: PlanParts, where: str) -> str:
    """What is known: that it cannot be, that nothing was found, or that the user wants it so."""
    said = [path for path, setting in plan.account.settings.items() if setting.rank == "user"]
    if plan.timing is not None or any(path.startswith(_CONSTRAINTS) for path in said):
        return f"Not all of it is on {where}"
    known = plan.certificate
    if known.proven or known.lower_bound_bytes:
        return f"Does not fit on {where}"
    return f"No way was found to fit it on {where}"


def _rest(plan: PlanParts, blocks: tuple[Run, ...]) -> str:
    parts = []
    if plan.offloaded_bytes["cpu"]:
        parts.append(f"{one_size(plan.offloaded_bytes['cpu'])} rest in RAM")
    if plan.offloaded_bytes["disk"]:
        parts.append(f"{one_size(plan.offloaded_bytes['disk'])} rest on disk")
    slow = [run for run in blocks if run.home in ("cpu", "disk")]
    staying_bytes = sum(run.size_bytes or 0 for run in slow if run.runs_on == "cpu")
    said = " and ".join(parts)
    if slow and all(run.runs_on == "cpu" for run in slow):
        return f"{said} and run on the CPU"
    streamed = f"{said} and are streamed for each token"
    return f"{streamed}; {one_size(staying_bytes)} of them run on the CPU" if staying_bytes else streamed
