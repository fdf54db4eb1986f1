"""The stages of a plan: which whole layers each device runs, where the plan is one that a pipeline can have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from planner.devices.keys import DeviceKey
from planner.devices.nodes import local_device
from planner.errors import InvalidInputError
from planner.names import named
from planner.plans.parts import PlanParts
from planner.plans.runs import Run, blocks_of

__all__ = ["PlanLayers", "PlanStage", "PlanStages", "layer_of", "layers_of", "predicts_further", "stages_of"]

_NUMBERED: Final = re.compile(r"(?:(?P<list>.*?)\.)?(?P<number>[0-9]{1,7})(?:\.|$)")


@dataclass(frozen=True, slots=True)
class PlanStage:
    """Neighbouring layers that one device runs.

    Args:
        device: which.
        first: the number of the first.
        count: how many there are.
        extra: layers that only predict further tokens, of those that come after.
    """

    device: DeviceKey
    first: int
    count: int
    extra: int = 0


@dataclass(frozen=True, slots=True)
class PlanStages:
    """Stages in the order of execution, of at least one layer each.

    Args:
        list_name: of the list of layers.
        stages: two or more.
    """

    list_name: str
    stages: tuple[PlanStage, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each stage, without those that only predict further tokens."""
        return tuple(stage.count for stage in self.stages)

    @property
    def extra(self) -> int:
        """Layers that only predict further tokens; they are with the last stage."""
        return self.stages[-1].extra


@dataclass(frozen=True, slots=True)
class PlanLayers:
    """The blocks of a plan, sorted into what lies before, in and behind its one list of layers.

    Args:
        list_name: of the list.
        before, after: blocks outside of it, but for tables of rotation, which every stage makes for itself.
        layers: by number, the blocks of each layer, or its parts.
        hidden: how many the configuration counts; those beyond only predict further tokens.
    """

    list_name: str
    before: tuple[Run, ...]
    layers: tuple[tuple[Run, ...], ...]
    after: tuple[Run, ...]
    hidden: int


def layer_of(name: str) -> tuple[str, int] | None:
    """The outermost list that a name lies in, with its number there; None outside of lists.

    Example:
        >>> layer_of("model.layers.3.mlp.experts.7"), layer_of("lm_head")
        (('model.layers', 3), None)
    """
    found = _NUMBERED.match(name)
    return None if found is None else (found["list"] or "", int(found["number"]))


def predicts_further(name: str) -> bool:
    """Whether what is called so is layers that only predict further tokens, in a list of their own.

    Example:
        >>> predicts_further("mtp.layers"), predicts_further("model.mtp_layers"), predicts_further("model.layers")
        (True, True, False)
    """
    return any(word == "mtp" or word.startswith("mtp_") for word in name.split("."))


def layers_of(plan: PlanParts) -> PlanLayers:
    """The layers of a plan.

    Raises:
        InvalidInputError: none, several lists of them, or some are missing.
    """
    blocks = blocks_of(plan)
    places = [layer_of(block.first) for block in blocks]
    found = {place[0]: None for place in places if place is not None}
    lists = [name for name in found if not predicts_further(name)]
    if len(lists) != 1:
        what = (
            f"{len(lists)} lists of layers ({', '.join(map(named, lists))})" if lists else "no list of layers"
        )
        raise _refused(f"the plan has {what}, and stages are cut in one", "plan the part that has the layers")
    (name,) = lists
    numbered = [place[1] for place in places if place is not None and place[0] == name]
    layers: list[list[Run]] = [[] for _ in range(max(numbered) + 1)]
    if len(layers) > len(blocks):
        raise _refused(
            f"the plan does not tell where each layer of {named(name)} lies", "plan the model anew"
        )
    first = next(at for at, place in enumerate(places) if place is not None and place[0] == name)
    before, after = list[Run](), list[Run]()
    for at, (block, place) in enumerate(zip(blocks, places, strict=True)):
        if place is not None and place[0] == name:
            layers[place[1]].append(block)
        elif not _is_everywhere(block.first):
            (before if at < first else after).append(block)
    missing = next((number for number, parts in enumerate(layers) if not parts), None)
    if missing is not None:
        raise _refused(
            f"the plan does not tell where layer {missing} of {named(name)} lies", "plan the model anew"
        )
    said = plan.account.settings.get("model.num_hidden_layers")
    hidden = said.value if said is not None and type(said.value) is int and said.value > 0 else len(layers)
    if hidden > len(layers):
        raise _refused(
            f"the configuration counts {hidden} layers, and {named(name)} has {len(layers)}, which may be run several times",
            f"plan the model that is run, or say model={{'num_hidden_layers': {len(layers)}}}",
        )
    return PlanLayers(
        list_name=name,
        before=tuple(before),
        layers=tuple(map(tuple, layers)),
        after=tuple(after),
        hidden=hidden,
    )


