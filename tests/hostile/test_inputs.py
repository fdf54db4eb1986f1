"""Hostile inputs to every exported function: a result or a clear error, never a panic, a hang or a changed argument."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planner
from generators import case
from oracle.judge import faults_in
from planner.compat import transformers as ours_for_transformers

PLANS = [planner.infer_auto_device_map, ours_for_transformers.infer_auto_device_map]
in_both_dialects = pytest.mark.parametrize("plan", PLANS, ids=["accelerate", "transformers"])
pytestmark = pytest.mark.filterwarnings("ignore")


def label(value: Any) -> str:
    """The same in every process: no addresses."""
    return type(value).__name__ if " at 0x" in repr(value) else ascii(value)[:40]


class Leaf(nn.Module):
    def __init__(self, elements: int = 4, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(elements, dtype=dtype, device="meta"), requires_grad=False)


def model() -> nn.Module:
    root = nn.Module()
    root.a, root.b = Leaf(), Leaf()
    return root


# Budgets


@in_both_dialects
@pytest.mark.parametrize(
    "budget",
    [
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        -float("inf"),
        True,
        False,
        None,
        [],
        {},
        b"1GB",
        object(),
        1j,
        "",
        "x",
        "-1GB",
    ],
    ids=label,
)
def test_a_budget_that_is_no_size_is_refused(plan: Any, budget: Any) -> None:
    for max_memory in ({0: budget}, {"cpu": budget}, {0: 100, "disk": budget}):
        with pytest.raises(planner.InvalidInputError) as caught:
            plan(model(), max_memory)
        assert isinstance(caught.value, ValueError), "whoever caught accelerate's ValueError still does"


@in_both_dialects
@pytest.mark.parametrize(
    "key",
    [
        -1,
        True,
        False,
        None,
        0.0,
        "gpu",
        "",
        "cuda:",
        "cuda:-1",
        "cuda:0:0",
        "CPU ",
        "cpu:1",
        (0,),
        b"cpu",
        "٣",
        "meta",
    ],
    ids=label,
)
def test_a_key_that_names_no_device_is_refused(plan: Any, key: Any) -> None:
    with pytest.raises(planner.InvalidDevicesError) as caught:
        plan(model(), {key: 100, "cpu": 100})
    assert repr(key) in str(caught.value), "the message says which"
    assert caught.value.device is key or caught.value.device == key


@in_both_dialects
@pytest.mark.parametrize(
    "pair",
    [(0, "0"), (0, "cuda:0"), ("cuda", 0), (1, torch.device("cuda:1")), ("cpu", torch.device("cpu"))],
    ids=label,
)
def test_two_spellings_of_one_device_are_refused(plan: Any, pair: tuple[Any, Any]) -> None:
    with pytest.raises(planner.InvalidDevicesError):
        plan(model(), {pair[0]: 100, pair[1]: 100})


@in_both_dialects
@pytest.mark.parametrize(
    "budget",
    [32, 32.0, Fraction(32), Decimal(32), "32", "0.032KB", torch.tensor(32)],
    ids=lambda b: type(b).__name__,
)
def test_a_finite_number_of_any_kind_is_a_budget(plan: Any, budget: Any) -> None:
    assert plan(model(), {0: budget, "cpu": 100}) == {"": 0}


@in_both_dialects
@pytest.mark.parametrize("budget", [2**63, 2**64, 2**70, 10**300, 1e300], ids=str)
def test_an_enormous_budget_is_enough(plan: Any, budget: Any) -> None:
    assert plan(model(), {0: budget}) == {"": 0}
    assert planner.get_balanced_memory(model(), {0: budget, 1: budget})[1] == budget


@in_both_dialects
@pytest.mark.parametrize("index", [10**6, 2**31, 2**63, 2**64, 10**30], ids=str)
def test_an_enormous_device_number_is_a_device_or_refused(plan: Any, index: int) -> None:
    try:
        assert plan(model(), {index: 1000}) == {"": index}
    except planner.InvalidDevicesError as error:
        assert str(index) in str(error)


@in_both_dialects
@pytest.mark.parametrize("max_memory", [[], (), 5, "10GB", [(0, 1)], {0}], ids=label)
def test_budgets_that_are_no_mapping_are_refused(plan: Any, max_memory: Any) -> None:
    with pytest.raises((planner.InvalidInputError, TypeError)):
        plan(model(), max_memory)


@in_both_dialects
def test_ten_thousand_devices_are_planned_for(plan: Any) -> None:
    devices = dict.fromkeys(range(10_000), 0) | {9_999: 100, "cpu": 100}
    assert plan(model(), devices) == {"": 9_999}


@in_both_dialects
def test_an_exhausted_disk_budget_is_an_error_with_the_shortfall(plan: Any) -> None:
    assert plan(model(), {0: 0, "cpu": 0, "disk": 32}) == {"": "disk"}
    with pytest.raises(planner.InfeasibleError) as caught:
        plan(model(), {0: 0, "cpu": 0, "disk": 31})
    assert (caught.value.block, caught.value.device, caught.value.shortfall_bytes) == ("b", "disk", 1)
    assert dict(caught.value.best_partial) == {"a": "disk"}


# Sizes in words


@pytest.mark.parametrize(
    "size",
    ["", " ", "GB", "1", "1e3", "1 GB", "٣GB", "1GB1", "1..5GB", "0x10", "1_000", "1,5GB", "1GBs", "∞"],
)
def test_a_size_in_words_is_a_number_or_refused(size: str) -> None:
    try:
        assert planner.convert_file_size_to_int(size) in {1, 1000, 10**9}
    except planner.InvalidByteSizeError as error:
        assert error.text == size


@given(st.text(max_size=12) | st.from_regex(r"[0-9.eE+\- ]{0,6}[kKmMgGtTpP]?[iI]?[bB]?", fullmatch=True))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(planner.InvalidByteSizeError):
        assert planner.convert_file_size_to_int(text) >= 0


@pytest.mark.parametrize(
    "size", [-1, -0.5, float("nan"), float("inf"), True, None, b"1GB", [], object()], ids=label
)
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(planner.InvalidByteSizeError):
        planner.convert_file_size_to_int(size)


# Trees


@in_both_dialects
def test_a_model_that_contains_itself_is_named(plan: Any) -> None:
    root = model()
    root.a.again = root
    with pytest.raises(planner.InvalidTreeError, match=r"a\.again"):
        plan(root, {0: 100})


@in_both_dialects
def test_an_uninitialised_parameter_is_named(plan: Any) -> None:
    root = model()
    root.lazy = nn.LazyLinear(3)
    with pytest.raises(planner.InvalidTreeError, match=r"lazy\.weight"):
        plan(root, {0: 100})


@in_both_dialects
def test_a_model_without_anything_has_an_empty_map(plan: Any) -> None:
    assert plan(nn.Module(), {0: 100}) == {}
    assert plan(nn.Module(), {}) == {}


@in_both_dialects
@pytest.mark.parametrize(
    "name", ["ü", "模型", "😀", "a b", "a\nb", "a\x00b", "__class__", "(", "\\", "%s", "{}", "x" * 100_000]
)
def test_any_name_that_torch_accepts_is_a_name(plan: Any, name: str) -> None:
    root = nn.Module()
    root._modules[name], root._modules["other"] = Leaf(), Leaf()
    budgets = {0: 32, 1: 16, "cpu": 0}
    assert faults_in(root, plan(root, budgets), budgets) is None
    assert faults_in(root, plan(root, {0: 0, 1: 16, "cpu": 100}), {0: 0, 1: 16, "cpu": 100}) is None


@in_both_dialects
@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"], ids=ascii)
def test_a_name_that_is_no_text_is_a_name_or_refused(plan: Any, name: str) -> None:
    root = nn.Module()
    root._modules[name] = Leaf()
    try:
        assert plan(root, {0: 100}) in ({"": 0}, {name: 0})
    except planner.PlannerError as error:
        assert str(error).isascii() or str(error).encode("utf-8", "backslashreplace")


@in_both_dialects
@pytest.mark.parametrize(
    "stranger", [42, "text", object(), torch.empty(3), [1]], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("table", ["_modules", "_parameters", "_buffers"])
def test_a_stranger_among_modules_or_tensors_is_refused_or_understood(
    plan: Any, stranger: Any, table: str
) -> None:
    root = model()
    getattr(root.a, table)["stranger"] = stranger
    _result_or_clear_error(plan, root, {0: 100, "cpu": 100})


@in_both_dialects
def test_missing_tensors_and_modules_are_passed_over(plan: Any) -> None:
    root = model()
    root.register_module("nothing", None)
    root.a.register_parameter("v", None)
    root.a.register_buffer("n", None)
    assert plan(root, {0: 32}) == {"": 0}


@in_both_dialects
def test_tensors_too_large_to_count_are_refused_or_offloaded(plan: Any) -> None:
    root = nn.Module()
    for index in range(3):
        root.add_module(f"l{index}", Leaf(2**59, torch.float64))
    try:
        placed = plan(root, {0: 100, "cpu": 2**62})
    except planner.InvalidTreeError:
        return
    assert faults_in(root, placed, {0: 100, "cpu": 2**62}) is None


class Raising(torch.Tensor):
    """A wrapper that knows nothing about itself."""

    @staticmethod
    def __new__(cls) -> Raising:
        return torch.Tensor._make_wrapper_subclass(cls, (2,), dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError("nothing is ever computed here")

    def __tensor_flatten__(self) -> Any:
        raise RuntimeError("cannot be opened")


@in_both_dialects
def test_a_tensor_that_cannot_be_opened_is_named_or_tells_why_itself(plan: Any) -> None:
    root = model()
    root.a._buffers["odd"] = Raising()
    with pytest.raises((planner.InvalidTreeError, RuntimeError), match=r"a\.odd|cannot be opened"):
        plan(root, {0: 100})


@in_both_dialects
def test_a_model_whose_attributes_raise_is_planned_by_what_is_registered(plan: Any) -> None:
    class Moody(nn.Module):
        @property
        def anything(self) -> Any:
            raise ValueError("not now")

        def named_children(self) -> Any:
            raise ValueError("not now")

    root = Moody()
    root.a = Leaf()
    assert faults_in(root, plan(root, {0: 100}), {0: 100}) is None


@in_both_dialects
@pytest.mark.parametrize("value", [None, 5, "text", [], nn.Linear, {"": 0}], ids=label)
def test_what_is_no_model_is_refused(plan: Any, value: Any) -> None:
    with pytest.raises((TypeError, AttributeError, planner.InvalidInputError)):
        plan(value, {0: 100})


DEEP = """
import sys
import torch
from torch import nn
import planner
from planner.compat import transformers

