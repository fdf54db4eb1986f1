"""Carrying out a plan: tensors to where they lie, borders around what runs elsewhere; and undoing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from planner.devices.keys import DeviceKey, read_budgets
from planner.dispatching.tensors.journal import Journal
from planner.errors import InvalidDevicesError, InvalidInputError, PlanMismatchError
from planner.names import text_set
from planner.plans.device_map import DeviceMap
from planner.plans.plan import Plan
from planner.spelling import shown

if TYPE_CHECKING:
    from torch import nn

    from planner.dispatching.install.device_map import ResolvedDeviceMap
    from planner.dispatching.install.record import Dispatched
    from planner.dispatching.install.request import DispatchRequest
    from planner.dispatching.mixed.crossing import Crossing

__all__ = [
    "carry_out",
    "crossings",
    "dispatch",
    "offloads_buffers",
    "planned_room",
    "require_outside",
    "resolve_map",
    "staging_room",
    "take_off_later_hooks",
    "undispatch",
]


def dispatch(
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    *,
    execution_map: Mapping[str, Any] | None = None,
    offload_buffers: bool | None = None,
    skip_keys: str | Iterable[str] | None = None,
    outside: Literal["raise", "fetch"] = "raise",
    staging_bytes: Mapping[Any, int] | None = None,
) -> nn.Module:
    """Puts a model where a plan says, and makes it run there.

    Args:
        model: a model with its weights in memory; changed in place. One that was dispatched before is dispatched anew, and what of it
            lies in files can stay there.
        plan: a plan, or a device map: names to devices.
        execution_map: for a device map, where parts that rest on the CPU run; by default on the first accelerator of
            the map. A plan has its own, and so has ``plan.device_map``.
        offload_buffers: saved buffers rest with the weights; otherwise they stay where their module runs. By default what the
            plan's settings say; of a device map, they stay.
        skip_keys: keyword arguments and keys that never cross, beside the model's own ``_skip_keys_device_placement``.
        outside: what reading an offloaded weight outside of its module's forward gives: an error ("raise"), or the
            values, copied where the module runs ("fetch").

        staging_bytes: by accelerator, what offloaded blocks may take there while they run. Where two fit, the next one is
            copied from pinned memory while one computes. By default what the plan reserved or left free there; nothing
            for a device map.

    Returns:
        The model.

    Raises:
        PlanMismatchError: names or devices that do not fit, weights that have no values, other libraries' hooks, or weights in memory
            that the plan has on disk. Fields: ``findings``.
        OffloadError: a tensor that cannot rest elsewhere. Fields: ``name``.
        InvalidInputError, InvalidConstraintError, InvalidDevicesError: no plan, and no mapping from names to devices; room
            for staging that is none; another word for ``outside``.

    Guarantee: everything is checked before anything is moved, and a failure half-way leaves the model as it was. The
        outputs are those of the undispatched model. Between forwards no offloaded weight is on an accelerator. With one
        device, nothing is attached to the model.

    Cost: one copy of every tensor that moves; each border costs about a microsecond when nothing moves.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> dispatch(model, {"": "cpu"}).hf_device_map
        {'': 'cpu'}
    """
    from planner.dispatching.install.device_map import require_fit, require_whole
    from planner.dispatching.install.in_files import left_in_files
    from planner.dispatching.install.request import DispatchRequest

    require_outside(outside)
    resolved_map = resolve_map(plan, execution_map)
    require_fit(model, resolved_map)
    require_whole(model, resolved_map)
    if offload_buffers is None:
        offload_buffers = offloads_buffers(plan)
    left = None
    if "disk" in resolved_map.keys.values():
        left = left_in_files(model, resolved_map.keys, offload_buffers=offload_buffers)
    streams = None if left is None else left.streams
    request = DispatchRequest(
        resolved_map=resolved_map,
        offload_buffers=offload_buffers,
        skip_keys=text_set(skip_keys, "skip_keys"),
        outside=outside,
        says_device=True,
        weights=None if left is None else left.weights,
        stays_in_files=left is not None and left.lists_files,
        room_bytes=staging_room(plan, staging_bytes),
        reads_ahead=None if streams is None else streams.made,
    )
    carry_out(model, request)
    if streams is not None:
        streams.start()
    return model


def require_outside(outside: Any) -> None:
    """Raises InvalidInputError unless this is a word for what reading an offloaded weight outside of a forward gives."""
    if not (isinstance(outside, str) and outside in ("raise", "fetch")):
        raise InvalidInputError(f"outside is 'raise' or 'fetch', not {shown(outside)}")


def resolve_map(plan: Any, execution_map: Mapping[str, Any] | None) -> ResolvedDeviceMap:
    """What a plan or a device map says of each name. Raises as :func:`dispatch`."""
    from planner.dispatching.install.device_map import ResolvedDeviceMap

    if isinstance(plan, Plan) or (isinstance(plan, DeviceMap) and execution_map is None):
        return ResolvedDeviceMap.of_plan(plan)
    return ResolvedDeviceMap(plan, execution_map=execution_map)


def offloads_buffers(plan: Any) -> bool:
    """Whether a plan has saved buffers rest with the weights; a device map has no word for it."""
    setting = plan.settings.get("offload_buffers") if isinstance(plan, Plan) else None
    return setting is not None and bool(setting.value)


def staging_room(plan: Any, staging_bytes: Mapping[Any, int] | None) -> dict[Any, int]:
    """By device, what offloaded blocks may take there: as said, or what a plan has reserved or left free on accelerators.

    Raises:
        InvalidInputError, InvalidDevicesError: no sizes by device, or one on disk.
        PlanMismatchError: a device that this machine does not have. Fields: ``findings``.
    """
    from planner.dispatching.install.device_map import require_present
    from planner.dispatching.tensors.slots import resolve_device

    if staging_bytes is not None:
        budgets = read_budgets(staging_bytes, "staging_bytes")
        if "disk" in budgets:
            raise InvalidDevicesError(
                "staging_bytes names disk, where nothing runs; name accelerators", device="disk"
            )
        require_present(budgets)
        return {resolve_device(device): int(size) for device, size in budgets.items()}
    kept = planned_room(plan) if isinstance(plan, Plan) else {}
    return {resolve_device(device): size for device, size in kept.items()}


def planned_room(plan: Plan) -> dict[DeviceKey, int]:
    """By accelerator of a plan that has or runs something, what offloaded blocks may take there: what is reserved or free."""
    named = {*plan.device_map.values(), *plan.execution_map.values()}
    return {
        row.id: row.reserved_bytes + (row.free_bytes or 0)
        for row in plan.devices
        if row.kind == "accelerator" and row.id in named
    }


def carry_out(model: nn.Module, request: DispatchRequest) -> None:
    """Everything between a checked request and a running model.

    Guarantee: when it raises, the model is as it was.
    """
    from planner.dispatching.install.device_map import require_unscripted
    from planner.dispatching.install.prepare import prepare
    from planner.dispatching.install.record import dispatched_models

    require_unscripted(model, request.resolved_map)
    engaged = dispatched_models(model)
    prepared = prepare(model, request, engaged)
    journal = Journal()
    try:
        take_off_later_hooks(model, engaged, journal)
        for earlier in engaged:
            earlier.remove(journal, tensors="leave")
        prepared.install(journal)
    except BaseException:
        journal.roll_back()
        raise
    for earlier in engaged:
        earlier.close()


def take_off_later_hooks(model: nn.Module, engaged: list[Dispatched], journal: Journal) -> None:
    """Hooks that only move arguments, put on a dispatched model by others: generate() of encoder-decoder models does."""
    from planner.dispatching.install.declared import is_later_hook
    from planner.dispatching.methods.forward import restore_forward
    from planner.dispatching.tensors.slots import modules_of

    ours = {id(forward.hook) for dispatched in engaged for forward in dispatched.forwards}
    for _, module in modules_of(model) if engaged else ():
        table = module.__dict__
        hook = table.get("_hf_hook")
        if hook is None or id(hook) in ours or not is_later_hook(hook):
            continue
        journal.remove(table, "_hf_hook")
        restore_forward(module, journal)


def undispatch(model: nn.Module) -> nn.Module:
    """Undoes :func:`dispatch`: every tensor back where it was before, no hook left.

    Args:
        model: a dispatched model, or one with dispatched models inside; changed in place. Of one that accelerate has dispatched, whose
            hooks do not say where tensors were before, all come to the CPU, also those on disk.

    Returns:
        The model.

    Raises:
        PlanMismatchError: it is not dispatched. Fields: ``findings``.
        OffloadError: it runs just now, or a tensor cannot be read. Fields: ``name``.

    Guarantee: when it raises, the model is as it was. What others have wrapped around the model's modules stays.

    Example:
        >>> import torch
        >>> model = dispatch(torch.nn.Linear(2, 2), {"": "cpu"})
        >>> hasattr(undispatch(model), "hf_device_map")
        False
    """
    from planner.dispatching.install.other_hooks import has_other_hooks, take_off_other_hooks
    from planner.dispatching.install.record import dispatched_models, is_part

    engaged = dispatched_models(model)
    if not engaged and is_part(model):
        raise PlanMismatchError(
            f"this {type(model).__name__} is part of a larger model that is dispatched; undispatch that one",
            findings=(),
        )
    if not engaged and has_other_hooks(model):
        take_off_other_hooks(model)
        return model
    if not engaged:
        raise PlanMismatchError(
            f"this {type(model).__name__} is not dispatched, so there is nothing to undo", findings=()
        )
    journal = Journal()
    try:
        take_off_later_hooks(model, engaged, journal)
        for dispatched in engaged:
            dispatched.remove(journal, tensors="return")
    except BaseException:
        journal.roll_back()
        raise
    for dispatched in engaged:
        dispatched.close(tensors="return")
    return model


def crossings(model: nn.Module) -> tuple[Crossing, ...]:
    """What the model's own code, outside of blocks, had brought from one device to another since it was dispatched.

    Args:
        model: a dispatched model, or one with dispatched models inside.

    Returns:
        One row for each line, operator and pair of devices, in the order in which they were first met. Compiled code moves the
        same, and counts nothing. What is handed to a block crosses at its border and is not among these.

    Raises:
        PlanMismatchError: it is not dispatched. Fields: ``findings``.

    Example:
        >>> import torch
        >>> crossings(dispatch(torch.nn.Linear(2, 2), {"": "cpu"}))
        ()
    """
    from planner.dispatching.install.record import dispatched_models

    engaged = dispatched_models(model)
    if not engaged:
        raise PlanMismatchError(
            f"this {type(model).__name__} is not dispatched, so nothing was counted; ask the model that was dispatched",
            findings=(),
        )
    return tuple(row for dispatched in engaged for row in dispatched.membership.log.crossings())
