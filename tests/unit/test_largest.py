"""Asking back: where the search begins, what limits it, and what is wrong with a question."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import InfeasibleError, InvalidInputError, PlannerError
from planner.planning.guessing import Guess
from planner.plans.plan import Plan
from tiny_models import SIZES, built

SMALL: dict[Any, int] = {0: 600_000}
FREE: Any = {"allocator_margin": 0}
SHORT: Any = {"context_length": 8, **FREE}
LONG: Any = {"prompt_length": 2000, **FREE}


def test_the_guess_is_the_answer() -> None:
    """So that two plans are made: of the value, and of the next one."""
    found = planner.largest(built("llama"), "context_length", max_memory=SMALL, workload=FREE)
    assert (found.limit, found.tried) == ("proven", 2)


@pytest.mark.parametrize("guess", [None, 0, 20])
def test_a_guess_that_is_wrong_changes_nothing(monkeypatch: pytest.MonkeyPatch, guess: int | None) -> None:
    right = planner.largest(built("gpt2"), "batch_size", max_memory=SMALL, workload=SHORT)
    monkeypatch.setattr(Guess, "between", lambda *_: guess)
    again = planner.largest(built("gpt2"), "batch_size", max_memory=SMALL, workload=SHORT)
    assert (again.value, again.plan, again.limit) == (right.value, right.plan, right.limit)
    assert again.tried > right.tried == 2


def test_where_nothing_was_recorded_formulas_tell() -> None:
    model: Any = built("llama")
    planner.dispatch(model, {"": "cpu"})
    found = planner.largest(model, "context_length", max_memory=SMALL, workload=FREE)
    assert found.plan.demands is not None and found.plan.demands.method == "formula"
    assert (found.limit, found.tried) == ("proven", 2)


def test_blocks_that_may_be_taken_apart_are_planned_one_by_one() -> None:
    found = planner.largest(
        built("gpt2"),
        "batch_size",
        max_memory=SMALL,
        upto=4,
        workload=SHORT,
        granularity="module",
    )
    assert (found.value, found.limit) == (4, "asked")


def test_a_prompt_is_part_of_the_context() -> None:
    """Wherever it was said."""
    settings: Any = {"max_memory": SMALL, "workload": {"prompt_length": 100, **FREE}}
    said, in_config = (
        planner.largest(built("llama"), "context_length", **each) for each in (settings, {"config": settings})
    )
    assert said.value == in_config.value > 100
    assert said.plan.settings["workload.prompt_length"].value == 100
    with pytest.raises(InfeasibleError):
        planner.largest(built("llama"), "context_length", max_memory=SMALL, workload=LONG)


@pytest.mark.parametrize(
    ("of", "asked", "words"),
    [
        ("batch_size", {"config": {"workload": {"batch_size": 4, "context_length": 8}}}, "leave it out"),
        ("context_length", {"workload": {"context_length": 8}}, "leave it out"),
        ("context_length", {"upto": True}, "upto must be"),
        ("context_length", {"upto": 0}, "upto must be"),
        ("context_length", {"upto": 1 << 31}, "upto must be"),
        ("context_length", {"upto": "4k"}, "upto must be"),
        ("context_length", {"upto": 10, "workload": {"prompt_length": 16}}, "16 tokens .* upto, 10"),
        ("context_length", {"workload": {"prompt_length": 4096}}, "4096 tokens .* made for, 2048"),
        ("batch_size", {}, "context_length"),
        ("batch_size", {"workload": 3}, "workload"),
        ("context_length", {"workload": {"tokens": 3}}, "tokens"),
        ("context_length", {"strategy": "balanced"}, "auto"),
        (["context_length"], {}, "finds"),
    ],
)
def test_what_is_wrong_with_a_question_is_told(of: Any, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(PlannerError, match=words):
        planner.largest(built("llama"), of, max_memory=SMALL, **asked)


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ([], "at least one"),
        ({"dtype": "float16"}, "a list of settings"),
        ("float16", "a list of settings"),
        (None, "a list of settings"),
        (["float16"], "each as a mapping"),
        ([{"kind": "float16"}], "kind"),
    ],
)
def test_settings_that_are_none_are_told(candidates: Any, words: str) -> None:
    with pytest.raises(PlannerError, match=words):
        planner.first_that_fits(built("llama"), candidates)


def test_the_first_element_type_that_fits() -> None:
    """Quantised ones, too; with a workload, whose cache they do not make smaller, and for which kernels unpack."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 128, "intermediate_size": 256}))
    work: Any = {"context_length": 32, **FREE}
    names = ("float32", "float16", "int8", "int4")

    def peak(dtype: str) -> int:
        return planner.plan(model, max_memory={0: 1 << 30}, dtype=dtype, workload=work).devices[0].peak_bytes

    needs = [peak(name) for name in names]
    assert len(set(needs)) == len(names)
    for room in needs:
        rows = [{"dtype": name, "max_memory": {0: room}, "workload": work} for name in names]
        found = planner.first_that_fits(model, rows)
        index = next(index for index, need in enumerate(needs) if need <= room)
        assert (found.index, found.settings["dtype"]) == (index, names[index])
    with pytest.raises(InfeasibleError):
        planner.first_that_fits(
            model, [{"dtype": name, "max_memory": {0: min(needs) - 1}, "workload": work} for name in names]
        )


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
def test_a_budget_that_is_enough_is_told_by_the_shortfall(name: str) -> None:
    model = built(name)
    work: Any = {"context_length": 48, **FREE}

    def planned(room: int) -> Plan:
        return planner.plan(model, max_memory={0: room, "cpu": 1 << 26}, headroom=None, workload=work)

    whole = planned(1 << 26).devices[0].peak_bytes
    short = planned(whole - 20_000)
    assert short.shortfall is not None
    more = short.shortfall.more_bytes[0]
    # Above it by what the replay has found for the placement that offloads: few bytes.
    assert 20_000 <= more < 20_100
    assert not sum(planned(whole - 20_000 + more).offloaded_bytes.values())
    assert sum(planned(whole - 1).offloaded_bytes.values())


def test_more_than_can_be_added_up_is_told() -> None:
    with pytest.raises(InvalidInputError, match="bytes with this workload"):
        planner.plan(built("llama"), max_memory={0: 1 << 30}, workload={"context_length": 1 << 50})
    with pytest.raises(InvalidInputError, match="bytes with this workload"):
        planner.plan(
            built("llama"),
            max_memory={0: 1 << 30},
            workload={"context_length": 1 << 20, "batch_size": 1 << 40},
        )
