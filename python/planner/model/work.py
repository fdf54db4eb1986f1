"""What each block of a model reads and computes in one step, by its modules: bytes of weights, and operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.model.blocks import Blocks
from planner.model.layout import Layout
from planner.names import nearest_key

__all__ = ["BlockWork", "Experts", "work_of"]

_EMBEDDING: Final = "Embedding"
_EXPERTS: Final = "experts"


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture's router.

    Args:
        count: experts that it chooses from.
        chosen: of these, how many one token is sent to.
    """

    count: int
    chosen: int

    def touched(self, size: int, tokens: int) -> int:
        """Of so many bytes of all experts, what a step of so many tokens is expected to read, rounded up.

        A token chooses each expert with the same chance, and independently of the others: it misses one with ``1 - chosen/count``.
        In whole numbers, because powers of floats differ between machines.
        """
        if tokens >= self.count * size.bit_length():
            return size  # what is missed comes to less than a byte: (1 - chosen/count)^tokens <= 2^-(tokens/count)
        missed: int = (self.count - self.chosen) ** tokens
        ways: int = self.count**tokens
        return size - size * missed // ways


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """One block in one step.

    Args:
        weight_bytes: what it holds; a tied tensor counts where it is met first.
        touched_bytes: what of weights the step reads, its own and those that others hold for it.
        flops: operations on them.
        modules: how many modules of it have tensors of their own: each starts kernels.
        expert_bytes: what of its weights are experts, which a step reads as far as it chooses them.
    """

    weight_bytes: int
    touched_bytes: int
    flops: int
    modules: int = 1
    expert_bytes: int = 0

    def in_step(self, tokens: int, *, of: int, experts: Experts | None) -> BlockWork:
        """The same in a step of so many new tokens, of which nothing is an embedding.

        Args:
            of: the tokens of the step that this is the work in.
            experts: as of :func:`work_of`.

        Guarantee: with more tokens, no number is less.
        """
        if tokens == of:
            return self
        touched_bytes = self.touched_bytes
        if experts is not None and self.expert_bytes:
            touched_bytes += experts.touched(self.expert_bytes, tokens) - experts.touched(
                self.expert_bytes, of
            )
        return replace(self, touched_bytes=touched_bytes, flops=self.flops // of * tokens)


def work_of(
    blocks: Blocks,
    tokens: int,
    *,
    weight_bits: int,
    experts: Experts | None = None,
    row_bytes: int | None = None,
) -> tuple[BlockWork, ...]:
    """The work of each block.

    Args:
        blocks: the model.
        tokens: new tokens of the step, over all sequences.
        weight_bits: of one element of its weights.
        experts: of a mixture; without it, all experts count as read by every step.
        row_bytes: one row of an embedding; without it, embeddings count as read whole.

    Returns:
        In the order of ``blocks.columns.block_names()``. A weight is multiplied with every token and counts two operations each; an
        embedding's rows are copied, and count none; of experts, each token meets those that it is sent to.

    Cost: O(modules + tensors).
    """
    layout, block_names = blocks.layout, blocks.columns.block_names()
    sizes, classes = layout.stored_sizes(), dict(layout.tree.columns.module_classes())
    bases = {name: {name, *more} for name, more in layout.tree.columns.class_bases()}
    embeddings = [name for name, cls in classes.items() if _EMBEDDING in bases.get(cls, {cls})]
    groups = _outermost(name for name in classes if name.rpartition(".")[2] == _EXPERTS)
    owner = {name: number for number, names in enumerate(block_names) for name in names}
    rows, mixed = _by_block(embeddings, sizes, owner), _by_block(groups, sizes, owner)
    lent = _lent(layout, set(embeddings), sizes, owner)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in sizes if name and name not in classes)
    counted = Counter(owner[block] for name in owners if (block := nearest_key(name, owner)) is not None)
    counted.update(number for number in lent if number not in counted)  # a head whose only weight is lent

    def one(number: int, names: Sequence[str]) -> BlockWork:
        size, row, mix = (
            int(sum(sizes.get(name, 0) for name in names)),
            rows.get(number, 0),
            mixed.get(number, 0),
        )
        always = max(0, size - row - mix) + lent.get(number, 0)
        read = row if row_bytes is None else min(row, row_bytes * tokens)
        touched = always + read + (mix if experts is None else experts.touched(mix, tokens))
        chosen = mix if experts is None else -(-mix * experts.chosen // experts.count)
        elements = (always + chosen) * 8 // weight_bits
        return BlockWork(
            weight_bytes=size,
            touched_bytes=touched,
            flops=2 * tokens * elements,
            modules=counted[number],
            expert_bytes=mix,
        )

    return tuple(one(number, names) for number, names in enumerate(block_names))


def _outermost(names: Iterable[str]) -> Sequence[str]:
    """Names that are below no other of them."""
    kept: dict[str, None] = {}
    for name in sorted(names, key=lambda name: name.count(".")):
        if nearest_key(name, kept) is None:
            kept[name] = None
    return tuple(kept)


def _by_block(
    names: Iterable[str], sizes: Mapping[str, int | float], owner: Mapping[str, int]
) -> dict[int, int]:
    """Bytes of some modules by the block that they are, or lie inside of."""
    found: Counter[int] = Counter()
    for name in names:
        block = nearest_key(name, owner)
        if block is not None:
            found[owner[block]] += int(sizes.get(name, 0))
    return found


def _lent(
    layout: Layout, embeddings: Container[str], sizes: Mapping[str, int | float], owner: Mapping[str, int]
) -> dict[int, int]:
    """Bytes that a block multiplies with and another holds for it: those of a head that is tied to the embedding."""
    found: Counter[int] = Counter()
    for group in layout.tied_groups():
        size = max((int(sizes.get(name, 0)) for name in group), default=0)
        for name in group:
            block = nearest_key(name, owner)
            # Where the tensor is met first its bytes are among the block's own.
            if block is not None and not sizes.get(name) and name.rpartition(".")[0] not in embeddings:
                found[owner[block]] += size
    return found
