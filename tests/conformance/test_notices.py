"""What is said and when: devices left empty, homeless buffers, absent devices, weights not tied. And silence otherwise."""

from __future__ import annotations

import logging
from typing import Any

import accelerate.utils.modeling as accelerate
import pytest
import transformers.integrations.accelerate as transformers
from conformance_trees import Blk, Leaf, buffer, root, tie
from torch import nn

import planner
from oracle.listening import said
from planner.compat import transformers as ours_for_transformers

PLANS = {
    "accelerate": (planner.infer_auto_device_map, accelerate.infer_auto_device_map),
    "transformers": (ours_for_transformers.infer_auto_device_map, transformers.infer_auto_device_map),
}
ours_in_both = pytest.mark.parametrize("plan", [pair[0] for pair in PLANS.values()], ids=list(PLANS))
in_both = pytest.mark.parametrize("pair", PLANS.values(), ids=list(PLANS))


def blocks() -> nn.Module:
    """2, 1 and 3 bytes."""
    return root(A=Leaf(2), B=Leaf(1), C=Leaf(3))


# Silence


@in_both
@pytest.mark.parametrize(
    "budgets",
    [{0: 6}, {0: 5, "cpu": 6}, {0: 2 + 3, 1: 4}, {"cpu": 100}, {0: 100, 1: 100, "cpu": 100}],
)
def test_a_happy_path_is_silent(pair: Any, budgets: dict[Any, int]) -> None:
    ours, theirs = pair
    assert said(ours, blocks(), budgets) == []
    assert said(theirs, blocks(), dict(budgets)) == []


def test_a_happy_fallback_is_silent() -> None:
    plan = planner.infer_auto_device_map
    assert said(plan, blocks(), {0: 4, "cpu": 6}, fallback_allocation=True) == []


def test_the_smaller_functions_are_silent() -> None:
    model = blocks()
    assert said(planner.get_balanced_memory, model, {0: 10, 1: 10, "cpu": 10}) == []
    assert said(planner.compute_module_sizes, model) == []
    assert said(planner.check_device_map, model, {"": 0}) == []
    assert said(planner.convert_file_size_to_int, "10GB") == []


# Devices that got no module


@in_both
def test_a_device_left_empty_is_reported_with_what_it_would_have_needed(pair: Any) -> None:
    """A and the largest layer: 2 + 3."""
    ours, theirs = pair
    found = said(ours, blocks(), {0: 4, "cpu": 100})
    assert found == said(theirs, blocks(), {0: 4, "cpu": 100})
    (text,) = found
    assert text.startswith("INFO ")
    assert "insufficient memory" in text
    assert "\n  - 0: 5 bytes required\n" in text


@in_both
def test_only_the_first_accelerator_and_the_cpu_add_the_reservation(pair: Any) -> None:
    ours, theirs = pair
    budgets = {0: 4, 1: 1, "cpu": 3}
    found = said(ours, blocks(), budgets)
    assert found == said(theirs, blocks(), dict(budgets))
    lines = [line for line in found[0].splitlines() if line.startswith("  - ")]
    assert lines == ["  - 0: 5 bytes required", "  - 1: 2 bytes required", "  - cpu: 5 bytes required"]


@in_both
def test_ties_are_part_of_what_a_device_would_have_needed(pair: Any) -> None:
    """A (2), with D (2 of its own beside A's): 4, and the largest layer, C: 3."""
    ours, theirs = pair

    def model() -> nn.Module:
        model = blocks()
        model.D = Blk(2)
        model.D.l0.v = Leaf(2).w
        return tie(model, D__l0__v="A.w")

    found = said(ours, model(), {0: 4, "cpu": 100}, {"Blk"})
    assert found == said(theirs, model(), {0: 4, "cpu": 100}, {"Blk"})
    assert "  - 0: 7 bytes required" in found[0]


@ours_in_both
def test_a_device_that_got_a_module_is_not_reported(plan: Any) -> None:
    (text,) = said(plan, blocks(), {0: 5, 1: 0, 2: 100, "cpu": 100})
    assert [line for line in text.splitlines() if line.startswith("  - ")] == ["  - 1: 1 bytes required"]


