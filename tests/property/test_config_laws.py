"""Laws of the layered configuration that hold for all layers, over a schema with every kind of field."""

from __future__ import annotations

import copy
import enum
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from planner.config import UNSET, Origin, Rank, Replace, Stack, config, diff, setting
from planner.config.layer import Node
from planner.errors import InvalidConfigError

FEW = settings(max_examples=150, deadline=None)


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


@config
class Block:
    size: int = 1
    name: str | None = None
    twice: int = setting(default=0, compute=lambda block, root: block.size * 2)


@config
class Shape:
    color: str = "red"


@config(tag="circle")
class Circle(Shape):
    radius: int = 1


@config(tag="square")
class Square(Shape):
    side: int = 1
    radius: str = "sharp"  # the same name as Circle's, but another field


@config
class Whole:
    number: int = 0
    ratio: float = 0.0
    mode: Mode = Mode.FAST
    items: tuple[int, ...] = (1, 2)
    block: Block = Block(size=3)
    optional: Block | None = None
    shape: Circle | Square = Square()
    names: Mapping[str, int] = setting(default={})
    budgets: Mapping[int | str, int] = setting(default={}, whole=True)
    blocks: Mapping[str, Block] = setting(default={})
    total: int = setting(default=0, derived=lambda block, root: block.number + block.block.twice)
    follow: int = setting(default=0, compute=lambda block, root: block.block.size + len(block.budgets))


NUMBERS = st.integers(0, 3)
KEYS = st.sampled_from(["a", "b", "a.b"])


def maybe_word(value: st.SearchStrategy[Any], *, unset: bool = True) -> st.SearchStrategy[Any]:
    return st.one_of(value, value, st.just(UNSET)) if unset else value


