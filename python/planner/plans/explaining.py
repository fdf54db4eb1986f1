"""Where something of a model lies, why, and what would move it, in the words of whoever asks."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Final

from planner.choices import Style
from planner.devices.keys import DeviceKey
from planner.errors import InvalidConstraintError, InvalidInputError
from planner.names import counted, device_of, is_within, nearest_key
from planner.plans.columns import one_size
from planner.plans.moving import pin_words, where_to_move
from planner.plans.notices import shortfall_words
from planner.plans.parts import Reason
from planner.plans.places import listed_places, place_name, runner_name
from planner.plans.plan import Plan
from planner.plans.rate_words import rate_sentence
from planner.plans.running import running_words
from planner.plans.runs import Run, runs_of
from planner.plans.wording import UNDECIDED, reasons_about
from planner.spelling import one_line, shown

__all__ = ["explain", "require_known"]

_MOST_REASONS: Final = 5
_MOST_RUNS: Final = 12

# By rule: {name} has to do with {place}, which has {available}; {in_place} is where it is.
_SENTENCES: Final[Mapping[str, str]] = {
    "resident": "{name} takes {needed} of {available}.",
    "offloaded": "{name} is offloaded: it takes {needed} of {available} {in_place}.",
    "oversized": "{name} is larger than every accelerator: it takes {needed}.",
    "as_auto": "{name} lies where strategy 'auto' puts it: of the plans that were found, none takes less.",
    "experts_as_part": "{name} holds all its experts in one tensor: they are one part of their block.",
    "no_room": "{name} does not fit {in_place}: it needs {needed}, and {left}.",
    "first_block": "{name} is kept {in_place}: the model's first parameter says where its inputs belong.",
    "fused_experts": "{name} holds all its experts in one tensor and cannot be split by expert.",
    "fits": "{name} fits {in_place}: it needs {needed} of {available}.",
    "tied": "{name} goes with the module that it is tied to: together they need {needed} of {available}.",
    "bound": "{name} shares a tensor with a module {in_place}.",
    "fallback": "{name} goes {in_place} out of turn, because the next module would have left it empty.",
    "split": "{name} is split: it needs {needed}, and {left} {in_place}.",
    "split_tied": "{name} is split, being tied: it needs {needed}, and {left} {in_place}.",
    "next_device": "{name} cannot be split, and {place} is full: it needs {needed}, and {left}.",
}

_STAGES: Final[Mapping[str, str]] = {
    "in_order": "in the order given",
    "other_order": "with the devices in another order",
    "tie_position": "with tied blocks at another member's place",
    "scattered": "with blocks anywhere on the accelerators",
    "offload": "with something offloaded",
}


def explain(plan: Plan, name: str, *, style: Style = "python") -> str:
    """Where a module or tensor lies, why, and what would move it; of a module around many blocks, which of them lie where.

    Args:
        plan: the plan; one that was read from a file says the same.
        name: a module or tensor; "" is the model. Any name inside a block is explained by the block.
        style: whether settings are said as `plan()` takes them, or as the command does.

    Raises:
        InvalidInputError: no plan.
        InvalidConstraintError: the model has no such name. Fields: ``names``, ``suggestions``.

    Guarantee: a pin is advised only where the plan shows that one can be followed.

    Cost: O(blocks, keys and reasons of the plan); these are made when they are first asked for.

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> made = plan(model, max_memory={0: 1000, "cpu": 2000})
        >>> print(explain(made, "3.weight"))
        3.weight lies in RAM and runs on GPU 0, as a part of the block 3.
          3 is offloaded: it takes 400 B of 2 KiB in RAM.
          3 does not fit on GPU 0: it needs 400 B, and 200 B are left.
        Tried: in the order given, with the devices in another order, with blocks anywhere on the accelerators.
        1.17 KiB of the model are offloaded; no plan offloads less.
        With 600 B more on GPU 0, everything would be on the accelerators.
        To move 3, write pin={'3': 0}.
        >>> print(explain(made, ""))  # doctest: +ELLIPSIS
        The model has 4 blocks, 1.56 KiB, on GPU 0 and RAM.
          0: 1 block, 400 B, on GPU 0
          1 to 3: 3 blocks, 1.17 KiB, in RAM, run on GPU 0
        ...
    """
    if not isinstance(plan, Plan):
        raise InvalidInputError(f"what is explained is a plan; got {type(plan).__name__}")
    require_known(plan, name)
    inside = runs_of(plan, name)
    lines = list(_about_many(plan, name, inside) if _is_many(inside) else _about_one(plan, name))
    lines.extend(_timed(plan, name))
    lines.extend(_in_long_steps(plan, name))
    lines.extend(_offloaded(plan))
    lines.extend(_to_move(plan, name, inside, style))
    return "\n".join((*lines, *plan.source.doubts))


def _timed(plan: Plan, name: str) -> Iterator[str]:
    """What a step is modelled to take of it; nothing of plans that do not go by time."""
    timing = plan.timing
    if timing is None:
        return
    pieces = [piece for piece in timing.pieces if is_within(piece.name, name) or is_within(name, piece.name)]
    if not pieces:
        return  # a small part of a block, which is timed by the name of another
    runs_ps = sum(piece.run_ps for piece in pieces)
    fetch_ps = sum(piece.fetch_ps for piece in pieces)
    hops_ps = sum(piece.hop_ps for piece in pieces)
    parts = [f"{_ms(runs_ps)} to run"]
    if fetch_ps:
        parts.append(f"{_ms(fetch_ps)} to fetch weights")
    if hops_ps:
        parts.append(f"{_ms(hops_ps)} to pass to the host and back")
    tokens = f"{timing.tokens} token" + ("s" if timing.tokens > 1 else "")
    yield f"In a step of {tokens}, modelled: {', '.join(parts)}, of {_ms(timing.latency_ps)} for the whole model."
    yield rate_sentence(pieces)


def _in_long_steps(plan: Plan, name: str) -> Iterator[str]:
    """Of what the host runs in short steps alone, which these are."""
    steps = {} if plan.timing is None else plan.timing.host_steps
    found = {each: steps[each] for each in steps if is_within(each, name) or is_within(name, each)}
    for device in dict.fromkeys(each.device for each in found.values()):
        here = [each.tokens for each in found.values() if each.device == device]
        most = counted(here[0], "token") if len(set(here)) == 1 else f"{min(here)} to {max(here)} tokens"
        what = "it" if len(found) == 1 else counted(len(here), "part")
        yield f"The host runs {what} in steps of up to {most}; longer ones bring {'it' if len(here) == 1 else 'them'} to {runner_name(device)}."


def _ms(duration_ps: int) -> str:
    return f"{duration_ps / 1e9:.3g} ms"


def _to_move(plan: Plan, name: str, inside: tuple[Run, ...], style: Style) -> Iterator[str]:
    """What would move it; nothing where the plan shows no way."""
    if plan.certificate.stage not in _STAGES and plan.timing is None:
        setting = "strategy='auto'" if style == "python" else "--set strategy=auto"
        yield f"accelerate's strategies take no pins; {setting} does."
    elif _is_many(inside):
        yield f"Blocks are moved one by one: ask for one of them, such as {_named(_example(inside))}."
    else:
        block = _block_of(plan, name)
        device = where_to_move(plan, block)
        if device is not None:
            verb = "write" if style == "python" else "add"
            yield f"To move {_named(block)}, {verb} {pin_words(block, device, style)}."


def require_known(plan: Plan, name: str) -> None:
    """Refuses a name that the model does not have. Raises InvalidConstraintError. Fields: ``names``, ``suggestions``."""
    names = plan.names
    if names:
        if name in names:
            return
        nearest = names.nearest(name) if isinstance(name, str) else ()
    else:  # a plan of before, which knows no names but those that it placed
        told = [*plan.device_map, *(reason.name for reason in plan.reasons)]
        if isinstance(name, str) and any(is_within(name, key) or is_within(key, name) for key in told):
            return
        nearest = tuple(difflib.get_close_matches(name, told, n=3)) if isinstance(name, str) else ()
    hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    raise InvalidConstraintError(
        f"the model has no module or tensor {shown(name)}{hint}", names=(name,), suggestions=nearest
    )


def _is_many(inside: tuple[Run, ...]) -> bool:
    return sum(run.count for run in inside) > 1


def _about_one(plan: Plan, name: str) -> Iterator[str]:
    """Where one block lies, or what is inside of it, and the decisions about it."""
    home, runs_on = device_of(name, plan.device_map), device_of(name, plan.execution_map)
    block = _block_of(plan, name)
    if home is None:
        home, runs_on = device_of(block, plan.device_map), device_of(block, plan.execution_map)
    if home is None:
        yield f"{_subject(name)} holds no tensors, so nothing is placed: it runs where its input is."
        return
    running = "" if runs_on is None else f" and runs on {runner_name(runs_on)}"
    part = ""
    if block != name:
        word = "as a part of" if is_within(name, block) else "with"
        part = f", {word} the block {one_line(block)}" if block else ", as a part of the model"
    yield f"{_subject(name)} lies {_in_place(home)}{running}{part}."
    own = reasons_about(plan, block)
    yield from (f"  {_sentence(reason)}" for reason in own[:_MOST_REASONS])
    if len(own) > _MOST_REASONS:
        yield f"  and {counted(len(own) - _MOST_REASONS, 'more reason')}."
    if not own:
        yield f"  {UNDECIDED}"
    yield from (f"  {words}" for words in running_words(plan, block))


def _block_of(plan: Plan, name: str) -> str:
    """The block around a name, or the only one inside of it."""
    blocks = plan.block_bytes or dict.fromkeys(reason.name for reason in plan.reasons)
    around = nearest_key(name, blocks)
    if around is not None:
        return around
    inside = [block for block in blocks if is_within(block, name)]
    inside = inside or [key for key in plan.device_map if is_within(key, name)]
    return inside[0] if len(inside) == 1 else name


def _about_many(plan: Plan, name: str, inside: tuple[Run, ...]) -> Iterator[str]:
    """The blocks inside of a module, by device and in the order of execution."""
    sizes = [run.size_bytes for run in inside if run.size_bytes is not None]
    size = _size_words(sum(sizes) if len(sizes) == len(inside) else None)
    homes = dict.fromkeys(run.home for run in inside)
    blocks = counted(sum(run.count for run in inside), "block")
    yield f"{_subject(name)} has {blocks}{size}, {_where(list(homes))}."
    if len(homes) > 1 and len(inside) > len(homes):
        yield from _by_device(inside, list(homes))
        yield "In the order of execution:"
    yield from (f"  {_run_words(run)}" for run in inside[:_MOST_RUNS])
    if len(inside) > _MOST_RUNS:
        yield f"  and {counted(len(inside) - _MOST_RUNS, 'more run')}."


def _where(homes: list[DeviceKey]) -> str:
    return f"all of it {_in_place(homes[0])}" if len(homes) == 1 else f"on {listed_places(homes)}"


def _by_device(inside: tuple[Run, ...], homes: list[DeviceKey]) -> Iterator[str]:
    for home in homes:
        runs = [run for run in inside if run.home == home]
        size_bytes = sum(run.size_bytes or 0 for run in runs)
        yield f"  {place_name(home)}: {counted(sum(run.count for run in runs), 'block')}{_size_words(size_bytes)}"


def _size_words(size_bytes: int | None) -> str:
    """How large blocks are; those of which all tensors count for others have no bytes of their own."""
    if size_bytes is None:
        return ""
    return f", {one_size(size_bytes)}" if size_bytes else ", no bytes that count here"


def _run_words(run: Run) -> str:
    span = _named(run.first) if run.count == 1 else f"{one_line(run.first)} to {one_line(run.last)}"
    running = (
        ""
        if run.runs_on == run.home
        else f", {'runs' if run.count == 1 else 'run'} on {runner_name(run.runs_on)}"
    )
    return (
        f"{span}: {counted(run.count, 'block')}{_size_words(run.size_bytes)}, {_in_place(run.home)}{running}"
    )


def _example(inside: tuple[Run, ...]) -> str:
    """A block that somebody may want to move: one that is not where it runs."""
    slow = (run.first for run in inside if run.home != run.runs_on)
    return next(slow, inside[0].first)


def _offloaded(plan: Plan) -> Iterator[str]:
    """How much does not lie where it runs, whether that has to be, and what would avoid it."""
    offloaded_bytes, known = sum(plan.offloaded_bytes.values()), plan.certificate
    if not offloaded_bytes:
        return
    yield f"Tried: {', '.join(_tried(plan))}."
    proof = (
        "no plan offloads less"
        if known.proven
        else f"any plan offloads at least {one_size(known.lower_bound_bytes)}"
        if known.lower_bound_bytes
        else "whether that is the least is not known"
    )
    yield f"{one_size(offloaded_bytes)} of the model are offloaded; {proof}."
    words = shortfall_words(plan)
    if words:
        yield words


def _tried(plan: Plan) -> list[str]:
    """Ways of placing units up to the one that gave the plan."""
    stage = plan.certificate.stage
    if stage not in _STAGES:
        return [f"strategy {stage}"]
    tried = list(_STAGES)[: list(_STAGES).index(stage) + (stage != "offload")]
    return [_STAGES[each] for each in tried if each != "tie_position" or each == stage]


def _sentence(reason: Reason) -> str:
    """One decision, without its exact numbers."""
    words = _SENTENCES.get(reason.rule)
    if words is None:
        raise InvalidInputError(
            f"no rule is called {reason.rule!r}; the plan is of another version of planner"
        )
    available = reason.available_bytes
    return words.format(
        name=_subject(reason.name),
        place=place_name(reason.device),
        in_place=_in_place(reason.device),
        needed=one_size(reason.needed_bytes),
        available="no limit" if available is None else one_size(max(0, available)),
        left="nothing is left"
        if available is not None and available <= 0
        else f"{one_size(available or 0)} are left",
    )


def _in_place(device: DeviceKey) -> str:
    return f"{'in' if device == 'cpu' else 'on'} {place_name(device)}"


def _named(name: str) -> str:
    return one_line(name) or "the model"


def _subject(name: str) -> str:
    return one_line(name) or "The model"
