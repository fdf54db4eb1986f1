"""What ends a pipeline: which process it was, told to all others, whatever their connections say."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import torch

from planner.errors import PipelineError
from planner.pipelines.runs import StageRun
from planner.pipelines.signs import SeenSign, Signs
from planner.pipelines.store import AnsweringStore, StoreGoneError
from planner.spelling import one_line

__all__ = ["Failing", "Failure", "described", "is_of_connections", "layers_said"]

_KEY: Final = "failed"
_KEEPER: Final = "does not answer, or the process that keeps the group's store, which is torchrun's on the first machine where it started the ranks"
_MOST_CHARACTERS: Final = 1_000
_MOST_OTHERS: Final = 4
# Of the time-out, how long one forward has to take before the process that computes it is taken for the one that hangs.
_HANGING: Final = 0.7
# Of the time-out, how long a process may be silent while no connection has broken: what begins, or reads, may keep Python busy.
_BUSY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pipeline has ended.

    Args:
        rank: which process; None where that is not known.
        step: which forward was under way; None outside of them.
        said: what happened to it, as the rest of a sentence.
    """

    rank: int | None
    step: int | None
    said: str


class Failing:
    """Finds out which process failed, and tells it; the first one that is told is what all of them raise.

    Args:
        store: what all have.
        rank: this process.
        runs: the stages, by rank; none while they are not agreed on.
        signs: what the others are doing.
        timeout_s: how long one waits for another.
        cut: breaks this process's connections.
    """

    def __init__(
        self,
        store: AnsweringStore,
        rank: int,
        runs: Sequence[StageRun],
        signs: Signs,
        timeout_s: float,
        cut: Callable[[], None],
    ) -> None:
        self.ended: PipelineError | None = None
        self._store, self._rank, self._runs, self._signs = store, rank, runs, signs
        self._timeout_s, self.cut = timeout_s, cut

    def known(self) -> PipelineError | None:
        """What some process has told already. Raises StoreGoneError."""
        told = self._store.get(_KEY)
        return None if told is None else self._error(Failure(**json.loads(told)))

    def tell(self, failure: Failure) -> PipelineError:
        """Tells all others, unless one has told something before; returns what was told first."""
        said = one_line(failure.said)[:_MOST_CHARACTERS]
        text = json.dumps(asdict(Failure(failure.rank, failure.step, said)))
        try:
            return self._error(Failure(**json.loads(self._store.first(_KEY, text))))
        except StoreGoneError:  # nobody can be told
            return self._error(failure)

    def without_store(self) -> PipelineError:
        """That nobody can be asked any more."""
        return self._error(Failure(0, self._step, _KEEPER))

    def own(self, error: BaseException, step: int | None, during: str) -> PipelineError:
        """Tells an error of this process's own."""
        return self.tell(Failure(self._rank, step, f"{during}: {described(error)}"))

    def error_of(self, rank: int, said: str) -> PipelineError:
        """What a process has said of itself, where all of them hear it."""
        return self._error(Failure(rank, None, one_line(said)[:_MOST_CHARACTERS]))

    def standing_s(self, rank: int) -> float | None:
        """Since when another process has got no further; None where it has never given a sign of life."""
        return next((each.same_s for each in self._signs.seen() if each.rank == rank), None)

    def absent(self, rank: int) -> PipelineError | None:
        """Why another process does not come to where this one waits for it; None where it may still come."""
        known = self.known()
        if known is not None:
            return known
        for each in self._signs.seen():
            if each.rank == rank and each.sign.doing == "closed":
                return self.tell(Failure(rank, None, "has closed its pipeline while others still call it"))
            if each.rank == rank and each.silent_s > _BUSY * self._timeout_s:
                return self.tell(self._silent(each))
        return None

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part of a call in which the processes depend on each other: whatever ends it here ends it everywhere.

        Raises:
            PipelineError: another process failed, with torch's error as its cause; or this one, with its own.
        """
        try:
            yield
        except BaseException as error:
            is_told = isinstance(error, PipelineError)
            is_others = self._signs.mine.doing == "waiting" and is_of_connections(error)
            cause = error if is_others else _cause(error)
            if isinstance(error, PipelineError):
                self.ended = error
            elif is_others:
                self.ended = self._found()
            else:
                self.ended = self.own(cause, self._step, "raised")
            _let_go(error)
            self.cut()
            if is_told or not isinstance(error, Exception):
                raise
            raise self.ended from cause

    def _found(self) -> PipelineError:
        """Who is to blame that torch's connections gave an error. Waits for as long as it takes a sign to be missed."""
        self._signs.cut_off()
        until_s = time.monotonic() + self._signs.patience_s + 2 * self._signs.every_s
        while time.monotonic() < until_s:
            try:
                found = None if self._signs.is_blind else self.known() or self._seen()
            except StoreGoneError:
                return self.without_store()
            if self._signs.is_blind:
                return self.without_store()
            if found is not None:
                return found
            time.sleep(self._signs.every_s / 4)
        return self.tell(Failure(None, self._step, "a connection between two of the processes has ended"))

    @property
    def _step(self) -> int | None:
        return self._signs.mine.step or None

    def _seen(self) -> PipelineError | None:
        lost = self._signs.lost()
        if lost:
            return self.tell(self._silent(*lost))
        mine = self._signs.mine
        for each in sorted(self._signs.seen(), key=lambda each: (each.sign.call, each.sign.step)):
            is_behind = (each.sign.call, each.sign.step) <= (mine.call, mine.step)
            if (
                is_behind
                and each.sign.doing in ("computing", "idle")
                and each.same_s > _HANGING * self._timeout_s
            ):
                return self.tell(self._hanging(each))
        return None

    def _hanging(self, seen: SeenSign) -> Failure:
        said = f"has been computing for {seen.same_s:.1f} s: it hangs, or a step takes longer than timeout_s={self._timeout_s:g}"
        return Failure(seen.rank, self._step, said)

    def _silent(self, seen: SeenSign, *others: SeenSign) -> Failure:
        also = "".join(f", nor has rank {each.rank}" for each in others[:_MOST_OTHERS])
        also += f" and {len(others) - _MOST_OTHERS} more" if len(others) > _MOST_OTHERS else ""
        said = (
            f"has given no sign of life for {seen.silent_s:.1f} s{also}: its process ended or is stopped, or its machine cannot be"
            " reached; what it printed last, or what torchrun says of it, tells why"
        )
        return Failure(seen.rank, self._step, said)

    def _error(self, failure: Failure) -> PipelineError:
        rank, step = failure.rank, failure.step
        at = "" if step is None else f" at step {step}"
        if rank is None:
            return PipelineError(f"the pipeline ended{at}: {failure.said}", rank=None, step=step)
        run = self._runs[rank] if rank < len(self._runs) else None
        where = "" if run is None else f" (stage {run.index}, {layers_said(run.layers)})"
        return PipelineError(
            f"rank {rank}{where}{at} {failure.said}",
            rank=rank,
            stage=None if run is None else run.index,
            layers=None if run is None else run.layers,
            step=step,
        )


def layers_said(layers: range) -> str:
    """Layers in words.

    Example:
        >>> layers_said(range(3)), layers_said(range(4, 5))
        ('layers 0–2', 'layer 4')
    """
    return f"layer {layers.start}" if len(layers) == 1 else f"layers {layers.start}–{layers.stop - 1}"


def described(error: BaseException) -> str:
    """An error in one line."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def is_of_connections(error: BaseException) -> bool:
    """Whether an error is one that torch gives where another process does not do its part."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith("torch.distributed") for frame in frames)


def _cause(error: BaseException) -> BaseException:
    """What a stage's model raised, which torch's schedule wraps."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _let_go(error: BaseException | None) -> None:
    """Forgets what torch's frames hold: a connection in one of them would stay open, and the others would wait for it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith(("torch.distributed", "planner.pipelines")):
                try:
                    frame.clear()
                except RuntimeError:
                    continue  # still running
        error = error.__cause__ or error.__context__
