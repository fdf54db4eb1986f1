"""Which layers stages have: from counts, from plans, and what is refused."""

from __future__ import annotations

import json
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


def placed(tmp_path: Path, **homes: int | str) -> Path:
    """A plan of five layers on devices 0 and 1, changed by hand; names have "__" for a dot."""
    saved = family("llama")
    data = json.loads(planner.plan(saved.model, max_memory={0: "1MB"}).to_json())
    names = [
        "model.embed_tokens",
        *(f"model.layers.{number}" for number in range(5)),
        "model.norm",
        "lm_head",
    ]
    places = {name: int(at > 2) for at, name in enumerate(names)}
    for name, home in homes.items():
        dotted = name.replace("__", ".")
        around = next((key for key in places if dotted.startswith(f"{key}.")), None)
        if around is not None:  # what was one block are two
            whole = places.pop(around)
            data["block_bytes"][f"{around}.self_attn"] = data["block_bytes"].pop(around)
            data["block_bytes"][dotted] = 1
            places[f"{around}.self_attn"] = whole
        places[dotted] = home  # type: ignore[assignment]
    order = sorted(places, key=lambda name: names.index(".".join(name.split(".")[:3])))
    data["device_map"] = {name: places[name] for name in order}
    data["execution_map"] = {name: 0 for name in order if places[name] in ("cpu", "disk")}
    data["block_bytes"] = {name: data["block_bytes"].get(name, 1) for name in order}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    return tmp_path / "plan.json"


def test_a_plan_that_was_changed_by_hand_is_read_as_it_says(tmp_path: Path) -> None:
    assert [run.layers for run in stage_runs(placed(tmp_path))] == [range(2), range(2, 5)]
    moved = placed(tmp_path, model__layers__2=0)
    assert [run.layers for run in stage_runs(moved)] == [range(3), range(3, 5)]


@pytest.mark.parametrize(
    ("homes", "said"),
    [
        ({"model__layers__4": 0}, "0"),
        ({"lm_head": 0}, "lm_head"),
        ({"model__norm": 0}, "model.norm"),
        ({"model__embed_tokens": 1}, "model.embed_tokens"),
        ({"model__layers__1": "cpu"}, "cpu"),
        ({"model__layers__3": "disk"}, "disk"),
        ({"model__layers__1__mlp": 1}, "layers.1"),
    ],
    ids=str,
)
def test_plans_that_no_pipeline_can_run_are_refused_by_what_is_in_the_way(
    tmp_path: Path, homes: dict[str, int | str], said: str
) -> None:
    with pytest.raises(planner.InvalidInputError) as caught:
        stage_runs(placed(tmp_path, **homes))
    assert said in caught.value.message and "engine='planner'" in caught.value.message


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "not JSON"])
def test_a_file_that_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(planner.InvalidInputError, match=r"plan\.json"):
        stage_runs(tmp_path / "plan.json")
    with pytest.raises(planner.InvalidInputError, match="absent"):
        stage_runs(tmp_path / "absent")
