"""The independent judge of a device map: plain Python that re-derives bytes, ties and coverage from the live model.

It shares no code with the planner, so that the two can be held against each other. One walk down the model, in step
with a trie of the map's keys, tells the device of every tensor under every name; the rules then read that one list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from planner.checker.devices import Device, device_of, read_budgets, shown
from planner.checker.findings import Finding, is_valid
from planner.checker.keys import Keys
from planner.checker.rules import (
    nothing_to_execute_on,
    over_budget,
    shared_storage,
    split_blocks,
    split_modules,
    tied_apart,
    uncovered,
    unknown_devices,
    unknown_keys,
)
from planner.checker.running import Margin, RunNeeds, no_room_to_run, read_needs
from planner.checker.sizes import Sizes, sized_tensors
from planner.checker.walk import Walk
from planner.errors import InvalidInputError

__all__ = ["Finding", "check", "is_valid"]


def check(
    model: Any,
    device_map: Mapping[str, Any],
    max_memory: Mapping[Any, Any] | None = None,
    *,
    dtype: Any = None,
    special_dtypes: Mapping[str, Any] | None = None,
    no_split_module_classes: Collection[str] | str | None = (),
    exempt: Collection[str] | str | None = (),
    running: RunNeeds | None = None,
    execution_map: Mapping[str, Any] | None = None,
    margin: Margin | None = None,
    offload_buffers: bool = False,
) -> tuple[Finding, ...]:
    """Everything that is wrong with a device map for a live model.

    Args:
        model: an ``nn.Module``, on any device, the meta device included; or names and bytes in words, as
            :func:`planner.checker.described.model_from_sizes` makes them, whose sizes are then those that are planned.
        device_map: dotted name of a module, parameter or buffer → device; "" is the whole model. Devices are
            spelled 0, "0", "cuda:0" or ``torch.device("cuda:0")``, "cpu", "disk", "mps".
        max_memory: device → budget in bytes, or a size in words ("10GiB"). None: budgets are not judged. A listed
            budget must hold; unlisted cpu and disk are unlimited; an unlisted accelerator must not be used.
        dtype: the dtype that weights will be loaded in, as accelerate means it (integers and bools stay as they are).
        special_dtypes: tensor name → dtype that overrides everything else.
        no_split_module_classes: exact class names whose modules must be on one device; the root may always be split.
        exempt: names that need no device, in full or from any dot on ("embed.weight" exempts "model.embed.weight").
        running: what the model's blocks take while they run, as :func:`planner.demands` or ``plan.demands`` says it; then each listed
            budget must hold that, too. None: weights alone are judged.
        execution_map: with ``running``, where what is offloaded runs, as a plan has it; all else runs where it lies. None: on the
            first accelerator, as accelerate has it.
        margin: with ``running``, what the allocator may take beyond, by device and bytes of caches and activations there; None for
            nothing.
        offload_buffers: with ``running``, as :func:`planner.dispatch` will be told: saved buffers of offloaded blocks are brought in with
            the weights. Otherwise all buffers stay where their blocks run.

    Returns:
        Findings, rule by rule; ``()`` if there is nothing to say. The map is valid where ``is_valid`` says so. Two rules
        are notes: different tensors that share a storage, and an offloaded block that is larger than what every device
        that could execute it has left (accelerate makes such maps).

    Raises:
        InvalidTreeError: the model contains itself, has an uninitialised parameter, or too many names.
        InvalidDevicesError: a budget is not a finite number ≥ 0, or one device is listed under two spellings.
        InvalidInputError: no model, no mapping, no names, or needs that are none or those of another model.

    Guarantee: with ``running``, a device is taken for one that needs its weights, caches and results that last of all blocks that it
        runs, the most that one of them needs at once, what is shared, the buffers that stay there, and the largest block that is
        brought in; a block that is divided counts on each of its devices. Every parameter and buffer is judged under every name; a tensor counts once per device; nothing that
    was handed in is changed.

    Cost: linear in the names of the model and of the map; a nearest name is looked for at most twenty times a rule.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> check(model, {"0": "cuda:0", "1": "cpu"}, {0: 48})
        ()
        >>> for finding in check(model, {"0": 0, "l": 0}, {0: 23}):
        ...     print(finding)
        1.weight is on no device
        1.bias is on no device
        device 0 would hold 24 B of 23 B: 1 B too much
        key 'l' matches nothing in the model
    """
    if not isinstance(device_map, Mapping):
        raise InvalidInputError(
            f"check needs a device map that sends names of modules to devices, as in {{'': 0}}; got "
            f"{shown(device_map)}"
        )
    if not hasattr(model, "_modules"):
        raise InvalidInputError(f"check needs a torch.nn.Module; got {shown(model)}")
    if special_dtypes is not None and not isinstance(special_dtypes, Mapping):
        raise InvalidInputError(f"special_dtypes must map names to dtypes; got {shown(special_dtypes)}")
    keys = Keys(device_map)
    walk = Walk(model, keys, _names(no_split_module_classes, "no_split_module_classes"))
    exempt = _names(exempt, "exempt")
    sized = sized_tensors(walk, Sizes(dtype, special_dtypes or {}))
    budgets = None if max_memory is None else read_budgets(max_memory)
    needs = None if running is None else read_needs(running)
    runs_on = None if execution_map is None else {name: device_of(key) for name, key in execution_map.items()}
    return (
        *uncovered(walk, keys, exempt),
        *tied_apart(walk),
        *split_blocks(walk, exempt),
        *split_modules(walk, keys, exempt),
        *over_budget(sized, budgets),
        *unknown_devices(keys),
        *unknown_keys(keys, model),
        *nothing_to_execute_on(walk, sized, budgets),
        *(
            ()
            if needs is None
            else no_room_to_run(
                walk, sized, budgets, needs, runs_on, margin or _no_margin, offload_buffers=offload_buffers
            )
        ),
        *shared_storage(walk),
    )


def _no_margin(device: Device, running_bytes: int) -> int:
    return 0


def _names(names: Collection[str] | str | None, what: str) -> frozenset[str]:
    """Names as they may be handed in: one, several, or none."""
    listed = [names] if isinstance(names, str) else () if names is None else names
    if not isinstance(listed, Iterable) or hasattr(listed, "dtype"):
        raise InvalidInputError(f"{what} must hold names; got {shown(listed)}")
    found = list(listed)
    for name in found:
        if not isinstance(name, str):
            raise InvalidInputError(f"{what} holds {shown(name)}, which is no name")
    return frozenset(found)
