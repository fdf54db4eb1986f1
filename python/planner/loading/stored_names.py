"""What the names of stored tensors say, before any header is read: which of them each live tensor is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from planner.checkpoint.describe import ignored_names
from planner.loading.conversions import ClassSteps, is_of_transformers
from planner.loading.live import live_tensors
from planner.loading.matching import matching
from planner.loading.ties import find_ties

__all__ = ["StoredNames", "read_names"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredNames:
    """Names of all tensors that files hold, and what they become.

    Args:
        goals: by stored name, the live names that it has a share in; none where the model has no place for it.
        ties: live names without a tensor of their own, and the name whose tensor it is.
        unexpected: stored names that nothing is made of, without those that the class leaves in files.
    """

    goals: Mapping[str, tuple[str, ...]]
    ties: Mapping[str, str]
    unexpected: tuple[str, ...]

    @property
    def given(self) -> frozenset[str]:
        """Live names that files have a tensor for."""
        return frozenset(goal for goals in self.goals.values() for goal in goals)

    def needed(self, live: Iterable[str]) -> frozenset[str]:
        """The stored names that some live tensors are made of."""
        wanted = {self.ties.get(name, name) for name in live}
        return frozenset(name for name, goals in self.goals.items() if not wanted.isdisjoint(goals))


def read_names(names: Collection[str], model: nn.Module) -> StoredNames:
    """What stored names become in a model.

    Args:
        names: of all tensors in the files.
        model: what is loaded into, weights on meta or not.

    Cost: O(names), without an object for those that are live as they are.
    """
    live = live_tensors(model)
    steps = ClassSteps.of_model(model, live) if is_of_transformers(model) else None
    becomes = {} if steps is None else steps.live_names(names)
    goals: dict[str, tuple[str, ...]] = {}
    left: dict[str, tuple[str, ...]] = {}
    for name in names:
        goal = becomes.get(name)
        targets = [name] if goal is None or steps is None else steps.targets(goal.name, goal.pattern)
        goals[name] = tuple(target for target in targets if target in live)
        if not goals[name]:
            left[name] = tuple(targets)
    ignored = matching(left, ignored_names(model) if steps is not None and left else ())
    given = {goal for each in goals.values() for goal in each}
    ties = find_ties(model, live, given)
    return StoredNames(goals, ties.by_name, tuple(name for name in left if name not in ignored))
