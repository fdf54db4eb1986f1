"""Which live tensors are one: by the declaration of a class of transformers, and by identity in the model.

What transformers 5.23 does (``tie_weights`` with ``missing_keys``), found out by loading folders with each of the names:

* one of the two in the files, whichever: both are that one;
* both, with equal values: they are tied, and one of them is kept;
* both, with different values: they are *not* tied, each keeps its own, and a warning says so;
* neither: both are initialised, as one;
* of three names for one tensor, one in the files: all are that one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from planner.loading.conversions import is_of_transformers
from planner.loading.live import modules_by_name

__all__ = ["Doubled", "Ties", "find_ties"]


@dataclass(frozen=True, slots=True)
class Doubled:
    """Two names of one tensor that files both hold: it is one if the values are equal.

    Args:
        name: the one that would be tied.
        other: what it would be tied to.
        may_differ: the class declares the tie, so that different values mean that they are not tied; otherwise they are one
            object in the model, and files with two values for it cannot be loaded.
    """

    name: str
    other: str
    may_differ: bool


@dataclass(frozen=True, slots=True)
class Ties:
    """What is tied in a model that certain tensors are loaded into.

    Args:
        by_name: live names with no tensor of their own, and the name whose tensor it is, which is never tied itself.
        doubled: names that are tied only if the values in the files are equal.
    """

    by_name: Mapping[str, str]
    doubled: tuple[Doubled, ...]


def find_ties(model: nn.Module, live: Mapping[str, Tensor], given: Collection[str]) -> Ties:
    """The ties of a model.

    Args:
        model: what is loaded into.
        live: its tensors by name, one object under several names where it has kept its ties.
        given: live names that files have a tensor for.

    Guarantee: what the class declares counts, whether the model still has it or not; the model is not changed.
    """
    tied: dict[str, str] = {}
    doubled: dict[str, Doubled] = {}
    declared = dict(_declared(model))
    pairs = [(name, other) for name, other in declared.items() if name in live and other in live]
    for place, (name, other) in enumerate(pairs):
        mine, theirs = _root(name, tied), _root(other, tied)
        if mine == theirs:
            continue
        if mine in given and theirs in given:
            doubled[mine] = Doubled(mine, theirs, may_differ=True)
        elif mine in given:
            tied[theirs] = mine
        elif theirs in given:
            tied[mine] = theirs
        else:
            later = (third for third, source in pairs[place + 1 :] if source == other and third in given)
            tied[mine] = next(later, theirs)
    for names in _shared(live):
        roots = list(dict.fromkeys(_root(name, tied) for name in names))
        main = next((name for name in roots if name in given and name not in doubled), roots[0])
        for name in roots:
            if name == main or name in doubled:
                continue
            if name in given:
                doubled[name] = Doubled(name, main, may_differ=False)
            else:
                tied[name] = main
    return Ties({name: _root(name, tied) for name in tied}, tuple(doubled.values()))


def _declared(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What classes of transformers tie under their configurations, also inside other models, each name with its source.

    Source: ``get_expanded_tied_weights_keys`` with ``all_submodels``, transformers 5.23, modeling_utils.py.
    """
    for prefix, module in modules_by_name(model):
        if is_of_transformers(module):
            pairs = module.get_expanded_tied_weights_keys()  # type: ignore[operator]
            yield from ((prefix + name, prefix + other) for name, other in pairs.items())


def _shared(live: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of one object."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}  # by the first; nothing is made for the many that have one name only
    for name, tensor in live.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            names.setdefault(known, [known]).append(name)
    yield from names.values()


def _root(name: str, tied: Mapping[str, str]) -> str:
    while name in tied:
        name = tied[name]
    return name
