"""`planner.infer_auto_device_map` beside accelerate's own, over generated trees and budgets."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from generators import Case, case, cases, features
from oracle.judge import JUDGED, Verdict, faults_in, judge_accelerate
from oracle.listening import said
from oracle.repaired_accelerate import accelerate_answer, ordered, planned_tensors, repaired

pytestmark = pytest.mark.filterwarnings("ignore:Current model requires")


def verdict(drawn: Case) -> Verdict:
    return judge_accelerate(drawn.model, drawn.max_memory, drawn.kwargs)


@given(cases())
def test_where_accelerate_binds_ours_is_identical_and_everywhere_valid(drawn: Case) -> None:
    found = verdict(drawn)
    assert found.is_good, found


def test_the_same_over_seeded_cases() -> None:
    """More cases than hypothesis has time for."""
    totals = Counter(_judged(seed).word for seed in range(500))
    assert totals["identical"] > 250


@pytest.mark.sweep
@pytest.mark.parametrize("start", range(0, 60_000, 10_000))
def test_the_same_over_very_many_seeded_cases(start: int) -> None:
    totals = Counter(_judged(seed).word for seed in range(start, start + 10_000))
    assert totals["identical"] > 5_000
    print(dict(totals))


def judged(drawn: Case) -> dict[str, Any]:
    return {name: value for name, value in drawn.kwargs.items() if name in JUDGED}


def _judged(seed: int) -> Verdict:
    drawn = case(Random(seed))
    found = verdict(drawn)
    assert found.is_good, f"seed {seed}: {found}\n{drawn}"
    return found


@given(cases())
def test_what_is_handed_in_stays_as_it_is(drawn: Case) -> None:
    budgets, kwargs = copy.copy(drawn.max_memory), copy.deepcopy(drawn.kwargs)
    names = [name for name, _ in drawn.model.named_modules(remove_duplicate=False)]
    _plan(drawn)
    assert list(drawn.max_memory.items()) == list(budgets.items())
    assert drawn.kwargs == kwargs
    assert [name for name, _ in drawn.model.named_modules(remove_duplicate=False)] == names


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_in_which_budgets_are_written_does_not_matter(drawn: Case, rng: random.Random) -> None:
    keys = list(drawn.max_memory)
    rng.shuffle(keys)
    shuffled = Case(drawn.model, {key: drawn.max_memory[key] for key in keys}, drawn.kwargs)
    assert _plan(drawn) == _plan(shuffled)


@given(cases())
def test_the_same_problem_has_the_same_answer(drawn: Case) -> None:
    assert _plan(drawn) == _plan(drawn)


@given(cases())
def test_a_reservation_only_if_offloaded_leaves_either_nothing_offloaded_or_the_same_as_always(
    drawn: Case,
) -> None:
    """Pass 1 stands unless something is on cpu or disk (on disk, where there is no accelerator); then it is pass 2."""
    accelerators = [device for device in drawn.max_memory if isinstance(device, int)]
    offloaded = {"cpu", "disk"} if accelerators else {"disk"}
    try:
        always = planner.infer_auto_device_map(drawn.model, drawn.max_memory, **drawn.kwargs)
        lenient = planner.infer_auto_device_map(
            drawn.model, drawn.max_memory, **drawn.kwargs, reserve="if_offloaded"
        )
    except planner.InfeasibleError:
        assert "disk" in drawn.max_memory
        return
    assert faults_in(drawn.model, lenient, drawn.max_memory, **judged(drawn)) is None
    if set(lenient.values()) & offloaded:
        assert list(lenient.items()) == list(always.items())


def test_a_reservation_only_if_offloaded_avoids_spills_in_many_cases() -> None:
    avoided = 0
    for seed in range(400):
        drawn = case(Random(seed))
        if any(isinstance(device, int) for device in drawn.max_memory) and "disk" not in drawn.max_memory:
            always, lenient = (
                planner.infer_auto_device_map(drawn.model, drawn.max_memory, **drawn.kwargs, reserve=reserve)
                for reserve in ("always", "if_offloaded")
            )
            avoided += bool(set(always.values()) & {"cpu", "disk"}) and not set(lenient.values()) & {
                "cpu",
                "disk",
            }
    assert avoided >= 8


@given(cases())
def test_the_clean_result_says_the_same_in_fewer_keys(drawn: Case) -> None:
    kwargs = {name: value for name, value in drawn.kwargs.items() if name != "clean_result"}
    try:
        fine = planner.infer_auto_device_map(drawn.model, drawn.max_memory, **kwargs, clean_result=False)
    except planner.InfeasibleError:
        return
    clean = planner.infer_auto_device_map(drawn.model, drawn.max_memory, **kwargs)
    assert len(clean) <= len(fine)
    assert list(clean.items()) == list(planner.clean_device_map(fine).items())


# Notices


def notices(plan: Callable[..., Any], drawn: Case) -> list[str]:
    return said(plan, drawn.model, dict(drawn.max_memory), **drawn.kwargs)


@given(cases())
def test_where_accelerate_binds_the_notices_are_its_own(drawn: Case) -> None:
    """The numbers of bytes required for devices left empty, the warning about buffers; silence where it is silent."""
    assert_same_notices(drawn)


def assert_same_notices(drawn: Case) -> int:
    if not accelerate_answer(drawn.model, drawn.max_memory, **drawn.kwargs).binding or not _is_counted_right(
        drawn
    ):
        return 0
    theirs = [_plain(notice) for notice in notices(ordered.infer_auto_device_map, drawn)]
    if theirs != [_plain(notice) for notice in notices(repaired.infer_auto_device_map, drawn)]:
        return 0  # the right map, but numbers that come from the substring test
    ours = [_plain(notice) for notice in notices(planner.infer_auto_device_map, drawn)]
    assert [text for text in ours if not _is_about_minimum(text)] == [
        text for text in theirs if not _is_about_minimum(text)
    ]
    assert_right_minimums(drawn, _minimums(ours), _minimums(theirs))
    return len(theirs)


def _is_about_minimum(notice: str) -> bool:
    return "bytes required" in notice


def _minimums(found: list[str]) -> dict[str, str]:
    """The report of minimum memory: device to number, in words."""
    return dict(re.findall(r"^  - (\S+): (\S+) bytes required$", "\n".join(found), re.MULTILINE))


def assert_right_minimums(drawn: Case, ours: dict[str, str], theirs: dict[str, str]) -> None:
    """accelerate's numbers where they are the least with which a device gets a byte; a right one where they are not."""
    assert set(ours) <= set(theirs)
    for device, number in theirs.items():
        if ours.get(device) != number:
            assert not _is_least(drawn, device, float(number)), (device, number, ours)
    for device, number in ours.items():
        assert theirs[device] == number or _is_least(drawn, device, float(number)), (device, number)


