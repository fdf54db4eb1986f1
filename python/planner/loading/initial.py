"""Values by a model's own code, for tensors on meta that no file has: made on copies of its modules without its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from planner.loading.conversions import is_of_transformers
from planner.names import listed

__all__ = ["InitialValues", "initial_values"]


@dataclass(frozen=True, slots=True)
class InitialValues:
    """What a model's own code gives.

    Args:
        values: by name, on the CPU, in the dtype and size that the model has there.
        findings: for what nobody knows a value, in words.
    """

    values: Mapping[str, Tensor]
    findings: tuple[str, ...]


def initial_values(model: nn.Module, names: Collection[str]) -> InitialValues:
    """Values of tensors that no file has.

    Args:
        model: what is loaded into.
        names: of parameters, persistent or other buffers; one name of each tensor.

    Guarantee: the model is not changed. Models of transformers, and those inside others, get what ``from_pretrained`` gives,
        also the same random numbers from the same state of torch's generator; other modules what their
        ``reset_parameters`` gives.

    Cost: buffers alone cost what their modules' initialisation costs; for a parameter, all modules are gone through, as
        ``from_pretrained`` does.

    Source: ``_finalize_model_loading`` and ``initialize_weights``, transformers 5.23, modeling_utils.py.
    """
    if not names:
        return InitialValues({}, ())
    places = [_Place.of(model, name) for name in names]
    values: dict[str, Tensor] = {}
    failed: list[str] = []
    with torch.no_grad(), torch.device("cpu"):
        for outermost, inside in _by_model(model, places):
            try:
                values.update(_made(outermost, inside))
            except _CodeError as error:
                failed.append(str(error))
    unknown = [place for place in places if place.name not in values]
    return InitialValues(values, (*failed, *map(_finding, unknown)))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies.

    Args:
        name: of the tensor.
        line: the modules from the model down to its owner.
        local: its name there.
    """

    name: str
    line: tuple[nn.Module, ...]
    local: str

    @classmethod
    def of(cls, model: nn.Module, name: str) -> _Place:
        *path, local = name.split(".")
        line = [model]
        for part in path:
            line.append(line[-1].get_submodule(part))
        return cls(name, tuple(line), local)

    @property
    def owner(self) -> nn.Module:
        return self.line[-1]

    @property
    def is_buffer(self) -> bool:
        return self.local in self.owner._buffers

    def in_module(self, module: nn.Module) -> Tensor | None:
        """What a copy of the owner has in this place."""
        tensors = module._buffers if self.is_buffer else module._parameters
        return tensors.get(self.local)


def _finding(place: _Place) -> str:
    kind = "buffer" if place.is_buffer else "parameter"
    return (
        f"no file has '{place.name}', and {type(place.owner).__name__} has no code that makes this {kind} anew: build the model"
        " with values there"
    )


class _CodeError(Exception):
    """A model's own code raised something, and what."""


def _by_model(model: nn.Module, places: Sequence[_Place]) -> Iterator[tuple[nn.Module, list[_Place]]]:
    """Tensors with the outermost model of transformers around them, or, where there is none, with the whole."""
    found: dict[int, tuple[nn.Module, list[_Place]]] = {}
    for place in places:
        outermost = next(filter(is_of_transformers, place.line), model)
        found.setdefault(id(outermost), (outermost, []))[1].append(place)
    yield from found.values()


def _made(model: nn.Module, places: Sequence[_Place]) -> dict[str, Tensor]:
    """Values by the code of one model."""
    if not is_of_transformers(model):
        shells = _Shells(places)
        return shells.after(lambda: _reset(model, shells))
    values: dict[str, Tensor] = {}
    if all(place.is_buffer for place in places):
        values = _made_by_owners(places)
    left = [place for place in places if place.name not in values]
    if left:
        shells = _Shells(left)
        whole = cast("Any", shells.of(model))
        values.update(shells.after(whole.initialize_weights))
    return values


