"""A plan as llama.cpp takes it."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from itertools import groupby
from typing import Final

from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError
from planner.export.command import Command
from planner.names import named, qualified
from planner.plans.plan import Plan
from planner.plans.runs import Run
from planner.plans.stages import PlanLayers, layers_of, predicts_further
from planner.plans.torchrun import nodes_of

__all__ = ["llama_cpp"]

_HOST: Final = "cpu"
_MEND: Final = "plan with engine='llama_cpp'"
_DENSE: Final = r"ffn_(up|down|gate)\."
_EXPERTS: Final = "ffn_(up|down|gate|gate_up)_(ch|)exps"
_WHOLE: Final = "(ffn_(up|down|gate|gate_up)_(exps|shexp)|ffn_gate_inp|exp_probs_b)"
"""Of a mixture, experts, those that every token meets, and the router: what a model's own MLP holds."""
_BLOCKS: Final = "blk"
"""What a GGUF calls its layers; what lies in them has llama.cpp's own names, which patterns may say one by one."""
_TENSOR: Final = re.compile(r"[a-z0-9_]+")
_MLP: Final = re.compile(r"mlp|ffn?|feed_?forward|moe|experts")
"""What families call all that a layer has behind its attention; ``fc2`` and ``self_attn`` are none of these."""


def llama_cpp(plan: Plan) -> Command:
    """What llama.cpp is started with, so that it has layers where the plan has them.

    Args:
        plan: as ``engine="llama_cpp"`` makes it: the input embedding and perhaps some first layers on the host, then a run on each
            card, in which MLPs or experts may lie on the host.

    Raises:
        InvalidInputError: another plan; says what is otherwise, and the setting that mends it.

    Guarantee: by llama.cpp's rule, which compares sums in float32, every layer is on the device that the plan has for it.

    Source: llama.cpp as in llama-cpp-python 0.3.36, ``src/llama-model.cpp``, ``load_tensors``; ``common/arg.cpp``.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 864, 1: 700, "cpu": 500}, pin={"embed": "cpu"}, execute_offloaded="cpu")
        >>> llama_cpp(made).line
        'CUDA_VISIBLE_DEVICES=0,1 llama-server -m MODEL.gguf -ngl 5 -ts 3,2 --fit off'
    """
    found = layers_of(plan)
    devices, beside, own = [], dict[int, str](), dict[int, tuple[str, ...]]()
    for at, parts in enumerate(found.layers):
        layer = qualified(found.list_name, str(at))
        devices.append(_device_of(layer, parts))
        if found.list_name == _BLOCKS:
            own[at] = _own_tensors(layer, devices[-1], parts)
            continue
        part = _part_on_host(devices[-1], parts)
        if part is not None:
            beside[at] = part.removeprefix(f"{layer}.")
            _require_pattern(part, beside[at])
    for block in found.before:
        if block.home != _HOST:
            raise _refused(f"{named(block.first)} is on {block.home}, and llama.cpp keeps it on the host")
    ends = list(dict.fromkeys(block.home for block in found.after if block.home == block.runs_on))
    if len(ends) > 1 or any(block.home != block.runs_on for block in found.after):
        raise _refused(f"what comes behind the layers is in several places, {', '.join(map(str, ends))}")
    output = ends[0] if ends else devices[-1]
    runs = [(device, len(list(group))) for device, group in groupby([*devices, output])]
    cards = [(device, count) for device, count in runs if device != _HOST]
    on_host = sum(device == _HOST for device in devices)
    if any(device == _HOST for device, _ in runs[1:]):
        raise _refused(
            "layers on the host come behind some on a card, and llama.cpp has the first ones there"
        )
    twice = next((each for each, _ in cards if sum(each == other for other, _ in cards) > 1), None)
    if twice is not None:
        raise _refused(f"device {twice} has two runs of layers")
    args = ["llama-server", "-m", "MODEL.gguf", "-ngl", str(sum(count for _, count in cards))]
    if len(cards) > 1:
        args += ["-ts", ",".join(str(count) for _, count in cards)]
    args += [*_overrides(beside, on_host, found.list_name, plan.names), *_own_overrides(own), "--fit", "off"]
    return Command(
        env=_visible([device for device, _ in cards]),
        args=tuple(args),
        notes=_notes(plan, found, is_apart=bool(beside) or any(own.values())),
    )


def _visible(cards: Sequence[DeviceKey]) -> dict[str, str]:
    """The cards that llama.cpp sees, in the order of their layers; it would split over all that are there."""
    if len(nodes_of(cards)) > 1 or any(not isinstance(card, int) for card in cards):
        raise InvalidInputError(
            f"llama.cpp takes cards of one computer by their numbers, and this plan has {', '.join(map(str, cards))}: plan for one of "
            "them"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, cards))} if cards else {}


