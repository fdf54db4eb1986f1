"""What a step takes with every block in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from planner.choices import Objective
from planner.devices.keys import DeviceKey
from planner.planning.line_placement import LinePlacement
from planner.planning.other_ways import other_way
from planner.plans.timing import OtherWay, TimedPiece, TimedStage, Timing
from planner.settings.strategies import ByTime, Latency, Pipeline

__all__ = ["batches_of", "objective_of", "timing_of", "value_of"]


def objective_of(strategy: ByTime) -> Objective:
    """What a strategy wants to be small."""
    if isinstance(strategy, Latency):
        return "latency"
    return "pipeline" if isinstance(strategy, Pipeline) else "throughput"


def batches_of(strategy: ByTime) -> int:
    """Batches that follow each other."""
    return strategy.microbatches if isinstance(strategy, Pipeline) else 1


def value_of(strategy: ByTime, latency_ps: int, bottleneck_ps: int) -> int:
    """What is to be small, of a plan with this sum and this busiest device."""
    if objective_of(strategy) == "throughput":
        return bottleneck_ps
    return latency_ps + (batches_of(strategy) - 1) * bottleneck_ps


def timing_of(placement: LinePlacement, strategy: ByTime, *, is_overlapped: bool) -> Timing:
    """What a step takes.

    Args:
        placement: of every block.
        strategy: what counts.
        is_overlapped: a stage takes the longer of running and fetching, not both.

    Returns:
        The timing, with the lower bound of the search. What the disk adds was not in the search, nor what a device runs for the runs of
        others: the bound holds, and the value may be above that of the search.
    """
    line, answer = placement.line, placement.answer
    pieces = _pieces(placement, is_overlapped=is_overlapped)
    stages = tuple(
        TimedStage(
            device=line.runners[run.device],
            first=pieces[run.first].name,
            last=pieces[run.end - 1].name,
            ps=_stage_ps(pieces[run.first : run.end], is_overlapped=is_overlapped),
        )
        for run in answer.runs
    )
    hops_ps = sum(
        line.passing_ps(run.first, line.runners[before.device], line.runners[run.device])
        for before, run in pairwise(answer.runs)
    )
    latency_ps = hops_ps + sum(stage.ps for stage in stages)
    busy_ps: Counter[DeviceKey] = Counter()
    for stage in stages:
        busy_ps[stage.device] += stage.ps
    for piece, runner in zip(pieces, placement.runs, strict=True):
        if runner != piece.device:
            busy_ps[runner] += piece.run_ps
    bottleneck_ps = max(busy_ps.values(), default=0)
    return Timing(
        objective=objective_of(strategy),
        tokens=line.sizes.tokens,
        batches=batches_of(strategy),
        value_ps=value_of(strategy, latency_ps, bottleneck_ps),
        lower_bound_ps=answer.lower_bound_ps,
        latency_ps=latency_ps,
        bottleneck_ps=bottleneck_ps,
        stages=stages,
        pieces=pieces,
        machine=line.machine.fingerprint,
        from_table=line.table_devices,
        cache_tokens=line.cache_tokens,
    )


def _stage_ps(pieces: Sequence[TimedPiece], *, is_overlapped: bool) -> int:
    run_ps = sum([piece.run_ps + piece.hop_ps for piece in pieces])
    fetch_ps = sum([piece.fetch_ps for piece in pieces])
    return max(run_ps, fetch_ps) if is_overlapped else run_ps + fetch_ps


def _pieces(placement: LinePlacement, *, is_overlapped: bool) -> tuple[TimedPiece, ...]:
    line, pieces = placement.line, []
    others: dict[object, OtherWay | None] = {}
    for block, names in enumerate(line.names):
        stage, runner = placement.stages[block], placement.runs[block]
        is_fetched = placement.ways[block] == "fetched"
        alike = (line.alike[block], stage, placement.ways[block])
        if alike not in others:
            has_room = alike[2] != "beside" or placement.has_room_to_fetch(block)
            others[alike] = (
                None if is_overlapped else other_way(line, block, stage, alike[2], has_room=has_room)
            )
        pieces.append(
            TimedPiece(
                name=names[0],
                device=stage,
                way=placement.ways[block],
                run_ps=line.run_ps(block, runner),
                fetch_ps=line.fetch_ps(block, runner, placement.homes[block]) if is_fetched else 0,
                hop_ps=0 if stage == runner else line.hop_ps(stage, runner) + line.hop_ps(runner, stage),
                other=others[alike],
                host_up_to_tokens=placement.host_up_to_tokens(block),
            )
        )
    return tuple(pieces)
