"""The one list of layers that a model is cut along, and what of the model lies around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.errors import InvalidTreeError
from planner.loading.live import live_tensors, modules_by_name
from planner.names import listed, qualified

__all__ = ["LayerList", "Roles", "find_layers", "parts_outside"]

_FEWEST = 2


@dataclass(frozen=True, slots=True)
class LayerList:
    """The one list of layers of a model.

    Args:
        name: of the list.
        length: how many layers it has.
    """

    name: str
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """When a model calls what lies around its layers, by name.

    Args:
        before: before the first layer.
        between: after one layer and before another.
        after: after the last layer.
    """

    before: frozenset[str]
    between: frozenset[str]
    after: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.before or name in self.between or name in self.after


def find_layers(model: nn.Module) -> LayerList:
    """The list of layers that stages are cut from: the only list of modules that stay whole.

    Raises:
        InvalidTreeError: there is none, or there are several, or an encoder before a decoder. Fields: ``name``.
    """
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    generates: Any = getattr(model, "can_generate", None)
    if generates is not None and not generates():
        raise _cannot(name, "it has no head that gives the next token")
    if getattr(config, "is_encoder_decoder", False):
        raise _cannot(name, "it has an encoder and a decoder, and every layer of one needs all of the other")
    found = _lists(model, frozenset(getattr(model, "_no_split_modules", None) or ()))
    if not found:
        found = _lists(model, None)
    if len(found) != 1:
        said = listed(f"'{each.name}' of {each.length}" for each in found) if found else "none"
        raise _cannot(
            name, f"that takes one list of layers, and it has {said}", found[0].name if found else ""
        )
    return found[0]


def _lists(model: nn.Module, whole: frozenset[str] | None) -> list[LayerList]:
    """Lists of modules of these classes, or of any one class; none inside of another."""
    found: list[LayerList] = []
    for prefix, module in modules_by_name(model):
        name = prefix.removesuffix(".")
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{other.name}.") for other in found):
            continue
        kinds = {type(layer).__name__ for layer in module}
        is_one = (
            len(kinds) == 1 and len(module) >= _FEWEST if whole is None else bool(kinds) and kinds <= whole
        )
        if is_one:
            found.append(LayerList(name, len(module)))
    return found


def _cannot(model: str, why: str, name: str = "") -> InvalidTreeError:
    return InvalidTreeError(f"{model} cannot be cut into stages: {why}", name=name)


def parts_outside(model: nn.Module, layers: LayerList) -> Iterator[tuple[str, bool]]:
    """Names of the modules around a list of layers that hold tensors from files, each as a whole, and whether it is registered before
    the list."""
    path = layers.name.split(".")
    for depth, inner in enumerate(path):
        around = ".".join(path[:depth])
        is_before = True
        for local, child in model.get_submodule(around)._modules.items():
            if local == inner:
                is_before = False
            elif child is not None and live_tensors(child):
                yield qualified(around, local), is_before
