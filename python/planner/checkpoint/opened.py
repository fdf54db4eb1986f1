"""A tree from a source, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.choices import SourceKind
from planner.config.layer import Layer
from planner.model.layout import Layout
from planner.model.tree import ModuleTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A tree, and where it is from.

    Args:
        tree: modules and tensors.
        kind: a live "module", the files of a "checkpoint", or a "config" alone.
        facts: what the model's configuration says of it, read when it was opened; None where it has none.
        notes: what a reader of the plan should know of its names and sizes.
        stored: the tensors of the files, where they are not the tree itself.
        fixed_bits: of tensors whose size in memory is known whatever dtype is asked for, by name.
    """

    tree: ModuleTree
    kind: SourceKind
    facts: Layer | None = None
    notes: tuple[str, ...] = ()
    stored: ModuleTree | None = None
    fixed_bits: Mapping[str, int] = field(default_factory=dict)

    def sizes(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> dict[str, int]:
        """Bits of single tensors that the tree itself does not know: those that the files hold for a live model, and those
        that are fixed."""
        if self.stored is None:
            return dict(self.fixed_bits)
        known = self.stored.uncovered((), "saved")[1]
        special = {name: special_dtypes[name] for name in known if name in special_dtypes}
        sizes = Layout(self.stored, dtype=dtype, special_dtypes=special).stored_sizes()
        return {name: int(sizes[name] * 8) for name in known if name in sizes}