root = innermost = nn.Module()
for _ in range({depth}):
    innermost.l = nn.Module()
    innermost = innermost.l
    innermost.w = nn.Parameter(torch.empty(1, device="meta"))
for plan in (planner.infer_auto_device_map, transformers.infer_auto_device_map):
    print(len(plan(root, {{0: 10**9}})), len(plan(root, {{0: {half}, "cpu": 10**9}})))
planner.get_balanced_memory(root, {{0: 10**9, 1: 10**9}})
planner.compute_module_total_buffer_size(root)
planner.find_tied_parameters(root)
planner.check_device_map(root, {{"l": 0}})
print(planner.check(root, {{"l": 0}}, {{0: 10**9}}))
sys.stdout.flush()
import os
os._exit(0)  # freeing such a nest is torch's and Python's affair
"""


def _in_a_process(code: str, seconds: float) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_nest_of_ten_thousand_modules_is_planned() -> None:
    """In a process of its own: recursion would kill the interpreter."""
    lines = _in_a_process(DEEP.format(depth=10_000, half=20_000), seconds=120).splitlines()
    assert lines[0].split()[0] == lines[1].split()[0] == "1"
    assert lines[2] == "()"


DOUBLED = """
import torch
from torch import nn
import planner

root = nn.Linear(1, 1, device="meta")
for _ in range(40):
    parent = nn.Module()
    parent.l = parent.r = root
    root = parent
