"""The smaller drop-in functions beside accelerate's and transformers' own, over generated trees."""

from __future__ import annotations

import copy
import warnings
from random import Random
from typing import Any

import pytest
import torch
import transformers.integrations.accelerate as transformers_upstream
from accelerate.utils import modeling
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planner
from generators import Case, HalfBytes, case, cases, transformers_case, transformers_cases, trees
from oracle.judge import tie_as_told
from oracle.listening import said
from oracle.ordered_transformers import planned_tensors as quantized_tensors
from oracle.ordered_transformers import sources
from oracle.repaired_accelerate import ordered, planned_tensors, repaired
from planner.compat import transformers as ours_for_transformers

DTYPES = st.sampled_from([None, "float16", torch.bfloat16, torch.float32, torch.float64, torch.int8])
KEYS = st.lists(
    st.sampled_from(["", "a", "a.b", "a.b.c", "a.bc", "ab", "b", "b.0", "b.0.w", "b.1", "b.10", "0"]),
    unique=True,
)
DEVICES = st.sampled_from([0, 1, "cpu", "disk"])
MAPS = KEYS.flatmap(lambda keys: st.fixed_dictionaries(dict.fromkeys(keys, DEVICES)))


def by_first_name(model: nn.Module, sizes: Any) -> dict[str, int]:
    """Bytes of every prefix of every first name: what a table of sizes is, said in one line."""
    table: dict[str, int] = {}
    seen: set[int] = set()
    for name, identity, size in sizes:
        if identity not in seen:
            seen.add(identity)
            while True:
                table[name] = table.get(name, 0) + size
                if not name:
                    break
                name = name.rpartition(".")[0]
    return table


# Sizes


@given(trees(), DTYPES)
def test_module_sizes_are_true_bytes(model: nn.Module, dtype: Any) -> None:
    expected = by_first_name(model, planned_tensors(model, dtype, {}))
    assert {name: size for name, size in planner.compute_module_sizes(model, dtype).items() if size} == {
        name: size for name, size in expected.items() if size
    }


@given(trees())
def test_module_sizes_are_accelerates_where_no_bool_is_stored(model: nn.Module) -> None:
    theirs = modeling.compute_module_sizes(model)
    ours = planner.compute_module_sizes(model)
    if not any(tensor.dtype == torch.bool for tensor in (*model.parameters(), *model.buffers())):
        assert dict(ours) == dict(theirs)


@given(trees())
def test_module_sizes_in_a_special_dtype_are_true_bytes(model: nn.Module) -> None:
    first = next((name for name, _ in model.named_parameters()), None)
    special = {first: torch.float64} if first else {}
    expected = by_first_name(model, planned_tensors(model, "float16", special))
    assert planner.compute_module_sizes(model, "float16", special)[""] == expected.get("", 0)


@given(trees(), DTYPES)
def test_buffer_sizes_are_true_bytes_of_unique_buffers(model: nn.Module, dtype: Any) -> None:
    names = {name for name, _ in model.named_buffers()}
    sizes = {name: size for name, _, size in planned_tensors(model, dtype, {}) if name in names}
    assert planner.compute_module_total_buffer_size(model, dtype) == sum(sizes.values())
    assert planner.compute_module_sizes(model, dtype, buffers_only=True)[""] == sum(sizes.values())


@given(trees())
def test_the_tensors_of_a_module_are_accelerates(model: nn.Module) -> None:
    for options in ({}, {"recurse": True}, {"include_buffers": False}, {"remove_non_persistent": True}):
        ours, theirs = (list(f.named_module_tensors(model, **options)) for f in (planner, modeling))
        assert [(name, id(tensor)) for name, tensor in ours] == [
            (name, id(tensor)) for name, tensor in theirs
        ]


@given(trees())
def test_the_largest_layers_are_accelerates(model: nn.Module) -> None:
    entries = [
        *model.named_parameters(recurse=False),
        *model.named_children(),
        *model.named_buffers(recurse=False),
    ]
    sizes = modeling.compute_module_sizes(model)
    for no_split in ([], ["Block"], ["Layer", "Leaf"]):
        ours = planner.get_max_layer_size(entries, sizes, no_split)
        assert ours == modeling.get_max_layer_size(entries, sizes, no_split)


