"""Reading a plan or a device map: where each name lies and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from planner.devices.keys import DeviceKey, accelerator_count, canonical_device, offload_tiers
from planner.devices.keys import main_device as main_device_of
from planner.dispatching.install.regions import Placement
from planner.dispatching.tensors.slots import modules_of, own_slots, resolve_device
from planner.errors import InvalidDevicesError, PlanMismatchError
from planner.model.tree import ModuleTree
from planner.names import by_outer, device_of, listed, nearest_key, qualified, require_map, require_texts
from planner.plans.device_map import DeviceMap, HostSteps
from planner.plans.plan import Plan

__all__ = ["ResolvedDeviceMap", "require_fit", "require_present", "require_unscripted", "require_whole"]

_CPU = torch.device("cpu")
_ON_CPU = Placement(_CPU, _CPU, False)


class ResolvedDeviceMap:
    """A device map with everything resolved.

    Args:
        device_map: names to devices.
        execution_map: names to devices, for what runs elsewhere than it lies; the nearest name counts.
        main_device: where offloaded modules run that ``execution_map`` does not name; None is the first accelerator of
            the map.
        assumed: what each key is, for devices that need not be there.
        host_steps: of parts that lie and run on the cpu, those that run elsewhere in longer steps.

    Raises:
        InvalidInputError, InvalidConstraintError: no mapping from names.
        InvalidDevicesError: something that is no device, or on which nothing can run.
        PlanMismatchError: a device that this machine does not have. Fields: ``findings``.
    """

    def __init__(
        self,
        device_map: Mapping[str, Any],
        execution_map: Mapping[str, Any] | None = None,
        main_device: Any = None,
        assumed: Callable[[DeviceKey], torch.device] | None = None,
        host_steps: Mapping[str, HostSteps] = MappingProxyType({}),
    ) -> None:
        self.keys = _device_keys(device_map, "the device map")
        self.device_map = dict(device_map)
        running = {} if execution_map is None else _device_keys(execution_map, "the execution map")
        main_key = (
            main_device_of(self.keys.values()) if main_device is None else canonical_device(main_device)
        )
        in_long_steps = _device_keys(
            {name: steps.device for name, steps in host_steps.items()}, "what says which steps the host runs"
        )
        runners = {*running.values(), *in_long_steps.values(), main_key}
        for key in runners & {"disk"}:
            raise InvalidDevicesError("nothing can run on disk; name an accelerator or the cpu", device=key)
        if assumed is None:
            require_present({*self.keys.values(), *runners})
        named = {*self.keys.values(), *runners} - {"disk"}
        devices = {key: (assumed or resolve_device)(key) for key in named}
        self.main_device = devices[main_key]
        self.placements: dict[str, Placement] = {}
        for name, key in self.keys.items():
            run = device_of(name, running)
            if run is None:
                run = main_key if key in offload_tiers(main_key) else key
            self.placements[name] = Placement(devices.get(key), devices[run], key != run)
        self.running = tuple(running)
        for name, run in running.items():
            # Parts of what a key of the device map names.
            around = nearest_key(name, self.keys)
            if around is not None and name not in self.keys:
                key = self.keys[around]
                self.placements[name] = Placement(devices.get(key), devices[run], key != run)
        said = by_outer(self.placements) if host_steps else {}
        self.sized: frozenset[str] = frozenset(
            name
            for name in host_steps
            if self._is_one_part_of_the_host(name, said.get(name, ())) and in_long_steps[name] != "cpu"
        )
        for name in self.sized:
            device = devices[in_long_steps[name]]
            self.placements[name] = Placement(_CPU, device, True, host_steps[name].tokens)

    def _is_one_part_of_the_host(self, name: str, keys: Sequence[str]) -> bool:
        """Whether all of a part lies and runs on the cpu, also by the keys in it: a map may have been edited."""
        around = nearest_key(name, self.placements)
        inside = [self.placements[key] for key in keys]
        return around is not None and set(inside) | {self.placements[around]} == {_ON_CPU}

    @classmethod
    def of_plan(
        cls, plan: Plan | DeviceMap, assumed: Callable[[DeviceKey], torch.device] | None = None
    ) -> ResolvedDeviceMap:
        """What a plan says, or its device map, which carries the execution map. What that does not name runs where it lies, on
        disk: on the CPU."""
        device_map = plan.device_map if isinstance(plan, Plan) else plan
        # The map may have been edited: what was moved to an accelerator runs there.
        running = {
            name: device
            for name, device in plan.execution_map.items()
            if device_of(name, device_map) in (None, "cpu", "disk")
        }
        lying: dict[str, DeviceKey] = {
            name: "cpu" if key == "disk" else key
            for name, key in device_map.items()
            if nearest_key(name, running) is None
        }
        return cls(device_map, {**lying, **running}, assumed=assumed, host_steps=device_map.host_steps)

    @property
    def root_placement(self) -> Placement:
        """For what no name covers: where all that is named runs, else on the main device."""
        runs = {placement.execution_device for placement in self.placements.values()}
        device = next(iter(runs)) if len(runs) == 1 else self.main_device
        return Placement(device, device, False)

    @property
    def is_single(self) -> bool:
        """Whether everything lies and runs on one device."""
        placements = set(self.placements.values())
        return len(placements) == 1 and not next(iter(placements)).is_offloaded


def _device_keys(device_map: Mapping[str, Any], what: str) -> dict[str, DeviceKey]:
    require_map(device_map, what)
    require_texts(device_map, what)
    return {name: canonical_device(device) for name, device in device_map.items()}


def require_present(keys: Iterable[DeviceKey]) -> None:
    """Raises PlanMismatchError for accelerators that this machine does not have. Fields: ``findings``."""
    wanted = sorted(key for key in keys if isinstance(key, int))
    if not wanted:
        return
    count = accelerator_count()
    absent = [key for key in wanted if key >= count]
    if absent:
        raise PlanMismatchError(
            f"the plan names accelerators {absent}; this machine has {count} (numbers below {count} would do)",
            findings=tuple(absent),
        )


def require_fit(model: nn.Module, resolved_map: ResolvedDeviceMap) -> None:
    """Raises unless the keys of both maps name parts of the model, and the device map covers all its saved tensors.

    Raises:
        PlanMismatchError: names on either side without the other. Fields: ``findings``.
        InvalidTreeError: a model that cannot be walked. Fields: ``name``.
    """
    tree = ModuleTree.from_module(model)
    unknown, uncovered = tree.uncovered(resolved_map.device_map, "saved")
    strange, _ = tree.uncovered([*resolved_map.running, *resolved_map.sized])
    if strange:
        raise PlanMismatchError(
            f"the execution map names {listed(map(repr, strange))}, which this {type(model).__name__} does not have",
            findings=tuple(strange),
        )
    if unknown or uncovered:
        parts = [f"it names {listed(map(repr, unknown))}, which the model does not have"] if unknown else []
        parts += [f"no device for {listed(map(repr, uncovered))}"] if uncovered else []
        raise PlanMismatchError(
            f"the device map does not fit this {type(model).__name__}: {'; '.join(parts)}; plan this very model",
            findings=(*unknown, *uncovered),
        )


def require_whole(model: nn.Module, resolved_map: ResolvedDeviceMap) -> None:
    """Raises if a module without modules inside would run on several devices at once.

    Raises:
        PlanMismatchError: keys of single tensors that split such a module. Fields: ``findings``.
    """
    for name, module in modules_of(model):
        if module._modules or nearest_key(name, resolved_map.placements) is not None:
            continue
        names = [qualified(name, slot.name) for slot in own_slots(module)]
        runs = {
            key: resolved_map.placements[key].execution_device
            for key in names
            if key in resolved_map.placements
        }
        if len(set(runs.values())) > 1:
            where = ", ".join(f"{key!r} on {device}" for key, device in runs.items())
            raise PlanMismatchError(
                f"the device map splits one {type(module).__name__}: {where}; it can run on one device only, so give it "
                f"one with the key {name!r}",
                findings=tuple(runs),
            )


def require_unscripted(model: nn.Module, resolved_map: ResolvedDeviceMap) -> None:
    """Raises if something would have to stand in the place of a forward, or of a weight, that is TorchScript.

    Raises:
        PlanMismatchError: a scripted or traced module under a map with more than one device. Fields: ``findings``.
    """
    if resolved_map.is_single:
        return
    for name, module in modules_of(model):
        if isinstance(module, torch.jit.ScriptModule):
            raise PlanMismatchError(
                f"{name!r} is a {type(module).__name__}, whose forward and weights are TorchScript's and cannot be exchanged; give "
                "the whole model one device, or dispatch the model that it was made from",
                findings=(name,),
            )
