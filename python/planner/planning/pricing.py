"""What a step is modelled to take with any device map: one of a plan, of accelerate, or one that was written by hand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Unpack

from planner.checkpoint.opened import Opened
from planner.checkpoint.source import open_source
from planner.choices import PieceWay
from planner.devices.keys import DeviceKey, main_device, offload_tiers
from planner.devices.nodes import plan_device
from planner.errors import InvalidInputError, PlanMismatchError
from planner.model.blocks import Blocks
from planner.model.parts import stateless_parts
from planner.model.tree import ModuleTree
from planner.names import by_outer, device_of, listed, require_map
from planner.planning.line import PlannedLine
from planner.planning.line_problem import planned_line, step_tokens
from planner.planning.line_sizes import HOST
from planner.planning.problem import Problem
from planner.plans.device_map import DeviceMap, HostSteps
from planner.plans.plan import Plan
from planner.plans.timing import TimedPiece, TimedStage, Timing
from planner.settings.keywords import PlanSettings
from planner.spelling import shown

if TYPE_CHECKING:
    from torch import nn

__all__ = ["price", "priced_in"]

_ROOM = 1 << 60


def price(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    plan: Plan | Mapping[str, Any],
    *,
    tokens: int | None = None,
    execution_map: Mapping[str, Any] | None = None,
    **settings: Unpack[PlanSettings],
) -> Timing:
    """What one step is modelled to take where a plan, or a device map, puts a model.

    Args:
        source: the model, as in :func:`planner.plan`.
        plan: a plan, or names to devices; that of a plan (``plan.device_map``) says what runs elsewhere, too.
        tokens: new tokens of the step, over all sequences; by default those of the workload, else 1.
        execution_map: for a device map, what runs elsewhere than it lies; by default what is offloaded runs on the first
            accelerator of the map, as loaders do it.
        settings: as of :func:`planner.plan`: ``machine``, and what changes sizes, ``dtype``, ``workload``, ``model``,
            ``staging_blocks``.

    Returns:
        The timing: ``latency_ps`` of all runs, fetches and hops, ``bottleneck_ps`` of the longest stretch on one device. Nothing is
        known of other plans: ``lower_bound_ps`` is 0.

    Raises:
        PlanMismatchError: the map leaves something without a device. Fields: ``findings``.
        InvalidInputError: no map, a setting that makes no sense, or a link without a rate.
        InvalidDevicesError: a device that the machine does not have, or has no rate for. Fields: ``device``.

    Guarantee: what the host runs in short steps alone counts in longer ones as fetched. Of a plan by time whose pieces are all
        resident or fetched, the latency that the plan says. A piece that runs beside its stage, or with what it is tied to, counts two
        hops there, and here only those that are made; its stage is that of the plan. Rooms are not looked at.

    Cost: O(modules + tensors).

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from planner.devices.table_machine import machine_of_cards
        >>> model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=128,
        ...     num_attention_heads=4))
        >>> machine = machine_of_cards({0: "L4", 1: "L4"})
        >>> here = price(model, {"": 0}, machine=machine)
        >>> apart = price(model, {"model": 0, "lm_head": 1}, machine=machine)
        >>> here.latency_ps < apart.latency_ps, [stage.device for stage in apart.stages]
        (True, [0, 1])
    """
    homes, runs = _maps(plan, execution_map)
    long_steps = _host_steps(plan, execution_map)
    opened = open_source(source, None)
    runners = (*homes.values(), *runs.values(), *(steps.device for steps in long_steps.values()))
    budgets = dict.fromkeys(dict.fromkeys(runners), _ROOM)
    chosen: dict[str, Any] = {
        **settings,
        "strategy": {"type": "latency", "tokens": tokens},
        "max_memory": {**budgets, **({} if HOST in budgets or "disk" not in budgets else {HOST: _ROOM})},
    }
    problem = Problem.of(opened, None, chosen, None)
    runs = DeviceMap({}, runs, long_steps).elsewhere(step_tokens(problem))
    _require_places(problem, homes, runs)
    return _timing(problem, plan, homes, runs)


def priced_in(problem: Problem, plan: Plan) -> Timing:
    """What one step takes with a plan, in a problem whose model it is of and whose machine counts."""
    homes, runs = _maps(plan, None)
    runs = DeviceMap({}, runs, _host_steps(plan, None)).elsewhere(step_tokens(problem))
    return _timing(problem, plan, homes, runs)


def _timing(
    problem: Problem,
    plan: Plan | Mapping[str, Any],
    homes: Mapping[str, DeviceKey],
    runs: Mapping[str, DeviceKey],
) -> Timing:
    blocks = _cut(problem, plan, homes, runs)
    line = planned_line(
        problem, blocks, needs_rates=frozenset(runs.values()) | (frozenset(homes.values()) - {"disk", HOST})
    )
    return _priced(line, homes, runs, _stages_of(plan), is_overlapped=problem.settings.staging_blocks > 1)


def _stages_of(plan: Plan | Mapping[str, Any]) -> dict[str, DeviceKey]:
    """By name, the device of whose stage a piece is that runs elsewhere: what runs there and what it fetches pass that time, too."""
    timing = plan.timing if isinstance(plan, Plan) else None
    pieces = () if timing is None else timing.pieces
    return {piece.name: piece.device for piece in pieces if piece.way in ("beside", "tied")}


def _maps(
    plan: Plan | Mapping[str, Any], execution_map: Mapping[str, Any] | None
) -> tuple[dict[str, DeviceKey], dict[str, DeviceKey]]:
    """Where names lie, and where those run that run elsewhere. Raises InvalidInputError, InvalidDevicesError."""
    if isinstance(plan, Plan):
        if execution_map is not None:
            raise InvalidInputError(
                "an execution map is for a device map, and a plan says itself what runs elsewhere: "
                "give plan.device_map, or no execution_map"
            )
        return dict(plan.device_map), dict(plan.execution_map)
    if not isinstance(plan, Mapping) or not plan:
        raise InvalidInputError(f"what is priced is a plan or a device map, got {shown(plan)}")
    homes = {str(name): plan_device(device) for name, device in plan.items()}
    if isinstance(plan, DeviceMap) and execution_map is None:
        return homes, dict(plan.execution_map)
    if execution_map is not None:
        require_map(execution_map, "the execution map")
        return homes, {str(name): plan_device(device) for name, device in execution_map.items()}
    main = main_device(homes.values())
    tiers = offload_tiers(main) if main != HOST else ("disk",)
    return homes, {name: main for name, device in homes.items() if device in tiers}


def _host_steps(
    plan: Plan | Mapping[str, Any], execution_map: Mapping[str, Any] | None
) -> Mapping[str, HostSteps]:
    """Parts that the host runs in short steps alone."""
    device_map = plan.device_map if isinstance(plan, Plan) else plan
    return device_map.host_steps if isinstance(device_map, DeviceMap) and execution_map is None else {}


def _require_places(problem: Problem, homes: Mapping[str, DeviceKey], runs: Mapping[str, DeviceKey]) -> None:
    """Raises PlanMismatchError for names that the model does not have, and for what has no device."""
    tree = problem.layout.tree
    unknown, missing = tree.uncovered(homes)
    unknown += [name for name in tree.uncovered(runs)[0] if name not in unknown]
    if unknown:
        raise PlanMismatchError(
            f"the device map names {listed(unknown)}, and {tree.class_name or 'the model'} has nothing of that name: is it of "
            "another model?",
            findings=(),
        )
    if missing:
        raise PlanMismatchError(f"the device map says nothing of {listed(missing)}", findings=())


def _cut(
    problem: Problem,
    plan: Plan | Mapping[str, Any],
    homes: Mapping[str, DeviceKey],
    runs: Mapping[str, DeviceKey],
) -> Blocks:
    """The model in blocks of which each lies and runs at one place, those that do not taken apart; of a plan by time, its pieces."""
    if isinstance(plan, Plan) and plan.timing is not None:
        timed = {piece.name for piece in plan.timing.pieces}
        return problem.blocks(
            parts=[part for part in stateless_parts(problem.blocks(in_parts=False)) if part in timed]
        )
    split: list[str] = []
    said = by_outer(dict.fromkeys((*homes, *runs)))
    while True:
        blocks = problem.blocks(split, in_parts=False)
        names_now = blocks.names
        apart = [
            name for name in names_now if name not in split and len(_places(name, said, homes, runs)) > 1
        ]
        if not apart:
            return blocks
        split += apart


def _places(
    block: str,
    said: Mapping[str, Sequence[str]],
    homes: Mapping[str, DeviceKey],
    runs: Mapping[str, DeviceKey],
) -> set[tuple[DeviceKey | None, DeviceKey | None]]:
    """Where what is inside of a block lies and runs. Args: ``said``: the names of both by those around them."""
    inside = said.get(block, ())
    # What no key inside speaks for is where the block is said to be, or what is around it.
    around = [block] if device_of(block, homes) is not None else []
    return {(device_of(key, homes), device_of(key, runs)) for key in (*inside, *around)}


def _priced(
    line: PlannedLine,
    homes: Mapping[str, DeviceKey],
    runs: Mapping[str, DeviceKey],
    stage_of: Mapping[str, DeviceKey],
    *,
    is_overlapped: bool,
) -> Timing:
    placed: list[tuple[str, DeviceKey, DeviceKey]] = []
    said = by_outer(dict.fromkeys((*homes, *runs)))
    for names in line.names:
        home, runner = device_of(names[0], homes), device_of(names[0], runs)
        if home is None:  # a map may say of each part what is true of the whole
            ((home, runner),) = _places(names[0], said, homes, runs)
        assert home is not None  # every tensor has a device
        placed.append((names[0], home, home if runner is None else runner))
    runners = [runner for _, _, runner in placed]
    stage_of_piece = [stage_of.get(name, runner) for name, _, runner in placed]
    passing_ps, hops_ps = 0, [0] * len(placed)
    for other, piece, hop in line.crossings(runners):
        if stage_of_piece[piece] == stage_of_piece[other]:
            hops_ps[piece] += line.hop_ps(*hop)
        else:
            passing_ps += line.hop_ps(*hop)
    pieces = tuple(_pieces(line, placed, stage_of_piece, hops_ps))
    stages = tuple(_stages(pieces, is_overlapped=is_overlapped))
    latency_ps = passing_ps + sum(stage.ps for stage in stages)
    return Timing(
        objective="latency",
        tokens=line.sizes.tokens,
        batches=1,
        value_ps=latency_ps,
        lower_bound_ps=0,
        latency_ps=latency_ps,
        bottleneck_ps=max(
            (*(stage.ps for stage in stages), *_for_others(pieces, stages, runners)), default=0
        ),
        stages=stages,
        pieces=pieces,
        machine=line.machine.fingerprint,
        from_table=line.table_devices,
    )


def _pieces(
    line: PlannedLine,
    placed: list[tuple[str, DeviceKey, DeviceKey]],
    stages: Sequence[DeviceKey],
    hops_ps: Sequence[int],
) -> Iterator[TimedPiece]:
    for number, (name, home, runner) in enumerate(placed):
        is_fetched, stage = home != runner and home in (HOST, "disk"), stages[number]
        elsewhere: PieceWay = "beside" if runner == HOST else "tied"
        yield TimedPiece(
            name=name,
            device=stage,
            way="fetched" if is_fetched else "resident" if stage == runner else elsewhere,
            run_ps=line.run_ps(number, runner),
            fetch_ps=line.fetch_ps(number, runner, home) if is_fetched else 0,
            hop_ps=hops_ps[number],
        )


def _for_others(
    pieces: Sequence[TimedPiece], stages: Sequence[TimedStage], runners: Sequence[DeviceKey]
) -> Iterable[int]:
    """What devices take that run something of the stages of others, with their own."""
    busy_ps: Counter[DeviceKey] = Counter()
    for piece, runner in zip(pieces, runners, strict=True):
        if runner != piece.device:
            busy_ps[runner] += piece.run_ps
    for stage in stages:
        if stage.device in busy_ps:
            busy_ps[stage.device] += stage.ps
    return busy_ps.values()


def _stages(pieces: tuple[TimedPiece, ...], *, is_overlapped: bool) -> Iterator[TimedStage]:
    for device, group in groupby(pieces, key=lambda piece: piece.device):
        each = tuple(group)
        run_ps = sum(piece.run_ps + piece.hop_ps for piece in each)
        fetch_ps = sum(piece.fetch_ps for piece in each)
        ps = max(run_ps, fetch_ps) if is_overlapped else run_ps + fetch_ps
        yield TimedStage(device=device, first=each[0].name, last=each[-1].name, ps=ps)