try:
    print(len(planner.infer_auto_device_map(root, {0: 10**9})))
except planner.InvalidTreeError as error:
    print("refused:", error)
"""


def test_a_tree_of_doubled_modules_is_planned_or_refused_in_time() -> None:
    """Forty levels of one module under two names: 2**40 names."""
    assert _in_a_process(DOUBLED, seconds=120)


def test_a_hundred_thousand_children_are_planned_in_time() -> None:
    root = nn.Module()
    for index in range(100_000):
        root._modules[str(index)] = _EMPTY
    root._modules["w"] = Leaf()
    assert planner.infer_auto_device_map(root, {0: 100})[""] == 0


_EMPTY = nn.Module()


# Other arguments


@in_both_dialects
@pytest.mark.parametrize(
    "no_split",
    [
        None,
        [],
        (),
        set(),
        "Leaf",
        ["Leaf"],
        {"Leaf"},
        frozenset({"Leaf"}),
        ("Leaf", "Leaf"),
        {"Leaf": 1},
        iter(["Leaf"]),
        [""],
    ],
    ids=label,
)
def test_no_split_classes_may_be_written_in_many_ways(plan: Any, no_split: Any) -> None:
    assert plan(model(), {0: 100}, no_split) == {"": 0}


@in_both_dialects
@pytest.mark.parametrize("no_split", [5, [5], [None], object(), [nn.Linear], b"Leaf"], ids=label)
def test_no_split_classes_that_are_no_names_are_refused_or_ignored(plan: Any, no_split: Any) -> None:
    _result_or_clear_error(plan, model(), {0: 100}, no_split)


@pytest.mark.parametrize("dtype", ["float17", "", 16, object(), [torch.float32], "nn"], ids=label)
def test_what_is_no_dtype_is_refused(dtype: Any) -> None:
    for arguments in ({"dtype": dtype}, {"special_dtypes": {"a.w": dtype}}):
        with pytest.raises((planner.InvalidInputError, TypeError, AttributeError)):
            planner.infer_auto_device_map(model(), {0: 100}, **arguments)
        with pytest.raises((planner.InvalidInputError, TypeError, AttributeError)):
            planner.compute_module_sizes(model(), **arguments)


def test_a_special_dtype_for_a_name_that_is_not_there_changes_nothing() -> None:
    assert planner.infer_auto_device_map(model(), {0: 32}, special_dtypes={"nowhere.w": torch.float64}) == {
        "": 0
    }


@pytest.mark.parametrize("reserve", ["never", "", None, True, 1], ids=label)
def test_an_unknown_reserve_is_refused(reserve: Any) -> None:
    with pytest.raises((planner.InvalidInputError, TypeError)):
        planner.infer_auto_device_map(model(), {0: 100}, reserve=reserve)


def test_reserve_is_keyword_only() -> None:
    parameters = inspect.signature(planner.infer_auto_device_map).parameters
    assert parameters["reserve"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["reserve"].default == "always"


@pytest.mark.parametrize(
    "groups",
    [
        [["a.w", "nowhere.w"]],
        [["nowhere"]],
        [[]],
        [["a.w"]],
        [["a.w", "a.w"]],
        [["a", "b"]],
        [["", "a.w"]],
        [["a.w", "b.w"], ["b.w", "a.w"]],
    ],
    ids=label,
)
def test_groups_of_ties_that_name_nothing_are_refused_or_ignored(groups: Any) -> None:
    _result_or_clear_error(
        ours_for_transformers.infer_auto_device_map, model(), {0: 20, "cpu": 100}, tied_parameters=groups
    )


@pytest.mark.parametrize(
    "table", [{"a.w": "nowhere.w"}, {"a.w": "a.w"}, {"a.w": "b.w", "b.w": "a.w"}, {"a": "b"}], ids=label
)
def test_a_table_of_ties_that_names_nothing_is_refused_or_ignored(table: dict[str, str]) -> None:
    root = model()
    root.all_tied_weights_keys = table  # type: ignore[assignment]
    for call in (ours_for_transformers.infer_auto_device_map, ours_for_transformers.get_balanced_memory):
        _result_or_clear_error(call, root, {0: 20, 1: 20, "cpu": 100})
    _result_or_clear_error(ours_for_transformers.compute_module_sizes, root)


class Quantizer:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def param_element_size(self, *_: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [-1, float("nan"), float("inf"), None, "4", 1e300], ids=label)
def test_a_quantizer_that_makes_no_sense_is_refused(answer: Any) -> None:
    _result_or_clear_error(
        ours_for_transformers.infer_auto_device_map,
        model(),
        {0: 20, "cpu": 100},
        hf_quantizer=Quantizer(answer),
    )


@pytest.mark.parametrize("answer", [0, 0.125, 0.5, 1, 4.5])
def test_a_quantizer_with_fractions_of_bytes_is_understood(answer: float) -> None:
    budgets = {0: 8 * answer, "cpu": 100}
    placed = ours_for_transformers.infer_auto_device_map(model(), budgets, hf_quantizer=Quantizer(answer))
    assert placed == {"": 0}


# Maps


@pytest.mark.parametrize(
    "device_map",
    [
        {},
        {"": 0},
        {"a": None},
        {"a": [0]},
        {"a.": 0, ".a": 0, "a..b": 0},
        {"a": 0, "a.b": 1},
        {"\ud800": 0},
        {"x" * 10_000: 0},
    ],
    ids=lambda m: ascii(m)[:40],
)
def test_any_map_of_names_can_be_cleaned_and_checked(device_map: Any) -> None:
    before = dict(device_map)
    _result_or_clear_error(planner.clean_device_map, device_map)
    _result_or_clear_error(planner.check_device_map, model(), device_map)
    _result_or_clear_error(planner.check, model(), device_map)
    assert device_map == before


@pytest.mark.parametrize(
    "device_map", [None, 5, "auto", [("a", 0)], {5: 0}, {None: 0}, {("a",): 0}], ids=label
)
def test_what_is_no_map_of_names_is_refused_or_understood(device_map: Any) -> None:
    _result_or_clear_error(planner.clean_device_map, device_map)
    _result_or_clear_error(planner.check_device_map, model(), device_map)
    _result_or_clear_error(planner.check, model(), device_map)


def test_a_deep_key_is_cleaned() -> None:
    deep = ".".join("l" * 10_000)
    assert planner.clean_device_map({deep: 0, "m": 1}) == {deep: 0, "m": 1}


# Everything, with anything

JUNK: list[Any] = [
    None, True, -1, 0, 3, 2**70, 1.5, float("nan"), "", "a", "\ud800", b"x", [], [1], ["a"], {}, {"a": 1}, {0: 10}, {1: {}},
    (), set(), object(), torch.float32, torch.empty(2, device="meta"), nn.Module(), nn.Linear(2, 2, device="meta"), len, int,
]  # fmt: skip
FUNCTIONS = {
    name: value
    for module in (planner, ours_for_transformers)
    for name, value in ((f"{module.__name__}.{n}", getattr(module, n)) for n in module.__all__)
    if callable(value) and not isinstance(value, type) and value is not planner.probe
}
"""Measuring a machine takes seconds whatever it is given: see test_probe.py."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_anything_without_panic(name: str) -> None:
    """Each argument in turn, and all of them, are junk."""
    function = FUNCTIONS[name]
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    for junk in JUNK:
        _result_or_any_error(function, **{p.name: junk for p in parameters if p.default is p.empty})
        for odd in parameters:
            arguments = {p.name: _sensible(p.name) for p in parameters if p.default is p.empty}
            _result_or_any_error(function, **{**arguments, odd.name: junk})


