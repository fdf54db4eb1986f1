"""Putting the tensors of a module where its hook says: on the device where they run, or where they rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from planner.dispatching.methods.overrides import Pickling
from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.tensors.carrying import relocated
from planner.dispatching.tensors.copies import copied, fits, require_offloadable
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import PlaceholderTensor, is_offloaded, placeholder
from planner.dispatching.tensors.slots import Slot, modules_of, own_slots
from planner.errors import InvalidInputError, OffloadError
from planner.names import qualified

__all__ = [
    "moves_in_place",
    "named_slots",
    "offload_tensors",
    "place_tensors",
    "placed",
    "require_all_offloadable",
    "require_values",
    "restore_others",
]


class PlacingHook(Protocol):
    """Where a hook wants the tensors of its module; see :class:`planner.AlignDevicesHook` for what it is asked to do.

    Args:
        device: where the module runs.
        bound: the module that the hook was made for.
        offloaded_modules: the offloaded tensors, by module.
        made_weights_map: whether the weights map was made here, from the model itself.
    """

    device: torch.device | None
    module_name: str
    bound: nn.Module | None
    place_submodules: bool
    offload_buffers: bool
    tied_params_map: Any
    original_devices: dict[str, torch.device]
    offloaded_modules: tuple[OffloadedModule, ...]
    made_weights_map: bool

    @property
    def weights_map(self) -> Any:
        """Offloaded weights by name."""

    @weights_map.setter
    def weights_map(self, weights: Any) -> None: ...


# Tables of modules inside, and what was in them.
KnownModules = list[tuple[dict[str, Any], list[Any]]]


def named_slots(module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Slot]]:
    """Slots of a module by name, with those of all modules inside if asked."""
    for prefix, inner in modules_of(module) if recurse else [("", module)]:
        for slot in own_slots(inner):
            yield qualified(prefix, slot.name), slot


def placed(tensor: Any, device: torch.device, name: str) -> Any:
    """A tensor on a device: itself if it lies there, else one of the same class, with its gradient.

    Raises:
        InvalidInputError: it lies on the meta device, where there is nothing to move.
    """
    if tensor.is_meta and device.type != "meta":
        raise InvalidInputError(
            f"{name} is on the meta device, we need a `value` to put on {device}: load the weights first"
        )
    if tensor.is_meta or tensor.device == device:
        return tensor
    made = relocated(tensor, device, name)
    if tensor.is_leaf and tensor.grad is not None:
        made.grad = copied(tensor.grad, device)
    return made


def moves_in_place(tensor: Any, made: Any) -> bool:
    """Whether a parameter can take over the values of its copy, and so stay the object that optimizers know.

    Parameters of other classes keep values beside their data, which would stay behind.
    """
    return (
        type(tensor) is nn.Parameter
        and type(made) is nn.Parameter
        and tensor is not made
        # Tensors made under `inference_mode` cannot be changed outside of it.
        and not tensor.is_inference()
        and not made.is_inference()
        and bool(torch._has_compatible_shallow_copy_type(tensor, made))
    )


def require_values(module: nn.Module, known: KnownModules) -> None:
    """Raises OffloadError if a parameter inside a module has no values and is not one of ours that has them elsewhere.

    Libraries make new parameters beside a weight on the weight's device. Beside an offloaded one, that is the meta device,
    and torch computes garbage with them.

    Args:
        known: what was looked through before; looked through again where something was added or taken away.
    """
    # Tables are compared instead of walked, because this runs before every forward of a block.
    if known and all(list(table.values()) == held for table, held in known):
        return
    known.clear()
    for name, inner in modules_of(module):
        known.append((inner._modules, list(inner._modules.values())))
        for key, tensor in inner._parameters.items():
            if tensor is not None and tensor.is_meta and not is_offloaded(tensor):
                full = qualified(name, key)
                raise OffloadError(
                    f"'{full}' of an offloaded {type(module).__name__} has no values: it was made on the meta device, beside a "
                    "weight that is offloaded; add adapters inside planner.integrate(), before dispatching, or after "
                    "planner.undispatch(model)",
                    name=full,
                )


def place_tensors(hook: PlacingHook, module: nn.Module) -> None:
    """Moves a module's tensors to its device; those that others have moved there already are shared."""
    device, tied = hook.device, hook.tied_params_map
    assert device is not None
    for name, slot in list(named_slots(module, recurse=hook.place_submodules)):
        tensor = slot.read()
        if is_offloaded(tensor):
            continue
        # Tensors without bytes all have the address 0, and are not tied by it.
        has_address = tied is not None and device.type != "meta" and tensor.data_ptr() != 0
        copies = tied.get(tensor.data_ptr()) if tied is not None and has_address else None
        if copies is not None and device in copies and fits(copies[device], tensor):
            slot.write(copies[device])
            continue
        made = placed(tensor, device, name)
        slot.write(made)
        if copies is not None:
            # The first owner of a tied tensor that brings it offers its copy to the others.
            copies.setdefault(device, made)


