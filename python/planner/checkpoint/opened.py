"""A tree from a source, and where it is from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from planner.checkpoint.stored_format import dtype_word, stored_format
from planner.choices import SourceKind
from planner.config.layer import Layer
from planner.model.dtypes import element_bits
from planner.model.layout import Layout
from planner.model.tree import ModuleTree

_MADE_OF: Final = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A tree, and where it is from.

    Args:
        tree: modules and tensors.
        kind: a live "module", the files of a "checkpoint", or a "config" alone.
        facts: what the model's configuration says of it, read when it was opened; None where it has none.
        notes: what a reader of the plan should know of its names and sizes.
        stored: the tensors of the files, where they are not the tree itself.
        named: what the model is called, where its class does not say it.
        quantization: what its configuration says of a quantiser.
        stored_as: how its weights are stored, where the files have a word for it.
        adapter: what changes it, such as a "LoRA".
        fixed_bits: of tensors whose size in memory is known whatever dtype is asked for, by name.
        made_elements: elements of tensors that no file has, because the class makes them, by name; they are of the weights' type.
        configuration: what its ``config.json`` says, or its live configuration; empty where it has none.
        live: the live model as long as somebody else keeps it, by a weak reference, so that no plan keeps it; None for files.
        head_notes: what to say where the weights of files have other heads than the configuration, which caches are computed from.
        tied: names that are one tensor once the model is loaded, group by group; None where the tree has its ties already.
    """

    tree: ModuleTree
    kind: SourceKind
    facts: Layer | None = None
    notes: tuple[str, ...] = ()
    stored: ModuleTree | None = None
    named: str = ""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    stored_as: str = ""
    adapter: str = ""
    fixed_bits: Mapping[str, int] = field(default_factory=dict)
    tied: Sequence[Sequence[str]] | None = None
    made_elements: Mapping[str, int] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    live: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    head_notes: Callable[[], tuple[str, ...]] = field(default=tuple, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What the model is called: by its folder or its repository; a live one by its class."""
        return self.named or self.tree.class_name

    def format(self, dtype: Any = None) -> str:
        """How its weights are stored, or will be once they are loaded as ``dtype``, as people say it."""
        tree = self.stored or self.tree
        said = self.stored_as or stored_format(tree.columns.bytes_by_dtype(), self.quantization, dtype)
        return f"{said} + {self.adapter}" if self.adapter else said

    def sizes(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> dict[str, int]:
        """Bits of single tensors that the tree itself does not know: those that the files hold for a live model, and those
        that are fixed."""
        if self.stored is None:
            return {**self.fixed_bits, **self._made_bits(dtype, special_dtypes)}
        known = self.stored.uncovered((), "saved")[1]
        special = {name: special_dtypes[name] for name in known if name in special_dtypes}
        sizes = Layout(self.stored, dtype=dtype, special_dtypes=special).stored_sizes()
        return {name: int(sizes[name] * 8) for name in known if name in sizes}

    def _made_bits(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> dict[str, int]:
        """Bits of the tensors that no file has."""
        if not self.made_elements:
            return {}
        stored = {dtype_word(name): size_bytes for name, size_bytes in self.tree.columns.bytes_by_dtype()}
        word = max(_MADE_OF, key=lambda name: stored.get(name, 0))  # the first, if there is none of them
        return {
            name: count * element_bits(special_dtypes.get(name, dtype or word))[1]
            for name, count in self.made_elements.items()
        }
