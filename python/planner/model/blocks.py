"""A layout cut into units."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from planner import _core
from planner.choices import BlockGranularity
from planner.model.globs import unknown_names
from planner.model.layout import Layout


class Blocks:
    """Units of a model: blocks that are placed as a whole, joined where they share tensors or are kept together.

    Args:
        layout: the model.
        granularity: "block", or "expert" for each numbered expert inside a block.
        no_split: paths of modules that stay whole.
        split: paths of blocks that are taken apart all the same.
        apart: paths of modules that are blocks of their own where they lie inside a block, and leave the rest of it another.
        keep_together: groups of paths that share a device.

    Guarantee: immutable.

    Cost: O(modules + tensors).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        granularity: BlockGranularity = "block",
        no_split: Iterable[str] = (),
        split: Iterable[str] = (),
        apart: Iterable[str] = (),
        keep_together: Iterable[Iterable[str]] = (),
    ) -> None:
        self.layout = layout
        self.granularity = granularity
        parts = list(apart)
        self.apart = frozenset(parts)
        self.columns = _core.Blocks(
            layout.columns,
            granularity=granularity,
            no_split=list(no_split),
            split=list(split),
            apart=parts,
            keep_together=[list(names) for names in keep_together],
        )

    @cached_property
    def unit_names(self) -> tuple[tuple[str, ...], ...]:
        """The modules and tensors of each unit."""
        return tuple(map(tuple, self.columns.unit_names()))

    @cached_property
    def unit_bytes(self) -> tuple[int, ...]:
        """Stored bytes of each unit, rounded up."""
        return tuple(-(-bits // 8) for bits in self.columns.unit_bits())

    @cached_property
    def fused_experts(self) -> tuple[tuple[str, int], ...]:
        """Modules, with their units, that were to be taken apart by expert, and hold all experts in one tensor."""
        return tuple(self.columns.fused_experts()) if self.granularity == "expert" else ()

    @cached_property
    def block_names(self) -> tuple[tuple[str, ...], ...]:
        """The modules and tensors of each block, in the order of execution."""
        return tuple(map(tuple, self.columns.block_names()))

    @cached_property
    def block_units(self) -> tuple[int, ...]:
        """The unit of each block; -1 for one without a name."""
        names = [block[0] if block else "" for block in self.block_names]
        return tuple(found[0] if found else -1 for found in self.columns.units_of(names))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The modules and tensors of all blocks, in the order of execution."""
        return tuple(name for block in self.block_names for name in block)

    @property
    def block_count(self) -> int:
        """Blocks, before anything joins them."""
        return self.columns.block_count

    def unit_name(self, unit: int) -> str:
        """A name for a unit: that of its first module or tensor."""
        names = self.unit_names[unit]
        return names[0] if names else ""


def expand_classes(layout_tree: _core.Tree, names: Iterable[str]) -> list[str]:
    """Names of the model's classes that are, or derive from, one of the classes named.

    Raises:
        InvalidConstraintError: the model has no such class. Fields: ``names``, ``suggestions``.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return []
    derived, unknown = layout_tree.derived_classes(wanted)
    if unknown:
        known = sorted({name for name, _ in layout_tree.class_bases()})
        raise unknown_names("no module of the model is of class", unknown, known)
    return derived
