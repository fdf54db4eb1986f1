"""Checks and copies before a dispatch, and everything that is then installed."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from planner.dispatching.hooks.align import AlignDevicesHook
from planner.dispatching.hooks.place import moves_in_place
from planner.dispatching.install.declared import declared_classes, declared_skips, refuse_other_hooks
from planner.dispatching.install.edges import Edge, edges_of, forward_kind
from planner.dispatching.install.lookup import OffloadedWeights
from planner.dispatching.install.originals import OriginalPlacement
from planner.dispatching.install.record import (
    RECORD,
    Dispatched,
    refresh_flat_weights,
)
from planner.dispatching.install.regions import Regions, find_regions
from planner.dispatching.install.request import DispatchRequest
from planner.dispatching.install.tensors import Values
from planner.dispatching.methods.adapter_loading import AdapterLoading
from planner.dispatching.methods.mixed_forward import SizedForward, SizedMemberForward
from planner.dispatching.methods.overrides import Conversion, Pickling, Refusal
from planner.dispatching.offload.prefetch import Prefetcher
from planner.dispatching.offload.reads_ahead import ReadsAhead, SeveralAhead
from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.offload.shown_weights import ShownWeights
from planner.dispatching.offload.store import OffloadStore, TiedCopies
from planner.dispatching.tensors.copies import SharedCopies
from planner.dispatching.tensors.fakes import address_of
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import PlaceholderTensor, placeholder
from planner.dispatching.tensors.slots import modules_of
from planner.dispatching.tensors.ties import Tie, TiedCopy
from planner.names import is_within, nearest_key
from planner.plans.device_map import DeviceMap

__all__ = ["Prepared", "prepare", "regions_of"]


def regions_of(model: nn.Module, request: DispatchRequest) -> Regions:
    """A request's device map applied to a model. Raises PlanMismatchError."""
    resolved_map = request.resolved_map
    return find_regions(
        model,
        resolved_map.placements,
        resolved_map.root_placement,
        _whole_classes(model, request),
        resolved_map.sized,
    )


def _whole_classes(model: nn.Module, request: DispatchRequest) -> frozenset[str]:
    return frozenset(declared_classes(model)) | request.whole_classes


def prepare(
    model: nn.Module, request: DispatchRequest, engaged: list[Dispatched], regions: Regions | None = None
) -> Prepared:
    """Checks what has to be seen in the model itself, and makes all copies; the model stays as it is.

    Args:
        engaged: what is installed in it.
        regions: the request's map applied to the model, where that is known.

    Raises:
        PlanMismatchError, OffloadError: see :func:`planner.dispatching.api.dispatch`.
    """
    resolved_map = request.resolved_map
    layout = regions_of(model, request) if regions is None else regions
    refuse_other_hooks(model, engaged)
    values = Values(model, layout, engaged, request)
    values.check()
    values.move()
    inner = tuple(each.model for each in engaged if each.model is not model and each.shows_device_map)
    is_attached = any(values.is_resting) or request.force_borders or not resolved_map.is_single
    if not is_attached:
        return Prepared(model, request, layout, values, None, inner)
    named, main_device = frozenset(resolved_map.placements), resolved_map.root_placement.execution_device
    edges = tuple(edges_of(model, layout, named, main_device, _whole_classes(model, request)))
    return Prepared(model, request, layout, values, edges, inner)


