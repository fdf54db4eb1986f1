"""Tensors that a model's class makes itself where files do not have them: positions of sines, biases of zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.checkpoint.general_names import general_name

__all__ = ["Form", "MadeTensor", "Size", "forms_without"]

Form = tuple[str, list[str], list[tuple[str, list[int]]], list[tuple[str, bool]]]
"""A module: class, parameters, children with the numbers of the forms they may have, buffers and whether they are saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Elements of a tensor along one of its dimensions.

    Args:
        default: how many there are where the configuration does not say.
        key: what the configuration calls them, with dots where it has parts; empty where there are always as many.
    """

    default: int
    key: str = ""

    def said(self, config: Mapping[str, Any]) -> int:
        """What a ``config.json`` says."""
        found: Any = config
        for part in self.key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found if type(found) is int and found >= 0 else self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeTensor:
    """A tensor that files may lack, because its class does not save it or does without.

    Args:
        name: its name, with ``*`` for numbers.
        shape: its sizes.
    """

    name: str
    shape: tuple[Size, ...]

    @classmethod
    def from_record(cls, record: Sequence[Any]) -> MadeTensor:
        """A tensor from its place in a line of the table: its name, and of each dimension the default and the key."""
        name, shape = record
        return cls(name=name, shape=tuple(Size(default=default, key=key) for default, key in shape))

    def element_count(self, config: Mapping[str, Any]) -> int:
        """How many elements it has by a ``config.json``.

        Example:
            >>> rows = MadeTensor(name="positions.weight", shape=(Size(default=512, key="rows"), Size(default=4)))
            >>> rows.element_count({"rows": 10})
            40
        """
        return math.prod(size.said(config) for size in self.shape)


def forms_without(forms: Sequence[Form], absent: Iterable[str]) -> list[Form]:
    """An outline in which tensors are none that files would show: their modules are there without them.

    Args:
        forms: modules; the first is the model.
        absent: names of tensors, with ``*`` for numbers.

    Guarantee: modules of one form in other places keep theirs.

    Example:
        >>> two = [("Model", [], [("up", [1]), ("down", [1])], []), ("Linear", ["weight"], [], [])]
        >>> forms_without(two, ["up.weight"])[0][2]
        [('up', [2]), ('down', [1])]
    """
    found = list(forms)
    for name in absent:
        *path, own = name.split(".")
        if found:
            found[0] = _without(found, 0, path, own)
    return found


def _without(forms: list[Form], number: int, path: Sequence[str], own: str) -> Form:
    """A form without a tensor that is saved; forms on the way to it are put behind the others."""
    class_name, parameters, children, buffers = forms[number]
    if not path:
        kept = [(name, is_saved and name != own) for name, is_saved in buffers]
        scratch = [(own, False)] if own in parameters else []
        return class_name, [name for name in parameters if name != own], children, [*kept, *scratch]
    others: list[tuple[str, list[int]]] = []
    for name, numbers in children:
        if general_name(name, "*") == path[0]:
            made = [_without(forms, each, path[1:], own) for each in numbers]
            numbers = list(range(len(forms), len(forms) + len(made)))
            forms.extend(made)
        others.append((name, numbers))
    return class_name, parameters, others, buffers
