"""Corners where two rules meet."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal

import pytest

from planner.config import UNSET, Rank, Stack, config, setting
from planner.errors import InvalidConfigError
from planner.settings.schema import DTYPES, Settings, read_dtype


class Spelling(enum.StrEnum):
    A = "a"


@config
class Shape:
    size: int = 1


@config(tag="circle")
class Circle(Shape):
    radius: int = 1


@config(tag="square")
class Square(Shape):
    size: int = 7
    radius: int = 2


@config
class Memory:
    batch: int = 1


@config
class Everything:
    shape: Circle | Square = Circle()
    memory: Memory | None = None
    names: Mapping[str, int] = setting(default={})
    budgets: Mapping[int, int] = setting(default={}, whole=True)
    choice: Literal["a", "b"] = "b"
    spelled: Spelling = Spelling.A
    area: int = setting(default=0, derived=lambda it, root: it.shape.size**2)
    lean: bool = setting(default=False, compute=lambda it, root: it.memory is None)
    round: bool = setting(default=False, compute=lambda it, root: hasattr(it.shape, "is_round"))


BASE = Stack(Everything)


def test_a_field_of_the_same_name_but_another_class_is_dropped():
    resolved = BASE.set(shape={"type": "circle", "radius": 5}).set(shape="square").resolve()
    assert resolved.config.shape.radius == 2
    assert "dropped: type changed to 'square'" in resolved.explain("shape.radius")


def test_a_field_with_another_default_is_still_shared():
    resolved = BASE.set(shape={"size": 5}).set(shape="square").resolve()
    assert resolved.config.shape.size == 5
    assert BASE.set(shape="square").resolve().config.shape.size == 7


def test_switching_back_does_not_bring_back_what_was_dropped():
    stack = BASE.set(shape={"type": "circle", "radius": 5}).set(shape="square").set(shape="circle")
    assert stack.resolve().config.shape.radius == 1


def test_unsetting_a_type_gives_the_default_class():
    stack = BASE.set(shape={"type": "square", "radius": 5, "size": 3}).set({("shape", "type"): UNSET})
    assert stack.resolve().config.shape == Circle(size=3)


def test_an_unset_does_not_switch_a_block_on():
    assert BASE.arguments(["--unset", "memory.batch"]).resolve().config.memory is None
    assert BASE.set({("memory", "batch"): UNSET}).resolve().config.memory is None
    assert BASE.set(memory={"batch": UNSET}).resolve().config.memory == Memory()


def test_unsetting_an_import_survives_the_dump():
    base = BASE.imported({"memory": {"batch": 4}, "names": {"a": 1}, "choice": "a"})
    resolved = base.set(memory=UNSET, names={"a": UNSET}, choice=UNSET).resolve()
    assert resolved.config == BASE.resolve().config
    assert resolved.dump() == {"memory": UNSET, "names": {"a": UNSET}, "choice": UNSET}
    assert base.set(resolved.dump()).resolve().config == resolved.config


def test_an_explicit_empty_mapping_outlives_a_key_that_came_and_went():
    stack = BASE.set(names={}).set({("names", "a"): 1}).set({("names", "a"): UNSET})
    assert stack.resolve().dump() == {"names": {}}
    assert BASE.set({("names", "a"): 1}).set({("names", "a"): UNSET}).resolve().dump() == {}


@pytest.mark.parametrize("turned", [False, True])
def test_a_mapping_and_a_path_in_one_source_replace_whole(turned):
    pairs = [(("budgets", 0), 1), ("budgets", {1: 2})]
    said = dict(reversed(pairs) if turned else pairs)
    assert BASE.imported({"budgets": {5: 5}}).set(said).resolve().config.budgets == {0: 1, 1: 2}


@pytest.mark.parametrize("field", ["choice", "spelled"])
def test_choices_take_no_look_alikes(field):
    class Text(str):
        pass

    with pytest.raises(InvalidConfigError, match=f"{field}: expected one of"):
        BASE.set({field: Text("a")}).resolve()
    assert BASE.set({field: "a"}).resolve().dump() == {field: "a"}
    assert BASE.set(spelled=Spelling.A).resolve().config.spelled is Spelling.A
    with pytest.raises(InvalidConfigError, match="choice: expected one of"):
        BASE.set(choice=Spelling.A).resolve()


def test_saying_a_derived_field_is_an_error_even_if_it_is_taken_back():
    with pytest.raises(InvalidConfigError, match=r"area: derived from shape, shape\.size; it cannot be set"):
        BASE.set(area=3).set(area=UNSET).resolve()


def test_looking_whether_a_block_is_on_is_a_read():
    off, on = BASE.resolve(), BASE.set(memory={}).resolve()
    assert (off.config.lean, on.config.lean) == (True, False)
    assert off.answers[("lean",)].reads == on.answers[("lean",)].reads == (("memory",),)
    assert "reads memory = {}  <- user" in on.explain("lean")


def test_two_mistakes_in_computing_are_two_problems():
    def fail(block, root):
        raise RuntimeError("no idea")

    made = config(
        type(
            "Made",
            (),
            {
                "__annotations__": {"a": int, "b": int},
                "a": setting(default=0, compute=fail),
                "b": setting(default=0, compute=lambda block, root: "x"),
            },
        )
    )
    with pytest.raises(InvalidConfigError) as caught:
        Stack(made).resolve()
    first, second = caught.value.problems
    assert (first.path, first.what) == (("a",), "cannot be computed: RuntimeError: no idea")
    assert (second.path, second.what) == (("b",), "expected an int, got str 'x'")


def test_a_missing_required_field_is_named_with_its_type():
    made = config(type("Made", (), {"__annotations__": {"needed": int | None}}))
    with pytest.raises(
        InvalidConfigError, match="needed: required, but nobody said it; expected an int or null"
    ):
        Stack(made).resolve()


def test_calling_in_any_order_gives_the_same(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('choice = "a"\n')
    first = BASE.file(path).imported({"names": {"a": 1}}).set(memory={})
    second = BASE.set(memory={}).imported({"names": {"a": 1}}).file(path)
    assert first.resolve().config == second.resolve().config
    assert [layer.rank for layer in second.layers] == [Rank.IMPORTED, Rank.USER, Rank.USER]


def test_dtypes_are_torchs_names():
    torch = pytest.importorskip("torch")
    assert [name for name in DTYPES if not isinstance(getattr(torch, name), torch.dtype)] == []
    assert {read_dtype(getattr(torch, name)) for name in DTYPES} == set(DTYPES)
    assert read_dtype("bf16") == "bfloat16"
    with pytest.raises(InvalidConfigError, match="did you mean 'float16'"):
        Stack(Settings).set(dtype="floot16").resolve()


@pytest.mark.parametrize("said", [-1, True, 1.5, None, "CPU!", "cpu:1", "", "0x1", "9" * 20, 10**12])
def test_what_is_no_device(said):
    with pytest.raises(InvalidConfigError, match="does not fit: expected a device"):
        Stack(Settings).set(max_memory={said: 1}).resolve()


@pytest.mark.parametrize("said", [-1, True, -1.5, float("nan"), 10**400, "10Gb", "x", [1]])
def test_what_is_no_size(said):
    with pytest.raises(InvalidConfigError, match=r"max_memory\.0"):
        Stack(Settings).set(max_memory={0: said}).resolve()
