"""Which tensor belongs in a slot, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from planner.dispatching.hooks.align import aligns
from planner.dispatching.hooks.place import named_slots
from planner.dispatching.install.record import Dispatched
from planner.dispatching.offload.weight_files import OffloadedWeightsLoader, PrefixedDataset
from planner.dispatching.tensors.placeholder import PlaceholderTensor
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.tensors.slots import Slot, modules_of
from planner.dispatching.tensors.ties import Tie
from planner.errors import OffloadError

__all__ = ["OffloadedWeights", "TensorLookup"]


class OffloadedWeights(dict[str, Any], PrefixedDataset):
    """Offloaded tensors of one module by local name; to other libraries, a dataset with an empty prefix."""

    def __init__(self, rows: Iterable[tuple[str, Any]] = ()) -> None:
        dict.__init__(self, rows)
        self.prefix = ""

    def is_in_file(self, key: str) -> bool:
        """They are in memory."""
        return False

    @property
    def dataset(self) -> OffloadedWeightsLoader:  # type: ignore[override]
        """The same as a loader; other libraries look for its ``index``."""
        return OffloadedWeightsLoader(state_dict=self)


class TensorLookup:
    """Which tensor belongs in a slot, whether it lies there or elsewhere.

    Args:
        model: a model, dispatched or with hooks that were attached by hand or by accelerate.
        engaged: what is installed in it.
    """

    def __init__(self, model: nn.Module, engaged: Iterable[Dispatched]) -> None:
        self._rows: dict[tuple[int, str], RestingPlace] = {}
        for _, module in modules_of(model):
            for hook in _hooks_of(module):
                if aligns(hook) and hook.offload and hook.weights_map is not None:
                    for name, slot in named_slots(module, recurse=hook.place_submodules):
                        row = (id(slot.table), slot.name)
                        self._rows.setdefault(row, RestingPlace(hook.weights_map, name))
        self._ties: list[Tie] = []
        for dispatched in engaged:
            self._ties.extend(dispatched.ties)
            for store in (offloaded_module.store for offloaded_module in dispatched.offloaded_modules()):
                for index, slot in enumerate(store.slots):
                    self._rows[id(slot.table), slot.name] = store.resting_place(index)

    def value(self, slot: Slot) -> Any:
        """The tensor.

        Raises:
            OffloadError: a placeholder of no dispatch of this model, or copies on several devices that are no longer one tensor. Fields:
                ``name``.
        """
        for tie in self._ties:
            tie.settle()
        found = slot.read()
        if not found.is_meta:
            return found
        kept = getattr(found, "kept", None)
        if kept is not None:
            return kept
        row = self.resting_place(slot)
        name = getattr(found, "offloaded_name", slot.name)
        if row is not None:
            return row.value(name)
        if isinstance(found, PlaceholderTensor):
            raise OffloadError(
                f"'{name}' is a placeholder of a dispatch that this model is not part of", name=name
            )
        return found

    def resting_place(self, slot: Slot) -> RestingPlace | None:
        """Where the values of a tensor rest, as its hook says or, where that is gone, its placeholder; None if nobody knows."""
        row = self._rows.get((id(slot.table), slot.name))
        return getattr(slot.read(), "rests_in", None) if row is None else row


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    hook = module.__dict__.get("_hf_hook")
    return getattr(hook, "hooks", None) or (hook,)