def test_the_notice_comes_from_the_pass_that_is_returned() -> None:
    plan = planner.infer_auto_device_map
    assert said(plan, blocks(), {0: 4, 1: 10, "cpu": 6}, reserve="if_offloaded") == []
    second = said(plan, blocks(), {0: 4, "cpu": 6}, reserve="if_offloaded")
    assert second == said(plan, blocks(), {0: 4, "cpu": 6})
    assert "  - 0: 5 bytes required" in second[0]


def test_the_notice_is_logged_below_planner_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    planner.infer_auto_device_map(blocks(), {0: 4, "cpu": 100})
    assert capsys.readouterr().out == ""


# Buffers of offloaded modules


def buffered() -> nn.Module:
    model = root(a=Leaf(100), b=Leaf(100), c=Leaf(120))
    model.b.register_buffer("mask", buffer(50))
    return model


@in_both
def test_buffers_of_offloaded_modules_that_fit_nowhere_are_warned_of(pair: Any) -> None:
    """b (150) is offloaded; a (100) and the reservation (c, 120) leave no room for its buffer (50) in 250."""
    ours, theirs = pair
    found = said(ours, buffered(), {0: 250, "cpu": 1000})
    assert found == said(theirs, buffered(), {0: 250, "cpu": 1000})
    (text,) = found
    assert text.partition(" ")[2].startswith("Current model requires 50 bytes of buffer for offloaded layers")


@in_both
def test_buffers_that_fit_or_are_offloaded_too_are_not_warned_of(pair: Any) -> None:
    for plan in pair:
        assert said(plan, buffered(), {0: 250, "cpu": 1000}, offload_buffers=True) == []
        assert said(plan, buffered(), {"cpu": 1000}) == []
    roomy = {0: 100, 1: 60, "cpu": 1000}
    assert said(pair[0], buffered(), roomy) == said(pair[1], buffered(), dict(roomy))


def test_the_warning_about_buffers_is_a_warning_in_accelerates_dialect() -> None:
    with pytest.warns(UserWarning, match="bytes of buffer for offloaded layers") as caught:
        planner.infer_auto_device_map(buffered(), {0: 250, "cpu": 1000})
    assert caught[0].filename == __file__, "it points to the caller"


# Devices that are not there


@ours_in_both
def test_an_absent_accelerator_is_logged(caplog: pytest.LogCaptureFixture, plan: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="planner"):
        plan(blocks(), {99: 1000})
    assert [record.getMessage() for record in caplog.records if "99" in record.getMessage()]
    assert all(record.name.startswith("planner") for record in caplog.records)


# Weights that are not tied though the config says so


class PreTrainedModel(nn.Module):
    """As far as accelerate looks: the name of a base class, a config, output embeddings."""

    class config:
        tie_word_embeddings = True

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = Leaf(4), Leaf(4)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_weights_that_are_not_tied_are_warned_of_as_accelerate_does() -> None:
    found = said(planner.infer_auto_device_map, PreTrainedModel(), {0: 100})
    assert found == said(accelerate.infer_auto_device_map, PreTrainedModel(), {0: 100})
    assert "The model weights are not tied" in found[0]


def test_weights_that_are_tied_are_not_warned_of() -> None:
    model = PreTrainedModel()
    model.head.w = model.embed.w
    assert said(planner.infer_auto_device_map, model, {0: 100}) == []


@pytest.mark.parametrize("tied", [True, False])
def test_whether_a_config_asks_for_ties_is_accelerates_answer(tied: bool) -> None:
    model = PreTrainedModel()
    model.config = type("config", (), {"tie_word_embeddings": tied})  # type: ignore[misc]
    assert planner.check_tied_parameters_in_config(model) is tied
    assert bool(accelerate.check_tied_parameters_in_config(model)) is tied


# Verbose


def test_verbose_prints_every_placement(capsys: pytest.CaptureFixture[str]) -> None:
    placed = planner.infer_auto_device_map(blocks(), {0: 5, 1: 100}, verbose=True, clean_result=False)
    printed = capsys.readouterr().out.splitlines()
    assert all(
        any(line.startswith(f"Putting {name} on {device}") for line in printed)
        for name, device in placed.items()
    )


def test_without_verbose_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    planner.infer_auto_device_map(blocks(), {0: 5, 1: 100})
    captured = capsys.readouterr()
    assert captured.out == ""
