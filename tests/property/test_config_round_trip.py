"""Whatever the schema takes comes back through every writer and reader: any text, any key, any origin."""

from __future__ import annotations

import enum
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from planner.config import UNSET, Rank, Replace, Stack, config, setting
from planner.config.frozen import FrozenMap
from planner.config.problem import Origin
from planner.settings.schema import Settings
from planner.spelling import one_line

MANY = settings(max_examples=200, deadline=None)

WORDS = [
    "", "0", "1", "00", "-1", "1.5", "1e3", ".5", "0x1f", "0o7", "null", "Null", "~", "true", "True", "false", "yes", "on", "y", ".inf",
    ".nan", "2024-01-01", "12:30:45", "1_000", "<<", "=", "!unset", "!!unset", "!!!unset", "!update", "!!update", "!replace", "!",
    "a b", " a", "a ", "a: b", "a #b", "#", "- a", "-", "---", "...", "? a", ":", "a:", "{", "}", "[", "]", ",", "&a", "*a", "|", ">", "%a",
    "@", "`", '"', "'", "\\", "\\n", "a\nb", "a\rb", "\t", "a\tb", "\x00", "\x1b[31m", "\x7f", "\x85", "a\u2028mode: gpu_only", "\u2029",
    "\ufeff", "\xa0", "é", "名", "\U0001f600", "\U0010ffff", "\ufffe", "x" * 1500, "layers.0.weight", "a.b..c", ".", "a\nmode: gpu_only #",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
NAMES = TEXTS.filter(lambda text: "\udfff" not in text)


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "!unset"
    NULL = "null"


@config
class Inner:
    word: str = "inner"
    number: int = 0


@config(tag="one")
class One:
    shared: str = ""
    only: str = ""


@config(tag="two")
class Two:
    other: float = 0.0


@config
class Whole:
    word: str = "default"
    maybe: str | None = None
    path: pathlib.Path | None = None
    mode: Mode = Mode.FAST
    ratio: float = 0.0
    flag: bool = False
    items: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    inner: Inner = Inner()
    optional: Inner | None = None
    variant: One | Two = Two()
    texts: Mapping[str, str] = setting(default={})
    paths: Mapping[pathlib.Path, int] = setting(default={})
    modes: Mapping[Mode, int] = setting(default={})
    counts: Mapping[int | None, int] = setting(default={})
    mixed: Mapping[int | pathlib.Path, int] = setting(default={})
    whole: Mapping[str, int] = setting(default={}, whole=True)
    numbers: Mapping[int, int] | None = setting(default={}, whole=True)
    blocks: Mapping[str, Inner] = setting(default={})


NUMBERS = st.integers(-3, 3)
MODES = st.sampled_from(Mode)
SMALL_PATHS = TEXTS.filter(lambda text: "\0" not in text).map(pathlib.Path)


def maybe_unset(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, values, st.just(UNSET))


def mapping(keys: st.SearchStrategy[Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    made = st.dictionaries(keys, maybe_unset(values), max_size=3)
    return st.one_of(made, made, made.map(Replace), st.just(UNSET))


def said(text: str) -> str:
    """A text as a word: one more exclamation mark where it would be another word."""
    return f"!{text}" if text.startswith("!") and text.lstrip("!") == "unset" else text


SAID = TEXTS.map(said)
KEYS = TEXTS.map(lambda text: f"!{text}" if text.startswith("!") and text.lstrip("!") == "update" else text)
INNER = st.fixed_dictionaries({}, optional={"word": maybe_unset(SAID), "number": maybe_unset(NUMBERS)})
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "word": maybe_unset(SAID),
    "maybe": maybe_unset(st.one_of(SAID, st.none())),
    "path": maybe_unset(SMALL_PATHS),
    "mode": maybe_unset(MODES),
    "ratio": maybe_unset(st.floats()),
    "flag": maybe_unset(st.booleans()),
    "items": maybe_unset(st.lists(TEXTS, max_size=3)),
    "groups": maybe_unset(st.lists(st.lists(TEXTS, max_size=2), max_size=2)),
    "inner": INNER,
    "optional": maybe_unset(st.one_of(INNER, st.none())),
    "variant": st.one_of(
        st.sampled_from(["one", "two"]),
        st.fixed_dictionaries(
            {"type": st.just("one")}, optional={"shared": maybe_unset(SAID), "only": maybe_unset(SAID)}
        ),
        st.fixed_dictionaries({}, optional={"other": maybe_unset(st.floats()), "only": st.just(UNSET)}),
        st.just(UNSET),
        st.just({"type": UNSET}),
    ),
    "texts": mapping(KEYS, SAID),
    "paths": mapping(SMALL_PATHS, NUMBERS),
    "modes": mapping(MODES, NUMBERS),
    "counts": mapping(st.one_of(NUMBERS, st.none()), NUMBERS),
    "mixed": mapping(st.one_of(NUMBERS, SMALL_PATHS), NUMBERS),
    "whole": mapping(KEYS, NUMBERS),
    "numbers": st.one_of(mapping(NUMBERS, NUMBERS), st.none()),
    "blocks": mapping(KEYS, INNER),
}
LAYER = st.fixed_dictionaries({}, optional=FIELDS)
PART = st.one_of(
    st.tuples(st.just("whole"), TEXTS.filter(lambda text: text)).flatmap(
        lambda path: maybe_unset(NUMBERS).map(lambda value: {path: value})
    ),
    st.tuples(st.just("numbers"), NUMBERS).flatmap(
        lambda path: maybe_unset(NUMBERS).map(lambda value: {path: value})
    ),
    LAYER,
)
LAYERS = st.lists(PART, max_size=3)


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(map(plain, value)) and all(map(plain, value.values()))
    if isinstance(value, list):
        return type(value) is list and all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def names_a_key_of_another_class(layers: list[Any]) -> bool:
    """Whether a layer says a key of Two while One is chosen, which is an error and has no dump."""
    chosen = "two"
    for said_of_variant in (layer["variant"] for layer in layers if "variant" in layer):
        is_keyed = isinstance(said_of_variant, dict)
        word = said_of_variant.get("type", chosen) if is_keyed else said_of_variant
        chosen = "two" if word is UNSET else word
        if is_keyed and chosen == "one" and "other" in said_of_variant:
            return True
    return False


def resolved_of(imported: list[Any], layers: list[Any]) -> tuple[Stack[Whole], Any]:
    assume(not names_a_key_of_another_class([*imported[:1], *layers]))
    base = Stack(Whole)
    for layer in imported[:1]:  # two that contradict each other would be an error
        base = base.imported(layer)
    stack = base
    for layer in layers:
        stack = stack.set(layer)
    return base, stack.resolve()


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)  # takes nan for itself, and tells 1 from 1.0


@MANY
@given(LAYERS, LAYERS)
def test_a_dump_is_plain_and_says_the_same(imported, layers):
    base, resolved = resolved_of(imported, layers)
    dump = resolved.dump()
    assert plain(dump)
    again = base.set(dump).resolve()
    assert same(again.config, resolved.config)
    assert same(again.dump(), dump)
    alone = resolved.dump(ranks=(Rank.USER, Rank.IMPORTED))
    assert plain(alone)
    assert same(Stack(Whole).set(alone).resolve().config, resolved.config)
    assert plain(resolved.dump(level="all"))
    assert same(Stack(Whole).set(resolved.dump(level="all")).resolve().config, resolved.config)
    assert same(pickle.loads(pickle.dumps(resolved.config)), resolved.config)


def unmistakable(key: object) -> bool:
    """A key whose kind JSON keeps: a path that reads as a number does not."""
    from planner.config.document import core_scalar

    return not isinstance(key, pathlib.Path) or not isinstance(core_scalar(str(key)), int)


@MANY
@given(LAYERS, LAYERS)
def test_a_dump_comes_back_from_files(tmp_path_factory, imported, layers):
    base, resolved = resolved_of(imported, layers)
    folder = tmp_path_factory.mktemp("dump")
    texts = {"ours.yaml": resolved.yaml()}
    if all(map(unmistakable, resolved.config.mixed)):
        texts["a.json"] = json.dumps(resolved.dump())
        texts["b.json"] = json.dumps(resolved.dump(), ensure_ascii=False)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        again = base.file(folder / name).resolve()
        assert same(again.config, resolved.config), text
    (folder / "all.yaml").write_text(resolved.yaml(level="all"), encoding="utf-8")
    assert same(Stack(Whole).file(folder / "all.yaml").resolve().config, resolved.config)


@MANY
@given(LAYERS, LAYERS)
def test_an_update_by_a_dump_is_an_update_by_the_stack(layers, lower):
    """Of what was not ended: an end of words that this base never had is nothing that a dump tells."""
    layers = [{key: word for key, word in layer.items() if key != "variant"} for layer in layers]
    keys = {key for layer in layers for key in layer}
    for layer in layers:
        for key in keys & layer.keys():
            if layer[key] is UNSET or isinstance(layer[key], Replace) or has_unset(layer[key]):
                return
    _, resolved = resolved_of([], layers)
    base, _ = resolved_of(
        [], [{key: word for key, word in layer.items() if key != "optional"} for layer in lower]
    )
    for layer in lower:
        base = base.set({key: word for key, word in layer.items() if key != "optional"})
    assert same(base.update(resolved.dump()).resolve().config, base.update(resolved).resolve().config)


def has_unset(word: object) -> bool:
    return word is UNSET or (isinstance(word, dict) and any(map(has_unset, word.values())))


@MANY
@given(TEXTS)
@example("!unset")
@example("a\nword: broken #")
def test_any_text_comes_from_an_option_and_the_environment(text):
    line = Stack(Whole).set(word=said(text)).resolve().yaml()
    quoted = line.rpartition("  # ")[0].partition(": ")[2]
    by_option = Stack(Whole).arguments(["--set", f"word={quoted}"]).resolve().config.word
    by_variable = Stack(Whole).environment({"PLANNER_WORD": quoted}).resolve().config.word
    assert by_option == by_variable == text


@MANY
@given(st.text(), TEXTS)
def test_no_origin_breaks_its_line(where, text):
    assert "\n" not in str(Origin(Rank.USER, where, text)) and one_line(where).isprintable()
    stack = Stack(Settings).option("offload_folder", json.dumps(text), f"--folder {where}")
    lines = stack.resolve().yaml().splitlines()
    assert len(lines) == 1 and lines[0].isprintable()


@MANY
@given(
    st.dictionaries(TEXTS, st.sampled_from([0, "cpu", "cuda:1"]), max_size=4),
    st.dictionaries(TEXTS, st.sampled_from(["float16", "bf16"]), max_size=4),
    st.lists(st.lists(TEXTS, max_size=3), max_size=2),
    TEXTS.filter(lambda text: "\0" not in text),
)
def test_what_the_command_shows_is_a_file_that_says_the_same(tmp_path_factory, pins, dtypes, groups, folder):
    keys = {key for words in (pins, dtypes) for key in words}
    if (
        any(key.startswith("!") and key.lstrip("!") == "update" for key in keys)
        or folder.lstrip("!") == "unset"
    ):
        return
    stack = Stack(Settings).set(
        pin=pins, forbid={key: [0] for key in pins}, special_dtypes=dtypes, keep_together=groups
    )
    resolved = stack.option("offload_folder", json.dumps(folder), f"--set offload_folder={folder}").resolve()
    path = tmp_path_factory.mktemp("show") / "planner.yaml"
    path.write_text(resolved.yaml(), encoding="utf-8")
    again = Stack(Settings).file(path).resolve()
    assert again.config == resolved.config
    assert again.dump() == resolved.dump()


@pytest.mark.parametrize("half", ["\udcff", "a\ud800b", "\udfff\ud800", "\ud83d"])
def test_half_a_character_comes_back_too(tmp_path, half):
    resolved = Stack(Whole).set(word=half, texts={half: half}).resolve()
    for name, text in (("a.yaml", resolved.yaml()), ("a.json", json.dumps(resolved.dump()))):
        (tmp_path / name).write_text(text)
        assert Stack(Whole).file(tmp_path / name).resolve().config == resolved.config


def test_a_pair_of_halves_in_quotes_is_the_character_that_json_means():
    assert Stack(Whole).arguments(["--set", r'word="\ud83d\ude00"']).resolve().config.word == "\U0001f600"


@given(
    st.dictionaries(
        st.one_of(
            st.none(), st.integers(), st.floats(), st.booleans(), st.text(), MODES, SMALL_PATHS, st.binary()
        ),
        st.integers(),
    )
)
def test_frozen_maps_take_keys_of_any_kind_in_one_order(items):
    made = FrozenMap(items)
    assert dict(made) == items and hash(made) == hash(FrozenMap(dict(reversed(items.items()))))
    if not any(key != key for key in items):
        assert repr(made) == repr(FrozenMap(dict(reversed(items.items()))))
