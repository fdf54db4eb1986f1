"""What a dispatch has installed in a model, and how that is taken off."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from planner.dispatching.hooks.place import require_values
from planner.dispatching.install.originals import Made, OriginalPlacement, joined, send
from planner.dispatching.methods.adapter_loading import AdapterLoading
from planner.dispatching.methods.forward import Forward, Hooked, forwards_of, installed, restore_forward
from planner.dispatching.methods.membership import Membership
from planner.dispatching.methods.overrides import Conversion, Override, Pickling, Recomputing
from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.offload.store import OffloadStore, has_own_memory
from planner.dispatching.tensors.copies import like_parameter
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.slots import Slot, flat_weights, modules_of, own_slots
from planner.dispatching.tensors.ties import Tie
from planner.errors import OffloadError
from planner.names import qualified

__all__ = [
    "RECORD",
    "Dispatched",
    "dispatched_models",
    "is_part",
    "refresh_flat_weights",
    "settle",
]

RECORD = "_planner_dispatch"
_DEVICE_MAP = "hf_device_map"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Dispatched:
    """What is installed in a model; hangs in the model itself, so that a copy of the model has its own.

    Args:
        model: the model.
        forwards: what stands in the modules' places of ``forward``.
        originals: where every tensor lay before the first dispatch.
        overrides: what stands in the places of their other methods.
        device_maps: of the model, and of models inside that were dispatched before, ``hf_device_map`` and what that was before, if they
            had one.
        ties: tensors that have copies on several devices.
    """

    model: nn.Module
    forwards: list[Forward] = field(default_factory=list)
    originals: list[OriginalPlacement] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    device_maps: list[tuple[Any, ...]] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    membership: Membership = field(default_factory=Membership)

    def __post_init__(self) -> None:
        self.membership.record = weakref.ref(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("model", "forwards", "originals", "overrides", "device_maps", "ties", "membership")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.__post_init__()

    def install(self, journal: Journal, override: Override) -> None:
        """Lets an override take its place, until the dispatch is undone."""
        if isinstance(override, Forward):
            self.forwards.append(override)
        else:
            self.overrides.append(override)
        override.install(journal)

    def show_device_map(self, journal: Journal, model: nn.Module, device_map: dict[str, Any]) -> None:
        """Sets ``hf_device_map``, which other libraries read, of the model or of one inside."""
        table = model.__dict__
        self.device_maps.append((model, device_map, *([table[_DEVICE_MAP]] if _DEVICE_MAP in table else [])))
        journal.set(table, _DEVICE_MAP, device_map)

    @property
    def shows_device_map(self) -> bool:
        """Whether the model itself has one by this dispatch."""
        return any(row[0] is self.model for row in self.device_maps)

    def settle_before_reading(self, journal: Journal, module: nn.Module) -> None:
        """Lets a module's state dict have what was written into copies of its tensors elsewhere."""
        journal.set(_readers_of(module), _SETTLING, settle)

    def offloaded_modules(self) -> Iterator[OffloadedModule]:
        """Those of all modules, each once."""
        for forward in self.forwards:
            yield from forward.hook.offloaded_modules

    def require_in_place(self, error: RuntimeError | None = None) -> None:
        """Raises OffloadError if a tensor was moved away from where its module runs, or one without values was added.

        Args:
            error: what a forward has raised; without one, only tensors without values count, since others may do.
        """
        for row in self.originals:
            if row.is_displaced() and (error is not None or row.slot.read().device.type == "meta"):
                names = {id(module): name for name, module in modules_of(self.model)}
                around = names.get(id(row.slot.module), "")
                name = qualified(around, row.slot.name)
                raise OffloadError(
                    f"'{name}' lies on {row.slot.read().device}, but its module runs on {row.execution_device}: it was moved or replaced after "
                    "dispatching; move it back, or call planner.dispatch(model, plan) again",
                    name=name,
                ) from error
        if error is not None:
            try:
                require_values(self.model, [])
            except OffloadError as found:
                raise found from error
            self._require_nothing_new(error)

    def _require_nothing_new(self, error: RuntimeError) -> None:
        """Raises OffloadError for a tensor that is new in a block and does not lie where that runs."""
        known = {(id(row.slot.table), row.slot.name) for row in self.originals}
        blocks = {
            id(forward.module): forward.hook.execution_device
            for forward in self.forwards
            # What the whole model itself uses is brought together there, wherever it lies.
            if forward.module is not self.model
        }
        execution_device: dict[str, torch.device | None] = {}
        for name, module in modules_of(self.model):
            device = execution_device[name] = blocks.get(id(module)) or execution_device.get(
                name.rpartition(".")[0]
            )
            for slot in own_slots(module) if device is not None else ():
                found = slot.read()
                if (id(slot.table), slot.name) not in known and found.dim() and found.device != device:
                    shown = f"{name}.{slot.name}"
                    raise OffloadError(
                        f"'{shown}' lies on {found.device}, but the module around it runs on {device}: it was put in after "
                        "dispatching; move it there, or call planner.dispatch(model, plan) again",
                        name=shown,
                    ) from error

    def remove(self, journal: Journal, tensors: Literal["stay", "leave", "return"] = "stay") -> None:
        """Takes everything off; resting tensors return to their slots.

        Args:
            journal: where changes are written down.
            tensors: "leave" leaves those in files there, for a dispatch that comes next; "return" moves all of them to where they lay
                before the first dispatch.
        """
        for offloaded_module in self.offloaded_modules():
            if offloaded_module.is_live:
                name = offloaded_module.store.names[0]
                raise OffloadError(
                    f"'{name}' is in use: the model runs just now; wait until its forward has ended",
                    name=name,
                )
        alike: set[int] = set()
        for tie in self.ties:
            tie.settle()
            if tensors == "return":
                alike.update(map(id, tie.require_one_tensor()))
        apart = [row.is_apart() for row in self.originals]
        made: dict[int, Any] = {}
        for offloaded_module in self.offloaded_modules():
            store = offloaded_module.store
            devices = _resting_devices(store, leaves_files=tensors == "leave")
            for slot, tensor in store.restored(devices, made, journal, is_whole=tensors == "return"):
                journal.set(slot.table, slot.name, tensor)
            store.leave(journal)
        if tensors == "return":
            self._bring_back(journal)
        if tensors == "return":
            self._send_back(journal, apart, alike)
        self._take_off(journal)
        refresh_flat_weights(self.model, journal)
        journal.remove(self.model.__dict__, RECORD)

    def _bring_back(self, journal: Journal) -> None:
        """Weights in files whose hooks others have taken off."""
        made: dict[int, Any] = {}
        for slot in (row.slot for row in self.originals):
            found = slot.read()
            if isinstance(found, PlaceholderTensor) and found.rests_in is not None:
                if id(found) not in made:
                    value = found.rests_in.value(found.offloaded_name) if found.kept is None else found.kept
                    value = value.detach() if has_own_memory(value) else value.detach().clone()
                    made[id(found)] = like_parameter(found, value)
                journal.set(slot.table, slot.name, made[id(found)])

    def _take_off(self, journal: Journal) -> None:
        """What is installed in modules, last first."""
        for forward in reversed(self.forwards):
            journal.remove(_readers_of(forward.module), _SETTLING)
            table = forward.module.__dict__
            is_ours = table.get("_hf_hook") is forward.hook
            forward.take_off(journal)
            if is_ours:
                journal.remove(table, "_hf_hook")
                _unhook(forward.module, journal)
            Recomputing.end(forward.module, journal)
        for override in reversed(self.overrides):
            override.take_off(journal)
        for offloaded_module in self.offloaded_modules():
            # A hook that a later one was appended to was attached anew, and has installed its own.
            for slot in offloaded_module.store.slots:
                pickling = Pickling.of(slot.module)
                if pickling is not None and pickling.offloaded_module is offloaded_module:
                    pickling.take_off(journal)
        for model, *device_maps in self.device_maps:
            journal.put_back(model.__dict__, _DEVICE_MAP, *device_maps)

    def close(self, tensors: Literal["stay", "return"] = "stay") -> None:
        """After a removal: an old forward that is still called is that of the module as it is now.

        Args:
            tensors: "return" moves what lies in pinned memory to ordinary memory.
        """
        for tie in self.ties:
            tie.close()
        for forward in self.forwards:
            hook = forward.hook
            for offloaded_module in hook.offloaded_modules:
                if tensors == "return":
                    offloaded_module.store.unpin()
                offloaded_module.close()
            hook.offloaded_modules, hook.inner = (), ()
            if hook.prefetcher is not None:
                hook.prefetcher.close()
            hook.execution_device, hook.io_same_device, hook.prefetcher = None, False, None

    def _send_back(self, journal: Journal, apart: list[bool], alike: set[int]) -> None:
        made: Made = {}
        first: dict[int, Any] = {}
        for row, is_apart in zip(self.originals, apart, strict=True):
            slot, device, tensor = row.slot, row.device, row.slot.read()
            if tensor is None or device.type == "meta" or tensor.is_meta:
                continue
            if is_apart:
                other = first.setdefault(row.group, tensor)
                # Copies of one tie were compared before anything was moved; what came from files was not.
                tensor = other if {id(tensor), id(other)} <= alike else joined(tensor, other)
            send(journal, slot, tensor, device, made)
        self._send_new(journal, made)

    def _send_new(self, journal: Journal, made: Made) -> None:
        """What the model has made or got while it was dispatched goes where its neighbours go."""
        for slot, device in self.new_slots():
            tensor = slot.read()
            if not tensor.is_meta:
                send(journal, slot, tensor, device, made)

    def new_slots(self) -> Iterator[tuple[Slot, torch.device]]:
        """Slots that were filled since the dispatch, and where their neighbours lay before it."""
        originals = {(id(row.slot.table), row.slot.name): row.device for row in self.originals}
        usual = next(iter(originals.values()), None)
        for _, module in modules_of(self.model):
            slots = list(own_slots(module))
            known = [originals.get((id(slot.table), slot.name)) for slot in slots]
            beside = next((device for device in known if device is not None), usual)
            for slot, device in zip(slots, known, strict=True):
                if device is None and beside is not None and beside.type != "meta":
                    yield slot, beside


