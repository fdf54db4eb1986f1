"""Behaviours 1 to 60 of a layered configuration, each from input to output; a test of a number may not be renamed.
48, old names of a field, left with the feature: no field has one.

The numbered list comes from Fast-LLM's configuration, its tests and the debate about it. Where ours differs by
design, the docstring says why.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy
import pytest

from planner.config import UNSET, Rank, Replace, Stack, config, diff, rule, setting
from planner.errors import InvalidConfigError


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    HELLO = "hello"


@config
class Example:
    bool_field: bool = False
    int_field: int = 0
    str_field: str = ""
    float_field: float = 0.0
    color: Color = Color.RED
    path: pathlib.Path | None = None
    list_field: tuple[int, ...] = ()
    map_field: Mapping[str, int] = setting(default={})
    implicit: str = setting(default="", compute=lambda block, root: f"{block.int_field}")


@config
class Nested(Example):
    nested: Example = Example()


@config
class Switchable:
    sub: Example | None = None


@config
class Animal:
    legs: int = 4


@config(tag="dog")
class Dog(Animal):
    breed: str = "mutt"


@config(tag="cat")
class Cat(Animal):
    indoor: bool = True


@config
class Owner:
    pet: Animal | Dog | Cat = Animal()


@config
class Child:
    width: int = setting(default=0, compute=lambda child, root: root.width * 2)
    height: int = 1


@config
class Parent:
    width: int = 4
    child: Child = Child()


def problems(stack: Stack[object]) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        stack.resolve()
    return str(caught.value)


def dumped(schema: type, *updates: Mapping[object, object]) -> dict[str, object]:
    stack = Stack(schema)
    for update in updates:
        stack = stack.set(update)
    return stack.resolve().dump()


def value_of(hint: object, said: object) -> object:
    """What a field with this type reads."""
    made = config(type("Made", (), {"__annotations__": {"field": hint}}))
    return Stack(made).set(field=said).resolve().config.field


def refused(hint: object, said: object) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        value_of(hint, said)
    return str(caught.value)


# Explicit tracking and serialization


def test_01_every_name_that_is_said_is_explicit():
    assert dumped(Example, {}) == {}
    said = {"bool_field": True, "int_field": 3}
    assert dumped(Example, said) == said


def test_02_explicit_default_stays():
    assert dumped(Example, {"int_field": 0}) == {"int_field": 0}


def test_03_override_back_to_default_is_saved():
    base = Stack(Example).imported({"int_field": 5})
    resolved = base.set(int_field=0).resolve()
    assert resolved.dump() == {"int_field": 0}
    assert base.set(resolved.dump()).resolve().config.int_field == 0


def test_04_assignment_is_another_layer():
    """Differs: a configuration cannot be assigned to; saying a value, even the default, is a layer of its own."""
    before = Stack(Example)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.resolve().config.int_field = 0
    assert before.set(int_field=0).resolve().dump() == {"int_field": 0}
    assert before.resolve().dump() == {}


def test_05_computed_default_is_visible_and_not_dumped():
    resolved = Stack(Example).set(int_field=7).resolve()
    assert (resolved.config.implicit, resolved.dump()) == ("7", {"int_field": 7})
    said = Stack(Example).set(int_field=7, implicit="x").resolve()
    assert (said.config.implicit, said.dump()) == ("x", {"int_field": 7, "implicit": "x"})


def test_06_nothing_is_filled_in_as_if_it_were_said():
    """Differs: code has no way to make a value explicit; what it fills in is computed or derived, and says so."""
    resolved = Stack(Example).resolve()
    assert resolved.origin("implicit").rank is Rank.COMPUTED
    assert resolved.dump() == {}


def test_07_computed_default_yields_to_any_word_even_none():
    """Differs: a computed default meets an explicit value, also None, without an error; the word simply wins."""

    @config
    class Yielding:
        size: int | None = setting(default=None, compute=lambda block, root: 8)

    assert Stack(Yielding).resolve().config.size == 8
    assert Stack(Yielding).set(size=None).resolve().config.size is None
    assert Stack(Yielding).imported({"size": 3}).resolve().config.size == 3


def test_08_parent_feeds_child_by_computing():
    """Differs: a parent does not write into its child; the child computes from the parent, and a dump of the child
    alone contains what came from outside, so that it can be rebuilt without its parent."""
    resolved = Stack(Parent).resolve()
    assert resolved.config.child.width == 8
    assert resolved.dump() == {}
    assert resolved.dump("child") == {"width": 8}
    assert Stack(Child).set(resolved.dump("child")).resolve().config == resolved.config.child


def test_09_widening_does_not_change_explicitness():
    resolved = Stack(Example).set(float_field=1, path="/tmp").resolve()
    assert type(resolved.config.float_field) is float
    assert resolved.config.path == pathlib.Path("/tmp")
    assert resolved.dump() == {"float_field": 1.0, "path": "/tmp"}


def test_10_collections_are_dumped_only_if_said():
    """Differs: a value cannot be mutated, so there is no need to dump a list or mapping that nobody said."""

    @config
    class Listed:
        items: tuple[int, ...] = (1, 2)
        names: Mapping[str, int] = setting(default={})

    assert dumped(Listed) == {}
    assert dumped(Listed, {"items": [], "names": {}}) == {"items": [], "names": {}}


def test_11_empty_block_is_trimmed_unless_it_switches_on():
    """Differs: `{}` for an optional block is a word (on), so it is dumped and survives the round trip."""
    assert dumped(Nested, {"nested": {}}) == {}
    resolved = Stack(Switchable).set(sub={}).resolve()
    assert resolved.dump() == {"sub": {}}
    assert Stack(Switchable).set(resolved.dump()).resolve().config.sub == Stack(Example).resolve().config


def test_12_default_type_is_not_forced_by_an_update():
    cat = Stack(Owner).set(pet={"type": "cat"})
    update = Stack(Owner).set(pet={"legs": 3})
    assert update.resolve().dump() == {"pet": {"legs": 3}}
    assert type(cat.update(update).resolve().config.pet) is Cat


def test_13_derived_is_dumped_only_at_level_all():
    @config
    class Derived:
        size: int = 2
        area: int = setting(default=0, derived=lambda block, root: block.size**2)

    resolved = Stack(Derived).set(size=3).resolve()
    assert resolved.config.area == 9
    assert resolved.dump(ranks=tuple(Rank)) == {"size": 3}
    assert resolved.dump(level="all") == {"size": 3, "area": 9}


def test_14_dump_is_plain_data():
    """Differs: there is one form, plain data that JSON and YAML can hold; Python values are on the config itself."""
    said = {"color": Color.BLUE, "path": pathlib.Path("a/b"), "list_field": (1, 2)}
    resolved = Stack(Example).set(said).resolve()
    assert resolved.dump() == {"color": "blue", "path": "a/b", "list_field": [1, 2]}
    assert json.loads(json.dumps(resolved.dump())) == resolved.dump()


def test_15_unknown_keys_never_reach_a_dump():
    """Differs: there is no unvalidated configuration that could be dumped; unknown keys fail in resolve."""
    assert "bogus: unknown key in Example" in problems(Stack(Example).set(bogus=1))


def test_16_two_levels_said_and_all():
    """Differs: two levels instead of seven grades of importance, which nobody could tell apart."""
    resolved = Stack(Example).set(int_field=1).resolve()
    assert resolved.dump(level="said") == {"int_field": 1}
    everything = resolved.dump(level="all")
    assert everything.keys() == {field.name for field in dataclasses.fields(Example)}


def test_17_explain_prints_every_value_with_its_origin():
    """Differs: repr stays that of the dataclass; explain() prints the values, since only it can say who said them."""
    resolved = Stack(Example).set(int_field=1).resolve()
    assert repr(resolved.config).startswith("Example(bool_field=False, int_field=1,")
    text = resolved.explain()
    assert all(
        f"{field.name} = " in text for field in dataclasses.fields(Example) if field.name != "map_field"
    )
    assert "int_field = 1  <- user · keyword arguments at test_behaviours.py:" in text


def test_18_diff_lists_every_difference():
    """Differs: diff returns the differences instead of raising or logging them; nan equals nan."""

    @config
    class Loose:
        number: int | float = 1
        other: float = 0.0

    left = Stack(Loose).set(number=1, other=math.nan).resolve()
    right = Stack(Loose).set(number=1.0, other=math.nan).resolve()
    assert [found.path for found in diff(left, right)] == [("number",)]
    assert str(diff(left, right)[0]).startswith("number: 1 (user · ")
    assert diff(Stack(Loose).set(number=1).resolve(), Stack(Loose).resolve()) == ()


# Updates


def test_19_later_wins_and_inputs_stay():
    first, second = {"nested": {"int_field": 1, "str_field": "a"}}, {"nested": {"int_field": 2}}
    resolved = Stack(Nested).set(first).set(second).resolve()
    assert resolved.dump() == {"nested": {"int_field": 2, "str_field": "a"}}
    assert (first, second) == ({"nested": {"int_field": 1, "str_field": "a"}}, {"nested": {"int_field": 2}})


def test_20_a_mapping_updates_and_replacing_is_asked_for():
    """Differs: there is one mode, update; whoever wants to replace says Replace (or := or !replace)."""
    base = {"nested": {"int_field": 1, "str_field": "a"}}
    assert dumped(Nested, base, {"nested": {"float_field": 2.0}}) == {
        "nested": {**base["nested"], "float_field": 2.0}
    }
    assert dumped(Nested, base, {"nested": Replace({"float_field": 2.0})}) == {"nested": {"float_field": 2.0}}


def test_21_nested_mappings_merge_key_by_key():
    merged = dumped(Nested, {"nested": {"int_field": 1, "str_field": "a"}}, {"nested": {"float_field": 2.0}})
    assert merged == {"nested": {"int_field": 1, "str_field": "a", "float_field": 2.0}}


def test_22_a_tuple_is_a_path():
    assert dumped(Nested, {("nested", "int_field"): 3}) == {"nested": {"int_field": 3}}
    assert dumped(Nested, {("int_field",): 3}) == {"int_field": 3}
    assert dumped(Nested, {"nested": {"str_field": "a"}}, {("nested", "int_field"): 3}) == {
        "nested": {"str_field": "a", "int_field": 3}
    }


def test_23_a_string_key_is_never_split():
    assert "nested.int_field: unknown key" in problems(Stack(Nested).set({"nested.int_field": 3}))
    assert dumped(Nested, {("map_field", "a.b"): 3}) == {"map_field": {"a.b": 3}}
    assert Stack(Nested).arguments(["--set", "nested.int_field=3"]).resolve().config.nested.int_field == 3


def test_24_a_path_through_a_value_says_what_is_wrong():
    """Differs: an error with path, value and origin instead of a bare AssertionError."""
    text = problems(Stack(Nested).set({("int_field", "deeper"): 3}))
    assert "int_field: expected an int, got a mapping" in text
    assert "keyword arguments at test_behaviours.py:" in text


def test_25_order_within_one_mapping_never_decides():
    """Differs: saying one path twice in one source is an error, whichever comes first; different paths merge."""
    for said in (
        {("nested", "int_field"): 1, "nested": {"int_field": 2}},
        {"nested": {"int_field": 2}, ("nested", "int_field"): 1},
    ):
        assert "nested.int_field: said twice in one source" in problems(Stack(Nested).set(said))
    mixed = {("nested", "int_field"): 1, "nested": {"str_field": "a"}}
    assert dumped(Nested, mixed) == {"nested": {"int_field": 1, "str_field": "a"}}


def test_26_lists_are_replaced_whole():
    assert dumped(Example, {"list_field": [1, 2]}, {"list_field": [3]}) == {"list_field": [3]}
    assert dumped(Example, {"list_field": [1, 2]}, {"list_field": []}) == {"list_field": []}


def test_27_mapping_fields_merge_by_key():
    """Differs: `{}` changes nothing, as in the update mode; `Replace({})` empties, which no mode could say before."""
    base = {"map_field": {"a": 1, "b": 2}}
    assert dumped(Example, base, {"map_field": {"b": 3}}) == {"map_field": {"a": 1, "b": 3}}
    assert dumped(Example, base, {"map_field": {}}) == base
    assert dumped(Example, base, {"map_field": Replace({})}) == {"map_field": {}}


def test_28_null_switches_a_block_off_and_a_key_on_again():
    """Differs: an optional block can be switched off by null, and on again by `{}` or a later key."""
    on = Stack(Switchable).set(sub={"int_field": 5})
    off = on.set(sub=None)
    assert off.resolve().config.sub is None
    assert off.resolve().dump() == {"sub": None}
    again = off.set({("sub", "str_field"): "x"}).resolve()
    assert (again.config.sub.int_field, again.config.sub.str_field) == (0, "x")
    assert "nested: expected Example, got null" in problems(Stack(Nested).set(nested=None))


def test_29_nested_lists_are_replaced_whole_too():
    """Differs: a list within a list is a value like any other; no error."""

    @config
    class Grouped:
        groups: tuple[tuple[str, ...], ...] = ()

    assert dumped(Grouped, {"groups": [["a", "b"]]}, {"groups": [["c"], []]}) == {"groups": [["c"], []]}


def test_30_deletion_is_a_word():
    """Differs: UNSET forgets what lower layers said: a key of a mapping is gone, a field is back at its default."""
    base = Stack(Example).set(map_field={"a": 1, "b": 2}, int_field=5)
    resolved = base.set(map_field={"a": UNSET}, int_field=UNSET).resolve()
    assert resolved.config.map_field == {"b": 2}
    assert resolved.config.int_field == 0
    assert base.arguments(["--unset", "map_field.a"]).resolve().config.map_field == {"a": 1, "b": 2}


def test_31_an_update_contributes_only_what_was_said():
    """Differs: a Stack and a Resolved are both fine as updates; a bare instance is refused, as nobody can tell which
    of its values were meant."""
    base = Stack(Example).set(int_field=5, str_field="a")
    update = Stack(Example).imported({"float_field": 3.0}).set(int_field=0)
    for other in (update, update.resolve()):
        assert base.update(other).resolve().dump() == {"int_field": 0, "str_field": "a"}
        assert (
            base.update(other).resolve().config.float_field == Example().float_field
        )  # an import stays behind
    assert "expected Example, got an instance of Example" in problems(
        Stack(Nested).set(nested=Example(int_field=3))
    )
    assert "an instance of Example" in problems(base.update(Example(int_field=3)))


def test_32_computed_values_are_recomputed_on_a_base():
    base = Stack(Example).set(int_field=5).resolve()
    updated = Stack(Example).update(base).set(int_field=6).resolve()
    assert (base.config.implicit, updated.config.implicit) == ("5", "6")


def test_33_an_instance_inside_a_mapping_is_refused():
    """Differs: refused in every place and layer, with the path and a way out, not only in one mode."""
    assert "pass a mapping" in problems(Stack(Nested).set({"nested": Example()}))
    assert "pass a mapping" in problems(Stack(Nested).set({"nested": {}}).set({"nested": Example()}))


def test_34_defaults_never_take_part_in_an_update():
    """Differs: a class with list defaults can be used as an update, since only words are taken over."""

    @config
    class Listed:
        items: tuple[int, ...] = (1, 2)

    base = Stack(Listed).set(items=[3])
    assert base.update(Stack(Listed)).resolve().config.items == (3,)


# Types and errors


class IntChild(int):
    pass


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        *((int, wrong) for wrong in (4.0, math.inf, "1", None, [4], True, IntChild(3), numpy.int64(3))),
        *((bool, wrong) for wrong in (1, "True", None, numpy.bool_(True))),
        *((str, wrong) for wrong in (1, True, pathlib.Path("a"), Word.HELLO, None)),
        *((float, wrong) for wrong in ("0.0", True, numpy.float64(1.0), numpy.float32(1.0), None)),
    ],
)
def test_35_types_are_exact(hint, wrong):
    assert "field: expected" in refused(hint, wrong)


@pytest.mark.parametrize(
    ("hint", "right"),
    [(int, 7), (bool, True), (str, "x"), (float, 1.5), (float, math.inf), (float, -math.inf)],
)
def test_35_exact_values_are_taken(hint, right):
    assert value_of(hint, right) == right
    assert math.isnan(value_of(float, math.nan))


def test_36_only_these_widenings():
    """Differs: set and frozenset are no field types, so nothing widens to them; use tuple or Mapping."""
    widened = value_of(float, 3)
    assert (widened, type(widened)) == (3.0, float)
    assert value_of(Color, "blue") is Color.BLUE
    assert value_of(pathlib.Path, "a/b") == pathlib.Path("a/b")
    assert value_of(tuple[int, ...], [1, 2]) == (1, 2)
    assert "expected an int" in refused(int, 1.0)
    assert "expected a list" in refused(tuple[int, ...], {1, 2})
    with pytest.raises(TypeError, match="not a field type"):
        value_of(set[int], {1})


def test_37_union_takes_the_first_member_that_fits():
    assert value_of(str | int, 6) == 6
    for wrong in (6.0, True):
        text = refused(str | int, wrong)
        assert "expected a str" in text and "expected an int" in text


def test_38_mapping_keys_and_values_are_checked_and_sorted():
    read = value_of(Mapping[int, int], {3: 1, 1: 2})
    assert list(read.items()) == [(1, 2), (3, 1)]
    assert "key does not fit: expected an int, got bool True" in refused(Mapping[int, int], {True: 2})
    assert "field.1: expected an int" in refused(Mapping[int, int], {1: "x"})


def test_39_fixed_tuples_check_length_and_items():
    """Differs: a class is not a value that a file can hold, so `type[int]` is refused where the field is declared."""
    assert value_of(tuple[int, str], [1, "a"]) == (1, "a")
    assert "expected 2 items, got 1" in refused(tuple[int, str], [1])
    assert "item 1: expected a str" in refused(tuple[int, str], [1, 2])
    with pytest.raises(TypeError, match="not a field type"):
        value_of(type[int], bool)


def test_40_rules_return_errors_and_transform_nothing():
    """Differs: a rule sees values after their types were checked, and can only return texts."""

    @config
    class Ruled:
        low: int = 0
        high: int | None = None

        @rule
        def ordered(self, root):
            if self.high is not None and self.low > self.high:
                return f"low {self.low} is above high {self.high}"
            return None

    assert Stack(Ruled).set(low=5).resolve().config.low == 5
    text = problems(Stack(Ruled).set(low=5, high=1))
    assert "(root): low 5 is above high 1" in text
    assert "low = 5 · user · keyword" in text and "high = 1 · user" in text


def test_41_all_errors_at_once_with_path_and_origin(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("int_field: x\nnested:\n  float_field: []\n  bogus: 1\n")
    text = problems(Stack(Nested).file(file).set(str_field=3))
    assert f"int_field: expected an int, got str 'x'\n    int_field = 'x' · user · {file}:1:12" in text
    assert f"{file}:3:16" in text and f"{file}:4:10" in text
    assert "str_field: expected a str, got int 3" in text
    assert text.startswith("configuration: 4 problems")


def test_42_unknown_keys_at_any_depth_with_a_suggestion():
    text = problems(Stack(Nested).set(nested={"int_feild": 1}))
    assert "nested.int_feild: unknown key in Example; did you mean 'int_field'?" in text


def test_43_absent_block_is_built_and_absent_optional_stays_none():
    @config
    class Both:
        needed: Animal
        optional: Dog | None = None

    resolved = Stack(Both).resolve()
    assert resolved.config == Both(needed=Animal(), optional=None)


# Lifecycle and classes


def test_44_a_resolved_configuration_cannot_change():
    made = Stack(Example).set(list_field=[1], map_field={"a": 1}).resolve().config
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.int_field = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        del made.int_field
    assert made.list_field == (1,)
    with pytest.raises(TypeError):
        made.map_field["b"] = 2
    with pytest.raises(AttributeError):
        made.map_field._items = {}
    assert hash(made) == hash(Stack(Example).set(list_field=[1], map_field={"a": 1}).resolve().config)


def test_45_a_stack_is_what_is_not_yet_validated():
    """Differs: nothing defers validation; a Stack holds words, and resolving it twice gives equal results."""
    stack = Stack(Example).set(int_field="wrong")
    assert "int_field" in problems(stack)
    assert stack.set(int_field=3).resolve().config == stack.set(int_field=3).resolve().config


def test_46_wrong_declarations_fail_where_they_are_declared():
    """Differs: no abstract classes; what makes a value mutable or changes it after resolve is a TypeError."""
    with pytest.raises(TypeError, match="__post_init__"):
        config(type("A", (), {"__post_init__": lambda self: None, "__annotations__": {}}))
    for hint, default in ((list[int], []), (dict[str, int], {}), (int, "x"), (Mapping[str, int], {"a": 1})):
        with pytest.raises(TypeError):
            config(type("A", (), {"__annotations__": {"field": hint}, "field": default}))
    with pytest.raises(TypeError, match="decorate it with @config"):
        Stack(type("Undecorated", (Animal,), {}))


def test_47_a_subclass_overrides_a_default_and_leaves_the_parent():
    @config
    class Bigger(Example):
        int_field: int = 9

    assert Stack(Bigger).resolve().config.int_field == 9
    assert Stack(Example).resolve().config.int_field == 0


def test_49_nothing_overwrites_what_the_user_said():
    """Differs: a parent cannot assign to its child; the user's word wins over the computed value, visibly."""

    @config
    class Inner:
        value: int = setting(default=0, compute=lambda inner, root: 99)

    resolved = Stack(Inner).set(value=5).resolve()
    assert (resolved.config.value, resolved.origin("value").rank) == (5, Rank.USER)


