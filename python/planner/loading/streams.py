"""What reads a loaded model's offloaded blocks ahead, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from planner.dispatching.offload.reads_ahead import MakesReadsAhead, OffloadedBlock, ReadsAhead
from planner.loading.options import LoadOptions, cast_rule
from planner.loading.streaming.ahead import BlocksAhead
from planner.loading.streaming.between import spans_between
from planner.loading.streaming.counters import StreamingProgress
from planner.loading.streaming.layout import Span
from planner.loading.targets import Leniency
from planner.loading.weights import FileWeights

__all__ = ["ModelStreams", "streams_of"]

_CPU = torch.device("cpu")


class ModelStreams:
    """Makes what reads ahead, when the blocks are known, and tells what it has done.

    Args:
        weights: what rests elsewhere; nothing is read ahead of what is not in the checkpoint's files.
        options: how a model is loaded.
        room_bytes: by device, what offloaded blocks may take there.
        cached: names of weights that the plan has memory for on the CPU: the page cache has them there.
        planned_bytes: of views that stay on the CPU, which the page cache will have to hold beside blocks on disk.
        staying: names of tensors in the model's order, with the bytes of files that views which stay on the CPU are, none for others.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor] | None,
        options: LoadOptions,
        room_bytes: Mapping[torch.device, int],
        cached: frozenset[str],
        planned_bytes: int = 0,
        staying: Sequence[tuple[str, Sequence[Span]]] = (),
    ) -> None:
        self._weights = weights if isinstance(weights, FileWeights) else None
        self._options = options
        self._room_bytes = room_bytes
        self._cached = cached
        self._planned_bytes = planned_bytes
        self._staying = staying
        self._blocks: BlocksAhead | None = None
        if self._weights is not None:
            self._weights.streams_again = streams_of

    @property
    def made(self) -> MakesReadsAhead | None:
        """The factory that a request takes; None where nothing rests in files."""
        return None if self._weights is None else self._make

    def _make(self, blocks: Sequence[OffloadedBlock]) -> ReadsAhead:
        assert self._weights is not None
        self._blocks = BlocksAhead(
            self._weights,
            blocks,
            read=self._options.read,
            staging_bytes=self._room_bytes.get(_CPU),
            free_bytes=self._options.free_bytes,
            room_bytes=self._room_bytes,
            cached=self._cached,
            planned_bytes=self._planned_bytes,
            between=spans_between([block.module_name for block in blocks], self._staying),
        )
        return self._blocks

    def start(self) -> None:
        """Asks for the first block, now that the model is as it will run."""
        if self._blocks is not None:
            self._blocks.start()

    @property
    def staging_bytes(self) -> int:
        """The bound on what blocks take on the CPU while they are streamed."""
        return 0 if self._blocks is None else self._blocks.staging_bytes

    def progress(self) -> StreamingProgress:
        """What was streamed until now."""
        return StreamingProgress() if self._blocks is None else self._blocks.progress()


def streams_of(weights: FileWeights | None) -> ModelStreams:
    """What reads blocks that rest in files ahead, as after a load without a plan."""
    options = LoadOptions(dtype_of=cast_rule("auto"), leniency=Leniency())
    return ModelStreams(weights, options, {}, frozenset())