def _unhook(module: nn.Module, journal: Journal) -> None:
    """Takes off what calls the hook of a module, where that was attached anew since the dispatch."""
    hooked = [forward for forward in forwards_of(module) if isinstance(forward, Hooked)]
    for forward in hooked:
        forward.take_off(journal)
    if hooked:
        restore_forward(module, journal)


_SETTLING = "planner"


def _readers_of(module: nn.Module) -> Any:
    """What torch calls before it makes a state dict."""
    return module._state_dict_pre_hooks


def settle(module: nn.Module, _prefix: str = "", _keep_vars: bool = False) -> None:
    """Brings copies of one tensor along that a module knows of; called by torch before it makes a state dict."""
    for forward in forwards_of(module):
        for tie in getattr(forward.hook, "ties", ()):
            tie.settle()


def refresh_flat_weights(model: nn.Module, journal: Journal) -> None:
    """Recurrent modules read their weights from a list of their own."""
    for _, module in modules_of(model):
        if "_flat_weights" in module.__dict__:
            journal.set(module.__dict__, "_flat_weights", flat_weights(module))


def _resting_devices(store: OffloadStore, *, leaves_files: bool) -> dict[str, torch.device]:
    """By key, where each tensor of a module shall lie once it is back; those in files are not read for that."""
    in_file = torch.device("meta" if leaves_files else "cpu")
    return {
        key: in_file if store.is_in_file(index) else store.value(index).device
        for index, key in enumerate(store.keys)
    }


def is_part(model: nn.Module) -> bool:
    """Whether a model that is not dispatched itself is a part of a larger one that is."""
    forwards = [installed(module) for _, module in modules_of(model)]
    return any(forward is not None and _belongs(forward) for forward in forwards)


def _belongs(forward: Forward) -> bool:
    return forward.membership is not None and forward.membership.is_alive()


def dispatched_models(model: nn.Module) -> list[Dispatched]:
    """What is installed in a model and in models inside it, and in modules that were copied from such into it."""
    modules = [module for _, module in modules_of(model)]
    found: list[Dispatched] = [module.__dict__[RECORD] for module in modules if RECORD in module.__dict__]
    known = {id(forward) for dispatched in found for forward in dispatched.forwards}
    strays = Dispatched(model)
    for module in modules:
        forward = installed(module)
        if forward is None or type(forward) is Hooked or id(forward) in known or _belongs(forward):
            continue
        strays.forwards.append(forward)
        overrides: tuple[Override | None, ...] = (
            Conversion.of(module),
            Pickling.of(module),
            AdapterLoading.of(module),
        )
        strays.overrides.extend(override for override in overrides if override is not None)
    return [*found, strays] if strays.forwards else found