@dataclass(slots=True, eq=False)
class Prepared:
    """Copies and hooks, ready to be installed."""

    model: nn.Module
    request: DispatchRequest
    layout: Regions
    values: Values
    edges: tuple[Edge, ...] | None  # None: nothing is attached
    # Models inside that were dispatched before, by a map that they show.
    inner: tuple[nn.Module, ...]
    placeholders: dict[int, PlaceholderTensor] = field(default_factory=dict)
    tied: TiedCopies = field(default_factory=dict)
    shares: dict[int, SharedCopies] = field(default_factory=dict)
    hooks: dict[int, AlignDevicesHook] = field(default_factory=dict)
    skip_keys: frozenset[str] = frozenset()

    def install(self, journal: Journal) -> None:
        """Installs everything."""
        record = Dispatched(self.model)
        self.skip_keys = self.request.skip_keys | declared_skips(self.model)
        self._keep_objects(journal)
        for place, value in zip(self.layout.places, self.values.after, strict=True):
            journal.set(place.slot.table, place.slot.name, value)
        if self.edges is not None:
            self._install(journal, record, self.edges)
        refresh_flat_weights(self.model, journal)
        record.originals.extend(self._originals())
        self._show_device_maps(journal, record)
        journal.set(self.model.__dict__, RECORD, record)

    def _show_device_maps(self, journal: Journal, record: Dispatched) -> None:
        """The map as the model's own, and, under their own names, as that of models inside that were dispatched before."""
        device_map = DeviceMap(self.request.resolved_map.device_map)
        if not device_map:
            return
        record.show_device_map(journal, self.model, dict(device_map))
        # PEFT's: what is left when its adapters are merged, and saved then.
        base = getattr(self.model, "get_base_model", None)
        wrapped = base() if callable(base) else None
        for name, inner in modules_of(self.model):
            is_named = any(is_within(key, name) or is_within(name, key) for key in device_map)
            # One without tensors need not be in the map.
            if name and is_named and (inner is wrapped or any(inner is model for model in self.inner)):
                record.show_device_map(journal, inner, dict(device_map.below(name)))

    def _originals(self) -> Iterator[OriginalPlacement]:
        """Where everything came from; of tied tensors that are apart now, also what lies there instead."""
        groups: dict[int, int] = {}
        copies: dict[int, set[int]] = {}
        for before, after in zip(self.values.before, self.values.after, strict=True):
            copies.setdefault(id(before), set()).add(id(after))
        rows = zip(self.layout.places, self.values.before, self.values.original_devices, strict=True)
        for index, (place, before, device) in enumerate(rows):
            group = groups.setdefault(id(before), index)
            is_apart = len(copies[id(before)]) > 1
            execution_device = None if self.values.is_resting[index] else place.placement.execution_device
            yield OriginalPlacement(
                place.slot, device, group, place.slot.read() if is_apart else None, execution_device
            )

    def _keep_objects(self, journal: Journal) -> None:
        """The first copy of each parameter becomes the parameter itself: optimizers and callers hold that one."""
        kept: dict[int, Any] = {}
        taken: set[int] = set()
        for before, after in zip(self.values.before, self.values.after, strict=True):
            if id(before) in taken:
                continue
            taken.add(id(before))
            if moves_in_place(before, after):
                journal.move(before, after)
                kept[id(after)] = before
        self.values.after = [kept.get(id(after), after) for after in self.values.after]

    def _install(self, journal: Journal, record: Dispatched, edges: tuple[Edge, ...]) -> None:
        own = self._rest(journal)
        for module_id, (module, name, offloaded_module, weights, devices) in own.items():
            hook = self._hook(offloaded_module.store.execution_device)
            hook.offload, hook.offload_buffers = True, self.request.offload_buffers
            hook.module_name, hook.bound = name, module
            hook.original_devices = devices
            hook.weights_map = weights
            hook.offloaded_modules = (offloaded_module,)
            self.hooks[module_id] = hook
        for edge in edges:
            if id(edge.module) not in self.hooks:
                self.hooks[id(edge.module)] = self._hook(edge.execution_device)
                self.hooks[id(edge.module)].module_name = edge.name
        for block in self.layout.blocks:
            members = [member for member in block.members if member is not block.module]
            self.hooks[id(block.module)].inner = tuple(own[id(m)][2] for m in members if id(m) in own)
        for row in self.layout.uncalled:
            # The module that uses what is in a list of parameters brings it in.
            if id(row.module) in own:
                hook = self.hooks.setdefault(id(row.owner), self._hook(row.placement.execution_device))
                hook.inner += (own[id(row.module)][2],)
        inside_sized = self._size(own)
        root_id = id(self.model)
        self.hooks[root_id].io_same_device = True
        self._tie(record, own)
        self._prefetch(root_id)
        by_module = {id(edge.module): edge for edge in edges}
        for _, module in modules_of(self.model):
            if id(module) in self.hooks:
                self._install_forward(journal, record, module, by_module.get(id(module)), inside_sized)
        for module, _, offloaded_module, _, _ in own.values():
            record.install(journal, Pickling(module, offloaded_module))
        self._refuse_moves(journal, record, set(own))

    def _size(self, own: Mapping[int, Any]) -> frozenset[int]:
        """Tells the hooks of parts that the cpu runs in short steps up to how many tokens it does.

        Returns:
            What is inside of these.
        """
        in_blocks = _inside_classes(self.model, _whole_classes(self.model, self.request))
        # With a tensor that stays somewhere, as one does that is tied to what runs there, it runs there alone.
        stays = {
            nearest_key(place.name, self.request.resolved_map.sized)
            for place, is_resting in zip(self.layout.places, self.values.is_resting, strict=True)
            if not is_resting
        }
        members: set[int] = set()
        for block in self.layout.blocks:
            if block.placement.host_tokens is None or block.name in stays:
                continue
            hook = self.hooks[id(block.module)]
            hook.host_tokens, hook.returns = block.placement.host_tokens, id(block.module) in in_blocks
            for member in block.members:
                if member is not block.module and id(member) in own:
                    self.hooks[id(member)].host_tokens = 0
                    members.add(id(member))
        return frozenset(members)

    def _hook(self, device: torch.device | None) -> AlignDevicesHook:
        return AlignDevicesHook(
            execution_device=device, skip_keys=sorted(self.skip_keys) or None, tied_params_map=self.tied
        )

    def _rest(
        self, journal: Journal
    ) -> dict[int, tuple[nn.Module, str, OffloadedModule, Any, dict[str, torch.device]]]:
        """Placeholders for what rests, and the offloaded tensors of each module that holds some."""
        counts: dict[int, int] = {}
        groups: dict[int, list[int]] = {}
        for index, place in enumerate(self.layout.places):
            if self.values.is_resting[index]:
                groups.setdefault(id(place.slot.module), []).append(index)
                counts[id(self.values.after[index])] = counts.get(id(self.values.after[index]), 0) + 1
        for index in (index for group in groups.values() for index in group):
            value = self.values.after[index]
            if counts[id(value)] > 1 and not value.is_meta:
                # Others look by address, we by the tensor itself: wrapper subclasses have none, and views their base's.
                self.shares[id(value)] = SharedCopies()
                self.tied[address_of(value)] = self.shares[id(value)]
        return {module_id: self._rest_module(journal, rows) for module_id, rows in groups.items()}

    def _rest_module(
        self, journal: Journal, rows: list[int]
    ) -> tuple[nn.Module, str, OffloadedModule, Any, dict[str, torch.device]]:
        places = [self.layout.places[index] for index in rows]
        module, name = places[0].slot.module, places[0].name.rpartition(".")[0]
        keys = [place.slot.name for place in places]
        weights = self._weights_of(name, keys, rows)
        slots, names = [place.slot for place in places], [place.name for place in places]
        shares = [self.shares.get(id(self.values.after[index])) for index in rows]
        store = OffloadStore(
            slots,
            keys,
            names,
            weights,
            places[0].placement.execution_device,
            shares=shares,
            says_device=self.request.says_device,
        )
        store.adopt([self._placeholder(index, store, at) for at, index in enumerate(rows)])
        for place, found in zip(places, store.placeholders, strict=True):
            # What lies on another accelerator is a real tensor, and its gradient arrives there.
            if place.placement.storage_device is None or place.placement.storage_device.type == "cpu":
                journal.set(place.slot.table, place.slot.name, found)
        devices = {key: self.values.hook_device(index) for key, index in zip(keys, rows, strict=True)}
        return module, name, OffloadedModule(store), weights, devices

    def _weights_of(self, name: str, keys: list[str], rows: list[int]) -> Any:
        """Where the tensors of a module rest: elsewhere, in memory, or some here and some there."""
        given = self.request.weights
        is_given = [given is not None and self.layout.places[index].name in given for index in rows]
        in_memory = OffloadedWeights(
            (key, self.values.after[index])
            for key, index, is_there in zip(keys, rows, is_given, strict=True)
            if not is_there
        )
        if given is None or not any(is_given):
            return in_memory
        elsewhere = ShownWeights(given, f"{name}." if name else "")
        return ChainMap(in_memory, elsewhere) if in_memory else elsewhere  # type: ignore[arg-type]

    def _placeholder(self, index: int, store: OffloadStore, at: int) -> PlaceholderTensor:
        value, place = self.values.before[index], self.layout.places[index]
        found = self.placeholders.get(id(value))
        if found is None:
            found = placeholder(
                value,
                place.name,
                is_parameter=isinstance(value, nn.Parameter),
                requires_grad=value.requires_grad,
            )
            if self.request.outside == "fetch":
                found.fetch = partial(store.fetch, at)
            self.placeholders[id(value)] = found
        return found

    def _tie(self, record: Dispatched, own: Mapping[int, Any]) -> None:
        """Each module with a tensor that has copies on several devices looks whether it was written to."""
        groups: dict[int, dict[int, list[int]]] = {}
        for index, (before, after) in enumerate(zip(self.values.before, self.values.after, strict=True)):
            groups.setdefault(id(before), {}).setdefault(id(after), []).append(index)
        owners = {id(row.module): row.owner for row in self.layout.uncalled}
        for rows in (list(copies.values()) for copies in groups.values() if len(copies) > 1):
            tie = Tie([self._tied_copy(indices) for indices in rows])
            record.ties.append(tie)
            self.hooks[id(self.model)].tie(tie)
            for place in (self.layout.places[index] for indices in rows for index in indices):
                owner = owners.get(id(place.slot.module), place.slot.module)
                if id(owner) not in self.hooks:
                    self.hooks[id(owner)] = self._hook(place.placement.execution_device)
                self.hooks[id(owner)].tie(tie)

    def _tied_copy(self, indices: list[int]) -> TiedCopy:
        places = [self.layout.places[index] for index in indices]
        tensor, is_resting = self.values.after[indices[0]], self.values.is_resting[indices[0]]
        weights = self.request.weights
        if is_resting and weights is not None and places[0].name in weights:
            tensor = weights[places[0].name]
            if weights[places[0].name] is not tensor:
                tensor = None  # read from a file each time
        return TiedCopy(tensor, [place.slot for place in places], places[0].name, is_resting)

    def _prefetch(self, root_id: int) -> None:
        """Blocks are read ahead by whom the request names, and others copied ahead where they run on accelerators with room."""
        hooks = [self.hooks[id(block.module)] for block in self.layout.blocks]
        hooks = [hook for hook in hooks if hook.needed]
        parts: list[ReadsAhead] = []
        if self.request.reads_ahead is not None:
            parts.append(self.request.reads_ahead(hooks))
        left = [hook for hook in hooks if not any(part.serves(hook) for part in parts)]
        room = {
            device: size for device, size in self.request.room_bytes.items() if Prefetcher.can_serve(device)
        }
        if sum(hook.device in room for hook in left) >= 2:
            parts.append(Prefetcher(room))
        for hook in hooks:
            hook.prefetcher = next((part for part in parts if part.serves(hook)), None)
        if parts:
            self.hooks[root_id].prefetcher = parts[0] if len(parts) == 1 else SeveralAhead(parts)

    def _install_forward(
        self,
        journal: Journal,
        record: Dispatched,
        module: nn.Module,
        edge: Edge | None,
        members: frozenset[int],
    ) -> None:
        hook = self.hooks[id(module)]
        if hook.host_tokens is None:
            kind = forward_kind(edge, is_fetching=bool(hook.needed), is_root=module is self.model)
        else:
            kind = SizedMemberForward if id(module) in members else SizedForward
        record.install(journal, kind(module, hook, record.membership))
        journal.set(module.__dict__, "_hf_hook", hook)
        if hook.ties:
            record.settle_before_reading(journal, module)

    def _refuse_moves(self, journal: Journal, record: Dispatched, resting: set[int]) -> None:
        """Moving a module with tensors inside gives a warning, and is refused where some of them rest elsewhere."""
        listed = [module for _, module in modules_of(self.model)]
        holders = _around(listed, resting)
        owners = _around(listed, {id(place.slot.module) for place in self.layout.places})
        for module in listed:
            if id(module) in owners:
                kind = Refusal if id(module) in holders else Conversion
                record.install(journal, kind(module, record.membership))
            if id(module) in holders and AdapterLoading.is_due(module):
                record.install(journal, AdapterLoading(module))


def _around(preorder: list[nn.Module], inner: set[int]) -> set[int]:
    """Some modules and all that have one of them inside."""
    found = set(inner)
    for module in reversed(preorder):
        if any(id(child) in found for child in module._modules.values() if child is not None):
            found.add(id(module))
    return found


def _inside_classes(model: nn.Module, classes: frozenset[str]) -> set[int]:
    """Modules that are inside of one of some classes."""
    found: set[int] = set()
    for _, module in modules_of(model):
        if id(module) in found or type(module).__name__ in classes:
            found.update(id(child) for child in module._modules.values() if child is not None)
    return found
