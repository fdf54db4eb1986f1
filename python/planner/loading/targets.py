"""The tensors of a model beside what the files hold for them, and everything that does not fit."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.dispatching.install.regions import PlacedTensor
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.loading.advice import advice_on_names
from planner.loading.casting import can_be_cast
from planner.loading.recipe import Recipe
from planner.loading.recipes import Recipes
from planner.loading.weights import WantedTensor
from planner.names import listed

__all__ = ["CastRule", "Judged", "Leniency", "Target", "judge"]

# The dtype that a tensor becomes: by its live name, the dtype in the file, and what lies in the model now.
CastRule = Callable[[str, torch.dtype, Any], torch.dtype]

_PLAIN = (torch.Tensor, nn.Parameter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leniency:
    """What may be missing, and what may be there without a place.

    Args:
        strict: names that the model has no place for are findings, and so is a missing tensor that has values already.
        allow_missing: globs of names that may be missing.
        allow_unexpected: globs of names that may be there.
        leaves_missing: whether what no file has, and has no values, may stay without.
    """

    strict: bool = True
    allow_missing: tuple[str, ...] = ()
    allow_unexpected: tuple[str, ...] = ()
    leaves_missing: bool = False


class Target:
    """One tensor of the model: all slots that hold it, and what it gets.

    Args:
        found: what lies there now.

    ``wanted`` says how it comes out of the files; None where no file has it.
    """

    __slots__ = ("found", "places", "wanted")

    def __init__(self, found: Any) -> None:
        self.found = found
        self.places: list[PlacedTensor] = []
        self.wanted: WantedTensor | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.places[0].name

    @property
    def is_saved(self) -> bool:
        """Whether it belongs to what is saved of the model."""
        return any(place.slot.is_persistent for place in self.places)

    @property
    def is_wrapped(self) -> bool:
        """Whether it is of a class whose values are more than the bytes of one tensor, as quantisers make them."""
        return type(self.found) not in _PLAIN and not is_offloaded(self.found)

    @property
    def has_values(self) -> bool:
        """Whether it has values, in its slot or where an earlier dispatch keeps them."""
        return not self.found.is_meta or is_offloaded(self.found)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a model and the files say of each other.

    Args:
        targets: every tensor of the model.
        findings: what does not fit, in words; nothing may be loaded while there is one.
        kept: names of tensors that no file has, and that keep their values.
        absent: those that no file has, that may be missing, and that have no values.
        unexpected: names in the files that the model has no place for, and that may be there.
        advice: what would let names fit that do not.
    """

    targets: tuple[Target, ...]
    findings: tuple[str, ...]
    kept: tuple[str, ...]
    absent: tuple[Target, ...]
    unexpected: tuple[str, ...]
    advice: str = ""


def judge(
    places: Sequence[PlacedTensor],
    recipes: Recipes,
    ties: Mapping[str, str],
    dtype_of: CastRule,
    leniency: Leniency,
) -> Judged:
    """Holds every tensor of a model against what the files have for it.

    Args:
        places: the tensors of the model.
        recipes: how live names come out of the files.
        ties: live names, and the name whose tensor they are.
        dtype_of: the dtype that each becomes.
        leniency: what may be missing or too much.

    Cost: O(tensors).
    """
    targets = _targets(places, ties)
    findings: list[str] = []
    kept: list[str] = []
    absent: list[Target] = []
    missing: list[str] = []
    wrapped: dict[str, list[str]] = {}  # names by class
    may_be_missing = set(recipes.may_be_missing)
    is_allowed_missing = _matcher(leniency.allow_missing)
    for target in targets:
        recipe = _recipe(target, recipes.by_name, ties)
        if recipe is not None and not target.is_wrapped:
            findings.extend(_give(target, recipe, dtype_of))
            continue
        names = [place.name for place in target.places]
        is_saved = target.is_saved
        may_miss = not is_saved or any(name in may_be_missing or is_allowed_missing(name) for name in names)
        if recipe is None and target.has_values and (may_miss or not leniency.strict):
            kept.extend([target.name] if is_saved else [])
        elif target.is_wrapped:
            wrapped.setdefault(type(target.found).__name__, []).append(target.name)
        elif may_miss or leniency.leaves_missing:
            absent.append(target)
        else:
            missing.append(target.name)
    if missing:
        findings.insert(0, f"no file has {', '.join(map(repr, missing))}")
    if wrapped:
        # What these are made from has names and forms of its own, so the rest would be about them, too.
        findings[:0] = [_wrapped_words(kind, names) for kind, names in wrapped.items()]
        return Judged(tuple(targets), tuple(findings), tuple(kept), tuple(absent), tuple(recipes.unexpected))
    findings.extend(recipes.findings)
    is_allowed_extra = _matcher(leniency.allow_unexpected)
    extra = [name for name in recipes.unexpected if leniency.strict and not is_allowed_extra(name)]
    if extra:
        findings.append(f"the model has no place for {', '.join(map(repr, extra))}")
    advice = advice_on_names(missing, extra, others_fit=bool(recipes.by_name))
    return Judged(
        tuple(targets), tuple(findings), tuple(kept), tuple(absent), tuple(recipes.unexpected), advice
    )


def _targets(places: Sequence[PlacedTensor], ties: Mapping[str, str]) -> list[Target]:
    """Slots that are one tensor are one target. What is saved is told by its name: a tie may be lost, or end with this load."""
    by_key: dict[str | int, Target] = {}
    for place in places:
        tensor = place.slot.read()
        key = ties.get(place.name, place.name) if place.slot.is_persistent else id(tensor)
        target = by_key.get(key)
        if target is None:
            target = by_key[key] = Target(tensor)
        target.places.append(place)
    return list(by_key.values())


def _recipe(target: Target, by_name: Mapping[str, Recipe], ties: Mapping[str, str]) -> Recipe | None:
    for place in target.places:
        recipe = by_name.get(place.name) or by_name.get(ties.get(place.name, ""))
        if recipe is not None:
            return recipe
    return None


def _give(target: Target, recipe: Recipe, dtype_of: CastRule) -> Iterator[str]:
    """Lets a target have what a recipe makes, or says why that cannot be."""
    name, found = target.name, target.found
    stored, shape = recipe.dtype, recipe.shape
    is_parameter = not target.places[0].slot.is_buffer
    if tuple(found.shape) != shape:
        yield f"'{name}' is {list(shape)} in the files and {list(found.shape)} in the model"
    elif not can_be_cast(stored, found.dtype):
        yield f"'{name}' is {_word(stored)} in the files and {_word(found.dtype)} in the model, and only floating numbers are cast"
    else:
        dtype = dtype_of(name, stored, found)
        target.wanted = WantedTensor(name, recipe, dtype, is_parameter)


def _wrapped_words(kind: str, names: Sequence[str]) -> str:
    are = f"is a {kind}" if len(names) == 1 else f"are {kind}"
    return (
        f"{listed(map(repr, names), most=3)} {are}, which the library of that class fills when it loads: hand the plan to it, as in "
        "from_pretrained(folder, device_map=plan.device_map)"
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches one of some globs, as ``fnmatch`` reads them."""
    if not globs:
        return lambda _: False
    expression = re.compile("|".join(fnmatch.translate(glob) for glob in globs))
    return lambda name: expression.match(name) is not None
