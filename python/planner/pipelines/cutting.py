"""A model on the meta device, reduced to what one stage runs: some of its layers, and what comes before or after all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import InvalidTreeError, PlanMismatchError
from planner.loading.live import modules_by_name
from planner.names import listed
from planner.pipelines.runs import StageRun

__all__ = ["Cut", "LayerList", "cut_model", "find_layers"]


@dataclass(frozen=True, slots=True)
class LayerList:
    """The one list of layers of a model.

    Args:
        name: of the list.
        length: how many layers it has.
    """

    name: str
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What was done to a model to make a stage of it.

    Args:
        layers: the list of layers, of the whole model.
        first: the first layer that was kept.
        last: the last one.
        base: name of the module to call for hidden states.
        names: by id of each tensor that was kept, its name in the whole model.
    """

    layers: LayerList
    first: nn.Module
    last: nn.Module
    base: str
    names: Mapping[int, str]


class _Zeros(nn.Module):
    """Stands for an embedding of another stage: what it would add."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros((1, 1, self.width), dtype=self.dtype, device=ids.device)


class _Identity(nn.Module):
    """Stands for a module of another stage: it gives what it gets."""

    def forward(self, given: Any, *_: Any, **__: Any) -> Any:
        return given


def find_layers(model: nn.Module) -> LayerList:
    """The list of layers that stages are cut from: the only list of modules that stay whole.

    Raises:
        InvalidTreeError: there is none, or there are several. Fields: ``name``.
    """
    whole = set(getattr(model, "_no_split_modules", None) or ())
    found: list[LayerList] = []
    for prefix, module in modules_by_name(model):
        name = prefix.removesuffix(".")
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        is_inside = any(name.startswith(f"{other.name}.") for other in found)
        if not is_inside and all(type(layer).__name__ in whole for layer in module):
            found.append(LayerList(name, len(module)))
    if len(found) != 1:
        said = listed(f"'{each.name}' of {each.length}" for each in found) if found else "none"
        raise InvalidTreeError(
            f"{type(model).__name__} cannot be cut into stages: that takes one list of layers, and it has {said}",
            name=found[0].name if found else "",
        )
    return found[0]


def cut_model(
    model: nn.Module,
    layers: LayerList,
    runs: Sequence[StageRun],
    index: int,
    make_buffers: Callable[[nn.Module], None],
) -> Cut:
    """Reduces a model to one stage, in place.

    Args:
        model: on meta, with its full configuration.
        layers: its list of layers.
        runs: all stages.
        index: which of them.
        make_buffers: fills buffers that no file has, while layers still have the numbers and the configuration of the whole.

    Raises:
        PlanMismatchError: more or fewer layers than the model has. Fields: ``findings``.
    """
    run, total = runs[index], sum(len(each.layers) for each in runs)
    if total != layers.length:
        said = f"the stages have {total} layers together, and '{layers.name}' of {type(model).__name__} has {layers.length}"
        raise PlanMismatchError(f"{said}: plan this very checkpoint", findings=(said,))
    names = {id(tensor): name for name, tensor in _all_tensors(model)}
    whole = model.get_submodule(layers.name)
    assert isinstance(whole, nn.ModuleList)
    kept = [whole[number] for number in run.layers]
    base, _, local = layers.name.rpartition(".")
    _take_out(model, layers.name, run)
    setattr(model.get_submodule(base), local, nn.ModuleList(kept))
    make_buffers(model)
    _renumber(kept)
    _slice_configurations(model, layers.length, run.layers)
    return Cut(layers, kept[0], kept[-1], base, names)


def _all_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _take_out(model: nn.Module, layers: str, run: StageRun) -> None:
    """Puts something without weights in the place of modules that other stages run."""
    parts = layers.split(".")
    for depth in range(len(parts)):
        outer = model.get_submodule(".".join(parts[:depth]))
        is_before = True
        for name, child in list(outer.named_children()):
            if name == parts[depth]:
                is_before = False
                continue
            stays = run.is_first if is_before else run.is_last
            if not stays and any(True for _ in child.parameters()):
                setattr(outer, name, _stand_in(child))


def _stand_in(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return _Zeros(module.embedding_dim, module.weight.dtype)
    return _Identity()


def _renumber(layers: Sequence[nn.Module]) -> None:
    """Gives everything that has a number of a layer the one that it has in this stage: caches count from 0."""
    for number, layer in enumerate(layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number  # type: ignore[assignment]


def _slice_configurations(model: nn.Module, total: int, kept: range) -> None:
    """Says in every configuration that there are only these layers."""
    made: dict[int, tuple[Any, Any]] = {}
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if config is None or getattr(config, "num_hidden_layers", None) != total:
            continue
        if id(config) not in made:
            made[id(config)] = (config, _sliced(config, total, kept))
        part.config = made[id(config)][1]


def _sliced(config: Any, total: int, kept: range) -> Any:
    sliced = copy.deepcopy(config)
    for name, value in list(vars(sliced).items()):
        if isinstance(value, list | tuple) and len(value) == total and "layer" in name:
            setattr(sliced, name, list(value)[kept.start : kept.stop])
    sliced.num_hidden_layers = len(kept)
    return sliced
