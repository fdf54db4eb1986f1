"""The settings as types of keyword arguments are those of the schema, field for field."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch

from planner.config import Stack
from planner.config.types import Classes, schema_of
from planner.devices.table_machine import machine_of_cards
from planner.settings.keywords import ModelKeywords, PlanSettings, StrategyKeywords, StrategyName
from planner.settings.schema import Model, Settings, Strategy


def words_of(hint: Any) -> set[object]:
    """The words of a Literal, also inside a union."""
    if get_origin(hint) is typing.Literal:
        return set(get_args(hint))
    return {word for part in get_args(hint) for word in words_of(part)}


@pytest.mark.parametrize(("keywords", "cls"), [(PlanSettings, Settings), (ModelKeywords, Model)])
def test_every_field_of_the_schema_is_a_keyword(keywords: Any, cls: type) -> None:
    assert set(keywords.__annotations__) == set(schema_of(cls).fields)
    assert not keywords.__required_keys__


def test_every_option_of_a_strategy_is_a_keyword() -> None:
    options = {name for cls in get_args(Strategy) for name in schema_of(cls).fields}
    assert set(StrategyKeywords.__annotations__) == {"type", *options}
    assert set(get_args(StrategyName)) == {schema_of(cls).tag for cls in get_args(Strategy)}


def test_closed_sets_of_words_are_the_same() -> None:
    for keywords, classes in ((PlanSettings, [Settings]), (StrategyKeywords, get_args(Strategy))):
        hints = typing.get_type_hints(keywords, localns={"torch": torch})
        for cls in classes:
            schema = typing.get_type_hints(cls)
            for name, declared in schema_of(cls).fields.items():
                if not isinstance(declared.type.tree, Classes) and get_origin(schema[name]) is typing.Literal:
                    assert words_of(hints[name]) == words_of(schema[name]), name


@pytest.mark.parametrize("name", [*PlanSettings.__annotations__])
def test_what_the_type_allows_the_schema_takes(name: str) -> None:
    examples: dict[str, list[Any]] = {
        "strategy": ["auto", {"type": "balanced", "reserve": "always"}, {"fill": "even", "search_steps": 3}],
        "max_memory": [None, {0: 5, "cuda:1": "1GB", "cpu": 2.5}],
        "headroom": [None, {0: 5, "all": "5%"}],
        "dtype": [None, "float16", torch.float16],
        "special_dtypes": [{"a": "int8", "b": torch.int8}],
        "no_split_module_classes": [["A"], ("B", "C")],
        "no_split_modules": [["a"]],
        "pin": [{"a": 0, "b": "cpu", "c": torch.device("cpu")}],
        "forbid": [{"a": [0, "cpu"]}],
        "keep_together": [[["a", "b"]], (("a", "b"),)],
        "staging_blocks": [2],
        "offload_folder": [None, "folder"],
        "offload_buffers": [True],
        "machine": [None, "machine.json", Path("machine.json"), machine_of_cards({0: "L4"})],
        "model": [{"hidden_size": 8, "dtype": "float16"}, {}],
    }
    words = words_of(typing.get_type_hints(PlanSettings, localns={"torch": torch})[name])
    for value in examples.get(name) or sorted(words, key=str):
        Stack(Settings).set(**{name: value}).resolve()
