"""Whether the device map of a plan says by itself where everything runs.

Loaders that get a device map and nothing else run what lies on the cpu or on disk on one device: the first accelerator of the
map. A plan says in its execution map where it runs, and keeps the room there.
"""

from __future__ import annotations

from planner.devices.keys import DeviceKey, main_device, offload_tiers
from planner.names import device_of, listed, nearest_key
from planner.plans.parts import PlanParts
from planner.plans.places import runner_name

__all__ = ["execution_map_notice", "map_is_enough"]


def map_is_enough(plan: PlanParts) -> bool:
    """Whether a loader that is given the device map alone runs everything where the plan does.

    Cost: O(keys of both maps and reasons).

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> map_is_enough(plan(model, max_memory={0: 1000, "cpu": 2000}))
        True
        >>> map_is_enough(plan(model, max_memory={0: 1000, "cpu": 2000}, execute_offloaded="cpu"))
        False
    """
    return execution_map_notice(plan) is None


def execution_map_notice(plan: PlanParts) -> str | None:
    """What to do where the device map alone is not enough; None where it is."""
    alone, planned = _runs_alone(plan), _runs_planned(plan)
    if all(runs == {alone[name]} for name, runs in planned.items()):
        return None
    engine = plan.account.settings.get("engine")
    if engine is not None and engine.value is not None:
        return None  # no loader gets its map
    loader = _listed({alone[name] for name in planned})
    own = _listed({device for runs in planned.values() for device in runs})
    return (
        f"device_map alone would run what is offloaded on {loader}; this plan runs it on {own}: use "
        "planner.dispatch(model, plan)."
    )


def _listed(devices: set[DeviceKey]) -> str:
    return listed(sorted(map(runner_name, devices)))


def _offloaded(plan: PlanParts) -> dict[str, DeviceKey]:
    """Keys of the device map that a loader may run elsewhere than they lie."""
    return {name: device for name, device in plan.device_map.items() if device in ("cpu", "disk")}


def _runs_alone(plan: PlanParts) -> dict[str, DeviceKey]:
    """Where the device map alone runs what lies on the cpu or on disk."""
    offloaded = _offloaded(plan)
    main = main_device(plan.device_map.values())
    return {name: main if home in offload_tiers(main) else home for name, home in offloaded.items()}


def _runs_planned(plan: PlanParts) -> dict[str, set[DeviceKey]]:
    """Where the plan runs it: parts of one key may run on several devices."""
    execution_map = plan.execution_map
    runs: dict[str, set[DeviceKey]] = {name: set() for name in _offloaded(plan)}
    for name, device in execution_map.items():
        key = nearest_key(name, runs)
        if key is not None:
            runs[key].add(device)
    for reason in plan.account.reasons if runs else ():
        # A block that no accelerator has room for runs on the cpu, beside others of its key that are streamed.
        key = nearest_key(reason.name, runs) if reason.rule == "oversized" else None
        if key is not None:
            runs[key].add("cpu")
    for name, devices in runs.items():
        around = device_of(name, execution_map)
        if not devices:
            devices.add("cpu" if around is None else around)
    return runs