def _sensible(name: str) -> Any:
    known: dict[str, Any] = {
        "model": model(), "module": model(), "max_memory": {0: 100}, "device_map": {"": 0}, "size": "1GB", "dtype": torch.int8,
        "modules": [("a", Leaf())], "modules_to_treat": [("a", Leaf())], "module_sizes": {"a": 16}, "size_limit": 16,
        "module_size": 16, "tied_params": [], "no_split_module_classes": [],
    }  # fmt: skip
    return known.get(name)


def test_eight_threads_plan_one_model() -> None:
    drawn = [case(Random(seed)) for seed in range(12)]
    drawn = [d for d in drawn if "disk" not in d.max_memory]

    def answers() -> list[Any]:
        return [
            list(planner.infer_auto_device_map(d.model, d.max_memory, **d.kwargs).items())
            for d in drawn
            for _ in range(5)
        ]

    expected, found = answers(), []
    threads = [threading.Thread(target=lambda: found.append(answers())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 8


UNCLEAR = (AssertionError, IndexError, MemoryError, RecursionError, SystemError, UnboundLocalError)


def _result_or_any_error(call: Any, *arguments: Any, **options: Any) -> None:
    """A result, or an error that is not a symptom of something broken inside; a panic is no Exception at all."""
    try:
        result = call(*arguments, **options)
        if inspect.isgenerator(result):
            list(result)
    except Exception as error:
        assert not isinstance(error, UNCLEAR), f"{type(error).__name__}: {error}"


def _result_or_clear_error(call: Any, *arguments: Any, **options: Any) -> None:
    """A result, or an error of ours, or Python's own about the type or the missing attribute of an argument."""
    try:
        call(*arguments, **options)
    except (planner.PlannerError, TypeError, AttributeError) as error:
        assert str(error)