def _is_least(drawn: Case, device: str, number: float) -> bool:
    key = int(device) if device.isdigit() else device
    tensors = {
        name: size
        for name, _, size in planned_tensors(
            drawn.model, drawn.kwargs.get("dtype"), drawn.kwargs.get("special_dtypes") or {}
        )
        if size
    }

    def gets_a_byte(size: float) -> bool:
        try:
            placed = planner.infer_auto_device_map(
                drawn.model, {**drawn.max_memory, key: size}, **drawn.kwargs
            )
        except planner.InfeasibleError:
            return False
        return any(device_of(placed, name) == key for name in tensors)

    return number.is_integer() and gets_a_byte(number) and not any(map(gets_a_byte, range(int(number))))


def device_of(device_map: dict[str, Any], name: str) -> Any:
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


def _is_counted_right(drawn: Case) -> bool:
    """Whether accelerate's bytes are the true ones: it takes a bool for an eighth of a byte, overlooks an upcast, and
    counts a shared buffer for one of its modules only."""
    dtypes = {name: drawn.kwargs.get(name) for name in ("dtype", "special_dtypes")}
    tensors = planned_tensors(drawn.model, dtypes["dtype"], dtypes["special_dtypes"] or {})
    sizes = {identity: size for _, identity, size in tensors}
    total = ordered.compute_module_sizes(drawn.model, **dtypes)[""]
    return bool(total == sum(sizes.values())) and "shared buffers" not in features(drawn)


def _plain(notice: str) -> str:
    """accelerate's float sums print as 12.0 where ours print 12."""
    return re.sub(r"(\d)\.0\b", r"\1", notice)


def test_notices_are_the_same_over_seeded_cases_and_many_are_given() -> None:
    heard_of = 0
    for seed in range(200):
        drawn = case(Random(seed))
        try:
            heard_of += assert_same_notices(drawn)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n{drawn}") from error
    assert heard_of >= 50


def _plan(drawn: Case) -> list[tuple[str, Any]] | str:
    try:
        return list(planner.infer_auto_device_map(drawn.model, drawn.max_memory, **drawn.kwargs).items())
    except planner.InfeasibleError as error:
        return str(error)