def _device_of(layer: str, parts: Sequence[Run]) -> DeviceKey:
    """Where a layer runs, but for what the host runs from within it."""
    where = list(dict.fromkeys(part.home for part in parts if part.home != _HOST)) or [_HOST]
    for part in parts:
        if part.home != part.runs_on:
            raise _refused(
                f"{named(part.first)} rests on {part.home} and runs on {part.runs_on}, and llama.cpp runs it where it lies"
            )
    if len(where) > 1 or "disk" in where:
        raise _refused(
            f"{named(layer)} is cut: it lies on {', '.join(map(str, where))}, and llama.cpp has whole layers"
        )
    return where[0]


def _part_on_host(device: DeviceKey, parts: Sequence[Run]) -> str | None:
    """What of a card's layer lies on the host, if anything does."""
    away = [part.first for part in parts if part.home == _HOST and device != _HOST]
    if len(away) > 1:
        raise _refused(
            f"{', '.join(map(named, away))} lie on the host, and llama.cpp has a pattern for the MLP or the experts only"
        )
    return away[0] if away else None


def _own_tensors(layer: str, device: DeviceKey, parts: Sequence[Run]) -> tuple[str, ...]:
    """What of a card's layer of a GGUF lies on the host, by llama.cpp's names."""
    names = [part.first.removeprefix(f"{layer}.") for part in parts if part.home == _HOST != device]
    odd = next((name for name in names if not _TENSOR.fullmatch(name)), None)
    if odd is not None:
        raise _refused(f"{named(odd)} of {named(layer)} lies on the host, and is no tensor of llama.cpp")
    return tuple(sorted(names))


def _own_overrides(own: Mapping[int, tuple[str, ...]]) -> list[str]:
    """Arguments that leave just these tensors on the host."""
    args: list[str] = []
    for names in dict.fromkeys(filter(None, own.values())):
        numbers = "|".join(str(at) for at, each in own.items() if each == names)
        args += ["-ot", rf"blk\.({numbers})\.({'|'.join(names)})\.=CPU"]
    return args


def _require_pattern(part: str, within: str) -> None:
    if not any(_MLP.fullmatch(word) for word in within.split(".")[-1:]):
        raise InvalidInputError(
            f"llama.cpp cannot have this plan: {named(part)} lies on the host, and llama.cpp has a pattern for a layer's whole MLP or all "
            "its experts only; plan with strategy={'type': 'latency', 'parts': False}"
        )


def _overrides(beside: Mapping[int, str], on_host: int, list_name: str, names: Container[str]) -> list[str]:
    """Arguments that leave MLPs or experts on the host.

    Args:
        beside: by layer, the name within it of what lies there.
        on_host: so many first layers lie there as a whole.
        list_name: of the layers.
        names: of all modules.
    """

    def pattern(at: int, part: str) -> str | None:
        """What it is called there; None where the layer has no such part."""
        name = f"{list_name}.{at}.{part}"
        if name not in names:
            return None
        if part.rpartition(".")[2] == "experts":
            return _EXPERTS
        return _WHOLE if f"{name}.experts" in names else _DENSE

    args: list[str] = []
    found = {at: pattern(at, part) or _DENSE for at, part in beside.items()}
    for kind, short in ((_EXPERTS, "--n-cpu-moe"), (_DENSE, "--n-cpu-ffn"), (_WHOLE, None)):
        numbers = [at for at, each in found.items() if each == kind]
        if not numbers:
            continue
        part = beside[numbers[0]]
        is_first = all(
            at < on_host or at in numbers or pattern(at, part) != kind for at in range(max(numbers))
        )
        if short is not None and is_first:
            args += [short, str(max(numbers) + 1)]
        else:
            args += ["-ot", rf"blk\.({'|'.join(map(str, numbers))})\.{kind}=CPU"]
    return args


def _notes(plan: Plan, found: PlanLayers, *, is_apart: bool) -> tuple[str, ...]:
    notes = [
        f"the plan is of {plan.source.format or 'weights as they are'}: the GGUF has to be of the same quantisation, or its sizes are "
        "others",
        "--fit would plan again; the input embedding stays on the host in any case",
    ]
    further = len(found.layers) - found.hidden
    if further:
        notes.append(
            f"-ngl counts {further} layers that only predict further tokens: the GGUF has to have them, or as many others are on cards in their place"
        )
    if any(predicts_further(block.first) for block in found.after):
        notes.append("-ngl counts no layers that only predict further tokens: the GGUF must have none")
    if is_apart:
        notes.append("without --load-mode none, what the host runs is mapped, and slower than it need be")
    return tuple(notes)


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(f"llama.cpp cannot have this plan: {what}; {_MEND}")