@given(trees())
def test_the_maximum_sizes_are_the_total_and_the_largest_layer(model: nn.Module) -> None:
    total, (largest, names) = planner.calculate_maximum_sizes(model)
    sizes = planner.compute_module_sizes(model)
    assert total == sizes[""]
    assert all(sizes[name] == largest for name in names)
    if not any(tensor.dtype == torch.bool for tensor in (*model.parameters(), *model.buffers())):
        assert (total, (largest, names)) == modeling.calculate_maximum_sizes(model)


@given(transformers_cases(), st.booleans())
def test_transformers_module_sizes_count_every_tied_tensor_once_tied_yet_or_not(
    drawn: Case, quantized: bool
) -> None:
    quantizer = HalfBytes() if quantized else None
    tensors = list(quantized_tensors(drawn.model, quantizer))
    identities, same = {name: identity for name, identity, _ in tensors}, sources(drawn.model)
    sizes = {identities[same.get(name, name)]: size for name, _, size in tensors if name not in same}
    ours = ours_for_transformers.compute_module_sizes(drawn.model, quantizer)
    assert ours[0].get("", 0) == sum(sizes.values())


@given(transformers_cases(), st.booleans(), st.booleans(), st.booleans())
def test_module_sizes_are_transformers_where_it_counts_every_tied_tensor_once(
    drawn: Case, quantized: bool, buffers_only: bool, only_modules: bool
) -> None:
    quantizer = HalfBytes() if quantized else None
    ours, theirs = (
        library.compute_module_sizes(drawn.model, quantizer, buffers_only, only_modules)
        for library in (ours_for_transformers, transformers_upstream)
    )
    if ours[0].get("", 0) == theirs[0].get("", 0):
        assert [_without_zeros(sizes) for sizes in ours] == [_without_zeros(sizes) for sizes in theirs]
    else:
        assert drawn.model.all_tied_weights_keys


def _without_zeros(sizes: Any) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if size}


# Ties


@given(trees())
def test_tied_parameters_are_accelerates(model: nn.Module) -> None:
    ours = planner.find_tied_parameters(model)
    assert ours == [sorted(group) for group in ours]
    assert sorted(ours) == sorted(modeling.find_tied_parameters(model))


@given(trees())
def test_tied_parameters_come_in_an_order_that_does_not_depend_on_hashing(model: nn.Module) -> None:
    assert planner.find_tied_parameters(model) == ordered.find_tied_parameters(model)


@given(transformers_cases(), MAPS)
def test_ties_on_different_devices_are_warned_of_as_accelerate_does(
    drawn: Case, extra: dict[str, Any]
) -> None:
    tie_as_told(drawn.model)
    groups = modeling.find_tied_parameters(drawn.model)
    device_map = {"": "cpu", **{name: device for name, device in extra.items() if name}}
    device_map |= {name: 0 for group in groups for name in group[:1]}
    assert said(planner.check_tied_parameters_on_same_device, groups, device_map) == said(
        modeling.check_tied_parameters_on_same_device, groups, device_map
    )


# Lists of modules


def entries(model: nn.Module) -> list[tuple[str, Any]]:
    return [
        *model.named_parameters(recurse=False),
        *model.named_children(),
        *model.named_buffers(recurse=False),
    ]


@given(trees(), st.integers(0, 400), st.sampled_from([[], ["Block"], ["Leaf", "Layer"]]))
def test_the_module_that_falls_back_is_accelerates(model: nn.Module, limit: int, no_split: list[str]) -> None:
    """The same module and the same rest, wherever the repaired accelerate finds every tied module."""
    sizes = modeling.compute_module_sizes(model)
    ties = ordered.find_tied_parameters(model)
    modules = entries(model)
    try:
        expected = repaired.fallback_allocate(list(modules), sizes, limit, no_split, ties)
    except IndexError:
        _allowed_to_be_refused(planner.fallback_allocate, modules, sizes, limit, no_split, ties)
        return
    found = planner.fallback_allocate(modules, sizes, limit, no_split, ties)
    assert (found[0], found[1] is expected[1]) == (expected[0], True)
    assert [name for name, _ in found[2]] == [name for name, _ in expected[2]]
    assert [name for name, _ in modules] == [name for name, _ in entries(model)], "the list stays as it is"


