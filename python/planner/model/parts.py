"""Which parts of blocks keep nothing from one forward to the next, so that they may run beside their block: the MLP, or the experts."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

from planner.model.blocks import Blocks

__all__ = ["runs_anywhere", "stateless_parts"]

_LEAST_SHARE: Final = 5
"""A part is at least a fifth of its block: smaller ones are not worth what passes to them and back."""

_MOST_OF_IT: Final = (4, 5)
"""A module that is nearly all of another stands for it: experts for the MLP that also has their router."""


def stateless_parts(blocks: Blocks) -> tuple[str, ...]:
    """Modules inside of blocks that keep nothing, none inside of another.

    Args:
        blocks: the model, cut into blocks.

    Returns:
        In the order of the tree. Children of a block of at least a fifth of its bytes, without a module inside whose class, or any
        base of it, has a name as of attention, recurrence or convolution. Where one module is nearly all of such a child, that module.

    Guarantee: only of blocks with such a module inside, which keeps something of each block in its place; others run anywhere as they
        are, and attention that is a block of its own stays whole.

    Cost: O(modules).
    """
    modules = blocks.layout.modules
    children, kept = modules.children, modules.with_state
    names = (name for name in blocks.names if name in kept)
    return tuple(part for name in names for part in _parts_of(name, modules.sizes, children, kept))


def runs_anywhere(blocks: Blocks) -> frozenset[str]:
    """Of the blocks that are modules, those without such a module inside: what they compute may be computed elsewhere."""
    modules = blocks.layout.modules
    classes, kept = modules.classes, modules.with_state
    return frozenset(name for name in blocks.names if name in classes and name not in kept)


def _parts_of(
    block: str,
    sizes: Mapping[str, int | float],
    children: Mapping[str, Sequence[str]],
    stateful: Container[str],
) -> list[str]:
    whole, inside = sizes.get(block, 0), children.get(block, ())
    if not any(child in stateful for child in inside):
        return []  # attention by itself, of which a projection is no part that is called alone
    return [
        _narrowed(child, sizes, children)
        for child in inside
        if child not in stateful and sizes.get(child, 0) * _LEAST_SHARE >= whole > 0
    ]


def _narrowed(name: str, sizes: Mapping[str, int | float], children: Mapping[str, Sequence[str]]) -> str:
    """The module, or the one inside that is nearly all of it, while something of it would stay."""
    share, of = _MOST_OF_IT
    while True:
        whole = sizes[name]
        inner = [
            each for each in children.get(name, ()) if whole * share <= sizes.get(each, 0) * of < whole * of
        ]
        if not inner:
            return name
        name = inner[0]
