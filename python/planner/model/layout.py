"""A tree read with options: everything about a plan that does not depend on budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from planner import _core
from planner.choices import Dialect
from planner.errors import InvalidInputError
from planner.model.dtypes import element_bits
from planner.model.modules import Modules
from planner.model.tree import ModuleTree
from planner.names import require_texts
from planner.spelling import shown

__all__ = ["BalanceFacts", "Layout", "bits_to_bytes", "repeated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceFacts:
    """Sizes in bytes from which the dialects make balanced budgets."""

    total_bytes: int | float
    first_no_split_bytes: int | float
    largest_no_split_bytes: int | float
    final_modules_bytes: int | float
    final_module_count: int
    largest_direct_bytes: int | float


class Layout:
    """A tree read with certain options: everything about a plan that does not depend on budgets.

    Args:
        tree: the flattened model.
        no_split: exact class names of modules that must stay on one device.
        dtype: what the weights will be loaded as; floating-point tensors are counted in it.
        special_dtypes: the same for single tensors, by name.
        dialect: whose rules are followed where accelerate and transformers differ.
        sizes: bits of single tensors by name, when the tree cannot know them (a quantizer does).
        tied: names that are one tensor or will be, group by group; None goes by object identity alone.
        uncounted: names among them that the dialect does not count.
        exempt: names, relative to a no-split module, of tensors that need no place when the module must be taken apart.
        containers: names of modules that may be split, whatever their class.

    Raises:
        InvalidTreeError: more bytes than can be planned.
        InvalidInputError: a dtype that torch does not have, or ``special_dtypes`` that is no mapping.
        InvalidConstraintError: a name in ``special_dtypes`` that is no text. Fields: ``names``.

    Guarantee: immutable, safe to share between threads.

    Cost: O(modules + tensors).
    """

    __slots__ = ("_modules", "columns", "tree")

    def __init__(
        self,
        tree: ModuleTree,
        *,
        no_split: Iterable[str] = (),
        dtype: Any = None,
        special_dtypes: Mapping[str, Any] | None = None,
        dialect: Dialect = "accelerate",
        sizes: Mapping[str, int] | None = None,
        tied: Sequence[Sequence[str]] | None = None,
        uncounted: Iterable[str] = (),
        exempt: Iterable[str] = (),
        containers: Iterable[str] = (),
    ) -> None:
        special = {name: element_bits(value) for name, value in _checked_dtypes(special_dtypes).items()}
        self._modules: Modules | None = None
        self.tree = tree
        self.columns = _core.Layout(
            tree.columns,
            no_split=list(no_split),
            dialect=dialect,
            cast=None if dtype is None else element_bits(dtype),
            special=[(name, formula, stored) for name, (formula, stored) in special.items()],
            sizes=list((sizes or {}).items()),
            tied=None if tied is None else [list(group) for group in tied],
            uncounted=list(uncounted),
            exempt=list(exempt),
            containers=list(containers),
        )

    @property
    def has_ties(self) -> bool:
        """Whether any parameter has two names."""
        return self.columns.tied_group_count > 0

    @property
    def has_no_split(self) -> bool:
        """Whether any module, the root included, is of a no-split class."""
        return self.columns.no_split_count > 0

    @property
    def modules(self) -> Modules:
        """Its modules by name; read once."""
        if self._modules is None:
            self._modules = Modules(self.tree, self.stored_sizes())
        return self._modules

    def tied_groups(self) -> list[list[str]]:
        """Names of each parameter that has several, sorted; groups in the order in which a second name is met."""
        return self.columns.tied_groups()

    def stored_sizes(self, counted: Literal["all", "buffers"] = "all") -> dict[str, int | float]:
        """Stored bytes of every module and tensor by name, each tensor where it is met first; "" is the whole.

        Args:
            counted: which tensors.

        Cost: O(modules + tensors).
        """
        # As bits_to_bytes, without a call for each of thousands.
        return {
            name: bits / 8 if bits & 7 else bits >> 3 for name, bits in self.columns.stored_sizes(counted)
        }

    def balance_facts(self) -> BalanceFacts:
        """Sizes for balanced budgets. Cost: O(modules + tensors)."""
        facts = self.columns.balance_facts()
        return BalanceFacts(
            total_bytes=bits_to_bytes(facts.total_bits),
            first_no_split_bytes=bits_to_bytes(facts.first_no_split_bits),
            largest_no_split_bytes=bits_to_bytes(facts.largest_no_split_bits),
            final_modules_bytes=bits_to_bytes(facts.final_modules_bits),
            final_module_count=facts.final_module_count,
            largest_direct_bytes=bits_to_bytes(facts.largest_direct_bits),
        )


def _checked_dtypes(special_dtypes: Any) -> Mapping[str, Any]:
    if special_dtypes is None:
        return {}
    if not isinstance(special_dtypes, Mapping):
        raise InvalidInputError(
            f"special_dtypes must map names of tensors to element types; got {shown(special_dtypes)}"
        )
    require_texts(special_dtypes, "special_dtypes")
    return special_dtypes


def repeated(tree: ModuleTree) -> tuple[list[str], list[str]]:
    """The blocks of a model that names none.

    Modules of one class with one parent repeat if they are numbered, or have modules inside. A container has no forward of
    its own: ``Sequential``, ``ModuleList``, ``ModuleDict``, and what derives from them or from ``Module`` without one.

    Args:
        tree: the flattened model.

    Returns:
        Exact names of the classes whose modules repeat; and paths of what is outside of them and never a block: containers, and
        modules around others of their class that are too large to be one.

    Raises:
        InvalidTreeError: more bytes than can be planned.

    Cost: O(modules + tensors).

    Example:
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return self.linear(x)
        >>> repeated(ModuleTree.from_module(nn.Sequential(Block(), Block())))
        (['Block'], [])
    """
    lists, bare, is_known = tree.columns.without_forward()
    return Layout(tree).columns.repeated(lists, bare, not is_known)


def bits_to_bytes(bits: int) -> int | float:
    """Bytes as accelerate counts them: whole unless a bit remains."""
    return bits / 8 if bits % 8 else bits // 8