def mapping(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def replaceable(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(value, value, value.map(Replace), st.just(UNSET))


BLOCKS = mapping(
    {
        "size": maybe_word(NUMBERS),
        "name": maybe_word(st.sampled_from([None, "x", "null"])),
        "twice": maybe_word(NUMBERS),
    }
)
CIRCLES = mapping({"color": st.sampled_from(["red", "blue"]), "radius": maybe_word(NUMBERS)})
SQUARES = mapping(
    {"color": maybe_word(st.sampled_from(["red", "blue"])), "side": NUMBERS, "radius": st.just("round")}
)
SHAPES = st.one_of(
    st.sampled_from(["circle", "square"]),
    CIRCLES.map(lambda keys: {**keys, "type": "circle"}),
    SQUARES.map(lambda keys: {**keys, "type": "square"}),
    mapping({"color": st.sampled_from(["red", "blue"])}),
)
BUDGETS = st.dictionaries(st.sampled_from([0, 1, "cpu"]), NUMBERS, max_size=2)
WORDS = mapping(
    {
        "number": maybe_word(NUMBERS),
        "ratio": maybe_word(st.sampled_from([0, 0.5, 2])),
        "mode": maybe_word(st.sampled_from(["fast", "safe", Mode.SAFE])),
        "items": maybe_word(st.lists(NUMBERS, max_size=2)),
        "block": replaceable(BLOCKS),
        "optional": st.one_of(replaceable(BLOCKS), st.none()),
        "shape": replaceable(SHAPES),
        "names": replaceable(st.dictionaries(KEYS, maybe_word(NUMBERS), max_size=2)),
        "budgets": replaceable(BUDGETS),
        "blocks": replaceable(st.dictionaries(KEYS, st.one_of(BLOCKS, st.just(UNSET)), max_size=2)),
        "follow": maybe_word(NUMBERS),
    }
)
DOTTED = st.one_of(
    st.tuples(st.just(("budgets", 0)), maybe_word(NUMBERS)),
    st.tuples(st.just(("names", "a")), maybe_word(NUMBERS)),
    st.tuples(st.just(("optional", "size")), maybe_word(NUMBERS)),
    st.tuples(st.just(("optional",)), st.sampled_from([None, UNSET, {}])),
    st.tuples(st.just(("shape", "type")), st.sampled_from(["circle", "square", UNSET])),
    st.tuples(st.just(("block",)), BLOCKS.map(Replace)),
).map(lambda pair: dict([pair]))
LAYERS = st.lists(st.one_of(WORDS, DOTTED), max_size=4)


def stack_of(imported: Mapping[str, Any], layers: list[Mapping[Any, Any]]) -> Stack[Whole]:
    stack = Stack(Whole).imported(imported)
    for layer in layers:
        stack = stack.set(layer)
    return stack


def resolved_or_skip(imported: Mapping[str, Any], layers: list[Mapping[Any, Any]]) -> Any:
    """Generated radii may stand without a type, for the wrong class; such stacks test errors, not laws."""
    try:
        return stack_of(imported, layers).resolve()
    except InvalidConfigError:
        event("invalid stack")
        return None


@FEW
@given(WORDS, LAYERS)
def test_resolving_is_pure(imported, layers):
    before = copy.deepcopy((imported, layers))
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    stack = stack_of(imported, layers)
    first, second = stack.resolve(), stack.resolve()
    assert (first, first.answers, first.past) == (second, second.answers, second.past)
    assert resolved.config == stack.resolve().config
    assert hash(resolved.config) == hash(stack.resolve().config)
    assert (imported, layers) == before


@FEW
@given(WORDS, LAYERS)
def test_dump_over_the_same_import_gives_the_same(imported, layers):
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    again = Stack(Whole).imported(imported).set(resolved.dump()).resolve()
    assert again.config == resolved.config
    assert again.dump() == resolved.dump()


@FEW
@given(WORDS, LAYERS)
def test_dump_with_the_import_stands_alone(imported, layers):
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    dump = resolved.dump(ranks=(Rank.USER, Rank.IMPORTED))
    assert Stack(Whole).set(dump).resolve().config == resolved.config
    assert Stack(Whole).set(dump).resolve().dump() == dump


@FEW
@given(WORDS, LAYERS)
def test_dump_survives_json_and_yaml(tmp_path_factory, imported, layers):
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    dump = resolved.dump(ranks=(Rank.USER, Rank.IMPORTED))
    file = tmp_path_factory.mktemp("dump") / "a.json"
    file.write_text(json.dumps(dump))
    assert Stack(Whole).file(file).resolve().config == resolved.config


@FEW
@given(WORDS, LAYERS)
def test_a_part_stands_alone(imported, layers):
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    for part, schema in (("block", Block), ("optional", Block), ("shape", Circle | Square)):
        value = getattr(resolved.config, part)
        if value is not None:
            assert (
                Stack(schema).set(resolved.dump(part, ranks=(Rank.USER, Rank.IMPORTED))).resolve().config
                == value
            )


@FEW
@given(WORDS, LAYERS)
def test_dump_holds_only_words_and_every_value_has_one_origin(imported, layers):
    resolved = resolved_or_skip(imported, layers)
    if resolved is None:
        return
    for path, answer in resolved.answers.items():
        assert isinstance(answer.origin, Origin) and answer.origin.where
        ranks = [past.origin.rank for past in resolved.past.get(path, ()) if past.fate == "shadowed"]
        assert ranks == sorted(ranks, reverse=True)
        assert all(rank <= answer.origin.rank for rank in ranks) or answer.origin.rank <= Rank.COMPUTED
    assert "total" not in resolved.dump()
    assert resolved.config.total == resolved.config.number + resolved.config.block.twice


def named(node: Node, path: tuple[object, ...] = ()) -> set[tuple[object, ...]]:
    """The paths that a layer names: its leaves, and trees that it replaces, deletes or leaves empty."""
    if not isinstance(node.content, dict):
        return {path}
    below = {each for key, child in node.content.items() for each in named(child, (*path, key))}
    return below | ({path} if node.replace or not node.content else set())


@FEW
@given(WORDS, LAYERS, st.one_of(WORDS, DOTTED))
def test_a_layer_changes_only_what_it_names_or_lists(imported, layers, top):
    before = resolved_or_skip(imported, layers)
    after = resolved_or_skip(imported, [*layers, top])
    if before is None or after is None:
        return
    allowed = named(stack_of({}, [top]).layers[-1].root)
    by = after.layers[-1].root.origin
    listed = {path for path, past in after.past.items() if any(each.by == by for each in past)}
    changed = {found.path for found in diff(before, after)}
    for path in changed:
        answer = after.answers.get(path) or before.answers[path]
        said = any(path[: len(each)] == each or each[: len(path)] == path for each in allowed | listed)
        computed = any(each[: len(read)] == read for read in answer.reads for each in changed)
        # A block that was switched on or off, or got another class, takes its fields along.
        inside = any(path[:size] in changed for size in range(1, len(path)))
        assert said or computed or inside, path
    again = stack_of(imported, layers).resolve()
    assert (again, again.answers, again.past) == (before, before.answers, before.past)


@FEW
@given(
    LAYERS,
    st.sampled_from(["number", "block", "optional", "budgets"]),
    st.sampled_from(["x", 1.5, [None], Block()]),
)
def test_every_error_names_an_origin(layers, field, wrong):
    with pytest.raises(InvalidConfigError) as caught:
        stack_of({}, layers).set({field: wrong, "bogus": 1}).resolve()
    assert len(caught.value.problems) >= 2
    assert all(problem.words for problem in caught.value.problems)
    assert all(isinstance(word.origin, Origin) for problem in caught.value.problems for word in problem.words)


@config
class Exact:
    integer: int = 0
    number: float = 0.0
    flag: bool = False
    word: str = ""
    mode: Mode = Mode.FAST
    path: pathlib.Path = pathlib.Path()
    items: tuple[int, ...] = ()
    maybe: int | None = 3


SAID = {
    "integer": (["4.0", '"1"', "true", "null", "[4]", ".inf"], ["4", "-1"]),
    "number": (['"0.0"', "true", "null"], ["1", "0.5", "1e-3", ".inf"]),
    "flag": (["1", '"true"', "null"], ["true", "false"]),
    "word": (["1", "true", "1.5"], ["x", '"1"', "on"]),
    "mode": (["1", "slow"], ["fast", "safe"]),
    "path": (["1", "null"], ["a/b"]),
    "items": (["1", '["1"]', "[1.0]", "{a: 1}"], ["[1, 2]", "[]"]),
    "maybe": (['"1"', "true"], ["null", "5"]),
}
CASES = [
    (field, said, ok)
    for field, both in SAID.items()
    for ok, each in zip((False, True), both, strict=True)
    for said in each
]


@pytest.mark.parametrize(("field", "said", "ok"), CASES)
@pytest.mark.parametrize("source", ["yaml", "json", "toml", "keywords", "environment", "argument"])
def test_types_are_exact_in_every_source(tmp_path, source, field, said, ok):
    value = Stack(Exact).file(_file(tmp_path, "yaml", f"{field}: {said}"))
    plain = value.layers[0].root.content[field].plain()
    if source == "yaml":
        stack = value
    elif source == "json":
        stack = Stack(Exact).file(_file(tmp_path, "json", json.dumps({field: plain})))
    elif source == "toml" and plain is not None and not isinstance(plain, dict):
        toml = {".inf": "inf"}.get(said, json.dumps(plain))
        stack = Stack(Exact).file(_file(tmp_path, "toml", f"{field} = {toml}"))
    elif source in ("keywords", "toml"):
        stack = Stack(Exact).set({field: plain})
    elif source == "environment":
        stack = Stack(Exact).environment({f"PLANNER_{field.upper()}": said})
    else:
        stack = Stack(Exact).arguments(["--set", f"{field}={said}"])
    # A variable or argument is text, so a field that takes strings takes it as it stands.
    if ok or (source in ("environment", "argument") and field in ("word", "path")):
        assert field in stack.resolve().dump()
    else:
        with pytest.raises(InvalidConfigError, match=f"{field}: (item 0: )?expected"):
            stack.resolve()


def _file(folder: pathlib.Path, suffix: str, text: str) -> pathlib.Path:
    path = folder / f"a.{suffix}"
    path.write_text(text)
    return path
