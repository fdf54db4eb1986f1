"""Which layers stages have: from counts, from plans, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import planner
from pipelines.stage_models import family
from planner.pipelines.runs import stage_runs
from planner.pipelines.stage import prepare_stage


def test_counts_become_neighbouring_ranges() -> None:
    runs = stage_runs([3, 1, 5])
    assert [run.layers for run in runs] == [range(3), range(3, 4), range(4, 9)]
    assert [(run.is_first, run.is_last) for run in runs] == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize("counts", [(), (0, 3), (2, -1), (True, 2), (1.0, 2), 7, None, b"ab"], ids=repr)
def test_counts_that_are_none_are_refused(counts: object) -> None:
    with pytest.raises(planner.InvalidInputError, match="layers"):
        stage_runs(counts)  # type: ignore[arg-type]


def test_a_plan_and_its_file_give_the_same_stages(tmp_path: Path) -> None:
    saved = family("llama")
    plan = planner.plan(saved.model, max_memory={0: "90KB", 1: "110KB"})
    (tmp_path / "plan.json").write_text(plan.to_json())
    runs = stage_runs(plan)
    assert runs == stage_runs(tmp_path / "plan.json")
    assert [run.device for run in runs] == [0, 1]
    assert sum(len(run.layers) for run in runs) == 5


def test_stages_of_another_model_are_refused() -> None:
    with pytest.raises(planner.PlanMismatchError, match=r"8 layers together, and 'model.layers' .* has 5"):
        prepare_stage(family("llama").folder, stage_runs((3, 5)), 0)


def test_a_plan_that_offloads_is_no_pipeline_and_says_what_avoids_it() -> None:
    plan = planner.plan(family("llama").model, max_memory={0: "90KB", 1: "60KB", "cpu": "1MB"})
    with pytest.raises(
        planner.InvalidInputError, match=r"cannot be a pipeline: .* plan with engine='planner'"
    ):
        stage_runs(plan)
