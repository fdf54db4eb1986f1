"""Which modules get a border: what is called as a whole, at or below the keys of a device map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planner.dispatch.slots import Slot, modules_of, own_slots
from planner.errors import PlanMismatchError

__all__ = ["Block", "Home", "Layout", "Place", "lay_out"]

# They only hold others: iterating over one is as usual as calling it.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Home:
    """Where what a key names lies, None for disk; where it runs; whether weights go back there after each forward."""

    rests_on: torch.device | None
    runs_on: torch.device
    is_offloaded: bool


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor: its slot, its full name, and where it lies and runs."""

    slot: Slot
    name: str
    home: Home


@dataclass(slots=True, eq=False)
class Block:
    """A module with a border.

    Args:
        module: the module.
        name: its full name.
        home: where its weights lie and where it runs.
        takes_whole: weights of all modules inside are brought in with its own.
        members: modules inside with tensors of their own, itself included.
    """

    module: nn.Module
    name: str
    home: Home
    takes_whole: bool
    members: list[nn.Module] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lodger:
    """A module that is never called, like a list of parameters, and the nearest one around it that is."""

    module: nn.Module
    owner: nn.Module
    home: Home


@dataclass(frozen=True, slots=True)
class Layout:
    """A device map applied to a model, nothing done yet."""

    places: tuple[Place, ...]
    blocks: tuple[Block, ...]
    lodgers: tuple[Lodger, ...]


def lay_out(model: nn.Module, homes: Mapping[str, Home], root_home: Home, no_split: frozenset[str]) -> Layout:
    """Tensors and blocks of a model under a device map.

    Args:
        model: the model; only looked at.
        homes: by full name of a module or tensor; a nearer name wins over a farther one.
        root_home: for tensors that no name covers (buffers that are not saved).
        no_split: classes whose instances are one block.

    Raises:
        PlanMismatchError: one module under two names with different homes.
    """
    return _Walk(model, homes, root_home, no_split).layout()


@dataclass(slots=True)
class _Entry:
    module: nn.Module
    name: str
    local: str
    home: Home | None
    block: Block | None
    # The nearest module around it that is called.
    owner: nn.Module


class _Walk:
    def __init__(
        self, model: nn.Module, homes: Mapping[str, Home], root_home: Home, no_split: frozenset[str]
    ) -> None:
        self.model = model
        self.homes = homes
        self.root_home = root_home
        self.no_split = no_split
        self.places: list[Place] = []
        self.blocks: list[Block] = []
        self.lodgers: list[Lodger] = []
        self.seen: dict[int, tuple[str, Home | None]] = {}
        self.holds_blocks = _holders(model, no_split)

    def layout(self) -> Layout:
        stack = [_Entry(self.model, "", "", None, None, self.model)]
        while stack:
            entry = stack.pop()
            home = self.homes.get(entry.name, entry.home)
            if self._is_known(entry, home):
                continue
            block = entry.block if home == entry.home else None
            if home is not None and block is None:
                block = self._begin(entry, home)
            self._place(entry, home, block)
            prefix = f"{entry.name}." if entry.name else ""
            owner = entry.module if _has_forward(entry.module) else entry.owner
            children = [
                _Entry(child, prefix + key, key, home, block, owner)
                for key, child in entry.module._modules.items()
                if child is not None
            ]
            stack.extend(reversed(children))
        return Layout(tuple(self.places), tuple(self.blocks), tuple(self.lodgers))

    def _is_known(self, entry: _Entry, home: Home | None) -> bool:
        """Whether the module was met under another name; then both must say the same."""
        before = self.seen.setdefault(id(entry.module), (entry.name, home))
        if before[0] == entry.name:
            return False
        if before[1] != home and not _holds_tensors(entry.module):
            # An activation that layers share runs where it is called.
            self.blocks = [block for block in self.blocks if block.module is not entry.module]
        elif before[1] != home:
            raise PlanMismatchError(
                f"'{before[0]}' and '{entry.name}' are one module, but the device map gives {_words(before[1])} and {_words(home)}",
                findings=(before[0], entry.name),
            )
        return True

    def _begin(self, entry: _Entry, home: Home) -> Block | None:
        """The block that begins here, if one does. A named module always has a border of its own."""
        module, is_named = entry.module, entry.name in self.homes
        if not _has_forward(module):
            return None
        takes_whole = self._is_whole(module, entry.local)
        if not takes_whole and not is_named:
            return None
        block = Block(module, entry.name, home, takes_whole)
        self.blocks.append(block)
        return block if takes_whole else None

    def _is_whole(self, module: nn.Module, local: str) -> bool:
        if type(module).__name__ in self.no_split or not module._modules:
            return True
        if type(module) in _CONTAINERS:
            return False
        return local.isdigit() or (id(module) not in self.holds_blocks and _owns_tensors(module))

    def _place(self, entry: _Entry, home: Home | None, block: Block | None) -> None:
        prefix = f"{entry.name}." if entry.name else ""
        found = False
        for slot in own_slots(entry.module):
            name = prefix + slot.name
            own = self.homes.get(name)
            if own is not None and home is not None:
                # A tensor with a key of its own lies there, and runs where its module does.
                own = Home(own.rests_on, home.runs_on, own.rests_on != home.runs_on)
            self.places.append(Place(slot, name, own or home or self.root_home))
            found = True
        if found and block is not None:
            block.members.append(entry.module)
        elif found and home is not None and not _has_forward(entry.module):
            self.lodgers.append(Lodger(entry.module, entry.owner, home))


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


def _has_forward(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or type(module).forward is not nn.Module.forward


def _holds_tensors(module: nn.Module) -> bool:
    return any(next(own_slots(inner), None) is not None for _, inner in modules_of(module))


def _owns_tensors(module: nn.Module) -> bool:
    """Whether a module uses tensors of its own: in its slots, or in a list of parameters."""
    return next(own_slots(module), None) is not None or any(
        child is not None and not _has_forward(child) and _owns_tensors(child)
        for child in module._modules.values()
    )


def _words(home: Home | None) -> Any:
    return "no device" if home is None else "disk" if home.rests_on is None else str(home.rests_on)
