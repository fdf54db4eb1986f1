"""Where each tensor of a model lies and runs, and which modules are brought in as a whole: a device map applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planner.dispatching.hooks.place import rests
from planner.dispatching.methods.forward import Forward
from planner.dispatching.tensors.slots import Slot, modules_of, own_slots
from planner.errors import PlanMismatchError

__all__ = [
    "Block",
    "Met",
    "PlacedTensor",
    "Placement",
    "Regions",
    "UncalledModule",
    "find_regions",
    "has_forward",
]

# They only hold others: iterating over one is as usual as calling it.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where what a key names lies, None for disk; where it runs; whether weights go back there after each forward; and up to how
    many new tokens the cpu runs it where it lies, None for never."""

    storage_device: torch.device | None
    execution_device: torch.device
    is_offloaded: bool
    host_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """One tensor: its slot, its full name, and where it lies and runs."""

    slot: Slot
    name: str
    placement: Placement

    def wants_rest(self, *, offload_buffers: bool) -> bool:
        """Whether it is to rest where it lies between forwards. What runs now here, now there takes all that it has along."""
        placement = self.placement
        is_taken = placement.host_tokens is not None or rests(self.slot, offload_buffers=offload_buffers)
        return placement.is_offloaded and is_taken


@dataclass(slots=True, eq=False)
class Block:
    """A module that is called as a whole: weights of all modules inside are brought in with its own.

    Args:
        module: the module.
        name: its full name.
        placement: where its weights lie and where it runs.
        members: modules inside with tensors of their own, itself included.
    """

    module: nn.Module
    name: str
    placement: Placement
    members: list[nn.Module] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UncalledModule:
    """A module that is never called, like a list of parameters, and the nearest one around it that is."""

    module: nn.Module
    owner: nn.Module
    placement: Placement


@dataclass(frozen=True, slots=True)
class Met:
    """A module under one of its names.

    Args:
        module: the module.
        name: the name.
        placement: where the map says that it lies and runs; None where it has no word for it.
        is_whole: whether it is called as a whole.
        is_inner: whether it is a part of a block that its class says is called as a whole.
    """

    module: nn.Module
    name: str
    placement: Placement | None
    is_whole: bool
    is_inner: bool


@dataclass(frozen=True, slots=True)
class Regions:
    """A device map applied to a model, nothing done yet."""

    places: tuple[PlacedTensor, ...]
    blocks: tuple[Block, ...]
    uncalled: tuple[UncalledModule, ...]
    met: tuple[Met, ...]


def find_regions(
    model: nn.Module,
    placements: Mapping[str, Placement],
    root_placement: Placement,
    no_split: frozenset[str],
    whole: frozenset[str] = frozenset(),
) -> Regions:
    """Tensors and blocks of a model under a device map.

    Args:
        model: the model; only looked at.
        placements: by full name of a module or tensor; a nearer name wins over a farther one.
        root_placement: for tensors that no name covers (buffers that are not saved).
        no_split: classes whose instances are one block.
        whole: names of modules that are one block.

    Raises:
        PlanMismatchError: one module under two names with different placements.
    """
    return _Walk(model, placements, root_placement, no_split, whole).layout()


@dataclass(slots=True)
class _Entry:
    module: nn.Module
    name: str
    local: str
    placement: Placement | None
    block: Block | None
    # The nearest module around it that is called.
    owner: nn.Module
    # Where that runs, if it computes with this one's tensors itself and never calls it.
    used_on: torch.device | None = None


