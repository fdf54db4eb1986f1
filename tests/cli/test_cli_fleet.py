"""`planner plan --budgets`: one line of budgets, one line of answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import planner
from command_line import Command, llama_bytes

ROWS = [{"0": "64KiB"}, {"0": "1KiB"}, {"0": "3000B", "1": "2000B", "cpu": "1MiB"}]


def write_rows(rows: list[Any], name: str = "rows.jsonl") -> str:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return name


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_gets_the_plan_that_it_gets_alone(command: Command, llama: str) -> None:
    done = command("plan", llama, "--budgets", write_rows(ROWS), "--pin", "lm_head=0")
    lines = lines_of(done.stdout)
    assert done.exit_code == 1
    assert done.stderr == ""
    assert [line["row"] for line in lines] == [1, 2, 3]
    assert [line["feasible"] for line in lines] == [True, False, True]
    for row, line in zip(ROWS, lines, strict=True):
        if line["feasible"]:
            alone = planner.plan(llama, max_memory=row, pin={"lm_head": 0})
            assert planner.Plan.from_json(json.dumps(line["plan"])).device_map == alone.device_map
    assert lines[1]["error"]["fields"]["more_bytes"]["0"] == llama_bytes() - 1024
    assert lines[2]["budgets"] == {"0": 3000, "1": 2000, "cpu": 1 << 20}


def test_the_exit_code_is_zero_when_every_row_has_a_plan(command: Command, llama: str) -> None:
    assert command("plan", llama, "--budgets", write_rows([ROWS[0]] * 600)).exit_code == 0


def test_a_file_without_budgets_is_no_success(command: Command, llama: str) -> None:
    done = command("plan", llama, "--budgets", write_rows([]))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no budgets" in done.stderr


def test_rows_come_from_standard_input_and_go_to_a_file(command: Command, llama: str) -> None:
    done = command(
        "plan", llama, "--budgets", "-", "-o", "plans.jsonl", stdin='{"0": "64KiB"}\n\n{"0": "5B"}\n'
    )
    assert (done.exit_code, done.stdout) == (1, "")
    assert [line["feasible"] for line in lines_of(Path("plans.jsonl").read_text())] == [True, False]


def test_a_strategy_without_a_search_plans_rows_too(command: Command, llama: str) -> None:
    done = command("plan", llama, "--budgets", write_rows(ROWS), "--set", "strategy=sequential")
    assert len(lines_of(done.stdout)) == 3


BAD = [
    "{",
    "[]",
    "{}",
    "7",
    '{"0": -1}',
    '{"moon": 1}',
    '{"0": "5 parsecs"}',
    '{"0": 1, "cuda:0": 2}',
    '{"0": 1, "0": 2}',
]


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named_and_nothing_is_planned(command: Command, llama: str, line: str) -> None:
    Path("rows.jsonl").write_text(f'{{"0": "64KiB"}}\n{line}\n')
    done = command("plan", llama, "--budgets", "rows.jsonl")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "rows.jsonl, line 2" in done.stderr


@pytest.mark.parametrize("options", [("-d", "0=1"), ("--html", "x.html")])
def test_options_for_one_plan_are_refused(command: Command, llama: str, options: tuple[str, str]) -> None:
    done = command("plan", llama, "--budgets", write_rows(ROWS), *options)
    assert done.exit_code == 2
    assert "--budgets" in done.stderr
