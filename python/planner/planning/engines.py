"""What an engine can do with a model: where it may be cut, what lies at both ends, and what the host has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from planner.checkpoint.opened import Opened
from planner.choices import Engine, Mode
from planner.devices.keys import DeviceKey
from planner.errors import InvalidConstraintError, InvalidInputError
from planner.model.layout import Layout
from planner.names import listed, named
from planner.plans.parts import BOTH_ENDS
from planner.plans.stages import layer_of, predicts_further
from planner.settings.schema import Settings
from planner.settings.strategies import ByTime

__all__ = [
    "allowed_for",
    "borders_inside",
    "closed_borders",
    "engine_mode",
    "has_host",
    "require_runs",
    "with_both_ends",
]

_HOST: Final = "cpu"
_NO_TIES: Final = "torchtitan"
"""Refuses a model whose head is tied."""


def has_host(engine: Engine | None) -> bool:
    """Whether the host has the first run: the input embedding, and the first layers."""
    return engine == "llama_cpp"


def engine_mode(mode: Mode, engine: Engine | None, *, wants_cache: bool = False) -> Mode:
    """What may hold weights, where an engine runs the plan, or the cut is that of the largest cache."""
    if engine is None:
        return "gpu_only" if wants_cache else mode
    return "no_disk" if has_host(engine) and mode != "gpu_only" else "gpu_only"


def require_runs(settings: Settings) -> None:
    """Raises InvalidInputError where an engine runs a plan whose strategy may come back to a device."""
    if settings.engine is not None and not isinstance(settings.strategy, ByTime):
        raise InvalidInputError(
            f"engine {settings.engine!r} wants each device to run one stretch of the model, which this strategy does not promise: "
            "strategy='throughput', 'pipeline' or 'latency' does"
        )


def with_both_ends(opened: Opened, engine: Engine) -> Opened:
    """The model as the engine holds it: what is tied between the ends lies at both.

    Raises:
        InvalidInputError: an engine that runs no such model.
        InvalidConstraintError: layers that share weights. Fields: ``names``, ``suggestions``.
    """
    groups = Layout(opened.tree, tied=opened.tied).tied_groups()
    if not groups:
        return opened
    between = [group for group in groups if any(layer_of(name) is not None for name in group)]
    if between:
        raise InvalidConstraintError(
            f"engine {engine!r}: {listed(map(named, between[0]))} are one tensor, and layers of different stages cannot share it: "
            "leave engine out",
            names=tuple(between[0]),
            suggestions=(),
        )
    if engine == _NO_TIES:
        raise InvalidInputError(
            f"engine {engine!r}: {listed(map(named, groups[0]))} are one tensor, and torchtitan divides no model whose head is tied: "
            "untie them (tie_word_embeddings=False), or plan for another engine"
        )
    names = [name for group in groups for name in group[1:]]  # the first has the tensor that there is
    notes = [
        f"{BOTH_ENDS}, where {engine} holds it: {listed(map(named, group))} are one tensor"
        for group in groups
    ]
    tree = replace(opened.tree, columns=opened.tree.columns.untied(names))
    return replace(opened, tree=tree, tied=None if opened.tied is None else (), notes=(*opened.notes, *notes))


def closed_borders(names: Sequence[Sequence[str]], hidden: int | None, engine: Engine) -> tuple[int, ...]:
    """Numbers of pieces before which no stage may end.

    Args:
        names: of each piece, in the order of execution.
        hidden: layers that the configuration counts; those beyond only predict further tokens, and stay with the last.
        engine: for the host's sake, the embedding may be apart from the first layer, and the head from the last.

    Raises:
        InvalidInputError: no list of layers, or several, or one that has fewer than the configuration counts.

    Example:
        >>> names = [["embed"], ["layers.0.attn"], ["layers.0.mlp"], ["layers.1"], ["norm"], ["head"]]
        >>> closed_borders(names, None, "vllm"), closed_borders(names, None, "llama_cpp")
        ((1, 2, 4, 5), (2, 5))
    """
    places = [layer_of(piece[0]) if piece else None for piece in names]
    lists = list(
        dict.fromkeys(place[0] for place in places if place is not None and not predicts_further(place[0]))
    )
    if len(lists) != 1:
        what = (
            f"has {len(lists)} lists of layers ({listed(map(named, lists))})"
            if lists
            else "has no list of layers"
        )
        raise InvalidInputError(
            f"engine {engine!r}: the model {what}, and stages are cut in one: leave engine out"
        )
    numbers = [place[1] if place is not None and place[0] == lists[0] else None for place in places]
    in_layers = [at for at, number in enumerate(numbers) if number is not None]
    count = max(number for number in numbers if number is not None) + 1
    if hidden and hidden > count:
        raise InvalidInputError(
            f"engine {engine!r}: the configuration counts {hidden} layers, and {named(lists[0])} has {count}, which may be run several "
            f"times: leave engine out, or say model={{'num_hidden_layers': {count}}}"
        )
    begin, behind = in_layers[0], in_layers[-1] + 1
    if has_host(engine):
        open_ones = {
            begin,
            behind,
        }  # and to llama.cpp, layers beyond those that count are layers as any other
        last = behind
    else:
        open_ones = set[int]()
        last = max(at for at in in_layers if not hidden or (numbers[at] or 0) < hidden)
    for border, (before, after) in enumerate(pairwise(numbers), start=1):
        if before is not None and after is not None and before != after and border <= last:
            open_ones.add(border)
    return tuple(border for border in range(1, len(numbers)) if border not in open_ones)


def borders_inside(units: Sequence[int]) -> tuple[int, ...]:
    """Numbers of pieces before which no stage may end, so that one has all of each unit.

    Args:
        units: of each piece, in the order of execution; those that are kept together have one.

    Example:
        >>> borders_inside([0, 1, 2, 1, 3])
        (2, 3)
    """
    first = {unit: at for at, unit in reversed(list(enumerate(units)))}
    last = {unit: at for at, unit in enumerate(units)}
    inside = {border for unit, at in first.items() for border in range(at + 1, last[unit] + 1)}
    return tuple(sorted(inside))


def allowed_for(
    engine: Engine,
    names: Sequence[Sequence[str]],
    devices: Sequence[DeviceKey],
    allowed: Sequence[frozenset[DeviceKey] | None],
) -> tuple[frozenset[DeviceKey] | None, ...]:
    """By piece, where an engine lets it lie of where it may.

    Args:
        engine: which.
        names: of each piece, in the order of execution.
        devices: with budgets.
        allowed: where the settings let each lie; None for anywhere.

    Raises:
        InvalidConstraintError: a piece that then may lie nowhere. Fields: ``names``, ``suggestions``.
        InvalidInputError: the host has no budget, and has to have a part.
    """
    if not has_host(engine):
        return tuple(allowed)
    if _HOST not in devices:
        raise InvalidInputError(
            f"engine {engine!r} keeps the input embedding on the host: say what it may take there, max_memory={{..., 'cpu': '64GiB'}}"
        )
    cards = frozenset(device for device in devices if device not in (_HOST, "disk"))
    in_layers = [at for at, piece in enumerate(names) if piece and layer_of(piece[0]) is not None]
    found = list(allowed)
    for at, where in enumerate(allowed):
        wanted = frozenset((_HOST,)) if at < in_layers[0] else cards if at > in_layers[-1] and cards else None
        if wanted is None:
            continue
        found[at] = wanted if where is None else wanted & where
        if not found[at]:
            raise InvalidConstraintError(
                f"{named(names[at][0])} may lie nowhere: engine {engine!r} has it on {listed(map(str, sorted(wanted, key=str)))}, and "
                f"constraints let it lie on {listed(map(str, sorted(where or (), key=str)))}",
                names=tuple(names[at]),
                suggestions=(),
            )
    return tuple(found)
