"""explain, origin, dump and diff: what a configuration says about itself."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import pytest

from planner.config import Rank, Stack, config, diff, rule, setting
from planner.config.frozen import FrozenMap
from planner.errors import InvalidConfigError
from planner.settings.schema import Balanced, Sequential, Settings


@config
class Ring:
    a: int = setting(default=0, compute=lambda ring, root: ring.b)
    b: int = setting(default=0, compute=lambda ring, root: ring.c)
    c: int = setting(default=0, compute=lambda ring, root: ring.a)


@config
class Size:
    width: int = 2
    height: int = 3

    def times(self, factor):
        return self.width * self.height * factor

    @property
    def area(self):
        return self.times(1)


@config
class Page:
    size: Size = Size()
    other: Size | None = None
    ink: int = setting(default=0, derived=lambda page, root: page.size.area + page.size.times(2))
    double: int = setting(default=0, compute=lambda page, root: page.ink * 2)

    @rule
    def not_too_large(self, root):
        if self.size.area > 100:
            yield "too much ink"


def test_cycles_are_reported():
    with pytest.raises(InvalidConfigError, match="a: computed from itself: a -> b -> c -> a"):
        Stack(Ring).resolve()
    assert Stack(Ring).set(c=5).resolve().config == Ring(a=5, b=5, c=5)


def test_methods_and_properties_work_in_computations():
    resolved = Stack(Page).set(size={"width": 4}).resolve()
    assert (resolved.config.ink, resolved.config.double) == (36, 72)
    text = resolved.explain("ink")
    assert "ink = 36  <- derived · test_asking.py:" in text
    assert "(from size.width, size.height)" in text
    assert "reads size.width = 4  <- user" in text
    assert "derived: it cannot be set" in text
    assert "read by double" in text
    assert "read by ink, not_too_large()" in resolved.explain("size.width")


def test_a_block_that_was_only_read_is_known_like_any_other():
    resolved = Stack(Page).resolve()
    everything = {"size": {"width": 2, "height": 3}, "other": None, "ink": 18, "double": 36}
    assert resolved.dump(level="all") == everything
    assert [path for path in resolved.answers if len(path) == 1] == [(name,) for name in everything]
    assert resolved.origin("size").where.startswith("test_asking.py:")
    assert "read by ink, not_too_large()" in resolved.explain("size.height")


def test_a_default_that_an_enclosing_block_gives_is_what_explain_shows():
    @config
    class Book:
        page: Size = Size(width=7)

    assert Stack(Book).resolve().config.page.width == 7
    text = Stack(Book).set(page={"width": 9}).resolve().explain("page.width")
    assert "7  <- default · test_asking.py:" in text
    assert Stack(Book).set(page={"height": 1}).resolve().config.page == Size(width=7, height=1)


def test_a_block_as_default_is_checked_and_frozen_where_it_is_declared():
    @config
    class Shelf:
        names: Mapping[str, int] = setting(default={})
        rows: tuple[int, ...] = ()

    def declare(default):
        return config(type("Made", (), {"__annotations__": {"shelf": Shelf}, "shelf": default}))

    frozen = Stack(declare(Shelf(names={}, rows=[1, 2]))).resolve().config.shelf
    assert (type(frozen.names), frozen.rows) == (FrozenMap, (1, 2))
    with pytest.raises(TypeError, match=r"Made\.shelf\.rows: the default does not fit: expected a list"):
        declare(Shelf(rows=3))
    with pytest.raises(TypeError, match=r"Made\.shelf\.names: a mapping starts empty"):
        declare(Shelf(names={"a": 1}))


def test_setting_a_derived_field_says_what_it_is_derived_from():
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Page).set(ink=3).resolve()
    assert "ink: derived from size.width, size.height; it cannot be set" in str(caught.value)
    assert "ink = 3 · user · keyword arguments at test_asking.py:" in str(caught.value)
    with pytest.raises(InvalidConfigError, match="derived"):
        Stack(Page).imported({"ink": 3}).resolve()


def test_what_reads_a_wrong_value_is_not_reported_too():
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Page).set(size={"width": "x"}).resolve()
    assert [problem.path for problem in caught.value.problems] == [("size", "width")]


def test_rules_list_what_they_read():
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Page).set(size={"width": 99}).resolve()
    (problem,) = caught.value.problems
    assert [word.path for word in problem.words] == [("size", "width"), ("size", "height")]
    assert problem.words[1].origin.rank is Rank.DEFAULT


def test_a_wrong_type_in_a_shadowed_layer_is_no_error_but_an_unknown_key_is():
    assert Stack(Page).set(size={"width": "x"}).set(size={"width": 1}).resolve().config.size.width == 1
    assert Stack(Page).set(other=5).set(other={"width": 1}).resolve().config.other == Size(width=1)
    with pytest.raises(InvalidConfigError, match=r"other\.bogus: unknown key"):
        Stack(Page).set(other={"bogus": 1}).set(other=None).resolve()


def test_explain_names_the_class_of_a_tagged_field_and_its_place():
    resolved = Stack(Settings).set(strategy="balanced").resolve()
    assert resolved.config.strategy == Balanced()
    first = resolved.explain("strategy").splitlines()[0]
    assert first.startswith("strategy: Balanced at strategies.py:")
    assert "strategy.type = 'balanced'  <- user · keyword arguments" in resolved.explain("strategy")


def test_explain_of_an_unknown_path_suggests():
    with pytest.raises(KeyError, match="did you mean 'strategy"):
        Stack(Settings).resolve().explain("stratgy")


def test_explain_shows_how_a_value_was_said():
    resolved = Stack(Settings).arguments(["--set", "max_memory.cuda:0=10GiB"]).resolve()
    assert "max_memory.0 = '10GiB'  <- user" in resolved.explain("max_memory.0")
    resolved = Stack(Settings).arguments(["--set", "max_memory.0=10 gib"]).resolve()
    assert "max_memory.0 = '10GiB'" in resolved.explain("max_memory.0")
    assert "said as '10 gib'" in resolved.explain("max_memory.0")


def test_dump_of_a_default_strategy_with_one_key_names_its_type():
    resolved = Stack(Settings).set({("strategy", "fill"): "fewest"}).resolve()
    assert resolved.dump() == {"strategy": {"type": "auto", "fill": "fewest"}}


def test_a_part_is_dumped_without_its_parent():
    @config
    class Parent:
        strategy: Sequential | Balanced = Balanced(fallback_allocation=True)

    resolved = Stack(Parent).resolve()
    assert resolved.dump() == {}
    part = resolved.dump("strategy")
    assert part == {"type": "balanced", "fallback_allocation": True}
    assert Stack(Sequential | Balanced).set(part).resolve().config == resolved.config.strategy
    with pytest.raises(TypeError, match="only a block"):
        resolved.dump("strategy.reserve")


def test_diff_of_classes_and_switches():
    left = Stack(Settings).set(strategy="sequential").resolve()
    right = Stack(Settings).set(strategy="balanced", max_memory={0: 1}).resolve()
    assert [found.path for found in diff(left, right)] == [
        ("strategy",),
        ("strategy", "type"),
        ("max_memory", 0),
    ]
    assert "max_memory.0: nothing | '1B' (user" in str(diff(left, right)[-1])
    assert diff(left, left) == ()


def test_everything_pickles():
    resolved = Stack(Settings).set(max_memory={0: 1}).resolve()
    assert pickle.loads(pickle.dumps(resolved.config)) == resolved.config
    assert pickle.loads(pickle.dumps(FrozenMap({1: 2}))) == {1: 2}
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Settings).set(bogus=1).resolve()
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.problems == caught.value.problems and str(again) == str(caught.value)


def test_frozen_maps_cannot_change():
    made = FrozenMap({"b": 1, 2: 3})
    assert list(made) == [2, "b"] and made == {2: 3, "b": 1} and hash(made) == hash(FrozenMap({2: 3, "b": 1}))
    with pytest.raises(AttributeError):
        made.x = 1


def test_keys_said_before_the_type_is_chosen():
    @config(tag="one")
    class One:
        only_one: int = 1

    @config(tag="two")
    class Two:
        only_two: int = 2

    made = config(type("Either", (), {"__annotations__": {"it": One | Two}, "it": One()}))
    early = Stack(made).set({("it", "only_two"): 5})
    assert early.set(it="two").resolve().config.it == Two(only_two=5)
    with pytest.raises(InvalidConfigError, match=r"it\.only_two: unknown key in One; another type has it"):
        early.resolve()


def test_a_word_that_is_nearly_a_choice_is_named():
    with pytest.raises(InvalidConfigError, match="did you mean 'no_disk'"):
        Stack(Settings).set(mode="no_dsk").resolve()
