"""The weights of one module in files, as other libraries read them at its hook: with what took the place of some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.dispatching.offload.weight_files import PrefixedDataset
from planner.dispatching.tensors.placeholder import PlaceholderTensor

__all__ = ["ShownWeights"]


class ShownWeights(PrefixedDataset):
    """A dataset that gives the values that its module has now, also where a forward, or a merge, has changed them.

    Args:
        dataset: the weights in files.
        prefix: what is put before a key.
    """

    # Those that hold the values that took the place of those in the files, by key.
    placeholders: Mapping[str, PlaceholderTensor] = {}

    def __getitem__(self, key: str) -> Any:
        placeholder = self.placeholders.get(key)
        kept = None if placeholder is None else placeholder.kept
        return super().__getitem__(key) if kept is None else kept

    def __getstate__(self) -> dict[str, Any]:
        # A copy gets those of its module.
        return {"dataset": self.dataset, "prefix": self.prefix}
