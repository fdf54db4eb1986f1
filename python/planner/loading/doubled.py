"""Tied names that the files have a tensor for each: one tensor if the values are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from planner.loading.open_files import OpenFiles
from planner.loading.recipes import Recipes
from planner.loading.weights import source_view

__all__ = ["SettledTies", "settle_doubled"]


@dataclass(frozen=True, slots=True)
class SettledTies:
    """Which live names are one tensor, now that values were compared.

    Args:
        ties: live names, and the name whose tensor they are.
        findings: two values for what the model has as one object.
        notes: ties that the files end.
        ended: names that were tied by their class, and are not.
    """

    ties: Mapping[str, str]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    ended: tuple[str, ...]


def settle_doubled(recipes: Recipes, files: OpenFiles) -> SettledTies:
    """Compares tensors that files hold under both names of a tie.

    Cost: both are read, as far as there are any; most files have one of them.

    Source: ``tie_weights``, transformers 5.23, modeling_utils.py.
    """
    ties = dict(recipes.ties)
    findings: list[str] = []
    notes: list[str] = []
    ended: list[str] = []
    for pair in recipes.doubled:
        one, other = recipes.by_name[pair.name], recipes.by_name[pair.other]
        is_one = one.shape == other.shape and torch.equal(source_view(files, one), source_view(files, other))
        if is_one:
            ties[pair.name] = pair.other
        elif pair.may_differ:
            ended.append(pair.name)
            notes.append(
                f"'{pair.name}' and '{pair.other}' are tied by their class, but have different values in the files: each keeps its own"
            )
        else:
            findings.append(
                f"'{pair.name}' and '{pair.other}' are one tensor in the model, but have different values in the files"
            )
    # What was tied to a name that is tied itself now goes with it.
    settled = {name: ties.get(root, root) for name, root in ties.items()}
    return SettledTies(settled, tuple(findings), tuple(notes), tuple(ended))
