"""What is read for a block, on the CPU and on accelerators."""

from __future__ import annotations

from collections.abc import Sequence

from planner.loading.streaming.fillings import Filling, fillings_of
from planner.loading.streaming.layout import PAGE_BYTES, Span, lay_out
from planner.loading.weights import FileWeights, is_in_place, sources_of

__all__ = ["BlockHere", "BlockThere"]


class BlockHere:
    """What is read for one block that runs on the CPU.

    Args:
        whole: all of it.
        made: only what is not in the files as it is wanted; the rest are views. None where there is no such thing.
    """

    __slots__ = ("made", "whole")

    def __init__(self, weights: FileWeights, names: Sequence[str]) -> None:
        wanted = {name: weights.wanted[name] for name in names if name in weights.wanted}
        recipes = {name: row.recipe for name, row in wanted.items()}
        dtypes = {name: row.dtype for name, row in wanted.items()}
        self.whole = lay_out(recipes, dtypes)
        is_made = {
            name: recipe for name, recipe in recipes.items() if not is_in_place(weights.files, wanted[name])
        }
        self.made = lay_out(is_made, dtypes) if is_made else None

    @property
    def spans(self) -> Sequence[Span]:
        """What is read."""
        return self.whole.spans

    @property
    def nbytes(self) -> int:
        """Bytes of files."""
        return self.whole.read_bytes


class BlockThere:
    """What is brought to an accelerator for one block.

    Args:
        weights: where it rests.
        names: its live names.
        most_bytes: of a slot.
    """

    def __init__(self, weights: FileWeights, names: Sequence[str], most_bytes: int) -> None:
        rows = [weights.wanted[name] for name in names if name in weights.wanted]
        # Names of one tensor cross once.
        self.tensors = {row.name: row for row in rows}
        self._most_bytes = most_bytes
        self._fillings: tuple[Filling, ...] | None = None

    @property
    def fillings(self) -> tuple[Filling, ...]:
        """What passes the ring, one after the other."""
        if self._fillings is None:
            self._fillings = tuple(fillings_of(self.tensors.values(), self._most_bytes))
        return self._fillings

    @property
    def nbytes(self) -> int:
        """Bytes of files, about."""
        return sum(row.recipe.nbytes for row in self.tensors.values())

    @property
    def slot_bytes(self) -> int:
        """The most that it takes in a slot, looked at without cutting it."""
        rows = self.tensors.values()
        made_bytes = sum(row.nbytes for row in rows if not row.is_view)
        pages_bytes = sum(3 * PAGE_BYTES * len(sources_of(row.recipe)) for row in rows)
        return min(self._most_bytes, self.nbytes + made_bytes + pages_bytes)

    @property
    def spans(self) -> list[Span]:
        """What is read."""
        return [span for filling in self.fillings for span in filling.layout.spans]