def test_50_no_state_outlives_an_error():
    """Differs: there is no implicit-default context that an exception could leave behind; configs compare by value."""

    @config
    class Failing:
        divisor: int = 0
        part: int = setting(default=0, compute=lambda block, root: 10 // block.divisor)

    assert "part: cannot be computed: ZeroDivisionError" in problems(Stack(Failing))
    assert Stack(Failing).set(divisor=5).resolve().config == Failing(divisor=5, part=2)


# Dynamic classes, import, command line


def test_51_the_tag_picks_the_class():
    resolved = Stack(Owner).set(pet={"type": "dog", "breed": "pug"}).resolve()
    assert resolved.config.pet == Dog(breed="pug")
    assert type(Stack(Owner).set(resolved.dump()).resolve().config.pet) is Dog
    assert Stack(Owner).set(pet="dog").resolve().config.pet == Dog()
    assert "pet.type: unknown type, expected one of dog, cat; did you mean 'cat'?" in problems(
        Stack(Owner).set(pet={"type": "kat"})
    )

    @config(tag="dog")
    class OtherDog(Animal):
        pass

    with pytest.raises(TypeError, match="same tag"):
        Stack(Dog | OtherDog)

    @config(tag="bird")
    class Bird(Animal):
        pass

    assert "unknown type" in problems(Stack(Owner).set(pet="bird"))


def test_52_no_type_builds_the_base_and_later_keys_merge():
    assert type(Stack(Owner).set(pet={"legs": 3}).resolve().config.pet) is Animal
    merged = Stack(Owner).set(pet={"type": "dog"}).set(pet={"breed": "pug"}).resolve()
    assert merged.config.pet == Dog(breed="pug")


def test_53_switching_the_type_drops_the_old_keys_visibly():
    """Differs: the old variant's keys are dropped and listed, instead of failing as unknown; shared fields stay."""
    resolved = Stack(Owner).set(pet={"type": "dog", "breed": "pug", "legs": 3}).set(pet="cat").resolve()
    assert resolved.config.pet == Cat(legs=3)
    assert resolved.dump() == {"pet": {"type": "cat", "legs": 3}}
    assert "'pug'  <- user" in resolved.explain("pet.breed")
    assert "dropped: type changed to 'cat' by keyword arguments at" in resolved.explain("pet.breed")
    assert "unknown key in Cat" in problems(Stack(Owner).set(pet={"type": "cat", "breed": "pug"}))


def test_54_user_wins_over_import_even_back_to_the_default():
    resolved = Stack(Example).set(int_field=0).imported({"int_field": 5, "float_field": 2.0}).resolve()
    assert (resolved.config.int_field, resolved.config.float_field) == (0, 2.0)
    assert [str(past) for past in resolved.past[("int_field",)]] == [
        f"5  <- imported · {resolved.past[('int_field',)][0].origin.where}  "
        f"[shadowed by {resolved.origin('int_field').where}]"
    ]


def test_55_two_imports_must_agree():
    base = Stack(Example).imported({"int_field": 5})
    assert base.imported({"int_field": 5}).resolve().config.int_field == 5
    text = problems(base.imported({"int_field": 6}))
    assert "int_field: imports disagree" in text and "int_field = 5 · imported" in text
    assert base.imported({"int_field": 6}).set(int_field=7).resolve().config.int_field == 7


def test_56_command_line_values_are_yaml_and_errors_are_collected():
    stack = Stack(Nested).arguments(["--set", "nested.list_field=[1, 2]", "--set", "str_field=on"])
    assert stack.resolve().config.nested.list_field == (1, 2)
    assert stack.resolve().config.str_field == "on"
    text = problems(Stack(Nested).arguments(["--set", "novalue", "int_field=3", "--set", "bool_field=x"]))
    assert "argument 1 `--set novalue`: expected --set PATH=VALUE" in text
    assert "argument 2 `int_field 3`: expected --set" in text
    assert "bool_field: expected a bool" in text


def test_57_command_line_hazards_are_gone():
    """Differs: YAML 1.2 scalars, keys with dots under a mapping of leaves, and integer keys work."""

    @config
    class Hazards:
        rate: float = 0.0
        name: str = ""
        number: int = 0
        pin: Mapping[str, str] = setting(default={})
        layers: Mapping[int, int] = setting(default={})

    said = ["rate=1e-3", "name=on", "number=012", "pin.model.layers.0=cpu", "layers.1=2"]
    made = Stack(Hazards).arguments([f"--set={word}" for word in said]).resolve().config
    assert made == Hazards(rate=0.001, name="on", number=12, pin={"model.layers.0": "cpu"}, layers={1: 2})


# Added by the debate


def test_58_fixed_order_and_pure_resolve(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("int_field: 2\nstr_field: file\nbool_field: true\nfloat_field: 1\n")
    words = {"int_field": 5}
    stack = (
        Stack(Example)
        .set(words)
        .arguments(["--set", "str_field=argument", "--set", "int_field=4"])
        .environment(
            {"PLANNER_BOOL_FIELD": "false", "PLANNER_INT_FIELD": "3", "PLANNER_STR_FIELD": "environment"}
        )
        .file(file)
        .imported({"float_field": 9.0, "int_field": 1, "implicit": "imported"})
    )
    first, second = stack.resolve(), stack.resolve()
    expected = Example(
        int_field=5, str_field="argument", bool_field=False, float_field=1.0, implicit="imported"
    )
    assert first.config == second.config == expected
    assert (first, first.answers, first.past) == (second, second.answers, second.past)
    assert words == {"int_field": 5}


def test_59_validation_changes_nothing():
    @config
    class Mutating:
        value: int = 1

        @rule
        def mutate(self, root):
            self.value = 2

    text = problems(Stack(Mutating))
    assert "rule mutate failed: AttributeError" in text and "cannot be set here" in text


def test_60_every_value_says_who_said_it(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("\nint_field: 1\n")
    resolved = Stack(Example).imported({"str_field": "x"}).file(file).resolve()
    assert (resolved.origin("int_field").rank, resolved.origin("int_field").where) == (
        Rank.USER,
        f"{file}:2:12",
    )
    assert resolved.origin("str_field").rank is Rank.IMPORTED
    assert resolved.origin("bool_field").rank is Rank.DEFAULT
    assert resolved.origin("bool_field").where.startswith("test_behaviours.py:")
    assert resolved.origin("implicit").rank is Rank.COMPUTED
    assert resolved.origin("implicit").note == "from int_field"
    assert resolved.config.implicit == "1"


def test_literal_choices_are_exact():
    assert value_of(Literal["a", "b"], "a") == "a"
    assert "expected one of 'a', 'b'" in refused(Literal["a", "b"], "c")