def offload_tensors(hook: PlacingHook, module: nn.Module) -> None:
    """Puts placeholders in place of a module's weights, and its other tensors on the device where it runs.

    Raises:
        OffloadError: a tensor that cannot rest elsewhere, or that ``weights_map`` does not have. Fields: ``name``.
    """
    slots = list(named_slots(module, recurse=hook.place_submodules))
    resting = [(name, slot) for name, slot in slots if rests(slot, offload_buffers=hook.offload_buffers)]
    # Before anything moves: detaching the hook puts the tensors back there.
    hook.original_devices = {name: _lies_on(slot.read()) for name, slot in slots}
    _rest(hook, module, resting)
    # Uses are counted for each module object, so each has a store of its own.
    by_module: dict[int, list[tuple[str, Slot]]] = {}
    for name, slot in resting:
        by_module.setdefault(id(slot.module), []).append((name, slot))
    hook.offloaded_modules = tuple(_offloaded(hook, rows) for rows in by_module.values())
    for offloaded_module in hook.offloaded_modules:
        owner = offloaded_module.store.slots[0].module
        # That of a hook whose place this one takes.
        Pickling.end(owner, Journal())
        Pickling(owner, offloaded_module).install(Journal())
    if hook.device is not None:
        for name, slot in slots:
            if not rests(slot, offload_buffers=hook.offload_buffers):
                slot.write(placed(slot.read(), hook.device, name))


def restore_others(module: nn.Module, devices: Mapping[str, torch.device], *, recurse: bool) -> None:
    """Moves what an offloaded module keeps where it runs back to where it came from."""
    for name, slot in list(named_slots(module, recurse=recurse)):
        tensor, device = slot.read(), devices.get(name)
        if device is not None and device.type != "meta" and not tensor.is_meta:
            slot.write(placed(tensor, device, name))


def require_all_offloadable(module: nn.Module, prefix: str, *, offload_buffers: bool) -> None:
    """Raises OffloadError if a tensor inside a module cannot rest elsewhere.

    Args:
        module: the module.
        prefix: its full name, for the error.
    """
    for name, slot in named_slots(module, recurse=True):
        if rests(slot, offload_buffers=offload_buffers):
            require_offloadable(slot.read(), qualified(prefix, name))


def rests(slot: Slot, *, offload_buffers: bool) -> bool:
    """Whether a tensor of an offloaded module rests elsewhere: parameters do, saved buffers if asked."""
    return not slot.is_buffer or (offload_buffers and slot.is_persistent)


def _rest(hook: PlacingHook, module: nn.Module, resting: list[tuple[str, Slot]]) -> None:
    """Checks the weights' map, or makes it."""
    # All are checked before the first is replaced.
    for name, slot in resting:
        require_offloadable(slot.read(), f"{hook.module_name or type(module).__name__}.{name}")
    # A map that was made from another module has the weights of that one.
    is_moved_on = hook.bound is not None and hook.bound is not module
    if hook.weights_map is None or (is_moved_on and hook.made_weights_map):
        cpu = torch.device("cpu")
        hook.weights_map = {name: placed(slot.read(), cpu, name) for name, slot in resting}
        hook.made_weights_map = True
        return
    for name, _ in resting:
        if name not in hook.weights_map:
            full = qualified(hook.module_name, name)
            raise OffloadError(f"'{full}' shall be offloaded, but weights_map does not have it", name=full)


def _offloaded(hook: PlacingHook, rows: list[tuple[str, Slot]]) -> OffloadedModule:
    """Placeholders for tensors of one module object."""
    prefix = f"{hook.module_name}." if hook.module_name else ""
    names = [prefix + name for name, _ in rows]
    keys = [name for name, _ in rows]
    slots = [slot for _, slot in rows]
    store = OffloadStore(slots, keys, names, hook.weights_map, hook.device, tied=hook.tied_params_map)
    store.install([_placeholder(slot.read(), name) for slot, name in zip(slots, names, strict=True)])
    return OffloadedModule(store)


def _lies_on(tensor: Any) -> torch.device:
    """What a tensor says, but for a placeholder, whose values this module does not have."""
    return torch.device("meta") if is_offloaded(tensor) else tensor.device


def _placeholder(tensor: Any, name: str) -> PlaceholderTensor:
    if isinstance(tensor, PlaceholderTensor):
        tensor.whereabouts, tensor.rests_in = None, None  # it has another owner now
        return tensor
    return placeholder(
        tensor, name, is_parameter=isinstance(tensor, nn.Parameter), requires_grad=tensor.requires_grad
    )
