"""Which live tensor of a model comes out of what, of all tensors that files hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn

from planner.checkpoint.describe import ignored_names
from planner.loading.conversions import ClassSteps, is_of_transformers
from planner.loading.live import live_tensors
from planner.loading.matching import matching
from planner.loading.recipe import Computed, Part, Pieces, Recipe
from planner.loading.stored import StoredTensor
from planner.loading.stored_names import StoredNames
from planner.loading.ties import Doubled, find_ties
from planner.names import listed

__all__ = ["Computed", "Part", "Pieces", "Recipe", "Recipes", "Rename", "find_recipes"]

Rename: TypeAlias = Mapping[str, str | None] | Callable[[str], str | None]
"""Old names with new ones, or what gives a new name; None leaves the tensor in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """How a model's tensors come out of files.

    Args:
        by_name: the recipe of each live name that files have a tensor for.
        ties: live names without a tensor of their own, and the name whose tensor it is.
        doubled: live names that files have a tensor for although they are tied to another that has one, too.
        unexpected: stored names that nothing is made of.
        ignored: those of them that the class leaves in files, or ``rename`` does.
        missing: live names without a tensor that are not tied to one that has one.
        may_be_missing: those of them that the class does not want from files.
        findings: what makes these files wrong for this model, in words; names and sizes are judged elsewhere.
        notes: what is worth saying.
        steps: transformers' steps that were used, which ``save_pretrained`` turns back if it is given them.
    """

    by_name: Mapping[str, Recipe]
    ties: Mapping[str, str]
    doubled: tuple[Doubled, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    may_be_missing: tuple[str, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    steps: tuple[object, ...]


def find_recipes(
    rows: Sequence[StoredTensor],
    model: nn.Module,
    rename: Rename | None = None,
    named: StoredNames | None = None,
) -> Recipes:
    """How each of a model's tensors comes out of stored ones.

    Args:
        rows: what files hold, each name once.
        model: what is loaded into, weights on meta or not. Of a class of transformers, stored names go through the steps
            that ``from_pretrained`` takes for it; for any other class, they are live names.
        rename: applied to stored names before that, for every class.
        named: where the rows are some of the files' only, the names of all, which decide on ties and on what is unexpected.

    Returns:
        Recipes for all live names, and the names that are left over on either side.

    Guarantee: nothing is read, the model is not changed, and for classes of transformers the values are those of
        ``from_pretrained``, bit for bit, as far as dtypes are those of the files.

    Cost: O(names); names that differ in their numbers only go through transformers' steps once, and a tensor that is used as
        it is stored costs no object: its recipe is the row.
    """
    live = live_tensors(model)
    found = _Found(live)
    renamed = found.renamed(rows, rename)
    steps = ClassSteps.of_model(model, live) if is_of_transformers(model) else None
    if steps is None:
        for name, row in renamed.items():
            found.take(name, row)
    else:
        _take_stepped(renamed, steps, found, () if named is None else named.goals)
    ties = find_ties(model, live, found.by_name if named is None else named.given | found.by_name.keys())
    ignored = matching(found.left, ignored_names(model) if steps and found.left else ())
    missing = [
        name
        for name in live
        if name not in found.by_name and name not in ties.by_name and name not in found.failed
    ]
    wanting = getattr(model, "_keys_to_ignore_on_load_missing", None) if steps else None
    return Recipes(
        by_name=found.by_name,
        ties=ties.by_name,
        doubled=tuple(pair for pair in ties.doubled if {pair.name, pair.other} <= found.by_name.keys()),
        unexpected=named.unexpected if named else tuple(name for name in found.left if name not in ignored),
        ignored=(*found.dropped, *ignored),
        missing=tuple(missing),
        may_be_missing=tuple(matching({name: (name,) for name in missing}, wanting or ())),
        findings=tuple(found.findings),
        notes=tuple(found.notes),
        steps=steps.used() if steps else (),
    )


@dataclass
class _Found:
    """What has been found so far."""

    live: Mapping[str, Tensor]
    by_name: dict[str, Recipe] = field(default_factory=dict)
    # Stored names that nothing is made of, with what they would be called in the model.
    left: dict[str, Sequence[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    # Live names that are in the files, and could not be made.
    failed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def renamed(self, rows: Sequence[StoredTensor], rename: Rename | None) -> Mapping[str, StoredTensor]:
        """Rows by their names after ``rename``."""
        if rename is None:
            return {row.name: row for row in rows}
        change = rename if callable(rename) else lambda name: rename.get(name, name)
        if isinstance(rename, Mapping):
            unknown = rename.keys() - {row.name for row in rows}
            if unknown:
                self.notes.append(f"rename has {listed(sorted(unknown))}, not in the files")
        named: dict[str, StoredTensor] = {}
        for row in rows:
            name = change(row.name)
            if name is None:
                self.dropped.append(row.name)
            elif name in named:
                self._both(named[name].name, row.name, name)
            else:
                named[name] = row
        return named

    def take(self, name: str, row: StoredTensor) -> None:
        """A stored tensor that is used as it is, if the model has one of that name."""
        if name not in self.live:
            self.left[row.name] = (name,)
        else:
            self.add(name, row)

    def add(self, name: str, recipe: Recipe) -> None:
        """A live tensor."""
        other = self.by_name.setdefault(name, recipe)
        if other is not recipe:
            self._both(_made_of(other), _made_of(recipe), name)

    def _both(self, one: str, other: str, name: str) -> None:
        self.findings.append(
            f"{one} and {other} are both {name} in the model; rename= can leave one of them in the files (None)"
        )


def _made_of(recipe: Recipe) -> str:
    """Stored names as the beginning of a sentence."""
    match recipe:
        case StoredTensor():
            return recipe.name
        case Part():
            return recipe.source.name
        case Pieces():
            return listed(row.name for row, _ in recipe.pieces)
        case Computed():
            return listed(row.name for row in recipe.sources)


def _take_stepped(
    renamed: Mapping[str, StoredTensor], steps: ClassSteps, found: _Found, beside: Iterable[str]
) -> None:
    """Tensors by the steps of a class of transformers, which also see the names of those beside them."""
    becomes = steps.live_names(dict.fromkeys((*renamed, *beside)))
    converted: dict[str, list[tuple[str, StoredTensor]]] = {}
    for name, row in renamed.items():
        goal = becomes.get(name)
        if goal is None:
            found.add(name, row)
        elif goal.name not in found.live:
            found.left[row.name] = steps.targets(goal.name, goal.pattern)
        elif goal.pattern is None:
            found.add(goal.name, row)
        else:
            converted.setdefault(goal.name, []).append((goal.pattern, row))
    for name, taken in converted.items():
        try:
            recipes = steps.recipes(name, taken)
        except ValueError as error:
            found.findings.append(str(error))
            found.failed.update(steps.targets(name, taken[0][0]))
            continue
        for target, recipe in recipes.items():
            if target in found.live:
                found.add(target, recipe)
            else:
                found.left.update({row.name: (target,) for _, row in taken})
