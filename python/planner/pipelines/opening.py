"""The way from a checkpoint and stages to processes that hold them: everything is agreed on before anything is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import torch

from planner.errors import PipelineError
from planner.loading.options import planned_dtypes
from planner.loading.progress import progress_of
from planner.pipelines.agreement import (
    Offer,
    Room,
    Seat,
    offer_of,
    require_agreement,
    require_count,
    require_room,
    require_seats,
    room_of,
    seat_device,
)
from planner.pipelines.failing import Failing, described, is_of_connections
from planner.pipelines.meeting import Meetings
from planner.pipelines.planned import require_planned
from planner.pipelines.processes import Processes
from planner.pipelines.runs import StageRun, read_plan, stage_runs
from planner.pipelines.signs import Sign, Signs
from planner.pipelines.stage import PreparedStage, Stage, prepare_stage
from planner.pipelines.store import AnsweringStore
from planner.plans.plan import Plan

__all__ = ["Asked", "Opened", "open_stage"]

_Made = TypeVar("_Made")
# Of the time-out, what an answer of the store may take.
_ANSWER: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a pipeline was asked for.

    Args:
        checkpoint: as of :func:`planner.load`.
        plan: a plan or its file.
        stages: how many layers each stage has, in the place of a plan.
        device: where this rank's stage runs; None for what the plan says, and else the local rank's.
        dtype: as of :func:`planner.load`.
        microbatches: into how many parts rows are cut; None for what the plan says.
        timeout_s: how long a rank waits for another.
    """

    checkpoint: str | os.PathLike[str]
    plan: Plan | str | os.PathLike[str] | None
    stages: Sequence[int] | None
    device: str | torch.device | None
    dtype: str | torch.dtype
    microbatches: int | None
    timeout_s: float


@dataclass(slots=True, eq=False)
class Opened:
    """A stage in its process, and what holds it together with the others.

    Args:
        stage: with its weights.
        microbatches: into how many parts rows are cut.
        processes: connected.
        store: what they tell each other.
        signs: what the others are doing.
        failing: which of them failed.
        meetings: where all of them say something.
    """

    stage: Stage
    microbatches: int
    processes: Processes
    store: AnsweringStore
    signs: Signs
    failing: Failing
    meetings: Meetings


@dataclass(frozen=True, slots=True, eq=False)
class _Understood:
    """What was asked for, read: the stages, and what a plan adds to them."""

    runs: tuple[StageRun, ...]
    plan: Plan | None
    dtype: Any
    microbatches: int
    special_dtypes: Mapping[str, Any]


def open_stage(asked: Asked, processes: Processes) -> Opened:
    """Agrees with the other processes, connects them, and reads this one's stage.

    Raises:
        PipelineError: the processes do not agree, or another of them cannot go on.
        PlannerError: what keeps this one from going on; the others get a PipelineError that says so.
    """
    rank, host = processes.rank, processes.host
    signs = Signs(processes.store, rank, processes.count, asked.timeout_s)
    runs: list[StageRun] = []
    store = AnsweringStore(processes.store, _ANSWER * asked.timeout_s)
    failing = Failing(store, rank, runs, signs, asked.timeout_s, processes.cut)
    meetings = Meetings(store, rank, processes.count, failing, asked.timeout_s)
    together = _Together(rank, runs, failing, meetings, signs)
    signs.begin()
    try:
        understood = _understand(asked, together)
        require_count(understood.runs, processes.count)
        runs.extend(understood.runs)

        device = together.do("device", lambda: seat_device(asked.device, runs[rank], processes.local_rank))
        require_seats(
            [Seat(*each) for each in together.tell("seats", (host, str(device), processes.boot))], runs
        )

        prepared = together.do("stage", lambda: _prepare(asked, runs, rank, device, understood))
        rooms = together.tell("rooms", asdict(room_of(host, processes.boot, device, prepared)))
        require_room([Room(**each) for each in rooms], runs)

        together.do("connections", lambda: processes.connect(device))
        stage = together.do("weights", lambda: _read(prepared, rank, together.gets_on))
    except BaseException:
        signs.end()
        store.close()
        raise
    signs.mine = Sign(doing="idle")
    return Opened(stage, understood.microbatches, processes, store, signs, failing, meetings)


