"""Which parts of blocks keep nothing from one forward to the next, so that they may run beside their block: the MLP, or the experts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from planner.model.blocks import Blocks

__all__ = ["runs_anywhere", "stateless_parts"]

_LEAST_SHARE: Final = 5
"""A part is at least a fifth of its block: smaller ones are not worth what passes to them and back."""

_MOST_OF_IT: Final = (4, 5)
"""A module that is nearly all of another stands for it: experts for the MLP that also has their router."""

_STATEFUL: Final = re.compile(
    r"(?i:attention|attn|mixer|mamba|recurrent|delta|retention|retnet|rwkv|hyena|timemix|rotary|embedding)"
    r"|SSM|Conv[1-3]d|RNN|LSTM|GRU|Cache|Memory"
)
"""In the names of classes that have a cache, or something like one; whatever has such a module inside stays with its block. The
``Conv1D`` of GPT-2 is a linear layer."""

_CONTAINERS: Final = frozenset(("ModuleList", "ModuleDict"))


def stateless_parts(blocks: Blocks) -> tuple[str, ...]:
    """Modules inside of blocks that keep nothing, none inside of another.

    Args:
        blocks: the model, cut into blocks.

    Returns:
        In the order of the tree. Children of a block of at least a fifth of its bytes, without a module inside whose class, or any
        base of it, has a name as of attention, recurrence or convolution. Where one module is nearly all of such a child, that module.

    Guarantee: only of blocks with such a module, which keeps something of each block in its place; others run anywhere as they are.

    Cost: O(modules).
    """
    sizes, classes = blocks.layout.stored_sizes(), dict(blocks.layout.tree.columns.module_classes())
    children, kept = _children(classes), _with_state(blocks, classes)
    names = (name for block in blocks.columns.block_names() for name in block if name in kept)
    return tuple(part for name in names for part in _parts_of(name, sizes, children, kept))


def runs_anywhere(blocks: Blocks) -> frozenset[str]:
    """Of the blocks that are modules, those without such a module inside: what they compute may be computed elsewhere."""
    classes = dict(blocks.layout.tree.columns.module_classes())
    kept = _with_state(blocks, classes)
    names = (name for block in blocks.columns.block_names() for name in block)
    return frozenset(name for name in names if name in classes and name not in kept)


def _with_state(blocks: Blocks, classes: Mapping[str, str]) -> set[str]:
    """Modules that keep something, or have one inside that does."""
    bases = dict(blocks.layout.tree.columns.class_bases())
    stateful = {
        cls for cls in set(classes.values()) if any(map(_STATEFUL.search, (cls, *bases.get(cls, ()))))
    }
    return _with_stateful(classes, stateful)


def _parts_of(
    block: str, sizes: Mapping[str, int | float], children: Mapping[str, Sequence[str]], stateful: set[str]
) -> list[str]:
    whole = sizes.get(block, 0)
    return [
        _narrowed(child, sizes, children)
        for child in children.get(block, ())
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


def _children(classes: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """By module, those inside that its forward calls: what lists hold counts as children of what has the list."""
    found: dict[str, list[str]] = {}
    for name, cls in classes.items():
        if cls in _CONTAINERS:
            continue
        outer = name.rpartition(".")[0]
        while classes.get(outer) in _CONTAINERS:
            outer = outer.rpartition(".")[0]
        found.setdefault(outer, []).append(name)
    return found


def _with_stateful(classes: Mapping[str, str], stateful: set[str]) -> set[str]:
    """Modules that are of such a class, or have one inside."""
    found: set[str] = set()
    for name, cls in classes.items():
        if cls in stateful:
            while name and name not in found:
                found.add(name)
                name = name.rpartition(".")[0]
    return found