def stages_of(plan: PlanParts, engine: str) -> PlanStages:
    """The stages of a plan.

    Args:
        plan: with everything on accelerators, where it runs; cut between layers; what comes before the layers with the first of them,
            and what comes after with the last; one run a device.
        engine: the setting with which a plan is so.

    Raises:
        InvalidInputError: another plan; says what is otherwise, and which setting avoids it.
    """
    found = layers_of(plan)
    mend = f"plan with engine={engine!r}"
    for block in (*found.before, *(part for layer in found.layers for part in layer), *found.after):
        if block.home != block.runs_on or local_device(block.home) in ("cpu", "disk"):
            where = f"rests on {block.home}" + (
                f" and runs on {block.runs_on}" if block.home != block.runs_on else ""
            )
            raise _refused(
                f"{named(block.first)} {where}, and a stage holds what it runs on an accelerator", mend
            )
    devices = [_device_of(f"{found.list_name}.{at}", parts, mend) for at, parts in enumerate(found.layers)]
    runs = [(device, len(list(group))) for device, group in groupby(devices[: found.hidden])]
    _require_once([device for device, _ in runs], mend)
    (first, _), (last, _) = runs[0], runs[-1]
    extra = devices[found.hidden :]
    for block in found.before:
        _require_at(
            block, first, f"what comes before the layers runs with the first of them, on {first}", mend
        )
    for block in found.after:
        _require_at(block, last, f"what comes after the layers runs with the last of them, on {last}", mend)
    for at, device in enumerate(extra, start=found.hidden):
        if device != last:
            raise _refused(
                f"layer {at}, which only predicts further tokens, is on {device}: it runs with the last layer, on {last}",
                mend,
            )
    if len(runs) < 2:
        raise _refused(
            f"all layers are on {first}: that is one stage, which needs no split",
            "start the engine without one, or plan with smaller budgets or more devices",
        )
    stages, at = [], 0
    for device, count in runs:
        stages.append(PlanStage(device, at, count))
        at += count
    stages[-1] = replace(stages[-1], extra=len(extra) + _in_own_list(plan, found.after))
    return PlanStages(found.list_name, tuple(stages))


def _in_own_list(plan: PlanParts, after: Sequence[Run]) -> int:
    """How many layers there are behind the others that only predict further tokens; a block may have several of them."""
    blocks = [block.first for block in after if predicts_further(block.first)]
    names = (name for name in (*blocks, *plan.account.names) if predicts_further(name))
    places = {layer_of(name) for name in names} - {None}
    return max(len(places), min(1, len(blocks)))


def _is_everywhere(name: str) -> bool:
    """Whether every stage makes it for itself: tables of rotation, which have no weights."""
    return "rotary" in name.rpartition(".")[2]


def _device_of(layer: str, parts: Sequence[Run], mend: str) -> DeviceKey:
    devices = list(dict.fromkeys(part.home for part in parts))
    if len(devices) > 1:
        raise _refused(
            f"{named(layer)} is cut: it lies on {', '.join(map(str, devices))}, and stages have whole layers",
            mend,
        )
    return devices[0]


def _require_once(devices: Sequence[DeviceKey], mend: str) -> None:
    twice = next((device for device in devices if devices.count(device) > 1), None)
    if twice is not None:
        raise _refused(f"device {twice} has two runs of layers, and is one stage", mend)


def _require_at(block: Run, device: DeviceKey, why: str, mend: str) -> None:
    if block.home != device:
        raise _refused(f"{named(block.first)} is on {block.home}: {why}", mend)


def _refused(what: str, mend: str) -> InvalidInputError:
    return InvalidInputError(f"this plan cannot be a pipeline: {what}; {mend}")