def _made_by_owners(places: Sequence[_Place]) -> dict[str, Tensor]:
    """Buffers that the initialisation of their owner alone fills: they follow from a configuration, not from chance."""
    by_owner: dict[int, list[_Place]] = {}
    for place in places:
        by_owner.setdefault(id(place.owner), []).append(place)
    values: dict[str, Tensor] = {}
    for alike in by_owner.values():
        shells = _Shells(alike)
        innermost = cast("Any", next(filter(is_of_transformers, reversed(alike[0].line))))
        values.update(shells.after(partial(innermost._init_weights, shells.of(alike[0].owner))))
    return values


def _reset(model: nn.Module, shells: _Shells) -> None:
    """Has all modules that hold a wanted tensor follow torch's convention: what is inside first."""
    concerned = {id(module) for place in shells.places for module in place.line}
    for original, copied in zip(_inside_first(model), _inside_first(shells.of(model)), strict=True):
        reset = getattr(copied, "reset_parameters", None) or getattr(copied, "_reset_parameters", None)
        if id(original) in concerned and callable(reset):
            reset()


def _inside_first(module: nn.Module) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            visit(child)
        found.setdefault(id(module), module)

    visit(module)
    return list(found.values())


@dataclass
class _Shells:
    """Copies of modules: wanted tensors with memory that nobody has written yet, all others on meta, marked as initialised.

    A tensor with several names is wanted in one place only: in the others, it would be initialised again, which
    ``from_pretrained``, which ties afterwards, does not do.
    """

    places: Sequence[_Place]
    _modules: dict[int, nn.Module] = field(default_factory=dict)
    _wanted: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    # What each wanted tensor was before: itself, and its version.
    _before: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in self.places:
            original = place.in_module(place.owner)
            assert original is not None, "names are of tensors"
            wanted = _unwritten(original)
            self._wanted[id(place.owner), place.local] = wanted
            self._before[place.name] = (wanted, wanted._version)

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module and of all inside it."""
        known = self._modules.get(id(module))
        if known is not None:
            return known
        shell = self._modules[id(module)] = object.__new__(type(module))
        shell.__dict__.update(module.__dict__)
        shell.__dict__.pop("_is_hf_initialized", None)
        for kind in ("_parameters", "_buffers"):
            tensors: dict[str, Tensor | None] = module.__dict__[kind]
            shell.__dict__[kind] = {
                name: tensor if tensor is None else self._wanted.get((id(module), name), _initialised(tensor))
                for name, tensor in tensors.items()
            }
        shell.__dict__["_modules"] = {
            name: child if child is None else self.of(child) for name, child in module._modules.items()
        }
        return shell

    def after(self, code: Callable[[], object]) -> dict[str, Tensor]:
        """Runs code on the copies, and gives the wanted tensors that have got a value. Raises _CodeError."""
        try:
            code()
        except Exception as error:
            names = listed((place.name for place in self.places), most=3)
            raise _CodeError(
                f"the model's own code cannot make {names}: {type(error).__name__}: {error}"
            ) from error
        found = {}
        for place in self.places:
            now = place.in_module(self.of(place.owner))
            before, version = self._before[place.name]
            is_new = now is not before and now is not None and not now.is_meta
            if now is not None and (is_new or before._version != version or not _is_unwritten(before)):
                found[place.name] = now.detach()
        return found


def _initialised(original: Tensor) -> Tensor:
    """What stands for a tensor that is not wanted: without values, and with transformers' mark of one that has its values."""
    tensor = torch.empty(original.shape, dtype=original.dtype, device="meta")
    if isinstance(original, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    return tensor


def _unwritten(original: Tensor) -> Tensor:
    """Memory with bytes that tell whether something was written: NaN, or the number that no index has."""
    tensor = torch.empty(original.shape, dtype=original.dtype)
    tensor.view(-1).view(torch.uint8).fill_(255)
    return nn.Parameter(tensor, requires_grad=False) if isinstance(original, nn.Parameter) else tensor


def _is_unwritten(tensor: Tensor) -> bool:
    return bool((tensor.detach().view(-1).view(torch.uint8) == 255).all())
