"""The worked examples and the truth table of the thread that introduced the fallback (huggingface/accelerate#3066)."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_trees import Blk, Leaf, buffer, parameter, root, tie
from torch import nn

from oracle.judge import faults_in
from oracle.repaired_accelerate import accelerate_answer
from planner import compute_module_sizes, get_module_size_with_ties, infer_auto_device_map


def abc(a: int = 2) -> nn.Module:
    """Three unsplittable modules A, B, C of 2, 1 and 3 bytes."""
    return root(A=Leaf(a), B=Leaf(1), C=Leaf(3))


def plan(model: nn.Module, budgets: dict[Any, int], **options: Any) -> list[tuple[str, Any]]:
    return list(infer_auto_device_map(model, budgets, clean_result=False, **options).items())


def test_one_accelerator_default_sends_all_to_the_cpu() -> None:
    """A and the largest layer need 2 + 3 > 4."""
    assert plan(abc(), {0: 4, "cpu": 6}) == [("A", "cpu"), ("B", "cpu"), ("C", "cpu")]


def test_one_accelerator_with_the_fallback_places_b() -> None:
    """B and the largest layer need 1 + 3 = 4."""
    assert plan(abc(), {0: 4, "cpu": 6}, fallback_allocation=True) == [("B", 0), ("A", "cpu"), ("C", "cpu")]


def test_one_accelerator_in_two_passes_is_the_second_pass_as_not_all_fits() -> None:
    for fallback in (False, True):
        two = plan(abc(), {0: 4, "cpu": 6}, reserve="if_offloaded", fallback_allocation=fallback)
        assert two == plan(abc(), {0: 4, "cpu": 6}, fallback_allocation=fallback)


def test_two_accelerators_default_leaves_the_first_empty() -> None:
    assert plan(abc(), {0: 4, 1: 10, "cpu": 6}) == [("A", 1), ("B", 1), ("C", 1)]


def test_two_accelerators_in_two_passes_reserve_nothing() -> None:
    assert plan(abc(), {0: 4, 1: 10, "cpu": 6}, reserve="if_offloaded") == [("A", 0), ("B", 0), ("C", 1)]


def test_a_larger_a_default_leaves_the_first_empty() -> None:
    assert plan(abc(5), {0: 4, 1: 10, "cpu": 6}) == [("A", 1), ("B", 1), ("C", 1)]


def test_a_larger_a_in_two_passes_goes_on_to_the_next_device() -> None:
    assert plan(abc(5), {0: 4, 1: 10, "cpu": 6}, reserve="if_offloaded") == [("A", 1), ("B", 1), ("C", 1)]


def test_a_larger_a_in_two_passes_with_the_fallback_goes_on_filling() -> None:
    two = plan(abc(5), {0: 4, 1: 10, "cpu": 6}, reserve="if_offloaded", fallback_allocation=True)
    assert dict(two) == {"B": 0, "C": 0, "A": 1}


# The truth table: a module M on accelerator 1, where nothing is reserved, tied to T. Accelerator 0 has no room, and
# `first` (1 byte) is what leaves it, so that M is met whole. M is its own bytes and the shared ones; T adds its own.


def tied_pair(m_own: tuple[int, ...], t_own: tuple[int, ...], shared: int) -> nn.Module:
    """M and T: blocks whose first child holds the shared parameter beside its own bytes."""
    model = root(first=Leaf(1), M=Blk(*m_own), T=Blk(*t_own))
    model.M.l0.shared = parameter(shared)
    model.T.l0.shared = parameter(shared)
    return tie(model, T__l0__shared="M.l0.shared")


def checked_plan(model: nn.Module, budgets: dict[Any, int], **options: Any) -> dict[str, Any]:
    """Ours without `first`, after it has been found valid and, where accelerate binds, identical."""
    ours = plan(model, budgets, **options)
    no_split = options.get("no_split_module_classes", ())
    assert faults_in(model, dict(ours), budgets, no_split_module_classes=no_split) is None
    answer = accelerate_answer(model, budgets, clean_result=False, **options)
    if answer.binding:
        assert ours == list((answer.device_map or {}).items())
    return {name: device for name, device in ours if name != "first"}


def room(size_bytes: int, more: int | None = None) -> dict[Any, int]:
    """So many bytes for M and T on accelerator 1, and perhaps on 2."""
    return {0: 0, 1: 1 + size_bytes, **({} if more is None else {2: more}), "cpu": 1000}


M, T, SHARED = (10, 10), (10, 10), 20  # M is 40 bytes, T adds 20, together 60


def test_row_1_module_ties_and_total_fit_allocate() -> None:
    assert checked_plan(tied_pair(M, T, SHARED), room(60)) == {"M": 1, "T": 1}


def test_row_2_module_and_ties_fit_but_not_the_total_split_the_tied_module() -> None:
    """Of T, only l0 is tied: it goes with M, l1 does not."""
    assert checked_plan(tied_pair(M, T, SHARED), room(59)) == {"M": 1, "T.l0": 1, "T.l1": "cpu"}


def test_row_4_module_fits_neither_ties_nor_total_split_the_tied_module() -> None:
    """T (110 bytes) is larger than the budget: split all the same."""
    placed = checked_plan(tied_pair(M, (10, 80), SHARED), room(55))
    assert placed == {"M": 1, "T.l0": 1, "T.l1": "cpu"}


def test_row_6_only_the_ties_fit_split_the_current_module() -> None:
    """M is 100 bytes, T adds 10: M.l0 (30 bytes) and T go to 1."""
    placed = checked_plan(tied_pair((10, 70), (10,), SHARED), room(40))
    assert placed == {"M.l0": 1, "T": 1, "M.l1": "cpu"}


def test_row_8_nothing_fits_split_the_current_module() -> None:
    """First M, then, as M.l0 fits but not with T, T too."""
    placed = checked_plan(tied_pair((10, 70), (10, 80), SHARED), room(40))
    assert placed == {"M.l0": 1, "T.l0": 1, "M.l1": "cpu", "T.l1": "cpu"}


@pytest.mark.parametrize("m_own", [(10, 10), (0,), (10, 70)])
@pytest.mark.parametrize("t_own", [(10, 10), (0,), (10, 80)])
def test_rows_3_5_and_7_cannot_happen_as_the_total_is_never_smaller_than_its_parts(
    m_own: tuple[int, ...], t_own: tuple[int, ...]
) -> None:
    model = tied_pair(m_own, t_own, SHARED)
    sizes = compute_module_sizes(model)
    total, names, _ = get_module_size_with_ties(
        ["T.l0.shared"], sizes["M"], sizes, list(model.named_children())
    )
    assert names == ["T"]
    assert total == sum(m_own) + sum(t_own) + SHARED >= max(sum(m_own), sum(t_own)) + SHARED


def test_no_split_possible_the_fallback_comes_next() -> None:
    """M and T are unsplittable, and with the largest layer after M need 60 + 20 > 79; X fits, as 15 + 60 <= 79."""
    for fallback, expected in ((False, "cpu"), (True, 0)):
        model = tied_pair(M, T, SHARED)
        del model.first
        model.X = Leaf(15)
        placed = checked_plan(
            model, {0: 79, "cpu": 1000}, no_split_module_classes=["Blk"], fallback_allocation=fallback
        )
        assert placed == {"M": "cpu", "T": "cpu", "X": expected}


def test_no_split_and_no_fallback_the_next_device_comes_next() -> None:
    placed = checked_plan(tied_pair(M, T, SHARED), room(59, more=60), no_split_module_classes=["Blk"])
    assert placed == {"M": 2, "T": 2}


def test_a_module_that_fits_exactly_but_not_with_its_unsplittable_tie_is_split() -> None:
    """`used + size >= available` splits even a module that fits, where the tied one cannot be split."""
    placed = checked_plan(unsplittable_tie(), room(40, more=200), no_split_module_classes=["Whole"])
    assert placed == {"M.l0": 2, "T": 2, "M.l1": 2}
    one_more = checked_plan(unsplittable_tie(), room(41, more=200), no_split_module_classes=["Whole"])
    assert one_more == {"M": 2, "T": 2}, "with a byte to spare it stays whole and goes to the next device"


class Whole(Blk):
    pass


def unsplittable_tie() -> nn.Module:
    model = root(first=Leaf(1), M=Blk(10, 10), T=Whole(40))
    model.M.l0.shared = parameter(20)
    model.T.l0.shared = parameter(20)
    return tie(model, T__l0__shared="M.l0.shared")


@pytest.mark.parametrize(
    "budgets", [{0: n, 1: m, "cpu": 40} for n in range(0, 130, 5) for m in (0, 7, 20, 31)]
)
def test_without_the_fallback_all_is_as_before_the_fallback_existed(budgets: dict[Any, int]) -> None:
    checked_plan(tied_pair(M, T, SHARED), budgets)
    checked_plan(tied_pair((10, 70), (10, 80), SHARED), budgets, no_split_module_classes=["Leaf"])


def buffered_block(buffer_bytes: int = 1) -> nn.Module:
    """M: a child of 10 bytes and a direct buffer; after A, which is what is blocked."""
    model = root(A=Leaf(8), M=Blk(10))
    model.M.register_buffer("mask", buffer(buffer_bytes))
    return model


@pytest.mark.parametrize("room", range(30))
def test_the_fallback_takes_no_buffer_out_of_a_module_that_is_whole(room: int) -> None:
    """accelerate's search meets children and parameters of what it splits, and no buffers: all stays on the cpu."""
    budgets: dict[Any, int] = {0: room, "cpu": 1000}
    checked_plan(buffered_block(), budgets, fallback_allocation=True)
    if room == 11:  # the buffer alone would fit beside the largest layer
        placed = plan(buffered_block(), budgets, fallback_allocation=True)
        assert set(dict(placed).values()) == {"cpu"}
        assert accelerate_answer(buffered_block(), budgets, fallback_allocation=True).binding


def test_the_fallback_takes_a_buffer_that_stands_alone() -> None:
    """A buffer of the root is an entry of its own."""
    model = root(A=Leaf(8))
    model.register_buffer("mask", buffer(1))
    budgets: dict[Any, int] = {0: 9, "cpu": 1000}
    assert dict(checked_plan(model, budgets, fallback_allocation=True))["mask"] == 0
