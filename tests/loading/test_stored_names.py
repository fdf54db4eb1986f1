"""What names alone say of a checkpoint is what its headers say."""

from __future__ import annotations

import pytest
from saved_models import SAVED, empty, saved

from planner.loading.recipes import find_recipes
from planner.loading.source import open_checkpoint
from planner.loading.stored_names import read_names
from planner.loading.weights import sources_of


@pytest.mark.parametrize("name", SAVED)
def test_each_live_tensor_needs_what_its_recipe_is_made_of(name: str) -> None:
    source = open_checkpoint(saved(name).folder)
    model = empty(saved(name).model)
    recipes = find_recipes(source.rows, model)
    names = read_names([row.name for row in source.rows], model)
    assert names.given == recipes.by_name.keys()
    assert (dict(names.ties), names.unexpected) == (dict(recipes.ties), recipes.unexpected)
    for live, recipe in recipes.by_name.items():
        assert names.needed([live]) == {row.name for row in sources_of(recipe)}
    for live, root in recipes.ties.items():
        assert names.needed([live]) == names.needed([root])


@pytest.mark.parametrize("name", SAVED)
def test_recipes_of_some_tensors_are_those_that_they_have_among_all(name: str) -> None:
    source = open_checkpoint(saved(name).folder)
    model = empty(saved(name).model)
    whole = find_recipes(source.rows, model).by_name
    names = read_names([row.name for row in source.rows], model)
    for live in list(whole)[::7]:
        needed = names.needed([live])
        some = find_recipes([row for row in source.rows if row.name in needed], model, named=names)
        assert sources_of(some.by_name[live]) == sources_of(whole[live])
        assert not some.findings and some.unexpected == names.unexpected
