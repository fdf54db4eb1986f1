"""What a few recordings of a model tell of a workload at any number of rows or tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from planner.memory.polynomials import FittedRun, Point, fitted
from planner.planning.recorded import Recordable, Recorded, note_of
from planner.settings.workload import Workload

__all__ = ["RunFit", "fit_of", "point_of"]

# Of this process; each has some megabytes of events and keeps nothing of a model alive.
_MOST: Final = 16
_kept: OrderedDict[tuple[str, ...], RunFit | None] = OrderedDict()


@dataclass(frozen=True, slots=True)
class RunFit:
    """Recordings that were made at a few points, and what they tell of others.

    Args:
        runs: one for each recording of a workload.
        vocabulary: how many tokens the model knows; 0 where that is not said.
        note: what was assumed.
    """

    runs: tuple[FittedRun, ...]
    vocabulary: int
    note: str

    def at(self, workload: Workload) -> Recorded:
        """What a recording of this workload would tell.

        Raises:
            InvalidInputError: a number of bytes there is none, so that other operators run there.
        """
        from planner.memory.recording.workloads import scores_bytes

        point = point_of(workload)
        return Recorded(
            runs=tuple(run.at(point) for run in self.runs),
            main_needs_bytes=scores_bytes(self.vocabulary, workload) if workload.logits == "last" else 0,
            note=self.note,
        )


def fit_of(model: Recordable, workloads: Sequence[Workload]) -> RunFit | None:
    """What recordings of a model at some points tell of all others.

    Args:
        model: which is recorded where that was not done.
        workloads: alike but for their rows, or but for their tokens, as :func:`planner.memory.polynomials.fitted` takes them.

    Returns:
        None where the recordings have run different operators.

    Raises:
        RecordingError: one cannot be made.
        InvalidInputError: inputs that the model's forward does not take.

    Cost: the recordings, once; what they tell is kept in this process, by all that they depend on.
    """
    from planner.memory.recording.workloads import recording_key

    key = None
    if model.fingerprint is not None:
        key = (
            *recording_key(model.model, model.blocks, workloads[0], model.fingerprint),
            *map(repr, workloads),
        )
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    found = _fitted(model, workloads)
    if key is not None:
        _kept[key] = found
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    return found


def point_of(workload: Workload) -> Point:
    """Rows and tokens of a workload."""
    return workload.rows, workload.context_length


def _fitted(model: Recordable, workloads: Sequence[Workload]) -> RunFit | None:
    from planner.memory.recording.workloads import vocabulary_of

    tapes = [model.tapes(workload) for workload in workloads]
    if len({len(each) for each in tapes}) > 1:
        return None
    points = [point_of(workload) for workload in workloads]
    runs = [fitted(points, each) for each in zip(*tapes, strict=True)]
    known = [run.run() for run in runs if run is not None]
    if len(known) < len(runs) or not known:
        return None
    return RunFit(tuple(known), vocabulary_of(model.model), note_of(tapes[0], workloads[0]))
