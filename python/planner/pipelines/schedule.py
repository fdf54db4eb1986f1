"""A forward through all stages, carried by what torch has for pipelines: the part that this process does of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from planner.caller import warn_caller
from planner.pipelines.stage import Stage

__all__ = ["TRIED", "Carrier", "batches_of", "equally_long_batches_of", "warn_of_version"]

TRIED: Final = ("2.15",)
"""Versions of torch that the tests have run with: it calls its pipelines alpha, so that others may differ."""


def warn_of_version() -> None:
    """Warns where this torch is of no version that was tried."""
    version = str(torch.__version__)
    if not version.startswith(tuple(f"{tried}." for tried in TRIED)):
        warn_caller(
            f"torch calls its pipelines alpha, and planner was tried with theirs in torch {', '.join(TRIED)}; this is {version}"
        )


def batches_of(rows: int, microbatches: int) -> int:
    """Into how many equal parts rows are cut: as many as were asked for, or the next smaller number that divides them.

    Example:
        >>> [batches_of(rows, 4) for rows in (8, 6, 1)]
        [4, 3, 1]
    """
    return next(many for many in range(min(rows, microbatches), 0, -1) if rows % many == 0)


def equally_long_batches_of(mask: Tensor, microbatches: int) -> int:
    """The same, with the longest rows of all parts equally long.

    Example:
        >>> equally_long_batches_of(torch.tensor([[1, 1], [0, 1], [0, 1], [1, 1]]), 4)
        2
    """
    lengths = mask.sum(dim=1)
    for many in range(min(len(mask), microbatches), 1, -1):
        if len(mask) % many == 0:
            longest = lengths.view(many, -1).amax(dim=1)
            if bool((longest == longest[0]).all()):
                return many
    return 1


class Carrier:
    """Runs one process's stage whenever its turn comes.

    Args:
        stage: the stage.
        group: the connections.
        tell: is told before the stage computes, and after it (True, False).
    """

    def __init__(self, stage: Stage, group: dist.ProcessGroup, tell: Callable[[bool], None]) -> None:
        self._stage, self._group = stage, group
        self._module = _Computes(stage, tell)
        self._schedules: dict[tuple[int, int, int], ScheduleGPipe] = {}

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        caches: Sequence[Any],
        *,
        last_only: bool,
    ) -> Tensor | None:
        """One forward through all stages.

        Args:
            ids: new tokens (rows, tokens), the same on every stage.
            mask: over all tokens so far with the new ones; None where the model is to have none.
            positions: of the new tokens.
            caches: one for each micro-batch.
            last_only: of logits, those of the last token only.

        Returns:
            Logits on the last stage, None on others.
        """
        many, (rows, tokens) = len(caches), ids.shape
        self._module.begin(caches, last_only)
        schedule = self._schedule(rows // many, tokens, many)
        # Each part of them goes with its micro-batch; only the first stage is given ids, others get what arrives.
        with_each = {"position_ids": positions, "number": torch.arange(many, device="cpu")}
        if mask is not None:
            with_each["attention_mask"] = mask
        schedule.eval(*((ids,) if self._stage.is_first else ()), **with_each)
        return self._module.take()

    def forget(self) -> None:
        """Lets go of what arrives were received into, and of the connections."""
        self._schedules.clear()

    def _schedule(self, rows: int, tokens: int, many: int) -> ScheduleGPipe:
        shape = (rows, tokens, many)
        if shape not in self._schedules:
            # Shapes that torch would have to find out by a forward would leave that one's tokens in the caches.
            stage = self._stage
            ids = torch.empty((rows, tokens), dtype=torch.long, device="meta")
            hidden = torch.empty((rows, tokens, stage.hidden_size), dtype=stage.dtype, device="meta")
            carried = PipelineStage(
                self._module,
                stage.index,
                stage.count,
                stage.device,
                input_args=ids if stage.is_first else hidden,
                output_args=ids if stage.is_last else hidden,
                group=self._group,
            )
            self._schedules[shape] = ScheduleGPipe(carried, n_microbatches=many)
        return self._schedules[shape]


class _Computes(nn.Module):
    """What torch's schedule calls for each micro-batch."""

    def __init__(self, stage: Stage, tell: Callable[[bool], None]) -> None:
        super().__init__()
        self._stage, self._tell = stage, tell
        self._caches: Sequence[Any] = ()
        self._last_only = False
        self._logits: dict[int, Tensor] = {}

    def begin(self, caches: Sequence[Any], last_only: bool) -> None:
        self._caches, self._last_only = caches, last_only
        self._logits.clear()

    def take(self) -> Tensor | None:
        """Logits of all micro-batches, None on a stage that gives none."""
        self._caches = ()
        logits = [logits for _, logits in sorted(self._logits.items())]
        self._logits.clear()
        return torch.cat(logits) if logits else None

    def forward(
        self, arrived: Tensor, *, position_ids: Tensor, number: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        self._tell(True)
        which = int(number)
        made = self._stage.forward(
            arrived,
            cache=self._caches[which],
            attention_mask=attention_mask,
            position_ids=position_ids,
            last_only=self._last_only,
        )
        if self._stage.is_last:
            # Nobody receives these, and their shape and dtype are the model's: torch gets something whose shape is known.
            self._logits[which] = made
            made = arrived.new_zeros(arrived.shape[:2], dtype=torch.long)
        elif made.dtype != self._stage.dtype:
            raise TypeError(
                f"{type(self._stage.model).__name__} hands on {made.dtype} between its layers, where its weights are {self._stage.dtype}"
            )
        self._tell(False)
        return made.contiguous()