def test_a_buffer_inside_a_module_never_falls_back() -> None:
    """As in accelerate's search: neither a small one, nor one under its second name, which counts nothing."""
    model, inner = nn.Module(), nn.Module()
    model.inner, model.small = inner, nn.Linear(2, 1, bias=False)
    inner.large = nn.Linear(4, 4)
    model.register_buffer("shared", torch.empty(8))
    inner.register_buffer("shared", model.shared)
    inner.register_buffer("own", torch.empty(1))
    sizes = modeling.compute_module_sizes(model)
    for limit, expected in ((8, "small"), (4, None), (0, None)):
        assert modeling.fallback_allocate(entries(model), sizes, limit)[0] == expected
        assert planner.fallback_allocate(entries(model), sizes, limit)[0] == expected


@given(trees())
def test_the_size_of_a_module_with_its_ties_is_accelerates(model: nn.Module) -> None:
    sizes = modeling.compute_module_sizes(model)
    modules = entries(model)
    for name, _ in modules:
        groups = [
            group for group in ordered.find_tied_parameters(model) if any(_inside(p, name) for p in group)
        ]
        outside = [p for group in groups for p in group if not _inside(p, name)]
        others = [(other, module) for other, module in modules if other != name]
        arguments = (outside, sizes[name], sizes, others)
        try:
            expected = repaired.get_module_size_with_ties(*arguments)
        except IndexError:
            _allowed_to_be_refused(planner.get_module_size_with_ties, *arguments)
            continue
        found = planner.get_module_size_with_ties(*arguments)
        assert (found[0], list(found[1])) == (expected[0], expected[1])
        assert [id(module) for module in found[2]] == [id(module) for module in expected[2]]


