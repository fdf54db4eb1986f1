"""What a plan's settings mean for the strategies that go by time: the line of pieces, with what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil

from planner.choices import Mode
from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.errors import InvalidConstraintError, InvalidDevicesError, InvalidInputError
from planner.memory.cache_parts import item_bytes as item_bytes_of
from planner.memory.demands import Demands
from planner.model.blocks import Blocks
from planner.model.constraints import allowed_devices
from planner.model.execution_order import callers_of, execution_order
from planner.model.work import Experts, work_of
from planner.planning.engines import allowed_for, borders_inside, closed_borders, engine_mode, has_host
from planner.planning.largest_cache import wants_cache
from planner.planning.line import PlannedLine
from planner.planning.line_sizes import HOST, LineSizes
from planner.planning.long_steps import MOST_TOKENS
from planner.planning.machines import machine_for
from planner.planning.margins import margin_of
from planner.planning.problem import Problem
from planner.settings.dtypes import FLOATS
from planner.settings.strategies import ByTime
from planner.strategies.running import block_demands
from planner.strategies.staying import StayingBuffers

__all__ = ["planned_line", "step_tokens"]

_NOTHING = Demands(blocks={})


def step_tokens(problem: Problem) -> int:
    """New tokens of one step: what the strategy says, else one for each sequence of the workload."""
    strategy, workload = problem.settings.strategy, problem.settings.workload
    assert isinstance(strategy, ByTime)
    if strategy.tokens is not None:
        return strategy.tokens
    return 1 if workload is None else workload.rows


def planned_line(
    problem: Problem, blocks: Blocks, needs_rates: frozenset[DeviceKey] | None = None
) -> PlannedLine:
    """The line of a problem.

    Args:
        problem: with a strategy that goes by time.
        blocks: its pieces.
        needs_rates: devices that run anything; None for all that may.

    Raises:
        InvalidConstraintError: devices that share their memory. Fields: ``names``, ``suggestions``.
        InvalidInputError: the model does not say how wide it is, or a link has no rate.
        InvalidDevicesError: a device without a rate. Fields: ``device``.
        What the memory model and the constraints raise.
    """
    settings, budgets = problem.settings, problem.device_budgets
    if any(budget.pool for budget in budgets):
        raise InvalidConstraintError(
            "strategies that go by time do not know devices that share their memory: use strategy 'auto'",
            names=("strategy",),
            suggestions=("auto",),
        )
    machine, tokens = machine_for(settings.machine, budgets), step_tokens(problem)
    facts, rooms = settings.model, problem.running_rooms(blocks)
    width = facts.hidden_size or _said(problem, "hidden_size", "n_embd", "d_model")
    if width is None:
        raise InvalidInputError(
            "strategies that go by time need to know how wide activations are, and this model does not say it: "
            "model={'hidden_size': 4096}"
        )
    dtype = facts.dtype or "float32"
    item_bytes = item_bytes_of(dtype) if dtype in FLOATS else 4
    experts = None
    if facts.num_experts and facts.num_experts_per_tok:
        experts = Experts(facts.num_experts, min(facts.num_experts_per_tok, facts.num_experts))
    queries, keys = (
        facts.num_attention_heads or 1,
        facts.num_key_value_heads or facts.num_attention_heads or 1,
    )
    row_bytes = width * item_bytes
    kinds = {budget.device: budget.kind for budget in budgets}
    demands = _NOTHING if rooms is None else rooms.most
    at_once_bytes = (
        max((each.needs_bytes for each in demands.blocks.values()), default=0) + demands.shared_bytes
    )
    capacity_bytes: dict[DeviceKey, int] = {}
    share, too_small = Fraction(0), set[DeviceKey]()
    for budget in budgets:
        kept = 0
        if rooms is not None and budget.kind != "disk":
            margin = margin_of(budget.device, rooms.margin)
            share = max(share, margin.share)
            kept = ceil(at_once_bytes * (1 + margin.share)) + margin.beside_bytes
        capacity_bytes[budget.device] = max(0, budget.capacity_bytes - kept)
        if budget.capacity_bytes < kept:
            too_small.add(budget.device)
    has_accelerator = "accelerator" in kinds.values()
    mode, engine = (
        engine_mode(settings.mode, settings.engine, wants_cache=wants_cache(settings)),
        settings.engine,
    )
    # Other engines are told of layers, and make tables of rotation wherever they run some.
    order = execution_order(blocks) if engine is None else range(blocks.block_count)
    callers, place = callers_of(blocks, problem.layers()), {number: at for at, number in enumerate(order)}
    work = work_of(blocks, tokens, weight_bits=8 * item_bytes, experts=experts, row_bytes=row_bytes)
    keeps, may = block_demands(blocks, demands), _allowed(problem, blocks, list(kinds), mode)
    allowed, closed = tuple([may[number] for number in order]), tuple[int, ...]()
    if engine is not None:
        closed = closed_borders(
            blocks.block_names, facts.num_hidden_layers or _said(problem, "num_hidden_layers"), engine
        )
        closed = tuple(sorted({*closed, *borders_inside(blocks.block_units)}))
        allowed = allowed_for(engine, blocks.block_names, list(kinds), allowed)
    alone = "disk" in kinds and {*kinds.values()} == {"cpu", "disk"}
    is_full = sum(each.weight_bytes for each in work) > capacity_bytes.get(HOST, 0)
    home = _home(kinds, mode, streams=alone and (is_full or _reads_disk(machine)))
    line = PlannedLine(
        blocks=blocks,
        order=order,
        callers=[place[callers[number]] for number in order],
        work=[work[number] for number in order],
        demands=[keeps[number] for number in order],
        staying=StayingBuffers(blocks, settings.offload_buffers),
        share=share,
        machine=machine,
        budgets=budgets,
        capacity_bytes=capacity_bytes,
        allowed=allowed,
        sizes=LineSizes(
            tokens=tokens,
            dtype=dtype,
            item_bytes=item_bytes,
            activation_bytes=tokens * row_bytes,
            heads_per_key=max(1, queries // keys),
            experts=experts,
            longest_tokens=_longest_tokens(problem) if engine is None else 0,
            fetches_all=isinstance(settings.strategy, ByTime) and settings.strategy.long_steps == "fetch_all",
        ),
        home=home,
        too_small=frozenset(too_small),
        host_runs=HOST in {*kinds} - too_small and not (mode == "gpu_only" and has_accelerator),
        uses_disk=mode == "any",
        fetches=engine is None,
        host_is_first=has_host(engine),
        closed=closed,
    )
    line.require_rates(line.runners if needs_rates is None else needs_rates)
    return line


def _longest_tokens(problem: Problem) -> int:
    """New tokens of the longest step that a plan is to be ready for: that of the prompt, where a workload says it."""
    strategy, workload = problem.settings.strategy, problem.settings.workload
    assert isinstance(strategy, ByTime)
    if strategy.long_steps == "host":
        return 0
    return MOST_TOKENS if workload is None else workload.rows * workload.prompt_tokens


def _reads_disk(machine: Machine) -> bool:
    """Whether the machine says how fast the host reads its disk."""
    try:
        return bool(machine.route("disk", HOST).links)
    except (InvalidInputError, InvalidDevicesError):
        return False


def _said(problem: Problem, *names: str) -> int | None:
    """What the configuration of a model says by one of these names, whatever type of model it is of."""
    whole = problem.opened.configuration
    for part in (whole, whole.get("text_config")):
        values = (part.get(name) for name in names) if isinstance(part, Mapping) else ()
        found = next((value for value in values if type(value) is int and value > 0), None)
        if found is not None:
            return found
    return None


def _home(kinds: Mapping[DeviceKey, str], mode: str, *, streams: bool) -> DeviceKey | None:
    """Where offloaded blocks rest. Args: ``streams``: the host, alone, brings them in from the disk."""
    if streams and mode == "any":
        return "disk"
    if mode == "gpu_only":
        return None
    if HOST in kinds:
        return HOST
    return "disk" if "disk" in kinds and mode != "no_disk" else None


def _allowed(
    problem: Problem, blocks: Blocks, devices: Sequence[DeviceKey], mode: Mode
) -> tuple[frozenset[DeviceKey] | None, ...]:
    """By block, where its unit may lie."""
    masks = dict(allowed_devices(blocks, problem.constraints, devices, mode))
    if not masks:
        return (None,) * len(blocks.block_units)
    return tuple(
        frozenset(device for bit, device in enumerate(devices) if masks[unit] >> bit & 1)
        if unit in masks
        else None
        for unit in blocks.block_units
    )
