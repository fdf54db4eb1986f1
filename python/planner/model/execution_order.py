"""In which order a forward runs blocks, and which of them are of one layer."""

from __future__ import annotations

from collections.abc import Sequence

from planner.model.blocks import Blocks
from planner.names import nearest_key

__all__ = ["callers_of", "execution_order"]

_ROTARY = "Rotary"


def execution_order(blocks: Blocks) -> Sequence[int]:
    """Numbers of the blocks in the order in which a forward runs them.

    Args:
        blocks: the model; they stand in the order in which its modules are registered.

    Returns:
        That order, but for tables of rotation that all layers share: models register them last, and make them of what the embedding
        gives, before any layer.

    Cost: O(blocks).
    """
    classes, count = blocks.layout.modules.classes, blocks.block_count
    early = [
        number
        for number, names in enumerate(blocks.block_names)
        if number and names and all(_ROTARY in classes.get(name, "") for name in names)
    ]
    if not early:
        return range(count)
    others = [number for number in range(count) if number not in early]
    return [others[0], *early, *others[1:]] if others else early


def callers_of(blocks: Blocks, layers: Blocks) -> Sequence[int]:
    """By block, the number of the one from which its layer is run; its own, where it is a layer, or of none.

    Args:
        blocks: the model, layers of which may be cut.
        layers: the model in whole layers.

    Returns:
        Of the parts of a layer, the first that does not lie apart: what it calls gives its result back to it.

    Cost: O(blocks).
    """
    if blocks.block_count == layers.block_count:
        return range(blocks.block_count)
    owner = {name: number for number, names in enumerate(layers.block_names) for name in names}
    first: dict[int, int] = {}
    of_block: list[int | None] = []
    for number, names in enumerate(blocks.block_names):
        layer = nearest_key(names[0], owner) if names else None
        of_block.append(None if layer is None else owner[layer])
        if layer is not None and not blocks.apart.issuperset(names):
            first.setdefault(owner[layer], number)
    return [number if layer is None else first.get(layer, number) for number, layer in enumerate(of_block)]
