"""Tensors that are one in the model are one after loading, whichever of their names the files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import empty, same_bits, saved, tensors_of
from stored_rows import made, rows_of
from torch import Tensor, nn

import planner
from planner.loading.recipes import Recipes, find_recipes
from planner.loading.stored import StoredTensor
from planner.loading.ties import Doubled

Edit = Callable[[dict[str, Tensor]], None]
GPT2 = ("lm_head.weight", "transformer.wte.weight")
T5 = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def as_stored(tensors: dict[str, Tensor]) -> None:
    pass


def the_other_name(tensors: dict[str, Tensor]) -> None:
    tensors[GPT2[0]] = tensors.pop(GPT2[1])


def both_equal(tensors: dict[str, Tensor]) -> None:
    tensors[GPT2[0]] = tensors[GPT2[1]].clone()


def both_different(tensors: dict[str, Tensor]) -> None:
    tensors[GPT2[0]] = tensors[GPT2[1]] + 1


def neither(tensors: dict[str, Tensor]) -> None:
    del tensors[GPT2[1]]


def one_of_four(tensors: dict[str, Tensor]) -> None:
    tensors[T5[1]] = tensors.pop(T5[0])


def the_last_of_four(tensors: dict[str, Tensor]) -> None:
    tensors[T5[3]] = tensors.pop(T5[0])


def one_of_four_differs(tensors: dict[str, Tensor]) -> None:
    tensors[T5[1]] = tensors[T5[0]] + 1


def two_of_four_without_their_source(tensors: dict[str, Tensor]) -> None:
    tensors[T5[2]] = tensors[T5[0]] + 1
    tensors[T5[1]] = tensors.pop(T5[0])


def loses_ties(model: nn.Module) -> nn.Module:
    """The same model with an object of its own for every name."""
    for name, tensor in list(tensors_of(model)):
        path, _, local = name.rpartition(".")
        if isinstance(tensor, nn.Parameter):
            setattr(model.get_submodule(path), local, nn.Parameter(torch.empty_like(tensor)))
    return model


def edited(name: str, folder: Path, edit: Edit) -> None:
    tensors = load_file(saved(name).folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((saved(name).folder / "config.json").read_bytes())


def settled(recipes: Recipes, values: dict[str, Tensor]) -> dict[str, str]:
    """For each tied name the one whose tensor it is, where files that have both decide."""
    ties = dict(recipes.ties)
    for pair in recipes.doubled:
        if same_bits(values[pair.name], values[pair.other]):
            ties[pair.name] = pair.other
    return {name: ties.get(other, other) for name, other in ties.items()}


@pytest.mark.parametrize("has_ties", [True, False], ids=["tied skeleton", "lost ties"])
@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("gemma", as_stored),
        ("bert", as_stored),
        ("gpt2", as_stored),
        ("gpt2", the_other_name),
        ("gpt2", both_equal),
        ("gpt2", both_different),
        ("gpt2", neither),
        ("t5", as_stored),
        ("t5", one_of_four),
        ("t5", the_last_of_four),
        ("t5", one_of_four_differs),
        ("t5", two_of_four_without_their_source),
    ],
)
def test_ties_are_those_of_from_pretrained(tmp_path: Path, name: str, edit: Edit, has_ties: bool) -> None:
    edited(name, tmp_path, edit)
    wanted = type(saved(name).model).from_pretrained(tmp_path)
    skeleton = empty(wanted) if has_ties else loses_ties(empty(wanted))
    recipes = find_recipes(rows_of(tmp_path), skeleton)
    values = made(tmp_path, recipes.by_name)
    ties = settled(recipes, values)
    groups: dict[int, set[str]] = {}
    for live, tensor in tensors_of(wanted):
        groups.setdefault(id(tensor), set()).add(ties.get(live, live))
        if edit is not neither:
            assert same_bits(values.get(ties.get(live, live), tensor), tensor), live
    assert all(len(roots) == 1 for roots in groups.values())
    assert len(set.union(*groups.values())) == len(groups)
    assert recipes.missing == ((GPT2[1],) if edit is neither else ())
    assert all(pair.may_differ for pair in recipes.doubled)


def test_nothing_is_tied_that_the_configuration_does_not_want() -> None:
    skeleton = empty(saved("gpt2").model)
    skeleton.config.tie_word_embeddings = False
    loses_ties(skeleton)
    recipes = find_recipes(rows_of(saved("gpt2").folder), skeleton)
    assert recipes.ties == {}
    assert recipes.missing == (GPT2[0],)


def twins() -> nn.Sequential:
    """Three layers with one weight, in a class of nobody's."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    model[2].weight = model[1].weight = model[0].weight  # type: ignore[union-attr, assignment]
    return model


def rows(*names: str) -> list[StoredTensor]:
    return [StoredTensor(name, 0, 0, 16, torch.float32, (2, 2)) for name in names]


@pytest.mark.parametrize("number", range(3))
def test_one_object_under_several_names(number: int) -> None:
    recipes = find_recipes(rows(f"{number}.weight"), twins())
    assert recipes.missing == ()
    assert recipes.ties == {f"{other}.weight": f"{number}.weight" for other in range(3) if other != number}


def test_one_object_that_files_have_twice() -> None:
    recipes = find_recipes(rows("2.weight", "1.weight"), twins())
    assert recipes.ties == {"0.weight": "1.weight"}
    assert recipes.doubled == (Doubled("2.weight", "1.weight", may_differ=False),)


def test_one_object_that_files_do_not_have_is_missing_once() -> None:
    recipes = find_recipes([], twins())
    assert recipes.missing == ("0.weight",)
    assert recipes.ties == {"1.weight": "0.weight", "2.weight": "0.weight"}


class Wrapper(nn.Module):
    """A model of transformers as a part of another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = nn.Linear(2, 2)


@pytest.mark.parametrize("placed", [{"": "cpu"}, {"": "disk"}])
def test_a_lost_tie_inside_another_model(placed: dict[str, str], tmp_path: Path) -> None:
    stored = load_file(saved("gpt2").folder / "model.safetensors")
    inner = loses_ties(empty(saved("gpt2").model))
    values = {f"inner.{name}": value for name, value in stored.items()}
    values |= {"adapter.weight": torch.ones(2, 2), "adapter.bias": torch.ones(2)}
    save_file(values, tmp_path / "model.safetensors")
    model = planner.load(tmp_path / "model.safetensors", Wrapper(inner), placed)
    assert planner.state_dict(model)[f"inner.{GPT2[0]}"].equal(values[f"inner.{GPT2[1]}"])
    assert [f"inner.{name}" for name in reversed(GPT2)] in map(list, planner.load_report(model).tied)