def _inside(parameter: str, name: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")


def _allowed_to_be_refused(call: Any, *arguments: Any) -> None:
    """accelerate raises IndexError; ours finds parameters that are on the list themselves, or names the missing one."""
    try:
        call(*arguments)
    except planner.InvalidConstraintError as error:
        assert error.names


# Maps


@given(MAPS)
def test_a_cleaned_map_is_accelerates_in_a_new_dict(device_map: dict[str, Any]) -> None:
    before = copy.deepcopy(device_map)
    ours = planner.clean_device_map(device_map)
    theirs = ordered.clean_device_map(copy.deepcopy(device_map))
    assert list(ours.items()) == list(theirs.items())
    assert list(device_map.items()) == list(before.items())
    assert ours is not device_map


@given(MAPS, st.sampled_from(["a", "a.b", "b", "b.0", "nowhere"]))
def test_a_map_cleaned_below_a_module_is_accelerates(device_map: dict[str, Any], module: str) -> None:
    theirs = ordered.clean_device_map(copy.deepcopy(device_map), module)
    assert planner.clean_device_map(device_map, module) == dict(theirs)


@given(trees(), st.randoms(use_true_random=False))
def test_a_map_is_accepted_exactly_if_accelerate_accepts_it(model: nn.Module, rng: Random) -> None:
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    device_map = dict.fromkeys(rng.sample(names, rng.randint(1, len(names))), 0)
    outcomes = []
    for check in (planner.check_device_map, modeling.check_device_map):
        with _quiet():
            try:
                check(model, device_map)
                outcomes.append(["accepted"])
            except ValueError as error:
                outcomes.append(sorted(str(error).rpartition(": ")[2].split(", ")))
    assert outcomes[0] == outcomes[1]


def _quiet() -> Any:
    return warnings.catch_warnings(action="ignore")


# Balanced budgets


def balanced(get: Any, drawn: Case, low_zero: bool, **options: Any) -> Any:
    with _quiet():
        return get(drawn.model, dict(drawn.max_memory), low_zero=low_zero, **options)


@given(cases(), st.booleans())
def test_balanced_budgets_are_accelerates_unless_it_raises(drawn: Case, low_zero: bool) -> None:
    assert_balanced_like_accelerate(drawn, low_zero)


@given(transformers_cases(), st.booleans())
def test_balanced_budgets_are_transformers_unless_it_raises(drawn: Case, low_zero: bool) -> None:
    assert_balanced_like_transformers(drawn, low_zero)


@pytest.mark.parametrize("low_zero", [False, True])
def test_balanced_budgets_are_upstreams_over_seeded_cases(low_zero: bool) -> None:
    for seed in range(300):
        assert_balanced_like_accelerate(case(Random(seed)), low_zero)
        assert_balanced_like_transformers(transformers_case(Random(seed)), low_zero)


def assert_balanced_like_accelerate(drawn: Case, low_zero: bool) -> None:
    options = {name: value for name, value in drawn.kwargs.items() if "dtype" in name or "split" in name}
    ours = balanced(planner.get_balanced_memory, drawn, low_zero, **options)
    assert all(0 <= budget <= drawn.max_memory[device] for device, budget in ours.items())
    try:
        theirs = balanced(ordered.get_balanced_memory, drawn, low_zero, **options)
    except Exception:
        return
    if not (low_zero and _is_numbered_oddly(drawn)):
        assert list(ours.items()) == list(theirs.items()), drawn


def assert_balanced_like_transformers(drawn: Case, low_zero: bool) -> None:
    """Wherever transformers counts each tied tensor once."""
    options = {"no_split_module_classes": drawn.kwargs.get("no_split_module_classes")}
    ours = balanced(ours_for_transformers.get_balanced_memory, drawn, low_zero, **options)
    assert all(0 <= budget <= drawn.max_memory[device] for device, budget in ours.items())
    total = ours_for_transformers.compute_module_sizes(drawn.model)[0].get("", 0)
    try:
        theirs = balanced(transformers_upstream.get_balanced_memory, drawn, low_zero, **options)
    except Exception:
        return
    is_counted_right = total == transformers_upstream.compute_module_sizes(drawn.model)[0][""]
    if is_counted_right and not (low_zero and _is_numbered_oddly(drawn)):
        assert list(ours.items()) == list(theirs.items()), drawn


def _is_numbered_oddly(drawn: Case) -> bool:
    """Upstream's low_zero takes the accelerators to be 0, 1, 2, … and all to have a budget."""
    devices = sorted(device for device in drawn.max_memory if isinstance(device, int))
    return devices != list(range(len(devices))) or not all(drawn.max_memory[device] for device in devices)


# Budgets that nobody gave


def test_free_memory_is_looked_for_on_the_same_devices_as_upstream_does() -> None:
    """Within a tenth: other processes come and go."""
    for ours, theirs in (
        (planner.get_max_memory(), modeling.get_max_memory()),
        (ours_for_transformers.get_max_memory(), transformers_upstream.get_max_memory()),
    ):
        assert list(ours) == list(theirs)
        assert all(abs(ours[device] - theirs[device]) <= theirs[device] / 10 for device in theirs)


@given(cases())
def test_budgets_in_bytes_are_put_in_accelerates_order(drawn: Case) -> None:
    expected = modeling.get_max_memory(dict(drawn.max_memory))
    assert list(planner.get_max_memory(drawn.max_memory).items()) == list(expected.items())
    assert list(ours_for_transformers.get_max_memory(drawn.max_memory).items()) == list(expected.items())


# Sizes in words


@given(
    st.integers(0, 10**6) | st.decimals(0, 10**4, places=2, allow_nan=False).map(str),
    st.sampled_from(["GiB", "MiB", "KiB", "GB", "MB", "KB", "Gb", "Mb", "Kb", "gb", "mib", "gIb", "kB"]),
)
def test_a_size_in_words_is_accelerates(number: Any, unit: str) -> None:
    with _quiet():
        assert planner.convert_file_size_to_int(f"{number}{unit}") == modeling.convert_file_size_to_int(
            f"{number}{unit}"
        )


@given(st.integers(0, 2**70))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert planner.convert_file_size_to_int(size) == size


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.complex64]
)
def test_the_size_of_a_plain_dtype_is_accelerates(dtype: torch.dtype) -> None:
    assert planner.dtype_byte_size(dtype) == modeling.dtype_byte_size(dtype) == dtype.itemsize
