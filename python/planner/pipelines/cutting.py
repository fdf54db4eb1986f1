"""A model reduced to what one stage runs: some of its layers, and what comes before or after all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from planner.names import is_within
from planner.pipelines.layers import LayerList, Roles, parts_outside
from planner.pipelines.runs import StageRun

__all__ = ["Cut", "Zeros", "cut_model", "owner_of"]

# What modules call the number of their layer.
_NUMBERS: Final = ("layer_idx", "layer_id")
# Where what all configurations have is defined: nothing that depends on layers, and words of an older time, which warn.
_SHARED: Final = (
    "transformers.configuration_utils",
    "transformers.utils",
    "transformers.integrations",
    "builtins",
)
_OVERRIDES: Final = "per_layer_config"
# Lists that say nothing of layers, though they may be as long.
_NOT_OF_LAYERS: Final = ("token_id", "token_ids", "architectures", "time_step_limit", "languages")


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What was done to a model to make a stage of it.

    Args:
        layers: the list of layers, of the whole model.
        first: the first layer that was kept.
        last: the last one.
        config: of the whole model, as its layers have it.
    """

    layers: LayerList
    first: nn.Module
    last: nn.Module
    config: Any


class Zeros(nn.Module):
    """Stands for an embedding of another stage: it adds nothing.

    Args:
        width: of what it stands for.
    """

    zeros: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        zeros = torch.zeros((1, 1, width), device="cpu")
        self.register_buffer("zeros", zeros, persistent=False)  # so that they go where the model goes

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.zeros


class _Identity(nn.Module):
    """Stands for a module of another stage: it gives what it gets, and says what its weight was for code that asks for its dtype."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = torch.empty_like(weight, device="meta").detach() if isinstance(weight, Tensor) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = (kwargs.get("inputs_embeds"), *args, *kwargs.values())
        return next((value for value in given if value is not None), None)


def cut_model(model: nn.Module, layers: LayerList, roles: Roles, run: StageRun) -> Cut:
    """Reduces a model to one stage, in place.

    Args:
        model: with its full configuration, so that layers which differ by their number are what they are.
        layers: its list of layers.
        roles: which of what lies around them is called before, between and after.
        run: which of the layers the stage has.
    """
    whole = model.get_submodule(layers.name)
    assert isinstance(whole, nn.ModuleList), "a list of layers was found"
    kept = [whole[number] for number in run.layers]
    around: Any = model.get_submodule(layers.name.rpartition(".")[0])
    config = getattr(around, "config", None) or model.config
    for name in _absent(model, layers, roles, run):
        _put(model, name, _stand_in(model.get_submodule(name)))
    _put(model, layers.name, nn.ModuleList(kept))
    of_each = _numbers_of_each(whole)
    _renumber(kept, run.layers.start, of_each)
    _slice_configurations(model, layers.length, run.layers, of_each)
    return Cut(layers, kept[0], kept[-1], config)


def owner_of(model: nn.Module, layers: LayerList, roles: Roles, run: StageRun) -> Callable[[str], bool]:
    """What tells, by its name in the whole model, whether a tensor is one of a stage's."""
    absent = _absent(model, layers, roles, run)
    start = f"{layers.name}."

    def owns(name: str) -> bool:
        if name.startswith(start):
            return int(name.removeprefix(start).partition(".")[0]) in run.layers
        return not any(is_within(name, part) for part in absent)

    return owns


def _absent(model: nn.Module, layers: LayerList, roles: Roles, run: StageRun) -> list[str]:
    """Modules around the layers that other stages run."""
    return [
        name
        for name, is_registered_before in parts_outside(model, layers)
        if not _stays(name, roles, run, is_registered_before=is_registered_before)
    ]


def _stays(name: str, roles: Roles, run: StageRun, *, is_registered_before: bool) -> bool:
    if name not in roles:  # never called: it may still be looked into
        return run.is_first if is_registered_before else run.is_last
    if name in roles.between:
        return True
    return (run.is_first and name in roles.before) or (run.is_last and name in roles.after)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    around, _, local = name.rpartition(".")
    setattr(model.get_submodule(around), local, module)


def _stand_in(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return Zeros(module.embedding_dim)
    return _Identity(getattr(module, "weight", None))


def _numbers_of_each(layers: nn.ModuleList) -> int:
    """How many numbers each layer has: one, or as many as it has attentions that are counted as layers."""
    numbers = [number for layer in layers for _, _, number in _numbered(layer)]
    most = max(numbers, default=0) + 1
    return most // len(layers) if most % len(layers) == 0 else 1


def _numbered(layer: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """The modules in a layer that have a number, and what they call it."""
    for part in layer.modules():
        for name in _NUMBERS:
            number = getattr(part, name, None)
            if type(number) is int:
                yield part, name, number


def _renumber(layers: Sequence[nn.Module], start: int, of_each: int) -> None:
    """Gives everything that has a number of a layer the one that it has in this stage: caches count from 0."""
    for at, layer in enumerate(layers):
        mine = range((start + at) * of_each, (start + at + 1) * of_each)
        for part, name, number in list(_numbered(layer)):
            setattr(part, name, at * of_each + (number - mine.start if number in mine else 0))


def _slice_configurations(model: nn.Module, total: int, layers: range, of_each: int) -> None:
    """Says in every configuration that there are only these layers: the inner model's need not be the outer's."""
    total, kept = total * of_each, range(layers.start * of_each, layers.stop * of_each)
    made: dict[int, tuple[Any, Any]] = {}  # the first keeps the id from being another's
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "num_hidden_layers", None) != total:
            continue
        if id(config) not in made:
            made[id(config)] = (config, _sliced(config, total, kept))
        part.config = made[id(config)][1]


def _computed_lists(config: Any, total: int) -> dict[str, list[Any]]:
    """What a configuration computes for each of its layers, which would be another thing for fewer of them."""
    own = [kind for kind in type(config).__mro__ if not kind.__module__.startswith(_SHARED)]
    names = {name for kind in own for name, value in vars(kind).items() if isinstance(value, property)}
    found = {}
    for name in sorted(names - {_OVERRIDES}):
        value = getattr(config, name, None)
        if isinstance(value, list) and len(value) == total:
            found[name] = value
    return found


def _sliced(config: Any, total: int, kept: range) -> Any:
    overrides = config.to_dict().get(_OVERRIDES) or {}
    sliced = copy.deepcopy(config)
    if overrides:
        setattr(sliced, _OVERRIDES, None)
    for name, value in list(vars(sliced).items()):
        if isinstance(value, list | tuple) and len(value) == total and not name.endswith(_NOT_OF_LAYERS):
            setattr(sliced, name, type(value)(value[kept.start : kept.stop]))
    computed = _computed_lists(config, total)
    sliced.num_hidden_layers = len(kept)
    if computed:
        own = {name: value[kept.start : kept.stop] for name, value in computed.items()}
        sliced.__class__ = type(type(config).__name__, (type(config),), own)
    if overrides:
        by_number = {int(key): said for key, said in overrides.items()}
        renumbered = {number - kept.start: by_number[number] for number in kept if number in by_number}
        setattr(sliced, _OVERRIDES, renumbered or None)
    return sliced
