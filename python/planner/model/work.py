"""What each block of a model reads and computes in one step, by its modules: bytes of weights, and operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.model.blocks import Blocks
from planner.model.modules import Modules
from planner.names import nearest_key

__all__ = ["BlockWork", "Experts", "work_of"]


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
        In the order of ``blocks.block_names``. A weight is multiplied with every token and counts two operations each; an
        embedding's rows are copied, and count none; of experts, each token meets those that it is sent to.

    Cost: O(modules + tensors).
    """
    modules, block_names = blocks.layout.modules, blocks.block_names
    sizes, lent = modules.sizes, _lent(blocks)
    embedded, holders = modules.embedding_bytes, modules.holders
    made: dict[tuple[int, ...], BlockWork] = {}  # most blocks of a model are alike

    def one(size: int, row: int, mix: int, borrowed: int, counted: int) -> BlockWork:
        always = max(0, size - row - mix) + borrowed
        read = row if row_bytes is None else min(row, row_bytes * tokens)
        touched = always + read + (mix if experts is None else experts.touched(mix, tokens))
        chosen = mix if experts is None else -(-mix * experts.chosen // experts.count)
        elements = (always + chosen) * 8 // weight_bits
        return BlockWork(
            weight_bytes=size,
            touched_bytes=touched,
            flops=2 * tokens * elements,
            modules=counted,
            expert_bytes=mix,
        )

    works = []
    for number, names in enumerate(block_names):
        size, row, counted, borrowed = 0, 0, 0, lent.get(number, 0)
        for name in names:
            size += int(sizes.get(name, 0))
            row += embedded.get(name, 0)
            counted += holders.get(name, 0)
        # A head whose only weight is lent runs all the same.
        key = (size, row, _of_experts(modules, names), borrowed, counted or int(bool(borrowed)))
        found = made.get(key)
        if found is None:
            found = made[key] = one(*key)
        works.append(found)
    return tuple(works)


def _of_experts(modules: Modules, names: Sequence[str]) -> int:
    """What experts have of a block, which may be one of them."""
    if not modules.experts:
        return 0
    size = 0
    for name in names:
        is_within = nearest_key(name, modules.experts) is not None
        size += int(modules.sizes.get(name, 0)) if is_within else modules.expert_bytes.get(name, 0)
    return size


def _lent(blocks: Blocks) -> Mapping[int, int]:
    """Bytes that a block multiplies with and another holds for it: those of a head that is tied to the embedding."""
    groups = blocks.layout.tied_groups()
    if not groups:
        return {}
    sizes, embeddings = blocks.layout.modules.sizes, blocks.layout.modules.embeddings
    owner = {name: number for number, names in enumerate(blocks.block_names) for name in names}
    found: Counter[int] = Counter()
    for group in groups:
        size = max((int(sizes.get(name, 0)) for name in group), default=0)
        for name in group:
            block = nearest_key(name, owner)
            # Where the tensor is met first its bytes are among the block's own.
            if block is not None and not sizes.get(name) and name.rpartition(".")[0] not in embeddings:
                found[owner[block]] += size
    return found