class _Together:
    """Steps that every process takes, and none goes on from when one of them fails."""

    def __init__(
        self, rank: int, runs: Sequence[StageRun], failing: Failing, meetings: Meetings, signs: Signs
    ) -> None:
        self._rank, self._runs = rank, runs
        self._failing, self._meetings, self._signs = failing, meetings, signs

    def gets_on(self) -> None:
        """Tells the others that this process does not stand still."""
        self._signs.mine = Sign(done=self._signs.mine.done + 1)

    def tell(self, name: str, note: Any) -> list[Any]:
        """What all processes say, by rank."""
        return self._meetings.hold(name, 0, note)

    def do(self, name: str, action: Callable[[], _Made]) -> _Made:
        """Does something that may take its time, and waits for the others to have done it.

        Raises:
            Exception: what the action raised here.
            PipelineError: another process raised something.
        """
        self.gets_on()
        try:
            made = action()
        except Exception as error:
            is_others = is_of_connections(error)
            said = self._meetings.hold(name, 0, [described(error), is_others], is_patient=True)
            if not is_others:
                raise
            raise self._told(said) from error
        except BaseException as error:  # an interrupt: nobody waits for it
            self._failing.own(error, None, "raised")
            raise
        notes = self._meetings.hold(name, 0, None, is_patient=True)
        if any(notes):
            raise self._told(notes)
        return made

    def _told(self, notes: Sequence[Any]) -> PipelineError:
        """What keeps the others from going on: rather an error of one's own than that it has waited for another."""
        wrong = [(rank, note) for rank, note in enumerate(notes) if note is not None]
        _, rank, said = min((is_others, rank, said) for rank, (said, is_others) in wrong)
        return self._failing.error_of(rank, f"cannot begin: {said}")


def _understand(asked: Asked, together: _Together) -> _Understood:
    """What was asked for, the same on every rank."""

    def read() -> _Understood:
        given = asked.plan if asked.plan is not None else asked.stages
        plan = read_plan(given) if isinstance(given, str | os.PathLike) else given
        runs = stage_runs(plan)  # type: ignore[arg-type]  # which judges what is neither
        if not isinstance(plan, Plan):
            return _Understood(runs, None, asked.dtype, asked.microbatches or 1, {})
        timing = plan.timing
        planned = timing.batches if timing is not None and timing.objective == "pipeline" else 1
        dtype, special = planned_dtypes(plan, asked.dtype)
        return _Understood(runs, plan, dtype, asked.microbatches or planned, special)

    understood = together.do("plan", read)
    options = (str(understood.dtype), understood.microbatches, asked.timeout_s)
    offer = offer_of(understood.runs, understood.plan, options)
    require_agreement([Offer(**each) for each in together.tell("offers", asdict(offer))])
    return understood


def _prepare(
    asked: Asked, runs: Sequence[StageRun], rank: int, device: torch.device, understood: _Understood
) -> PreparedStage:
    prepared = prepare_stage(
        asked.checkpoint, runs, rank, device, dtype=understood.dtype, special_dtypes=understood.special_dtypes
    )
    if understood.plan is not None and asked.dtype == "auto":
        require_planned(understood.plan, prepared)
    return prepared


def _read(prepared: PreparedStage, rank: int, gets_on: Callable[[], None]) -> Stage:
    if rank:
        return prepared.read(lambda *_: gets_on())
    with progress_of(None, prepared.weight_bytes) as advance:
        done = 0

        def told(done_bytes: int, _total_bytes: int) -> None:
            nonlocal done
            gets_on()
            advance(done_bytes - done)
            done = done_bytes

        return prepared.read(told)