class _Walk:
    def __init__(
        self,
        model: nn.Module,
        placements: Mapping[str, Placement],
        root_placement: Placement,
        no_split: frozenset[str],
        whole: frozenset[str],
    ) -> None:
        self.model = model
        self.whole = whole
        self.placements = placements
        self.root_placement = root_placement
        self.no_split = no_split
        self.places: list[PlacedTensor] = []
        self.blocks: list[Block] = []
        self.uncalled: list[UncalledModule] = []
        self.met: list[Met] = []
        self.seen: dict[int, tuple[str, Placement | None]] = {}
        self.holds_blocks = _holders(model, no_split)
        self.users = _users(model)

    def layout(self) -> Regions:
        stack = [_Entry(self.model, "", "", None, None, self.model)]
        while stack:
            entry = stack.pop()
            placement = _used(self.placements.get(entry.name, entry.placement), entry.used_on)
            # Keys of its tensors that agree are as good as one of its own, for itself.
            own_placement = self._agreed(entry) if placement is None else placement
            is_known = self._is_known(entry, own_placement)
            block = entry.block if placement == entry.placement else None
            self.met.append(self._meet(entry, own_placement, block))
            if is_known:
                continue
            if own_placement is not None and block is None and entry.used_on is None:
                block = self._begin(entry, own_placement)
            own = self._place(entry, own_placement, block)
            prefix = f"{entry.name}." if entry.name else ""
            owner = entry.module if has_forward(entry.module) else entry.owner
            # torch's attention computes with the weights of its last layer itself.
            used_on = own if isinstance(entry.module, nn.MultiheadAttention) else None
            children = [
                _Entry(
                    child,
                    prefix + key,
                    key,
                    placement,
                    block if placement is not None else None,
                    owner,
                    used_on,
                )
                for key, child in entry.module._modules.items()
                if child is not None
            ]
            stack.extend(reversed(children))
        blocks = tuple(block for block in self.blocks if block.members)
        return Regions(tuple(self.places), blocks, tuple(self.uncalled), tuple(self.met))

    def _meet(self, entry: _Entry, placement: Placement | None, around: Block | None) -> Met:
        is_whole = self._is_whole(entry)
        # Of what runs now here, now there, nothing inside has a device of its own.
        is_inner = around is not None and (
            type(around.module).__name__ in self.no_split or around.name in self.whole
        )
        return Met(entry.module, entry.name, placement, is_whole, is_inner)

    def _agreed(self, entry: _Entry) -> Placement | None:
        """The placement that all tensors of a module have by keys of their own, if they have one."""
        prefix = f"{entry.name}." if entry.name else ""
        placements = [self.placements.get(prefix + slot.name) for slot in own_slots(entry.module)]
        first = placements[0] if placements else None
        if first is None or any(
            placement is None or placement.execution_device != first.execution_device
            for placement in placements
        ):
            return None
        return first

    def _is_known(self, entry: _Entry, placement: Placement | None) -> bool:
        """Whether the module was met under another name; then both must say the same."""
        before = self.seen.setdefault(id(entry.module), (entry.name, placement))
        if before[0] == entry.name:
            return False
        if before[1] != placement and _holds_tensors(entry.module):
            raise PlanMismatchError(
                f"'{before[0]}' and '{entry.name}' are one module, but the device map gives {_words(before[1])} and {_words(placement)}",
                findings=(before[0], entry.name),
            )
        return True

    def _begin(self, entry: _Entry, placement: Placement) -> Block | None:
        """The block that begins here, if one does."""
        if not has_forward(entry.module) or not self._is_whole(entry):
            return None
        block = Block(entry.module, entry.name, placement)
        self.blocks.append(block)
        return block

    def _is_whole(self, entry: _Entry) -> bool:
        module, local = entry.module, entry.local
        if entry.name in self.whole:
            return True
        if type(module).__name__ in self.no_split or not module._modules:
            return True
        if type(module) in _CONTAINERS:
            return False
        return local.isdigit() or (id(module) not in self.holds_blocks and id(module) in self.users)

    def _place(self, entry: _Entry, placement: Placement | None, block: Block | None) -> torch.device | None:
        """The places of a module's own tensors.

        Returns:
            Where the first of them runs; None without any.
        """
        prefix = f"{entry.name}." if entry.name else ""
        first = len(self.places)
        for slot in own_slots(entry.module):
            name = prefix + slot.name
            own = self.placements.get(name)
            if own is not None and placement is not None:
                # A tensor with a key of its own lies there, and runs where its module does.
                own = Placement(
                    own.storage_device,
                    placement.execution_device,
                    own.storage_device != placement.execution_device,
                    placement.host_tokens,
                )
            self.places.append(PlacedTensor(slot, name, own or placement or self.root_placement))
        found = self.places[first].placement.execution_device if len(self.places) > first else None
        if found and block is not None:
            block.members.append(entry.module)
        elif found and placement is not None and (entry.used_on is not None or not has_forward(entry.module)):
            self.uncalled.append(UncalledModule(entry.module, entry.owner, placement))
        return found


def _used(placement: Placement | None, used_on: torch.device | None) -> Placement | None:
    """The placement of what is used on a device, whatever its key says of where it runs."""
    if placement is None or used_on is None:
        return placement
    return Placement(placement.storage_device, used_on, placement.storage_device != used_on)


def _holders(model: nn.Module, no_split: frozenset[str]) -> set[int]:
    """Modules with a no-split module or a numbered one somewhere inside."""
    holders: set[int] = set()
    for _, module in reversed(list(modules_of(model))):
        for key, child in module._modules.items():
            if child is not None and (
                id(child) in holders or key.isdigit() or type(child).__name__ in no_split
            ):
                holders.add(id(module))
    return holders


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called, whatever an earlier dispatch has installed in it."""
    found = module.__dict__.get("forward")
    while isinstance(found, Forward):
        found = found.previous
    # A traced module's class makes its forward for an instance only.
    is_traced = isinstance(module, torch.jit.ScriptModule)
    return found is not None or is_traced or type(module).forward is not nn.Module.forward


def _holds_tensors(module: nn.Module) -> bool:
    return any(next(own_slots(inner), None) is not None for _, inner in modules_of(module))


def _users(model: nn.Module) -> set[int]:
    """Modules that use tensors of their own: in their slots, or in a list of parameters."""
    users: set[int] = set()
    seen: set[int] = set()
    stack = [(model, False)]
    while stack:
        module, is_ready = stack.pop()
        inside = [child for child in module._modules.values() if child is not None]
        if is_ready:
            has_list = any(id(child) in users and not has_forward(child) for child in inside)
            if has_list or next(own_slots(module), None) is not None:
                users.add(id(module))
        elif id(module) not in seen:
            seen.add(id(module))
            stack.append((module, True))
            stack.extend((child, False) for child in inside)
    return users


def _words(placement: Placement | None) -> Any:
    return (
        "no device"
        if placement is None
        else "disk"
        if placement.storage_device is None
        else str(placement.storage_device)
    )
